r"""What a 2D detector's heatmap says beyond its maximum: samples, peaks and refined maxima.

A heatmap is a picture of where a keypoint may be. Samples drawn from it are the target of the MMD loss (Wehrbein et al.
2025), and its maximum tells how sure the detector is. Points here are **cells**: cell ``i`` reaches from ``i - 1/2`` to
``i + 1/2`` along an axis, so the middle of the first cell is 0. ``heatmap_detectors`` brings them to pixels.
"""

from __future__ import annotations

__all__ = [
    "FLOOR",
    "SAMPLES",
    "Detection",
    "HeatmapError",
    "complete",
    "decode",
    "decode_simcc",
    "sample",
    "sample_simcc",
]

from dataclasses import dataclass

import cv2
import numpy as np

from hmr_prob_ros.detectors.keypoints import LAYOUTS, to_keypoints
from hmr_prob_ros.skeleton import KEYPOINT_NAMES, NUM_KEYPOINTS

SAMPLES = 25
"""T, samples drawn for each keypoint, as many as the MMD loss of the paper compares."""

FLOOR = 0.05
"""Cells below this value hold no probability: the network's ripples would else draw samples from everywhere."""

_BLUR = 11
"""Kernel in cells of the smoothing before a maximum is refined."""

_FALLBACK = {k: KEYPOINT_NAMES.index(name.split("_")[0] + "_ankle")
             for k, name in enumerate(KEYPOINT_NAMES) if name.endswith(("toe", "heel"))}  # fmt: skip


class HeatmapError(ValueError):
    """A heatmap, or the detector that should give one, cannot be used; the text names the mend."""


@dataclass(frozen=True)
class Detection:
    """What a detector says of one person.

    Args:
        keypoints: (23, 3) pixels (continuous, the image reaches from 0 to its width) and confidence in [0, 1].
        heatmap: (T, 23, 2) samples of the heatmaps in pixels; feet that a network lacks have their ankle's samples.
        peak: (23,) maxima of the heatmaps in [0, 1]; 0 for points that the network does not give.
    """

    keypoints: np.ndarray
    heatmap: np.ndarray
    peak: np.ndarray


