"""Overlays: every mode's skeleton over the picture, uncertainty ellipses, a metric side view, the demo's frame.

Everywhere a mode has the colour of its weight (dark blue = unlikely, yellow = certain), so that a certain person is one
bright skeleton and an uncertain one a fan of dark ones. Images are RGB; sizes scale with the image.
"""

from __future__ import annotations

__all__ = [
    "ELLIPSE_SIGMAS",
    "UNSEEN",
    "compose",
    "draw_overlay",
    "draw_side_view",
    "project_covariance",
    "weight_colours",
]

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .camera import Camera
from .hypotheses import HypothesisSet
from .skeleton import PARENTS
from .strokes import (
    ELLIPSE_SIGMAS,
    FAINT,
    FLOOR,
    GRID,
    GRID_STRONG,
    KEYPOINT,
    NEAR,
    PANEL,
    SEEN_EDGE,
    SHIFT,
    TEXT,
    UNSEEN,
    UNSEEN_FILL,
    Ellipses,
    blend,
    draw_skeletons,
    fixed,
    label,
    weight_colours,
)

_DEPTHS = (5.0, 8.0, 12.0, 20.0, 30.0)  # few, so that the scale seldom jumps from frame to frame
_LEAVES = tuple(j for j in range(len(PARENTS)) if j not in PARENTS)


def project_covariance(points: np.ndarray, covariance: np.ndarray, camera: Camera) -> np.ndarray:
    r"""Covariances in metres to covariances in pixels, to first order: :math:`J \Sigma J^\top`.

    Args:
        points: (..., 3) means in metres in the optical frame; closer than 0.15 m they are moved to 0.15 m.
        covariance: (..., 3, 3) in square metres.
        camera: intrinsics; the Jacobian of a lens distortion is taken by central differences.

    Returns:
        (..., 2, 2) in square pixels.
    """
    points = np.array(points, dtype=np.float64)
    points[..., 2] = np.maximum(points[..., 2], NEAR)
    jacobian = np.zeros((*points.shape[:-1], 2, 3))
    if any(camera.distortion):
        step = 1e-3
        for axis in range(3):
            shift = np.zeros(3)
            shift[axis] = step
            difference = camera.project(points + shift).astype(np.float64) - camera.project(points - shift)
            jacobian[..., axis] = difference / (2 * step)
    else:
        depth = points[..., 2]
        jacobian[..., 0, 0], jacobian[..., 1, 1] = camera.fx / depth, camera.fy / depth
        jacobian[..., 0, 2] = -camera.fx * points[..., 0] / depth**2
        jacobian[..., 1, 2] = -camera.fy * points[..., 1] / depth**2
    return jacobian @ np.asarray(covariance, dtype=np.float64) @ np.swapaxes(jacobian, -1, -2)


