"""One person in one picture, as a detector is shown it, and the training example that comes of it."""

from __future__ import annotations

__all__ = ["IMAGE_SIZE", "MASK_SIZE", "MIN_SEEN", "Sight", "crop_of", "observe"]

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from hmr_prob_ros.camera import CROP_CONFIDENCE, Camera, condition

from .heatmap_detectors import HeatmapDetector

IMAGE_SIZE = 224
"""Side of the stored crop in pixels: what the backbones of all three papers take."""

MASK_SIZE = 64
"""Side of the stored person mask."""

MIN_SEEN = 4
"""Fewest keypoints above the crop's confidence; with fewer there is nothing to lift."""

_QUALITY = 92
_FINE = 4  # mask samples along a cell's side


@dataclass(frozen=True)
class Sight:
    """A part of a camera's image with one person in it; the whole image need never exist.

    Args:
        image: (h, w, 3) uint8 RGB of the part, black where it reaches beyond the camera's image.
        origin: (2,) where the part's corner lies in the camera's image, pixels.
        scale: pixels of the part for one of the camera's.
        camera: of the whole image; pixels of all other fields are its.
        box: (4,) left, top, right, bottom: what a person detector would give.
        truth: the fields of ``Examples`` that are known, without the batch axis; ``true_keypoints`` (23, 3) in pixels.
        mask: (h, w) bool of the part, visible pixels of all people; None if unknown.
        occluded: an object hides a part of the person.
        index: row of the pose, or of the data set.
        take: the recording that it comes from.
    """

    image: np.ndarray
    origin: np.ndarray
    scale: float
    camera: Camera
    box: np.ndarray
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    mask: np.ndarray | None = None
    occluded: bool = False
    index: int = 0
    take: str = ""

    def local(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of the camera's image to pixels of the part; both count from the corner."""
        return (np.asarray(pixels) - self.origin) * self.scale

    def covers(self, low: np.ndarray, high: np.ndarray, tolerance: float = 0.02) -> bool:
        """Whether the part holds what lies between two corners (2,) and inside the camera's image."""
        size = np.array([self.camera.width, self.camera.height])
        slack = tolerance * (high - low).max()
        end = self.origin + np.array(self.image.shape[1::-1]) / self.scale
        return bool((np.maximum(low, 0) >= self.origin - slack).all() and (np.minimum(high, size) <= end + slack).all())


def crop_of(box: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Centre (2,) and half side (2,) in pixels of a model's crop (3,) in ray units, for a camera without distortion."""
    focal = np.array([camera.fx, camera.fy])
    return np.array(box[:2], dtype=np.float64) * focal + (camera.cx, camera.cy), float(box[2]) / 2 * focal


def _cut(image: np.ndarray, low: np.ndarray, high: np.ndarray, side: int, how: int) -> np.ndarray:
    """What lies between two corners (2,), side x side pixels; zero beyond the picture."""
    scale = side / (high - low)
    # From pixel corners to the pixel middles that OpenCV counts from.
    shift = (0.5 - low) * scale - 0.5
    return cv2.warpAffine(image, np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]]), (side, side), flags=how)


def _shrunk(image: np.ndarray, factor: float) -> tuple[np.ndarray, float]:
    """The picture at ``factor`` < 1 of its size, averaged, and the factor that its whole pixels allow for."""
    if factor > 0.75:
        return image, 1.0
    side = max(round(image.shape[1] * factor), 1)
    factor = side / image.shape[1]
    return cv2.resize(image, (side, max(round(image.shape[0] * factor), 1)), interpolation=cv2.INTER_AREA), factor


def observe(
    sight: Sight, detector: HeatmapDetector, rng: np.random.Generator, images: bool = True
) -> dict[str, Any] | None:
    """The example of a sight: what the detector says, and the crop that follows from it.

    Returns:
        Fields of ``Examples`` without the batch axis, as numpy arrays, ``jpeg`` (bytes) in place of ``image``, and
        ``take``; None if too little is seen, or the crop reaches beyond the part of the picture that is there.
    """
    camera = sight.camera
    seen = detector(sight.image, (sight.box.reshape(2, 2) - sight.origin).ravel() * sight.scale, rng)
    detected = seen.keypoints.copy()
    detected[:, :2] = detected[:, :2] / sight.scale + sight.origin
    heatmap = seen.heatmap / sight.scale + sight.origin
    given = condition(detected, camera)
    if given is None or (given[0][:, 2] >= CROP_CONFIDENCE).sum() < MIN_SEEN:
        return None
    keypoints, box = given
    centre, half = crop_of(box, camera)
    low, high = centre - half, centre + half
    if not sight.covers(low, high):
        return None
    row: dict[str, Any] = {
        **sight.truth,
        "keypoints": keypoints,
        "box": box,
        "detected": detected,
        "intrinsics": np.array([camera.fx, camera.fy, camera.cx, camera.cy], dtype=np.float32),
        "size": np.array([camera.width, camera.height], dtype=np.float32),
        "heatmap": ((heatmap - centre) / half).astype(np.float32),
        "heatmap_peak": seen.peak,
        "occluded": np.bool_(sight.occluded),
        "index": np.int64(sight.index),
        "take": sight.take,
    }
    if "true_keypoints" in row:
        points = row["true_keypoints"].astype(np.float32)
        local = ((points[:, :2] - centre) / half) * (points[:, 2:] > 0)
        row["true_keypoints"] = np.concatenate([local, points[:, 2:]], axis=1).astype(np.float32)
    low, high = sight.local(low), sight.local(high)
    if sight.mask is not None:
        fine = _cut(sight.mask.astype(np.uint8), low, high, MASK_SIZE * _FINE, cv2.INTER_NEAREST)
        share = fine.reshape(MASK_SIZE, _FINE, MASK_SIZE, _FINE).mean(axis=(1, 3))
        row["mask"] = share >= 0.5
    if images:
        small, factor = _shrunk(sight.image, float(IMAGE_SIZE / (high - low).max()))
        crop = _cut(small, low * factor, high * factor, IMAGE_SIZE, cv2.INTER_LINEAR)
        _, packed = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        row["jpeg"] = packed.tobytes()
    return row