def _checked(values: np.ndarray, what: str, axes: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    if values.ndim < axes or 0 in values.shape:
        raise HeatmapError(f"{what} have shape {values.shape}, but {axes} axes that are not empty are needed")
    if not np.isfinite(values).all():
        raise HeatmapError(f"{what} hold NaN or infinity: the network's input or weights are broken")
    return values


def _draw(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (R, count) into the rows of values (R, C), in proportion to what is not below the floor."""
    weights = np.where(values >= FLOOR, values, 0.0).astype(np.float64)
    empty = weights.sum(axis=1) == 0
    # Nothing above the floor: the maximum is all that is left.
    weights[empty, values[empty].argmax(axis=1)] = 1.0
    total = np.cumsum(weights, axis=1)
    drawn = rng.random((len(values), count)) * total[:, -1:]
    return np.stack([np.searchsorted(t, d, side="right") for t, d in zip(total, drawn, strict=True)])


def sample(heatmaps: np.ndarray, rng: np.random.Generator, count: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Samples of heatmaps: cells in proportion to their value, and a uniform place inside the cell.

    Args:
        heatmaps: (..., J, H, W); a peak is about 1 where the network is sure.
        rng: the same state gives the same samples.
        count: T.

    Returns:
        ``samples`` (..., T, J, 2) x, y in cells; ``peaks`` (..., J) maxima cut to [0, 1].

    Raises:
        HeatmapError: a heatmap is empty or not finite.

    Example:
        >>> samples, peaks = sample(np.eye(4)[None], np.random.default_rng(0))
        >>> samples.shape, peaks.tolist()
        ((25, 1, 2), [1.0])
    """
    heatmaps = _checked(heatmaps, "heatmaps", 3)
    *lead, joints, height, width = heatmaps.shape
    cells = _draw(heatmaps.reshape(-1, height * width), count, rng)
    points = np.stack([cells % width, cells // width], axis=-1) + rng.random((*cells.shape, 2)) - 0.5
    points = points.reshape(*lead, joints, count, 2).swapaxes(-3, -2).astype(np.float32)
    return points, heatmaps.max(axis=(-2, -1)).clip(0, 1)


def sample_simcc(
    along_x: np.ndarray, along_y: np.ndarray, rng: np.random.Generator, count: int = SAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of SimCC's two profiles (RTMPose; Li et al. 2022), which stand for the heatmap of their product.

    Args:
        along_x, along_y: (..., J, Wx) and (..., J, Wy) values; a peak is about 1 where the network is sure.

    Returns:
        ``samples`` (..., T, J, 2) x, y in cells of the profiles; ``peaks`` (..., J), the mean of both maxima as RTMPose
        takes it for its score, cut to [0, 1].
    """
    profiles = [_checked(values, "SimCC profiles", 2) for values in (along_x, along_y)]
    lead, joints = profiles[0].shape[:-2], profiles[0].shape[-2]
    if profiles[1].shape[:-1] != (*lead, joints):
        raise HeatmapError(f"SimCC profiles have shapes {profiles[0].shape} and {profiles[1].shape}: only W may differ")
    cells = np.stack([_draw(p.reshape(-1, p.shape[-1]), count, rng) for p in profiles], axis=-1)
    points = (cells + rng.random(cells.shape) - 0.5).reshape(*lead, joints, count, 2)
    peaks = (profiles[0].max(axis=-1) + profiles[1].max(axis=-1)) / 2
    return points.swapaxes(-3, -2).astype(np.float32), peaks.clip(0, 1)


def decode(heatmaps: np.ndarray) -> np.ndarray:
    """Maxima of heatmaps (J, H, W) between the cells: (J, 3) x, y in cells and value.

    One Newton step on the logarithm of the smoothed heatmap, whose peak is about Gaussian (DARK, Zhang et al. 2020,
    equation 9; smoothing as in UDP, Huang et al. 2020): ``m - H^{-1} g`` with gradient g and Hessian H at the maximum
    m. The step ends within two cells, where a flat peak would send it far away.
    """
    heatmaps = _checked(heatmaps, "heatmaps", 3)
    joints, width = len(heatmaps), heatmaps.shape[2]
    best = heatmaps.reshape(joints, -1).argmax(axis=1)
    x, y = best % width, best // width
    smooth = np.stack([cv2.GaussianBlur(h, (_BLUR, _BLUR), 0) for h in heatmaps])
    log = np.pad(np.log(smooth.clip(1e-3, 50.0)), ((0, 0), (1, 1), (1, 1)), mode="edge").astype(np.float64)
    j = np.arange(joints)

    def at(dx: int, dy: int) -> np.ndarray:
        return log[j, y + 1 + dy, x + 1 + dx]

    gradient = np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], axis=-1) / 2
    xx, yy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    xy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    determinant = xx * yy - xy * xy
    peaked = (determinant > 1e-9) & (xx < 0)
    safe = np.where(peaked, determinant, 1.0)
    step = -np.stack([yy * gradient[:, 0] - xy * gradient[:, 1], xx * gradient[:, 1] - xy * gradient[:, 0]], axis=-1)
    step = np.where(peaked[:, None], step / safe[:, None], 0.0).clip(-2, 2)
    value = heatmaps.reshape(joints, -1).max(axis=1)
    return np.column_stack([x + step[:, 0], y + step[:, 1], value.clip(0, 1)]).astype(np.float32)


def decode_simcc(along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
    """Maxima of SimCC profiles (J, Wx) and (J, Wy): (J, 3) x, y in cells and the mean of both values."""
    along_x, along_y = _checked(along_x, "SimCC profiles", 2), _checked(along_y, "SimCC profiles", 2)
    value = (along_x.max(axis=-1) + along_y.max(axis=-1)) / 2
    return np.column_stack([along_x.argmax(axis=-1), along_y.argmax(axis=-1), value.clip(0, 1)]).astype(np.float32)


def complete(points: np.ndarray, samples: np.ndarray, peaks: np.ndarray) -> Detection:
    """The 23 keypoints of another layout's points (k, 3), samples (T, k, 2) and peaks (k,), all in pixels.

    Raises:
        HeatmapError: no layout has k points.
    """
    if len(points) not in LAYOUTS:
        raise HeatmapError(f"the pose network gives {len(points)} points; known are {sorted(LAYOUTS)}")
    names = LAYOUTS[len(points)]
    source = [names.index(n) if n in names else -1 for n in KEYPOINT_NAMES]
    heatmap = np.zeros((len(samples), NUM_KEYPOINTS, 2), dtype=np.float32)
    peak = np.zeros(NUM_KEYPOINTS, dtype=np.float32)
    for k, s in enumerate(source):
        own = s if s >= 0 else source[_FALLBACK.get(k, k)]
        if own >= 0:
            heatmap[:, k] = samples[:, own]
        if s >= 0:
            peak[k] = peaks[s]
    return Detection(to_keypoints(points), heatmap, peak)
