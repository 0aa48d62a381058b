"""Strokes that overlays are made of: colours of modes, skeletons, ellipses, labels; antialiased, to 1/16 pixel."""

from __future__ import annotations

__all__ = [
    "ELLIPSE_SIGMAS",
    "UNSEEN",
    "Ellipses",
    "blend",
    "draw_skeletons",
    "fixed",
    "label",
    "weight_colours",
]

import functools
import math

import cv2
import numpy as np

from .skeleton import BONES

ELLIPSE_SIGMAS = 1.515
"""Radius of the ellipses in standard deviations: 68 % of a normal distribution in the plane lie inside."""

UNSEEN = 0.3
"""Joints below this visibility are drawn as unseen."""

SEEN_EDGE = (222, 228, 235)
UNSEEN_FILL = (255, 96, 32)
KEYPOINT = (64, 220, 255)
PANEL, GRID, GRID_STRONG, TEXT, FAINT = (24, 26, 31), (46, 50, 58), (74, 80, 92), (225, 228, 232), (140, 146, 156)
FLOOR = (110, 150, 120)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
SHIFT = 4  # OpenCV draws at 1/16 pixel
NEAR = 0.15  # metres; what lies closer to the camera's plane, or behind it, is not drawn


@functools.lru_cache(maxsize=1)
def _plasma() -> np.ndarray:
    """The plasma map (256, 3) in RGB."""
    ramp = np.arange(256, dtype=np.uint8).reshape(-1, 1)
    return cv2.applyColorMap(ramp, cv2.COLORMAP_PLASMA).reshape(-1, 3)[:, ::-1].copy()


def weight_colours(weights: np.ndarray) -> np.ndarray:
    """RGB colours (n, 3) uint8 of modes by weight: brightness grows with the weight, on the plasma map.

    The scale is absolute, so that colours compare between people and frames; its argument is the cube root of the
    weight, since the ten modes of an uncertain person weigh about a tenth each.

    Example:
        >>> weight_colours(np.array([1.0, 0.1])).sum(axis=1).argmax()
        0
    """
    level = np.rint(255 * (0.12 + 0.84 * np.cbrt(np.clip(weights, 0, 1)))).astype(np.uint8)
    return _plasma()[level]


def fixed(points: np.ndarray, limit: float) -> np.ndarray:
    """Pixels as OpenCV's fixed-point integers; far away points are clipped, or its lines would wrap round."""
    points = np.nan_to_num(points, nan=-limit, posinf=limit, neginf=-limit)
    return np.rint(np.clip(points, -limit, limit) * (1 << SHIFT)).astype(np.int32)


class Ellipses:
    """Ellipses (``ELLIPSE_SIGMAS``) of planar normal distributions: means (J, 2), covariances (J, 2, 2) in pixels."""

    def __init__(self, means: np.ndarray, covariances: np.ndarray, size: tuple[int, ...]) -> None:
        limit = 2.0 * max(size[:2])
        values, vectors = np.linalg.eigh(np.nan_to_num(covariances))
        axes = np.clip(ELLIPSE_SIGMAS * np.sqrt(np.maximum(values, 0.0)), 0.5, limit)
        self._shown = (np.abs(means) < 2 * limit).all(axis=1).tolist()  # False for a NaN
        self._means, self._axes = fixed(means, 2 * limit).tolist(), fixed(axes[:, ::-1], limit).tolist()
        self._angles = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1])).tolist()

    def draw(self, image: np.ndarray, index: int, colour: tuple[int, ...], width: int) -> None:
        """Draw one of them; ``width`` -1 fills it."""
        if self._shown[index]:
            at, axes, angle = self._means[index], self._axes[index], self._angles[index]
            cv2.ellipse(image, at, axes, angle, 0, 360, colour, width, cv2.LINE_AA, SHIFT)


def draw_skeletons(
    colour: np.ndarray, alpha: np.ndarray, pixels: np.ndarray, shown: np.ndarray, weights: np.ndarray, thickness: float
) -> None:
    """Draw modes (n, 24, 2) into a colour layer and its opacity, the heaviest last and on top."""
    limit = 4.0 * max(colour.shape[:2])
    places, colours = fixed(pixels, limit), weight_colours(weights)
    for mode in np.argsort(weights, kind="stable"):
        root = math.sqrt(max(float(weights[mode]), 0.0))
        opacity, width = int(90 + 165 * min(1.0, 1.3 * root)), max(1, round(thickness * (0.45 + 0.75 * root)))
        bones = [np.array([places[mode, a], places[mode, b]]) for a, b in BONES if shown[mode, a] and shown[mode, b]]
        tint = tuple(int(c) for c in colours[mode])
        # The colour reaches one pixel beyond the antialiased edge, so that edges do not turn dark.
        cv2.polylines(colour, bones, False, tint, width + 2, cv2.LINE_8, SHIFT)
        cv2.polylines(alpha, bones, False, (opacity,), width, cv2.LINE_AA, SHIFT)


def blend(image: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """``image`` becomes colour where alpha (H, W) uint8 is 255, within the smallest box that holds any alpha."""
    x, y, w, h = cv2.boundingRect(alpha)
    if w == 0 or h == 0:
        return
    part = np.s_[y : y + h, x : x + w]
    weight = alpha[part].astype(np.float32) * (1 / 255)
    image[part] = cv2.blendLinear(
        np.ascontiguousarray(colour[part]), np.ascontiguousarray(image[part]), weight, 1 - weight
    )


def label(
    image: np.ndarray, text: str, at: tuple[float, float], scale: float, colour: tuple[int, ...], dark: bool = True
) -> None:
    """Write ``text`` with its lower left corner at a pixel, over a dark outline where the ground may be bright."""
    size = 0.42 * scale
    origin = (round(at[0]), round(at[1]))
    if dark:
        cv2.putText(image, text, origin, _FONT, size, (12, 12, 14), max(2, round(2.6 * scale)), cv2.LINE_AA)
    cv2.putText(image, text, origin, _FONT, size, colour, max(1, round(scale)), cv2.LINE_AA)