def draw_overlay(image_rgb: np.ndarray, hypothesis_sets: Sequence[HypothesisSet], camera: Camera) -> np.ndarray:
    """The picture with every mode's skeleton, the joints' uncertainty and the detected keypoints.

    Lines: one skeleton a mode, coloured, thicker and more opaque by weight. Ellipses: 68 % of each joint's position,
    thin and white where the joint is seen, filled with orange where it is not. Dots: the detected 2D keypoints.

    Args:
        image_rgb: (H, W, 3) uint8; not changed.
        hypothesis_sets: the people, none or many.
        camera: intrinsics of the picture.

    Returns:
        (H, W, 3) uint8, a new picture.
    """
    out = np.array(image_rgb, dtype=np.uint8, order="C")
    height, width = out.shape[:2]
    scale = max(0.5, min(height, width) / 480)
    for person in sorted(hypothesis_sets, key=lambda p: -float(p.mean[0, 2])):  # the nearest on top
        colour, alpha = out.copy(), np.zeros((height, width), np.uint8)
        planar = project_covariance(person.mean, person.covariance, camera)
        ellipses = Ellipses(camera.project(person.mean), planar, out.shape)
        before = person.mean[:, 2] > NEAR
        # Unseen joints: a veil of orange, the stronger the larger; under the skeletons.
        unseen = [j for j in np.flatnonzero(before & (person.visibility < UNSEEN))]
        for j in unseen:
            veil = np.zeros_like(alpha)
            ellipses.draw(veil, j, (70,), -1)
            cv2.max(alpha, veil, dst=alpha)
        if unseen:
            colour[alpha > 0] = UNSEEN_FILL
            blend(out, colour, alpha)
            alpha[:] = 0
        pixels, shown = camera.project(person.joints), person.joints[..., 2] > NEAR
        draw_skeletons(colour, alpha, pixels, shown, person.weights, 3.2 * scale)
        blend(out, colour, alpha)
        for j in np.flatnonzero(before):
            seen = person.visibility[j] >= UNSEEN
            width_of = max(1, round((1 if seen else 1.6) * scale))
            ellipses.draw(out, j, SEEN_EDGE if seen else UNSEEN_FILL, width_of)
        radius = max(1, round(1.6 * scale * (1 << SHIFT)))
        dots = fixed(person.keypoints[:, :2], 4.0 * max(height, width)).tolist()
        for at, confidence in zip(dots, person.keypoints[:, 2]):
            if confidence >= UNSEEN:
                cv2.circle(out, at, radius + (1 << SHIFT), (20, 24, 28), -1, cv2.LINE_AA, SHIFT)
                cv2.circle(out, at, radius, KEYPOINT, -1, cv2.LINE_AA, SHIFT)
    for person in hypothesis_sets:
        _name(out, person, scale)
    return out


def _name(image: np.ndarray, person: HypothesisSet, scale: float) -> None:
    left, top = float(person.box[0]), float(person.box[1])
    text = f"{f'id {person.id}  ' if person.id >= 0 else ''}{float(person.mean[0, 2]):.1f} m"
    height, width = image.shape[:2]
    x = min(max(left, 4.0), max(4.0, width - 90.0 * scale))
    label(image, text, (x, min(max(top - 6 * scale, 14 * scale), height - 6.0)), scale, TEXT)


def draw_side_view(
    hypothesis_sets: Sequence[HypothesisSet],
    size: tuple[int, int] = (400, 480),
    view: str = "both",
    depth: float | None = None,
    floor: float | None = None,
) -> np.ndarray:
    """The people in metres, seen from the camera's right (depth and height) and from above (depth and breadth).

    Args:
        hypothesis_sets: the people, none or many.
        size: width and height of the picture in pixels.
        view: ``side``, ``top`` or ``both``, one above the other.
        depth: farthest metre shown; by default the next of 5, 8, 12, 20 and 30 beyond everybody.
        floor: height of the camera above the floor in metres; by default the lowest foot of the best modes is taken
            for the floor.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: ``view`` is none of the three.
    """
    if view not in ("side", "top", "both"):
        raise ValueError(f"view is {view!r}, but it must be 'side', 'top' or 'both'")
    width, height = size
    joints = [person.joints[0] for person in hypothesis_sets]
    if depth is None:
        farthest = max((float(np.quantile(j[:, 2], 0.9)) for j in joints), default=3.0)
        depth = next((d for d in _DEPTHS if d > farthest + 0.5), _DEPTHS[-1])
    if floor is None and joints:
        floor = max(float(j[:, 1].max()) for j in joints) + 0.03
    if view != "both":
        return _plane(hypothesis_sets, (width, height), view, depth, floor)
    upper = height // 2
    return np.concatenate(
        [
            _plane(hypothesis_sets, (width, upper), "side", depth, floor),
            _plane(hypothesis_sets, (width, height - upper), "top", depth, floor),
        ]
    )


