"""Names, trees and drawing order of the skeletons: the one place for names.

Two point sets run through the whole package:

* the 24 **joints** of SMPL, in SMPL's order, inside the body;
* the 23 **keypoints** of COCO-WholeBody without face and hands (COCO-17 and six feet points), on the body's
  surface, as 2D detectors give them. A COCO hip lies about 3 cm from the SMPL hip, so the two are never mixed.
"""

from __future__ import annotations

__all__ = [
    "BONES",
    "JOINT_KEYPOINTS",
    "JOINT_NAMES",
    "KEYPOINT_BONES",
    "KEYPOINT_FLIP",
    "KEYPOINT_NAMES",
    "JOINT_FLIP",
    "NUM_JOINTS",
    "NUM_KEYPOINTS",
    "PARENTS",
]

JOINT_NAMES: tuple[str, ...] = (
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hand",
    "right_hand",
)
NUM_JOINTS = len(JOINT_NAMES)

PARENTS: tuple[int, ...] = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
"""Parent of each joint; -1 for the pelvis. A parent always stands before its children."""

BONES: tuple[tuple[int, int], ...] = tuple((p, j) for j, p in enumerate(PARENTS) if p >= 0)
"""(parent, child) pairs of joints, in drawing order."""

KEYPOINT_NAMES: tuple[str, ...] = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_big_toe",
    "left_small_toe",
    "left_heel",
    "right_big_toe",
    "right_small_toe",
    "right_heel",
)
NUM_KEYPOINTS = len(KEYPOINT_NAMES)


def _pairs(names: tuple[str, ...], bones: tuple[tuple[str, str], ...]) -> tuple[tuple[int, int], ...]:
    return tuple((names.index(a), names.index(b)) for a, b in bones)


KEYPOINT_BONES: tuple[tuple[int, int], ...] = _pairs(
    KEYPOINT_NAMES,
    (
        ("nose", "left_eye"),
        ("nose", "right_eye"),
        ("left_eye", "left_ear"),
        ("right_eye", "right_ear"),
        ("left_shoulder", "right_shoulder"),
        ("left_shoulder", "left_elbow"),
        ("left_elbow", "left_wrist"),
        ("right_shoulder", "right_elbow"),
        ("right_elbow", "right_wrist"),
        ("left_shoulder", "left_hip"),
        ("right_shoulder", "right_hip"),
        ("left_hip", "right_hip"),
        ("left_hip", "left_knee"),
        ("left_knee", "left_ankle"),
        ("right_hip", "right_knee"),
        ("right_knee", "right_ankle"),
        ("left_ankle", "left_heel"),
        ("left_heel", "left_big_toe"),
        ("left_big_toe", "left_small_toe"),
        ("right_ankle", "right_heel"),
        ("right_heel", "right_big_toe"),
        ("right_big_toe", "right_small_toe"),
    ),
)
"""Pairs of keypoints joined by a line when a 2D skeleton is drawn."""


def _flip(names: tuple[str, ...]) -> tuple[int, ...]:
    def other(name: str) -> str:
        if name.startswith("left_"):
            return "right_" + name[5:]
        return "left_" + name[6:] if name.startswith("right_") else name

    return tuple(names.index(other(name)) for name in names)


JOINT_FLIP: tuple[int, ...] = _flip(JOINT_NAMES)
"""Index of the mirrored joint: ``joints[JOINT_FLIP]`` swaps left and right."""

KEYPOINT_FLIP: tuple[int, ...] = _flip(KEYPOINT_NAMES)
"""Index of the mirrored keypoint: ``keypoints[KEYPOINT_FLIP]`` swaps left and right."""

_SEEN_BY: dict[str, tuple[str, ...]] = {
    "pelvis": ("left_hip", "right_hip"),
    "spine1": ("left_hip", "right_hip"),
    "spine2": ("left_shoulder", "right_shoulder", "left_hip", "right_hip"),
    "spine3": ("left_shoulder", "right_shoulder"),
    "neck": ("left_shoulder", "right_shoulder"),
    "head": ("nose", "left_ear", "right_ear"),
    "left_collar": ("left_shoulder",),
    "right_collar": ("right_shoulder",),
    "left_foot": ("left_big_toe", "left_small_toe"),
    "right_foot": ("right_big_toe", "right_small_toe"),
    "left_hand": ("left_wrist",),
    "right_hand": ("right_wrist",),
}

JOINT_KEYPOINTS: tuple[tuple[int, ...], ...] = tuple(
    tuple(KEYPOINT_NAMES.index(k) for k in _SEEN_BY.get(name, (name,))) for name in JOINT_NAMES
)
"""Keypoints that tell whether a joint is seen: its visibility is the highest of their confidences."""
