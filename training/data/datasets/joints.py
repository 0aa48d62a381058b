"""Orders of points in the field's files, and their way to this package's 23 keypoints and 24 joints.

Facts of each order are from the public repositories named at it; points are matched by name.
"""

from __future__ import annotations

__all__ = [
    "DETECTED",
    "OPENPOSE_18",
    "OPENPOSE_25",
    "SMPLX_POINTS",
    "SMPL_POINTS",
    "SPIN_24",
    "projected_joints",
    "spin_joints",
    "to_keypoints",
]

from collections.abc import Sequence

import numpy as np

from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS

DETECTED = 0.3
"""A point that OpenPose found counts as labelled from this confidence on (the one that shapes crops, `camera`)."""

_FACE = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")
_FEET = ("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel")

SPIN_24 = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
    *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    *("neck (LSP)", "top of head (LSP)", "pelvis (MPII)", "thorax (MPII)"),
    *("spine (H36M)", "jaw (H36M)", "head (H36M)"),
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
)
"""SPIN's 24 'ground truth' joints: fields ``part`` and ``S`` (nkolot/SPIN, constants.py: JOINT_NAMES from 25 on)."""

_PELVIS = SPIN_24.index("pelvis (MPII)")

OPENPOSE_25 = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
    *_FEET,
)
"""OpenPose's BODY_25: field ``openpose`` (nkolot/SPIN, constants.py: JOINT_NAMES up to 24)."""

OPENPOSE_18 = (*OPENPOSE_25[:8], *OPENPOSE_25[9:19])
"""OpenPose's older COCO model, neck at 1: 3DPW's ``poses2d`` (pixelite1201/BEDLAM, train/core/constants.py)."""

SMPL_POINTS = (*JOINT_NAMES, *_FACE, *_FEET)
"""First points that the `smplx` package gives for SMPL: 24 joints, then vertices of face and feet (10 finger tips
follow: 45 in all)."""

SMPLX_POINTS = (*JOINT_NAMES[:22], *[""] * 33, *_FACE, *_FEET)
"""The same for SMPL-X: 22 body joints, jaw, eyes and 30 finger joints, then face and feet from 55 on (10 finger tips
and 51 or 68 face landmarks follow: 127 or 144 in all; twehrbein/humr, train/core/constants.py: SMPLX_TO_COCO25)."""

_HIPS = ("left_hip", "right_hip")
_LIMBS = tuple(f"{s}_{part}" for part in ("knee", "ankle", "shoulder", "elbow", "wrist") for s in ("left", "right"))


def to_keypoints(points: np.ndarray, names: Sequence[str], leave_out: Sequence[str] = ()) -> np.ndarray:
    """Points in another order as keypoints (K, 23, 3) with 0 or 1.

    Args:
        points: (K, P, 3), third number above 0 where labelled; more points than names may follow.
        names: what the first points are.
        leave_out: names that are not the same point as the keypoint of that name.
    """
    out = np.zeros((len(points), NUM_KEYPOINTS, 3))
    for index, name in enumerate(names):
        if name in KEYPOINT_NAMES and name not in leave_out:
            out[:, KEYPOINT_NAMES.index(name)] = points[:, index]
    out[..., 2] = np.isfinite(out).all(axis=-1) & (out[..., 2] > 0)
    return np.where(out[..., 2:] > 0, out, 0.0)


def projected_joints(points: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Keypoints (K, 23, 3) from a body's projected joints (K, P, 3).

    The hips are left out: SMPL's lie centimetres inside and above of where a detector (and COCO) puts them, and are
    never mixed in this package. The other limb joints are within what labels scatter.
    """
    return to_keypoints(points, names, leave_out=_HIPS)


def spin_joints(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SPIN's ``S`` (K, 24, 4), metres and known flag, to joints (K, 24, 3) and which are known (K, 24).

    Knees, ankles, shoulders, elbows and wrists are the same joints in both (SPIN's JOINT_MAP sends them to SMPL's own).
    The pelvis is the data set's, or the middle of its hips: a few centimetres from SMPL's, but everything is measured
    from it. Hips, neck, spine and head are other points than SMPL's and stay unknown.
    """
    joints, known = np.zeros((len(places), NUM_JOINTS, 3)), np.zeros((len(places), NUM_JOINTS), bool)
    for name in _LIMBS:
        source, target = SPIN_24.index(name), JOINT_NAMES.index(name)
        joints[:, target], known[:, target] = places[:, source, :3], places[:, source, 3] > 0
    hips = places[:, [SPIN_24.index(name) for name in _HIPS]]
    own = places[:, _PELVIS, 3:] > 0
    joints[:, 0] = np.where(own, places[:, _PELVIS, :3], hips[..., :3].mean(axis=1))
    known[:, 0] = own[:, 0] | (hips[..., 3] > 0).all(axis=1)
    known &= known[:, :1]  # without a pelvis there is nothing to measure from
    return joints, known
