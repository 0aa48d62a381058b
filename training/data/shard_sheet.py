"""Contact sheets of shards: what went into them, to be looked at before a training believes it."""

from __future__ import annotations

__all__ = ["shard_sheet"]

import cv2
import numpy as np

from hmr_prob_ros.skeleton import BONES, JOINT_NAMES, KEYPOINT_BONES, KEYPOINT_NAMES

from .shards import Shard

_TILE = 288
# RGB
_LEFT, _RIGHT, _MIDDLE = (60, 130, 255), (255, 140, 40), (220, 220, 220)
_MASK, _TRUE = (60, 230, 90), (255, 60, 200)


def _colour(name: str) -> tuple[int, int, int]:
    return _LEFT if name.startswith("left") else _RIGHT if name.startswith("right") else _MIDDLE


def shard_sheet(shard: Shard, count: int = 24, columns: int = 6) -> np.ndarray:
    """(H, W, 3) uint8 RGB: two tiles an example, evenly chosen.

    Left: the crop with the outline of the mask (green), the detected keypoints (left blue, right orange, a ring where
    the confidence is below a half) and the projected true joints (pink). Right: samples of the heatmaps as dots, of
    points whose heatmap peaks above 0.05.
    """
    rows = np.linspace(0, len(shard) - 1, min(count, len(shard))).round().astype(int)
    examples = shard.examples(rows)
    pictures = shard.pictures(rows) if shard.jpeg is not None else np.full((len(rows), 64, 64, 3), 60, np.uint8)
    tiles = []
    for i, row in enumerate(rows):
        one = {n: v.numpy() for n, v in vars(examples[i : i + 1]).items() if v is not None}
        one = {n: v[0] for n, v in one.items()}
        left = cv2.resize(pictures[i], (_TILE, _TILE), interpolation=cv2.INTER_LINEAR)
        right = (left * 0.45).astype(np.uint8)
        if "mask" in one:
            mask = cv2.resize(one["mask"].astype(np.uint8), (_TILE, _TILE), interpolation=cv2.INTER_NEAREST)
            for tile in (left, right):
                cv2.drawContours(tile, cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0], -1, _MASK, 1)
        _draw_joints(left, one)
        _draw_keypoints(left, one)
        _draw_samples(right, one)
        text = f"{row} {shard.take[row][-22:]}" + (" occluded" if one.get("occluded", False) else "")
        cv2.putText(left, text, (4, _TILE - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
        pair = np.concatenate([left, right], axis=1)
        tiles.append(cv2.copyMakeBorder(pair, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    while len(tiles) % columns and len(tiles) > columns:
        tiles.append(np.zeros_like(tiles[0]))
    columns = min(columns, len(tiles))
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def _at(points: np.ndarray) -> list[tuple[int, int]]:
    """Crop coordinates (..., 2) to whole pixels of a tile."""
    pixels = ((np.clip(points, -4, 4) + 1) / 2 * _TILE - 0.5).round().astype(int)
    return [(int(x), int(y)) for x, y in pixels]


def _draw_joints(tile: np.ndarray, one: dict[str, np.ndarray]) -> None:
    if "has_translation" in one and not one["has_translation"]:
        return
    joints, box = one["joints"], one["box"]
    points = _at((joints[:, :2] / np.maximum(joints[:, 2:], 0.05) - box[:2]) / (box[2] / 2))
    for a, b in BONES:
        cv2.line(tile, points[a], points[b], _TRUE, 1, cv2.LINE_AA)
    for point, name in zip(points, JOINT_NAMES, strict=True):
        cv2.drawMarker(tile, point, _colour(name), cv2.MARKER_CROSS, 5, 1)


def _draw_keypoints(tile: np.ndarray, one: dict[str, np.ndarray]) -> None:
    points, confidence = _at(one["keypoints"][:, :2]), one["keypoints"][:, 2]
    for a, b in KEYPOINT_BONES:
        if min(confidence[a], confidence[b]) >= 0.3:
            cv2.line(tile, points[a], points[b], (255, 255, 255), 1, cv2.LINE_AA)
    for point, sure, name in zip(points, confidence, KEYPOINT_NAMES, strict=True):
        if sure > 0:
            cv2.circle(tile, point, 4, _colour(name), -1 if sure >= 0.5 else 1, cv2.LINE_AA)


def _draw_samples(tile: np.ndarray, one: dict[str, np.ndarray]) -> None:
    if "heatmap" not in one:
        return
    for k, name in enumerate(KEYPOINT_NAMES):
        if one["heatmap_peak"][k] >= 0.05:
            for point in _at(one["heatmap"][:, k]):
                cv2.circle(tile, point, 1, _colour(name), -1)
