"""Cameras: intrinsics, distortion, rays, the crop around a person and CLIFF's box.

Everything that a model sees is written in **ray units**: the plane at depth one, ``(x/z, y/z)`` in the optical
frame (x right, y down, z forward), after the lens distortion is taken out. A crop in ray units is CLIFF's box
``(c_x, c_y, b) / f`` (Li et al. 2022, equation 7), whatever the focal length and the resolution.
"""

from __future__ import annotations

__all__ = ["Camera", "CameraError", "Crop", "condition", "crop_from_keypoints"]

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml

CROP_CONFIDENCE = 0.3
"""Keypoints below this confidence do not shape the crop: a detector's guesses would let it jump about."""

CROP_PADDING = 1.2
"""Side of the crop over the longer side of the box round the confident keypoints."""

MIN_CROP = 0.02
"""Smallest side of a crop in ray units (about 1 degree), so that a single far point never divides by zero."""

_MODELS = ("plumb_bob", "rational_polynomial", "equidistant")


class CameraError(ValueError):
    """The intrinsics cannot be used; the text says which number is wrong and how to mend it."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with ROS' distortion models.

    Args:
        width, height: image size in pixels.
        fx, fy, cx, cy: focal lengths and principal point in pixels.
        distortion: coefficients ``D`` of ``sensor_msgs/CameraInfo``.
        model: ``plumb_bob``, ``rational_polynomial`` or ``equidistant`` (fisheye).
        guessed: True when the focal length is a guess, so that metres may be scaled along the depth.

    Raises:
        CameraError: a number is not finite, a focal length or size is not positive, or the model is unknown.

    Example:
        >>> camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
        >>> camera.project(np.array([0.5, 0.0, 2.0])).tolist()
        [445.0, 240.0]
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    model: str = "plumb_bob"
    guessed: bool = False

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not all(math.isfinite(v) for v in numbers):
            raise CameraError(
                f"the camera intrinsics hold a number that is not finite: {numbers}; calibrate the camera again"
            )
        if self.fx <= 0 or self.fy <= 0:
            raise CameraError(
                f"the camera has no focal length (fx={self.fx}, fy={self.fy}): calibrate it, give a camera_info yaml, "
                "or leave the camera out to have the focal length guessed"
            )
        if self.width <= 0 or self.height <= 0:
            raise CameraError(f"the camera's image size {self.width}x{self.height} is not positive")
        if self.model not in _MODELS:
            raise CameraError(f"unknown distortion model {self.model!r}: use one of {', '.join(_MODELS)}")

    @classmethod
    def guess(cls, width: int, height: int) -> Camera:
        """A camera with focal length ``sqrt(W^2 + H^2)``, about 53 degrees across the diagonal (CLIFF, section 4)."""
        focal = math.hypot(width, height)
        return cls(width, height, focal, focal, width / 2, height / 2, guessed=True)

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_degrees: float) -> Camera:
        """A camera without distortion whose image is ``horizontal_degrees`` wide."""
        focal = 0.5 * width / math.tan(math.radians(horizontal_degrees) / 2)
        return cls(width, height, focal, focal, width / 2, height / 2)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Camera:
        """Read a ``camera_info`` yaml as ROS' camera_calibration writes it.

        Raises:
            CameraError: the file is missing, is not yaml, or lacks a field.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text())
            matrix = [float(v) for v in data["camera_matrix"]["data"]]
            distortion = tuple(float(v) for v in (data.get("distortion_coefficients") or {}).get("data", ()))
            return cls(
                int(data["image_width"]),
                int(data["image_height"]),
                matrix[0],
                matrix[4],
                matrix[2],
                matrix[5],
                distortion,
                data.get("distortion_model", "plumb_bob"),
            )
        except OSError as error:
            raise CameraError(f"cannot read the camera file {path}: {error.strerror}") from error
        except CameraError as error:
            raise CameraError(f"{path}: {error}") from error
        except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
            raise CameraError(
                f"{path} is not a camera_info yaml ({type(error).__name__}: {error}): it needs image_width, "
                "image_height, camera_matrix.data (9 numbers) and distortion_coefficients.data"
            ) from error

    @property
    def matrix(self) -> np.ndarray:
        """Intrinsic matrix K (3, 3)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    def scaled(self, width: int, height: int) -> Camera:
        """The same camera after its image was resized to ``width`` x ``height``."""
        sx, sy = width / self.width, height / self.height
        return Camera(
            width,
            height,
            self.fx * sx,
            self.fy * sy,
            self.cx * sx,
            self.cy * sy,
            self.distortion,
            self.model,
            self.guessed,
        )

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) to ray units (..., 2), distortion removed."""
        pixels = np.asarray(pixels, dtype=np.float64)
        if not any(self.distortion):
            return ((pixels - (self.cx, self.cy)) / (self.fx, self.fy)).astype(np.float32)
        flat = pixels.reshape(-1, 1, 2)
        coefficients = np.array(self.distortion)
        if self.model == "equidistant":
            rays = cv2.fisheye.undistortPoints(flat, self.matrix, coefficients[:4])
        else:
            rays = cv2.undistortPoints(flat, self.matrix, coefficients)
        return rays.reshape(pixels.shape).astype(np.float32)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in metres in the optical frame to pixels (..., 2), distortion included.

        Points closer than 1 cm to the camera's plane, or behind it, are moved to 1 cm in front of it.
        """
        points = np.asarray(points, dtype=np.float64)
        depth = np.maximum(points[..., 2:], 0.01)
        rays = points[..., :2] / depth
        if not any(self.distortion):
            return (rays * (self.fx, self.fy) + (self.cx, self.cy)).astype(np.float32)
        coefficients = np.array(self.distortion)
        flat = rays.reshape(-1, 1, 2)
        if self.model == "equidistant":
            pixels = cv2.fisheye.distortPoints(flat, self.matrix, coefficients[:4])
        else:
            homogeneous = np.concatenate([flat, np.ones_like(flat[..., :1])], axis=-1)
            pixels, _ = cv2.projectPoints(homogeneous, np.zeros(3), np.zeros(3), self.matrix, coefficients)
        return pixels.reshape(rays.shape).astype(np.float32)


class Crop(NamedTuple):
    """A square round a person in ray units: its centre and its side."""

    cx: float
    cy: float
    size: float


def crop_from_keypoints(rays: np.ndarray, confidence: np.ndarray) -> Crop | None:
    """The square crop round the confident keypoints of one person.

    The crop follows the keypoints and not the detector's box, so that it is the same for every detector.

    Args:
        rays: (23, 2) keypoints in ray units.
        confidence: (23,) in [0, 1].

    Returns:
        The crop, or None with fewer than two keypoints above ``CROP_CONFIDENCE``.
    """
    sure = confidence >= CROP_CONFIDENCE
    if np.count_nonzero(sure) < 2:
        return None
    low, high = rays[sure].min(axis=0), rays[sure].max(axis=0)
    centre = (low + high) / 2
    return Crop(float(centre[0]), float(centre[1]), max(float((high - low).max()) * CROP_PADDING, MIN_CROP))


def condition(keypoints: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray] | None:
    """What a model sees of one person: keypoints in its crop, and the crop.

    A keypoint outside the image was not seen, only guessed: its confidence becomes 0, and a keypoint with
    confidence 0 is moved to the middle of the crop, so that it carries nothing.

    Args:
        keypoints: (23, 3) pixels and confidence.
        camera: the intrinsics of the image.

    Returns:
        ``keypoints`` (23, 3) with x, y in [-1, 1] across the crop and confidence, ``box`` (3,) = (cx, cy, size)
        in ray units; or None when too little is seen to place a crop.
    """
    pixels, confidence = keypoints[:, :2], np.clip(keypoints[:, 2], 0.0, 1.0)
    inside = (
        np.isfinite(pixels).all(axis=1)
        & (pixels >= 0).all(axis=1)
        & (pixels < (camera.width, camera.height)).all(axis=1)
    )
    confidence = np.where(inside, confidence, 0.0)
    rays = camera.rays(np.where(inside[:, None], pixels, (camera.cx, camera.cy)))
    crop = crop_from_keypoints(rays, confidence)
    if crop is None:
        return None
    local = (rays - (crop.cx, crop.cy)) / (crop.size / 2)
    local = np.where(confidence[:, None] > 0, np.clip(local, -3.0, 3.0), 0.0)
    seen = np.concatenate([local, confidence[:, None]], axis=1).astype(np.float32)
    return seen, np.array(crop, dtype=np.float32)
