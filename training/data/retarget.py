"""From the skeleton of a motion-capture source to the 24 joints of the body.

A reader delivers a `Clip`: for each joint of SMPL the world rotation of the source's bone **relative to its own rest
pose**, and where the joint lies. `retarget` turns that into local rotations on a body with its own rest pose.

With ``D_j`` that rotation, ``d`` the bone's rest direction in the source and ``b`` in the body, and ``F`` the turn from
the body's axes (y up, facing +z) to the source's rest pose, the body's bone is turned by

    G_j = D_j  between(F b, d)  F ,

so that ``G_j b`` is along ``D_j d``: limbs point exactly where the source's limbs point, and their twist is the
source's. The trunk, head, hands and feet take ``G_j = D_j F``: there both rest poses mean the same thing (upright,
level, palms down), while the bones that stand for them differ. Feet are first turned back by the angle at
which the rest pose spreads the legs, since the sole is square to the shank in all the sources.

Sources split the turn of head and neck, and of shoulder girdle and arm, by their markers' chance or not at all; here
neck and head share evenly, and the collar takes a part of the arm's swing (scapulohumeral rhythm).
"""

from __future__ import annotations

__all__ = ["LIMBS", "Clip", "MocapError", "Motion", "canonical", "direction_error", "resample", "retarget"]

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hmr_prob_ros.skeleton import JOINT_NAMES, NUM_JOINTS, PARENTS

from .rotations import axis_angle_to_matrix, between, interpolate, matrix_to_axis_angle, twist_about

_J = {name: k for k, name in enumerate(JOINT_NAMES)}
LIMBS: tuple[tuple[int, int], ...] = tuple(
    (_J[f"{s}_{a}"], _J[f"{s}_{b}"])
    for s in ("left", "right")
    for a, b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist"))
)
"""(joint, child) of the bones whose direction is carried over exactly."""
_RHYTHM = 0.2  # of the arm's swing is the shoulder girdle's: 30 to 40 degrees of 180 overhead


class MocapError(ValueError):
    """A motion file that cannot be read; the text names the file, what is wrong and the mend."""


@dataclass
class Clip:
    """A motion on its source's skeleton, y up, metres.

    `deltas` (T, 24, 3, 3): world rotation of each joint's bone relative to rest, NaN where the source has none;
    `positions` (T, 24, 3) and `rest` (24, 3): where the joints lie, NaN where unknown.
    """

    name: str
    fps: float
    deltas: np.ndarray
    positions: np.ndarray
    rest: np.ndarray


@dataclass
class Motion:
    """A motion of the body: `pose` (T, 24, 3) axis-angle local to the parent, root = body to world (y up);
    `trans` (T, 3) metres; `fps` frames per second."""

    name: str
    fps: float
    pose: np.ndarray
    trans: np.ndarray


def canonical(
    name: str,
    fps: float,
    rotations: Mapping[str, np.ndarray],
    positions: Mapping[str, np.ndarray],
    rest_rotations: Mapping[str, np.ndarray],
    rest_positions: Mapping[str, np.ndarray],
    drivers: Mapping[str, str],
    places: Mapping[str, str],
) -> Clip:
    """Collect a `Clip` from global rotations (T, 3, 3) and positions (T, 3) of named nodes, and those of the rest pose.

    `drivers` names for joints of SMPL the node whose rotation they follow, `places` the node where they lie.
    """
    frames = len(next(iter(positions.values())))
    deltas = np.full((frames, NUM_JOINTS, 3, 3), np.nan)
    points = np.full((frames, NUM_JOINTS, 3), np.nan)
    rest = np.full((NUM_JOINTS, 3), np.nan)
    for joint, node in drivers.items():
        deltas[:, _J[joint]] = rotations[node] @ rest_rotations[node].T
    for joint, node in places.items():
        points[:, _J[joint]], rest[_J[joint]] = positions[node], rest_positions[node]
    return Clip(name, fps, deltas, points, rest)


