"""Keypoints of other programs and their layouts, brought to the 23 of the design.

A layout is told by its number of points: COCO (17), COCO-WholeBody without face and hands (23) or whole (133),
OpenPose BODY_25, Halpe (26) and BlazePose (33). Points that a layout lacks get confidence 0.
"""

from __future__ import annotations

import numpy as np

from ..hypotheses import Person2D
from ..skeleton import KEYPOINT_NAMES, NUM_KEYPOINTS

__all__ = ["LAYOUTS", "box_around", "person_from_keypoints", "to_keypoints", "without_doubles"]

_BODY25 = (
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe left_small_toe "
    "left_heel right_big_toe right_small_toe right_heel"
)
_HALPE_EXTRA = "head neck mid_hip left_big_toe right_big_toe left_small_toe right_small_toe left_heel right_heel"
_BLAZEPOSE = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_big_toe right_big_toe"
)

LAYOUTS: dict[int, tuple[str, ...]] = {
    17: KEYPOINT_NAMES[:17],
    23: KEYPOINT_NAMES,
    25: tuple(_BODY25.split()),
    26: KEYPOINT_NAMES[:17] + tuple(_HALPE_EXTRA.split()),
    33: tuple(_BLAZEPOSE.split()),
    133: KEYPOINT_NAMES + tuple(f"face_or_hand_{i}" for i in range(110)),
}
"""Names of the points by the number of points in the layout."""

_TABLES = {
    count: ([KEYPOINT_NAMES.index(n) for n in names if n in KEYPOINT_NAMES],
            [i for i, n in enumerate(names) if n in KEYPOINT_NAMES])
    for count, names in LAYOUTS.items()
}  # fmt: skip


def to_keypoints(points: np.ndarray) -> np.ndarray:
    """The 23 keypoints among the points of another layout.

    Args:
        points: (..., k, 3) x, y, confidence with k a key of :data:`LAYOUTS`. Points that are not finite count as
            unseen; confidences are cut to [0, 1].

    Returns:
        (..., 23, 3) float32.

    Raises:
        ValueError: no layout has that many points, or the last axis is not x, y, confidence.
    """
    points = np.asarray(points, dtype=np.float32)
    if points.ndim < 2 or points.shape[-1] != 3 or points.shape[-2] not in LAYOUTS:
        raise ValueError(f"points have shape {points.shape}; needed is (..., k, 3) with k one of {sorted(LAYOUTS)}")
    target, source = _TABLES[points.shape[-2]]
    keypoints = np.zeros((*points.shape[:-2], NUM_KEYPOINTS, 3), dtype=np.float32)
    keypoints[..., target, :] = points[..., source, :]
    keypoints[~np.isfinite(keypoints).all(-1)] = 0.0
    keypoints[..., 2] = keypoints[..., 2].clip(0.0, 1.0)
    return keypoints


def box_around(keypoints: np.ndarray, image_size: tuple[int, int], margin: float = 0.1) -> np.ndarray:
    """(4,) box round the seen keypoints (23, 3), a share ``margin`` of its size wider on each side, in the picture.

    Seen are points with a confidence of at least 0.3; where there are none, all with a confidence above zero.
    """
    for least in (0.3, 1e-6):
        seen = keypoints[keypoints[:, 2] >= least, :2]
        if len(seen):
            break
    else:
        return np.zeros(4, dtype=np.float32)
    low, high = seen.min(0), seen.max(0)
    grow = margin * (high - low)
    limit = np.asarray(image_size, dtype=np.float32)
    return np.concatenate([(low - grow).clip(0, limit), (high + grow).clip(0, limit)]).astype(np.float32)


def person_from_keypoints(
    points: np.ndarray,
    image_size: tuple[int, int],
    box: np.ndarray | None = None,
    score: float | None = None,
    identity: int = -1,
) -> Person2D:
    """A person from the points (k, 3) of any layout in :data:`LAYOUTS`.

    Args:
        points: (k, 3) pixels and confidence.
        image_size: width and height in pixels.
        box: (4,) left, top, right, bottom; drawn round the keypoints if not given.
        score: confidence of the person; the mean confidence of the points of the body's trunk and limbs that lie
            in the picture if not given.
        identity: identity across frames, -1 if unknown.
    """
    keypoints = to_keypoints(points)
    if box is None:
        box = box_around(keypoints, image_size)
    if score is None:
        inside = ((keypoints[:, :2] >= 0) & (keypoints[:, :2] < np.asarray(image_size))).all(-1)
        seen = keypoints[:17, 2][inside[:17] & (keypoints[:17, 2] > 0)]
        score = float(seen.mean()) if len(seen) else 0.0
    return Person2D(box=np.asarray(box), score=float(score), keypoints=keypoints, id=identity)


def without_doubles(people: list[Person2D], near: float = 0.1) -> list[Person2D]:
    """The people, in their order, without those whose body somebody before them has.

    That is: half of the points that both have lie within ``near`` of the smaller one's size (longer side of the box).
    Where one person hides another, a pose network sees the one in front in both boxes.
    """
    kept: list[Person2D] = []
    for person in people:
        for other in kept:
            both = np.minimum(person.keypoints[:, 2], other.keypoints[:, 2]) > 0.1
            size = min(float((p.box[2:] - p.box[:2]).max()) for p in (person, other))
            apart = np.linalg.norm(person.keypoints[both, :2] - other.keypoints[both, :2], axis=-1)
            if len(apart) >= 3 and np.median(apart) < near * size:
                break
        else:
            kept.append(person)
    return kept