def _plane(
    people: Sequence[HypothesisSet], size: tuple[int, int], view: str, depth: float, floor: float | None
) -> np.ndarray:
    """One orthographic panel: depth to the right; height upwards (side) or the camera's right downwards (top)."""
    width, height = size
    scale = max(0.5, width / 420)
    out = np.full((height, width, 3), PANEL, np.uint8)
    left, right, title = 26 * scale, 10 * scale, 20 * scale
    step = (width - left - right) / (depth + 0.25)
    axis = 1 if view == "side" else 0
    span = height - title - 14 * scale
    joints = [person.joints[0] for person in people]
    if view == "side":
        low = (floor if floor is not None else 1.2) + 0.15
        top = max((-float(j[:, 1].min()) for j in joints), default=0.0)
        step = min(step, span / math.ceil(min(low + max(top, 0.3), 20.0)))
        zero = title + span - low * step
    else:
        aside = max((float(np.abs(j[:, 0]).max()) for j in joints), default=0.0)
        step = min(step, span / (2 * math.ceil(min(max(aside + 0.3, 1.9), 20.0))))
        zero = title + span / 2

    def flat(points: np.ndarray) -> np.ndarray:
        return np.stack([left + points[..., 2] * step, zero + points[..., axis] * step], axis=-1)

    for metre in range(int((width - left) / step) + 1):
        x = round(left + metre * step)
        cv2.line(out, (x, round(title)), (x, height), GRID, 1)
        label(out, f"{metre}", (x + 2, height - 3 * scale), 0.8 * scale, FAINT, dark=False)
    for metre in range(-20, 21):
        y = round(zero + metre * step)
        if title < y < height:
            cv2.line(out, (round(left), y), (width, y), GRID_STRONG if metre == 0 else GRID, 1)
            if step > 14 * scale:
                label(
                    out,
                    f"{-metre if view == 'side' else metre:+d}",
                    (2, y + 4 * scale),
                    0.72 * scale,
                    FAINT,
                    dark=False,
                )
    if view == "side" and floor is not None:
        y = round(zero + floor * step)
        cv2.line(out, (round(left), y), (width, y), FLOOR, max(1, round(1.5 * scale)), cv2.LINE_AA)
    _camera_icon(out, (left, zero), scale)
    for person in people:
        colour, alpha = out.copy(), np.zeros((height, width), np.uint8)
        index = [2, axis]
        planar = person.covariance[:, index][:, :, index] * step**2
        ellipses = Ellipses(flat(person.mean), planar, out.shape)
        for j in np.flatnonzero(person.visibility < UNSEEN):
            ellipses.draw(alpha, j, (70,), -1)
        colour[alpha > 0] = UNSEEN_FILL
        blend(out, colour, alpha)
        alpha[:] = 0
        draw_skeletons(
            colour, alpha, flat(person.joints), np.ones(person.joints.shape[:2], bool), person.weights, 2.4 * scale
        )
        blend(out, colour, alpha)
        for j, visibility in enumerate(person.visibility):
            if visibility < UNSEEN:
                ellipses.draw(out, j, UNSEEN_FILL, 1)
            elif j in _LEAVES or j == 0:  # all seen joints would cover the skeleton
                ellipses.draw(out, j, SEEN_EDGE, 1)
    cv2.rectangle(out, (0, 0), (width, round(title)), PANEL, -1)
    name = "side view: depth, height (m)" if view == "side" else "top view: depth, to the right (m)"
    label(out, name, (6 * scale, 14 * scale), 0.95 * scale, TEXT, dark=False)
    return out


def _camera_icon(image: np.ndarray, at: tuple[float, float], scale: float) -> None:
    x, y, s = at[0], at[1], 7 * scale
    corners = np.array(
        [
            [x - s, y - 0.5 * s],
            [x - s, y + 0.5 * s],
            [x, y + 0.5 * s],
            [x + 0.7 * s, y + s],
            [x + 0.7 * s, y - s],
            [x, y - 0.5 * s],
        ]
    )
    cv2.fillPoly(image, [fixed(corners, 1e4)], KEYPOINT, cv2.LINE_AA, SHIFT)