def _facing(rest: np.ndarray, name: str) -> np.ndarray:
    """Turn (3, 3) about y from the body's axes to those of the rest pose, by its hips; quarter turns are kept exact."""
    left = rest[_J["left_hip"]] - rest[_J["right_hip"]]
    if not np.isfinite(left).all() or np.hypot(left[0], left[2]) < 1e-3:
        raise MocapError(f"{name}: the rest pose shows no hips from which to tell where the body faces")
    angle = np.arctan2(-left[2], left[0])
    quarter = np.round(angle / (np.pi / 2)) * (np.pi / 2)
    angle = quarter if abs(angle - quarter) < np.radians(8.0) else angle
    return axis_angle_to_matrix(np.array([0.0, angle, 0.0]))


def _spread(shank: np.ndarray) -> float:
    """Angle of a shank (3,) in the frontal plane, from straight down towards the left, radians."""
    return float(np.arctan2(shank[0], -shank[1]))


def _move_collars(turned: np.ndarray, body: np.ndarray) -> None:
    """Let collars that never move take `_RHYTHM` of the arm's swing from the T-pose, seen from the chest. In place."""
    chest = np.swapaxes(turned[:, _J["spine3"]], -1, -2)
    for side in ("left", "right"):
        collar, shoulder, elbow = _J[f"{side}_collar"], _J[f"{side}_shoulder"], _J[f"{side}_elbow"]
        moved = np.linalg.norm(matrix_to_axis_angle(chest @ turned[:, collar]), axis=-1)
        if np.percentile(moved, 95) > np.radians(3.0):
            continue
        arm = body[elbow] - body[shoulder]
        now = (chest @ turned[:, shoulder] @ arm[:, None])[..., 0]
        swing = matrix_to_axis_angle(between(np.broadcast_to(arm, now.shape), now))
        # Behind the back the smallest turn from the T-pose is no guide: the collar moves up and forwards only so far.
        part = np.clip(_RHYTHM * swing, -np.radians(30.0), np.radians(30.0))
        turned[:, collar] = turned[:, _J["spine3"]] @ axis_angle_to_matrix(part)


