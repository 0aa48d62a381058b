"""Arms that go somewhere: two-link inverse kinematics, and places a hand may be (lap, table, hip, shelf, face ...)."""

from __future__ import annotations

__all__ = ["PLACES", "place_arms", "reach"]

from typing import Any

import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_NAMES

from .rotations import axis_angle_to_matrix, between, matrix_to_axis_angle

_J = {name: k for k, name in enumerate(JOINT_NAMES)}
_HINGE_TILT = 20.0  # degrees by which a forearm bends upwards as well as forwards in the T-pose with palms down


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)


def _frame(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) with the columns x, y made square to x, and their product."""
    y = _unit(y - np.sum(x * y, axis=-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def reach(
    rotations: np.ndarray,
    side: str,
    target: np.ndarray,
    elbow: np.ndarray,
    pronation: np.ndarray,
    body: Body,
    hand: np.ndarray | None = None,
) -> None:
    """Set collar, shoulder, elbow and wrist of one side so that the wrist comes to `target`. In place.

    :param rotations: (N, 24, 3, 3) local rotations whose trunk is set already.
    :param target: (N, 3) wrist in the frame of the root joint's parent, pelvis at the rest pelvis; brought into reach.
    :param elbow: (N, 3) direction towards which the elbow is pushed, same frame.
    :param pronation: (N,) turn of the hand about the forearm, radians; the forearm takes half of it.
    :param hand: (N, 3) further turn of the hand, axis-angle.

    The law of cosines gives the elbow; the upper arm's twist follows from the plane of the arm: an elbow is a hinge.
    """
    collar, shoulder, wrist = (_J[f"{side}_{k}"] for k in ("collar", "shoulder", "wrist"))
    hinge = _J[f"{side}_elbow"]
    rest = body.rest_joints(np.zeros(body.num_betas)).astype(np.float64)
    arm, fore = rest[hinge] - rest[shoulder], rest[wrist] - rest[hinge]
    upper, lower = float(np.linalg.norm(arm)), float(np.linalg.norm(fore))
    rotations[:, [collar, shoulder, hinge, wrist]] = np.eye(3)
    betas = np.zeros(body.num_betas)
    chest = body.global_rotations(rotations)[:, _J["spine3"]]
    start = body.joints(rotations, betas)[:, shoulder]
    seen = _unit((np.swapaxes(chest, -1, -2) @ (target - start)[..., None])[..., 0])
    swing = matrix_to_axis_angle(between(np.broadcast_to(_unit(arm), seen.shape), seen))
    rotations[:, collar] = axis_angle_to_matrix(np.clip(0.2 * swing, -0.4, 0.4))
    start = body.joints(rotations, betas)[:, shoulder]
    line = target - start
    far = np.clip(np.linalg.norm(line, axis=-1), 0.32 * (upper + lower), 0.992 * (upper + lower))
    line = _unit(line)
    out = elbow - np.sum(elbow * line, axis=-1, keepdims=True) * line
    spare = np.cross(line, chest[:, :, 0])
    out = _unit(np.where(np.linalg.norm(out, axis=-1, keepdims=True) < 1e-3, spare, out))
    cosine = np.clip((upper**2 + far**2 - lower**2) / (2 * upper * far), -1.0, 1.0)[:, None]
    above = cosine * line + np.sqrt(1.0 - cosine**2) * out
    below = _unit(line * far[:, None] - upper * above)
    tilt = np.radians(_HINGE_TILT)
    at_rest = _frame(_unit(arm), np.array([0.0, np.sin(tilt), np.cos(tilt)]))
    turned = _frame(above, -out) @ at_rest.T
    girdle = chest @ rotations[:, collar]
    rotations[:, shoulder] = np.swapaxes(girdle, -1, -2) @ turned
    bend = np.arctan2(np.linalg.norm(np.cross(above, below), axis=-1), np.sum(above * below, axis=-1))
    turn = axis_angle_to_matrix(0.5 * pronation[:, None] * _unit(fore))
    straight = between(fore, arm)  # a body's arm need not be straight at rest
    rotations[:, hinge] = axis_angle_to_matrix(bend[:, None] * at_rest[:, 2]) @ straight @ turn
    rotations[:, wrist] = turn if hand is None else turn @ axis_angle_to_matrix(hand)


# Each place: centre (x outwards, y up, z forwards) and spread in metres, the frame it is in, where the elbow goes.
# Frames: "pelvis", "chest", "shoulder" (its place, the chest's axes), "head", "thigh" (along the thigh), "room" (at the
# shoulder, upright and facing as the pelvis does).
PLACES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], str, tuple[float, float, float]]] = {
    "hang": ((0.13, -0.46, 0.03), (0.06, 0.03, 0.09), "shoulder", (0.3, 0.0, -1.0)),
    "lap": ((0.0, 0.10, 0.62), (0.04, 0.02, 0.18), "thigh", (1.0, -0.2, -0.4)),
    "table": ((0.02, -0.34, 0.36), (0.14, 0.06, 0.10), "room", (0.8, -0.7, -0.2)),
    "armrest": ((0.12, -0.33, 0.20), (0.04, 0.04, 0.06), "room", (0.4, -0.7, -0.6)),
    "hip": ((0.17, 0.11, 0.02), (0.02, 0.03, 0.04), "pelvis", (1.0, 0.0, -0.4)),
    "crossed": ((-0.10, 0.02, 0.23), (0.04, 0.04, 0.025), "chest", (0.7, -0.8, 0.1)),
    "chest": ((0.07, 0.0, 0.30), (0.06, 0.08, 0.07), "chest", (0.5, -0.9, 0.0)),
    "belly": ((0.06, -0.16, 0.19), (0.04, 0.07, 0.03), "chest", (0.9, -0.5, -0.2)),
    "face": ((0.03, -0.04, 0.20), (0.05, 0.06, 0.04), "head", (0.5, -0.9, 0.2)),
    "ear": ((0.13, 0.02, 0.07), (0.03, 0.04, 0.03), "head", (0.8, -0.7, 0.2)),
    "nape": ((0.10, 0.04, -0.12), (0.03, 0.05, 0.03), "head", (1.0, 0.2, 0.3)),
    "back": ((0.02, 0.10, -0.20), (0.06, 0.05, 0.03), "pelvis", (1.0, 0.1, -0.6)),
    "carry": ((0.02, -0.28, 0.38), (0.05, 0.10, 0.06), "room", (0.5, -0.9, -0.3)),
    "push": ((0.02, -0.12, 0.45), (0.06, 0.12, 0.05), "room", (0.6, -0.8, 0.0)),
    "wave": ((0.22, 0.26, 0.14), (0.09, 0.10, 0.09), "room", (0.9, -0.7, 0.0)),
    "front": ((0.00, 0.02, 0.47), (0.16, 0.22, 0.08), "room", (0.6, -0.8, 0.0)),
    "side": ((0.44, 0.02, 0.12), (0.06, 0.22, 0.16), "room", (0.1, -0.9, -0.4)),
    "up": ((0.04, 0.46, 0.18), (0.12, 0.08, 0.14), "room", (0.8, -0.2, 0.6)),
    "low": ((0.02, -0.42, 0.28), (0.14, 0.08, 0.14), "room", (0.7, 0.0, -0.7)),
    "knee": ((0.0, 0.10, 0.95), (0.03, 0.02, 0.08), "thigh", (1.0, 0.3, -0.3)),
    "beside": ((0.28, -0.40, -0.06), (0.08, 0.06, 0.14), "room", (0.5, 0.0, -1.0)),
}


def place_arms(
    rotations: np.ndarray, left: np.ndarray, right: np.ndarray, rng: np.random.Generator, body: Body, alike: Any = True
) -> None:
    """Bring the hands to places named by `left` and `right` (N,), names of `PLACES`; "" leaves an arm. In place.

    `alike` (bool or (N,)): where true and both hands go to the same place, they go to mirrored points, as in holding.
    """
    count = len(rotations)
    joints = body.joints(rotations, np.zeros(body.num_betas))
    world = body.global_rotations(rotations)
    ahead = world[:, 0, :, 2] * np.array([1.0, 0.0, 1.0])  # where the pelvis faces, level
    steep = np.linalg.norm(ahead, axis=-1, keepdims=True) < 0.5
    # Bent or lying far over, "room" places turn with the chest.
    upright = _frame(
        _unit(np.where(steep, world[:, 9, :, 2], ahead)), np.where(steep, world[:, 9, :, 1], [0.0, 1.0, 0.0])
    )
    room = np.stack([np.cross(upright[..., 1], upright[..., 0]), upright[..., 1], upright[..., 0]], axis=-1)
    shared = rng.standard_normal((count, 3))
    shared_turn = rng.standard_normal(count)
    for side, names, sign in (("left", left, 1.0), ("right", right, -1.0)):
        mirror = np.array([sign, 1.0, 1.0])
        for name in sorted(set(names.tolist()) - {""}):
            rows = np.flatnonzero(names == name)
            centre, spread, frame, elbow = PLACES[name]
            both = (left[rows] == right[rows]) & np.broadcast_to(np.asarray(alike), count)[rows]
            noise = np.where(both[:, None], shared[rows] + 0.2 * rng.standard_normal((len(rows), 3)),
                             rng.standard_normal((len(rows), 3)))  # fmt: skip
            offset = (np.array(centre) + np.array(spread) * np.clip(noise, -2.2, 2.2)) * mirror
            shoulder, hip, knee = _J[f"{side}_shoulder"], _J[f"{side}_hip"], _J[f"{side}_knee"]
            if frame == "thigh":
                bone = joints[rows, knee] - joints[rows, hip]
                # Out of the thigh is where the knee's crease is not: the front of the thigh, which is up when seated.
                normal = world[rows, hip, :, 2]
                target = joints[rows, hip] + offset[:, 2:] * bone + offset[:, 1:2] * normal
                target = target + offset[:, :1] * world[rows, 0, :, 0]
                axes = room[rows]
            else:
                origin = {"pelvis": 0, "chest": _J["spine3"], "head": _J["head"]}.get(frame, shoulder)
                axes = {"pelvis": world[rows, 0], "head": world[rows, _J["head"]], "room": room[rows]}.get(
                    frame, world[rows, _J["spine3"]]
                )
                target = joints[rows, origin] + (axes @ offset[..., None])[..., 0]
            push = (np.array(elbow) + 0.25 * rng.standard_normal((len(rows), 3))) * mirror
            push = (axes @ push[..., None])[..., 0]
            turn = np.where(both, shared_turn[rows], rng.standard_normal(len(rows)))
            hand = rng.standard_normal((len(rows), 3)) * np.radians([6.0, 10.0, 18.0])
            part = rotations[rows]
            reach(part, side, target, push, sign * np.radians(10.0 + 30.0 * turn), body, hand)
            rotations[rows] = part