def compose(
    overlay: np.ndarray,
    side: np.ndarray,
    *,
    frame: int | None = None,
    people: int | None = None,
    latency_ms: float | None = None,
    title: str = "hmr_prob_ros",
) -> np.ndarray:
    """The demo's frame: overlay on the left, side view on the right, and above them a line of numbers and the legend.

    Args:
        overlay: (H, W, 3) uint8 RGB from :func:`draw_overlay`.
        side: (H', W', 3) uint8 RGB from :func:`draw_side_view`; resized to the overlay's height.
        frame: number of the frame.
        people: number of people in it.
        latency_ms: from image to message.

    Returns:
        (h, w, 3) uint8 RGB with even sides, as video encoders want them.
    """
    height = overlay.shape[0]
    if side.shape[0] != height:
        side = cv2.resize(side, (round(side.shape[1] * height / side.shape[0]), height), interpolation=cv2.INTER_AREA)
    width = overlay.shape[1] + side.shape[1]
    scale = max(0.5, min(height / 480, width / 900))
    top = round(40 * scale)
    header = np.full((top, width, 3), PANEL, np.uint8)
    facts = [title]
    if frame is not None:
        facts.append(f"frame {frame}")
    if people is not None:
        facts.append(f"{people} {'person' if people == 1 else 'people'}")
    if latency_ms is not None:
        facts.append(f"{latency_ms:.0f} ms")
    label(header, "   ".join(facts), (10 * scale, 16 * scale), 1.1 * scale, TEXT, dark=False)
    _legend(header, (10 * scale, 33 * scale), scale)
    out = np.concatenate([header, np.concatenate([overlay, side], axis=1)])
    return np.ascontiguousarray(cv2.copyMakeBorder(out, 0, out.shape[0] % 2, 0, out.shape[1] % 2, cv2.BORDER_REPLICATE))


def _legend(image: np.ndarray, at: tuple[float, float], scale: float) -> None:
    """Weight colours, ellipses and dots explained in one line."""
    x, y = at
    label(image, "mode weight 0", (x, y), 0.85 * scale, FAINT, dark=False)
    x += 92 * scale
    bar, tall = round(90 * scale), round(7 * scale)
    ramp = np.repeat(weight_colours(np.linspace(0, 1, bar))[None], tall, axis=0)
    row, column = round(y) - tall, round(x)
    image[row : row + tall, column : column + bar] = ramp[:, : max(0, image.shape[1] - column)]
    x += bar + 6 * scale
    label(image, "1", (x, y), 0.85 * scale, FAINT, dark=False)
    places = np.array([[x + 34 * scale, y - 3.5 * scale], [x + 204 * scale, y - 3.5 * scale]])
    shape = np.diag([(7 * scale) ** 2, (3.5 * scale) ** 2]) / ELLIPSE_SIGMAS**2
    ellipses = Ellipses(places, np.stack([shape, shape]), image.shape)
    ellipses.draw(image, 0, SEEN_EDGE, 1)
    label(image, "68 % of a seen joint", (x + 48 * scale, y), 0.85 * scale, FAINT, dark=False)
    ellipses.draw(image, 1, tuple(round(0.4 * c) for c in UNSEEN_FILL), -1)
    ellipses.draw(image, 1, UNSEEN_FILL, 1)
    x += 204 * scale
    label(image, "of an unseen one", (x + 13 * scale, y), 0.85 * scale, FAINT, dark=False)
    spot = (round(x + 140 * scale), round(y - 3.5 * scale))
    cv2.circle(image, spot, max(2, round(2.2 * scale)), KEYPOINT, -1, cv2.LINE_AA)
    label(image, "detected keypoint", (spot[0] + 8 * scale, y), 0.85 * scale, FAINT, dark=False)