def _fill(turned: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Give joints without a bone of their own a global rotation from their neighbours. In place; returns `turned`."""

    def share(joints: tuple[str, ...]) -> None:
        """The joints between the first and the last, both present, share the turn between them evenly."""
        first, last = _J[joints[0]], _J[joints[-1]]
        for k, joint in enumerate(joints[1:-1], start=1):
            turned[:, _J[joint]] = interpolate(turned[:, first], turned[:, last], k / (len(joints) - 1))
            have[_J[joint]] = True

    if not have[_J["spine3"]]:
        lowest = next((j for j in ("spine2", "spine1") if have[_J[j]]), "pelvis")
        turned[:, _J["spine3"]] = turned[:, _J[lowest]]
        have[_J["spine3"]] = True
        have[_J["spine2"]] &= lowest != "spine2"
        have[_J["spine1"]] &= lowest != "spine1"
    present = [j for j in ("pelvis", "spine1", "spine2", "spine3") if have[_J[j]]]
    chain = ("pelvis", "spine1", "spine2", "spine3")
    for a, b in itertools.pairwise(present):
        share(chain[chain.index(a) : chain.index(b) + 1])
    if not have[_J["head"]]:
        turned[:, _J["head"]] = turned[:, _J["neck" if have[_J["neck"]] else "spine3"]]
    share(("spine3", "neck", "head"))
    for j in range(1, NUM_JOINTS):  # collars, toes and hands go along with what carries them
        if not have[j] and JOINT_NAMES[j] not in ("neck", "head"):
            turned[:, j] = turned[:, PARENTS[j]]
    return turned


def retarget(clip: Clip, rest_joints: np.ndarray) -> Motion:
    """Local rotations of the 24 joints on a body with `rest_joints` (24, 3), and its translation, scaled by leg length.

    Half of the hand's turn about the forearm goes to the forearm itself (pronation happens there, and skin follows).
    Raises `MocapError` where the clip lacks hips, knees, ankles, shoulders, elbows or wrists.
    """
    have = np.isfinite(clip.deltas).all(axis=(0, 2, 3))
    need = [JOINT_NAMES[a] for a, _ in LIMBS if not have[a]] + ([] if have[0] else ["pelvis"])
    ends = [JOINT_NAMES[b] for _, b in LIMBS if not np.isfinite(clip.rest[b]).all()]
    if need or ends:
        raise MocapError(f"{clip.name}: the source has no bone for {', '.join(sorted({*need, *ends}))}")
    body = np.asarray(rest_joints, dtype=np.float64)
    facing = _facing(clip.rest, clip.name)
    turned = np.nan_to_num(clip.deltas) @ facing
    for joint, child in LIMBS:
        source = clip.rest[child] - clip.rest[joint]
        own = facing @ (body[child] - body[joint])
        turned[:, joint] = clip.deltas[:, joint] @ between(own, source) @ facing
    for side in ("left", "right"):
        knee, ankle = _J[f"{side}_knee"], _J[f"{side}_ankle"]
        spread = _spread(facing.T @ (clip.rest[ankle] - clip.rest[knee])) - _spread(body[ankle] - body[knee])
        for joint in (ankle, _J[f"{side}_foot"]):
            turned[:, joint] = turned[:, joint] @ axis_angle_to_matrix(np.array([0.0, 0.0, spread]))
    turned = _fill(turned, have)
    _move_collars(turned, body)
    for side in ("left", "right"):
        elbow, wrist = _J[f"{side}_elbow"], _J[f"{side}_wrist"]
        axis = body[wrist] - body[elbow]
        axis = axis / np.linalg.norm(axis)
        twist = twist_about(np.swapaxes(turned[:, elbow], -1, -2) @ turned[:, wrist], axis)
        turned[:, elbow] = turned[:, elbow] @ axis_angle_to_matrix(0.5 * twist[:, None] * axis)
    local = turned.copy()
    for j in range(1, NUM_JOINTS):
        local[:, j] = np.swapaxes(turned[:, PARENTS[j]], -1, -2) @ turned[:, j]
    local[:, 22:] = np.eye(3)

    def leg(points: np.ndarray) -> float:
        chain = [points[_J[f"left_{k}"]] for k in ("hip", "knee", "ankle")]
        return float(np.linalg.norm(chain[1] - chain[0]) + np.linalg.norm(chain[2] - chain[1]))

    hips = [_J["left_hip"], _J["right_hip"]]
    middle = clip.positions[:, hips].mean(axis=1) * (leg(body) / leg(clip.rest))
    drop = turned[:, 0] @ (body[hips].mean(axis=0) - body[0])
    return Motion(clip.name, clip.fps, matrix_to_axis_angle(local), middle - drop - body[0])


def resample(motion: Motion, fps: float) -> Motion:
    """The motion at `fps`: rotations along geodesics, translation linearly; frames at the same time are unchanged."""
    count = len(motion.pose)
    if abs(motion.fps - fps) < 0.02 * fps or count < 2:
        return Motion(motion.name, fps, motion.pose, motion.trans)
    step = motion.fps / fps
    step = round(step) if abs(step - round(step)) < 0.005 else step  # frame times are written with few digits
    when = np.arange(int(np.floor((count - 1) / step + 1e-6)) + 1) * step
    low = np.minimum(np.floor(when + 1e-9).astype(int), count - 2)
    weight = np.clip(when - low, 0.0, 1.0)
    first, second = axis_angle_to_matrix(motion.pose[low]), axis_angle_to_matrix(motion.pose[low + 1])
    pose = matrix_to_axis_angle(interpolate(first, second, weight[:, None]))
    trans = motion.trans[low] * (1.0 - weight[:, None]) + motion.trans[low + 1] * weight[:, None]
    return Motion(motion.name, fps, pose, trans)


def direction_error(clip: Clip, motion: Motion, rest_joints: np.ndarray) -> np.ndarray:
    """Angle (T, 8) in degrees between each limb of `LIMBS` on the source and on the retargeted body."""
    glob = axis_angle_to_matrix(motion.pose)
    for j in range(1, NUM_JOINTS):
        glob[:, j] = glob[:, PARENTS[j]] @ glob[:, j]
    out = []
    for joint, child in LIMBS:
        own = glob[:, joint] @ (rest_joints[child] - rest_joints[joint])
        other = clip.positions[:, child] - clip.positions[:, joint]
        sine = np.linalg.norm(np.cross(own, other), axis=-1)
        out.append(np.degrees(np.arctan2(sine, np.sum(own * other, axis=-1))))
    return np.stack(out, axis=-1)
