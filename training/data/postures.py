"""Postures that motion capture lacks, made by hand with random parameters: sitting, kneeling, bending, lying and more.

Every family sets root, legs, spine and head of `rotations` (N, 24, 3, 3) and names places for the hands (`reach`).
Angles in degrees; a left limb's signs, mirrored for the right one. World: y up, the body faces +z.
"""

from __future__ import annotations

__all__ = ["FAMILIES", "make_posture"]

from collections.abc import Callable

import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_NAMES

from .reach import place_arms
from .rotations import axis_angle_to_matrix

_J = {name: k for k, name in enumerate(JOINT_NAMES)}
_SIDES = (("left", 1.0), ("right", -1.0))
Array = np.ndarray
Hands = tuple[Array, Array]


def _turn(axis: int, degrees: Array | float, count: int) -> Array:
    vector = np.zeros((count, 3))
    vector[:, axis] = np.radians(degrees)
    return axis_angle_to_matrix(vector)


def _normal(rng: np.random.Generator, mean: float, spread: float, count: int, low: float, high: float) -> Array:
    return np.clip(rng.normal(mean, spread, count), low, high)


def _hip(count: int, flexion: Array, splay: Array | float, abduction: Array | float, axial: Array | float, sign: float):
    """Thigh from the pelvis: bent forwards, spread when bent, spread when straight, turned outwards about itself."""
    out = _turn(1, sign * splay, count) @ _turn(2, sign * abduction, count) @ _turn(0, -flexion, count)
    return out @ _turn(1, sign * axial, count)


def _pelvis(r: Array, forward: Array | float, sideways: Array | float = 0.0) -> None:
    r[:, 0] = _turn(2, sideways, len(r)) @ _turn(0, forward, len(r))


def _level_feet(r: Array, rng: np.random.Generator, body: Body, amount: Array | float = 1.0) -> None:
    """Turn the ankles so that the soles are level as far as an ankle can; `amount` 0 leaves them as they are."""
    world = body.global_rotations(r)
    for side, _ in _SIDES:
        shank = world[:, _J[f"{side}_knee"]]
        # Pitch of the foot that brings the sole's normal upright within the shank's sagittal plane.
        up = shank[:, 1, :]  # the world's up in the shank's axes
        pitch = np.degrees(np.arctan2(up[:, 2], up[:, 1]))
        roll = np.degrees(np.arctan2(-up[:, 0], up[:, 1]))
        pitch = np.clip(pitch * amount + rng.normal(0, 4, len(r)), -28, 45)
        roll = np.clip(roll * amount + rng.normal(0, 3, len(r)), -18, 18)
        r[:, _J[f"{side}_ankle"]] = _turn(0, pitch, len(r)) @ _turn(2, roll, len(r))


def _spine(
    r: Array, rng: np.random.Generator, forward: Array | float, sideways: float = 6.0, twist: float = 9.0
) -> None:
    """Bend the spine by `forward` in all, shared among its three joints, with random bending sideways and twist."""
    count = len(r)
    tilt, turn = rng.normal(0, sideways, count), rng.normal(0, twist, count)
    for joint, share in (("spine1", 0.4), ("spine2", 0.35), ("spine3", 0.25)):
        r[:, _J[joint]] = (
            _turn(0, share * forward, count) @ _turn(2, share * tilt, count) @ _turn(1, share * turn, count)
        )


def _head(r: Array, rng: np.random.Generator, nod: Array | float = 5.0, spread: float = 14.0) -> None:
    count = len(r)
    nods = np.clip(rng.normal(nod, spread, count), -45, 55)
    yaw, tilt = np.clip(rng.normal(0, 25, count), -75, 75), rng.normal(0, 7, count)
    for joint in ("neck", "head"):
        r[:, _J[joint]] = _turn(1, yaw / 2, count) @ _turn(0, nods / 2, count) @ _turn(2, tilt / 2, count)


def _hands(rng: np.random.Generator, count: int, menu: dict[str, float], same: float = 0.6) -> Hands:
    """A place for each hand from a menu of weights, alike for both with probability `same`; "" leaves an arm alone."""
    names = np.array(list(menu))
    weights = np.array(list(menu.values())) / sum(menu.values())
    left, right = (names[rng.choice(len(names), count, p=weights)] for _ in range(2))
    return left, np.where(rng.random(count) < same, left, right)


def _sit_chair(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    back = rng.random(n) < 0.5  # leaning back, or upright to forwards
    pitch = np.where(back, _normal(rng, -14, 8, n, -32, 0), _normal(rng, 2, 9, n, -8, 25))
    _pelvis(r, pitch, rng.normal(0, 2, n))
    _spine(r, rng, np.where(back, _normal(rng, 14, 9, n, -4, 38), _normal(rng, 10, 11, n, -8, 38)))
    _head(r, rng, 10.0)
    rise = _normal(rng, -2, 9, n, -30, 18)  # knees above the hips: low seat; below: high stool
    knees = {}
    stretch = rng.random(n) < 0.2
    common = np.where(stretch, _normal(rng, 35, 15, n, 8, 60), _normal(rng, 88, 13, n, 55, 115))
    spread = np.abs(rng.normal(0, 1, n))
    for side, sign in _SIDES:
        flexion = 90 + rise + rng.normal(0, 3, n) + pitch
        r[:, _J[f"{side}_hip"]] = _hip(n, flexion, 3 + 9 * spread + rng.normal(0, 3, n), 0, rng.normal(3, 6, n), sign)
        own = rng.random(n) < 0.25
        knees[side] = np.clip(
            np.where(own, _normal(rng, 85, 22, n, 20, 122), common + rng.normal(0, 6, n)) + rise, 5, 130
        )
        r[:, _J[f"{side}_knee"]] = _turn(0, knees[side], n)
    style = rng.random(n)
    over, figure = style < 0.10, (style >= 0.10) & (style < 0.17)
    # One leg over the other: thigh on thigh, or ankle on the other knee; always the left one, mirroring does the rest.
    for rows, angles in ((over, (103, -20, 5)), (figure, (96, 28, 72))):
        k = int(rows.sum())
        if k:
            flexion = angles[0] + pitch[rows] + rise[rows] * 0.5 + rng.normal(0, 3, k)
            splay, axial = angles[1] + rng.normal(0, 4, k), angles[2] + rng.normal(0, 5, k)
            r[rows, _J["left_hip"]] = _hip(k, flexion, splay, 0, axial, 1.0)
            r[rows, _J["left_knee"]] = _turn(0, rng.normal(95, 8, k), k)
    _level_feet(r, rng, body, np.where(over | figure, 0.2, 1.0))
    return _hands(rng, n, {"lap": 4, "table": 4, "armrest": 1.5, "front": 2, "crossed": 0.8, "face": 1, "chest": 1.5,
                           "ear": 0.5, "up": 0.4, "side": 0.8, "knee": 0.8, "low": 0.5, "": 1.5})  # fmt: skip


def _recline(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    pitch = _normal(rng, -42, 11, n, -68, -22)
    _pelvis(r, pitch, rng.normal(0, 3, n))
    _spine(r, rng, _normal(rng, 22, 10, n, -5, 45))
    _head(r, rng, 16.0)
    rise = _normal(rng, 2, 9, n, -20, 25)
    bend = _normal(rng, 45, 28, n, 3, 105)
    for side, sign in _SIDES:
        r[:, _J[f"{side}_hip"]] = _hip(
            n, 90 + rise + pitch + rng.normal(0, 4, n), rng.normal(8, 6, n), 0, rng.normal(6, 7, n), sign
        )
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(bend + rng.normal(0, 8, n), 0, 120), n)
    _level_feet(r, rng, body, 0.4)
    return _hands(
        rng, n, {"lap": 3, "belly": 3, "armrest": 2, "chest": 2, "nape": 1, "side": 1, "face": 0.7, "beside": 1, "": 1}
    )


def _sit_floor(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    style = rng.choice(4, n, p=[0.35, 0.3, 0.2, 0.15])  # legs crossed, stretched, knees up, mixed
    pitch = _normal(rng, -12, 10, n, -35, 12)
    _pelvis(r, pitch)
    _spine(r, rng, _normal(rng, 20, 12, n, -4, 45))
    _head(r, rng, 5.0)
    for side, sign in _SIDES:
        kind = np.where(style == 3, rng.choice(3, n), style)
        flexion = np.choose(kind, [rng.normal(94, 6, n), rng.normal(88, 4, n), rng.normal(128, 8, n)]) + pitch
        splay = np.choose(kind, [rng.normal(48, 6, n), rng.normal(8, 6, n), rng.normal(8, 6, n)])
        axial = np.choose(kind, [rng.normal(48, 8, n), rng.normal(4, 8, n), rng.normal(2, 5, n)])
        bend = np.choose(kind, [rng.normal(122, 8, n), np.abs(rng.normal(6, 8, n)), rng.normal(105, 12, n)])
        bend = np.where((kind == 0) & (sign > 0), bend - 10, bend)
        r[:, _J[f"{side}_hip"]] = _hip(n, np.clip(flexion, 40, 130), splay, 0, axial, sign)
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(bend, 0, 145), n)
    _level_feet(r, rng, body, np.where(style == 2, 1.0, 0.1))
    return _hands(rng, n, {"lap": 3, "knee": 2, "beside": 2, "front": 1, "chest": 1, "low": 1, "face": 0.5, "": 1})


def _balance(tilt: Array, bend: Array) -> Array:
    """Forward lean (N,) in degrees of the trunk that puts the middle of a squatting body over its feet.

    `tilt` of the shanks forwards and `bend` of the knees. Segment lengths and masses of an adult (Winter 2009).
    """
    shank, thigh = 0.43, 0.39
    ahead = shank * np.sin(np.radians(tilt)) - thigh * np.sin(np.radians(bend - tilt))  # hips before the ankles
    # 0.68 of the mass above the hips, its centre 0.36 m up; the rest about half way; the feet's middle 0.05 m ahead.
    sine = (0.05 - 0.84 * ahead) / (0.68 * 0.36)
    return np.degrees(np.arcsin(np.clip(sine, -0.15, 0.97)))


def _squat(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    bend = rng.uniform(35, 140, n)
    tilt = np.clip(bend * 0.24 + rng.normal(0, 5, n), 0, 36)
    lean = np.clip(_balance(tilt, bend) + rng.normal(0, 5, n), -5, 75)
    curve = _normal(rng, 18, 10, n, -5, 42) * np.clip(lean / 30, 0.2, 1)
    pitch = lean - 0.5 * curve
    _pelvis(r, pitch, rng.normal(0, 3, n))
    _spine(r, rng, curve)
    _head(r, rng, -0.35 * lean, 14.0)
    spread = np.abs(rng.normal(8, 8, n))
    for side, sign in _SIDES:
        own = bend + rng.normal(0, 4, n)
        r[:, _J[f"{side}_hip"]] = _hip(
            n, np.clip(own - tilt + pitch, 0, 138), spread * 1.2, spread * 0.3, spread * 0.5, sign
        )
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(own, 5, 150), n)
    _level_feet(r, rng, body)
    return _hands(rng, n, {"low": 3, "front": 2, "lap": 1.5, "knee": 2, "carry": 1.5, "chest": 1, "side": 0.5, "": 1.5})


def _kneel(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    style = rng.choice(4, n, p=[0.28, 0.24, 0.36, 0.12])  # upright, on the heels, one knee, hands and knees
    four = style == 3
    lean = np.select(
        [four, style == 1], [rng.normal(82, 7, n), _normal(rng, 8, 12, n, -8, 40)], _normal(rng, 8, 14, n, -8, 50)
    )
    _pelvis(r, lean, rng.normal(0, 3, n))
    _spine(r, rng, np.where(four, rng.normal(5, 10, n), _normal(rng, 12, 11, n, -6, 40)))
    _head(r, rng, np.where(four, -25.0, -0.2 * lean), 14.0)
    for side, sign in _SIDES:
        forward = (style == 2) & (sign > 0)  # one foot ahead: the left one, mirroring does the rest
        thigh = np.select([style == 1, forward], [rng.normal(72, 7, n), rng.normal(88, 9, n)], rng.normal(6, 9, n))
        bend = np.select(
            [style == 1, forward], [rng.normal(146, 4, n), rng.normal(95, 10, n)], thigh + rng.normal(92, 5, n)
        )
        flexion, splay = np.clip(thigh + lean, -10, 128), np.abs(rng.normal(5, 5, n))
        r[:, _J[f"{side}_hip"]] = _hip(n, flexion, splay, rng.normal(4, 3, n), rng.normal(0, 5, n), sign)
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(bend, 0, 152), n)
        r[:, _J[f"{side}_ankle"]] = _turn(
            0, np.clip(np.where(rng.random(n) < 0.7, 42, -15) + rng.normal(0, 6, n), -25, 55), n
        )
    half = style == 2
    if half.any():
        part = r[half]
        kept = part[:, _J["right_ankle"]].copy()
        _level_feet(part, rng, body)
        part[:, _J["right_ankle"]] = kept
        r[half] = part
    left, right = _hands(
        rng, n, {"low": 3, "front": 2, "lap": 2, "hang": 1, "carry": 1, "chest": 1, "side": 0.6, "up": 0.5, "": 1}
    )
    # On hands and knees the arms stand under the shoulders: square to the chest, which lies level.
    return np.where(four, "front", left), np.where(four, "front", right)


def _bend(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    lean = _normal(rng, 42, 18, n, 12, 85)
    curve = _normal(rng, 26, 14, n, -2, 60)
    _pelvis(r, lean, rng.normal(0, 3, n))
    _spine(r, rng, curve, 8.0, 14.0)
    _head(r, rng, -0.2 * lean, 16.0)
    bend = np.abs(rng.normal(0, 22, n))
    step = rng.normal(0, 9, n) * (rng.random(n) < 0.5)
    back = 4 + 0.12 * lean  # hips go back as the trunk goes forwards
    for side, sign in _SIDES:
        r[:, _J[f"{side}_hip"]] = _hip(
            n,
            np.clip(lean + back + 0.5 * bend + sign * step, 0, 125),
            2,
            rng.normal(4, 4, n),
            rng.normal(4, 5, n),
            sign,
        )
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(bend + 0.4 * np.maximum(sign * step, 0), 0, 80), n)
    _level_feet(r, rng, body)
    return _hands(rng, n, {"low": 6, "front": 2, "knee": 1, "lap": 1, "side": 0.4, "carry": 1, "": 1})


def _stand_legs(r: Array, rng: np.random.Generator, body: Body, lean: Array | float = 0.0) -> None:
    n = len(r)
    roll = rng.normal(0, 3, n)
    _pelvis(r, rng.normal(2, 4, n) + lean, roll)
    step = rng.normal(0, 9, n) * (rng.random(n) < 0.6)
    soft = np.abs(rng.normal(0, 7, n))
    for side, sign in _SIDES:
        free = (rng.random(n) < 0.35) * np.abs(rng.normal(0, 16, n)) * (sign * roll < 0)  # the unloaded leg bends
        bend = soft + free
        hip = 0.5 * bend + sign * step + rng.normal(2, 4, n) + lean
        r[:, _J[f"{side}_hip"]] = _hip(
            n, hip, 0, np.clip(rng.normal(5, 4, n), -3, 22) - sign * roll, rng.normal(6, 7, n), sign
        )
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(bend + rng.normal(1, 2, n), 0, 70), n)
    _level_feet(r, rng, body)


def _stand(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    leaning = rng.random(n) < 0.12  # against a wall or a counter
    _stand_legs(r, rng, body, np.where(leaning, rng.normal(0, 11, n), 0.0))
    _spine(r, rng, _normal(rng, 4, 7, n, -14, 28))
    _head(r, rng)
    return _hands(rng, n, {"hang": 5, "hip": 2, "crossed": 2, "carry": 2.5, "push": 1.2, "face": 1, "ear": 0.8,
                           "wave": 1.2, "back": 1, "chest": 2, "belly": 1, "front": 1, "nape": 0.5, "": 2})  # fmt: skip


def _reach(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    _stand_legs(r, rng, body, rng.normal(3, 5, n))
    _spine(r, rng, rng.normal(4, 9, n), 9.0, 16.0)
    _head(r, rng, 0.0, 20.0)
    return _hands(rng, n, {"up": 3, "front": 3.5, "side": 2.5, "low": 1.5, "hang": 1.5, "push": 1, "table": 1}, 0.4)


def _lie(r: Array, rng: np.random.Generator, body: Body) -> Hands:
    n = len(r)
    style = rng.choice(3, n, p=[0.42, 0.18, 0.40])  # on the back, the front, a side
    back, front, side_on = style == 0, style == 1, style == 2
    flat = _turn(0, np.where(front, 90.0, -90.0) + rng.normal(0, 4, n), n)
    # Rolled about its long axis, which lies along the world's z after the turn.
    roll = np.select([side_on], [np.sign(rng.random(n) - 0.5) * _normal(rng, 85, 14, n, 50, 118)], rng.normal(0, 9, n))
    r[:, 0] = _turn(2, roll, n) @ flat
    _spine(r, rng, np.where(side_on, _normal(rng, 14, 12, n, -8, 45), rng.normal(0, 6, n)), 6.0, 10.0)
    _head(r, rng, np.where(side_on | back, 8.0, -12.0), 8.0)
    drawn = side_on & (rng.random(n) < 0.8) | back & (rng.random(n) < 0.35)
    amount = rng.uniform(0.15, 1.0, n)
    for side, sign in _SIDES:
        own = np.clip(amount + rng.normal(0, 0.13, n), 0, 1.1) * (rng.random(n) < 0.85)
        flexion = np.select(
            [front, drawn], [rng.normal(-2, 5, n), np.where(back, 62, 100) * own], np.abs(rng.normal(4, 6, n))
        )
        # A supine foot stands on the ground: knee about twice the hip; curled up on a side it follows the hip.
        raised = np.where(rng.random(n) < 0.25, rng.uniform(0, 95, n), np.abs(rng.normal(5, 6, n)))
        bend = np.select([front, drawn], [raised, np.where(back, 1.85, 1.1) * flexion], np.abs(rng.normal(6, 8, n)))
        r[:, _J[f"{side}_hip"]] = _hip(
            n, flexion, rng.normal(3, 4, n), rng.normal(6, 5, n), np.where(drawn, 2, 14) + rng.normal(0, 6, n), sign
        )
        r[:, _J[f"{side}_knee"]] = _turn(0, np.clip(bend, 0, 130), n)
        r[:, _J[f"{side}_ankle"]] = _turn(0, np.clip(rng.normal(24, 10, n), -5, 50), n)
    left, right = _hands(
        rng,
        n,
        {"hang": 6, "belly": 3, "up": 1, "side": 1.5, "chest": 1.5, "nape": 1, "face": 1, "front": 0.6, "": 1},
        0.5,
    )
    # On a side the arms lie before the body, the lower one too: anything else goes through the mattress.
    before = _hands(rng, n, {"front": 3, "chest": 3, "face": 3, "belly": 2, "low": 1.5, "crossed": 1}, 0.3)
    return np.where(side_on, before[0], left), np.where(side_on, before[1], right)


FAMILIES: dict[str, tuple[tuple[Callable[[Array, np.random.Generator, Body], Hands], float], ...]] = {
    "sitting": ((_sit_chair, 0.72), (_recline, 0.13), (_sit_floor, 0.15)),
    "crouching": ((_squat, 0.5), (_kneel, 0.5)),
    "bending": ((_bend, 1.0),),
    "standing": ((_stand, 1.0),),
    "reaching": ((_reach, 1.0),),
    "lying": ((_lie, 1.0),),
}
"""Kinds of posture and the ways to make one, with their shares."""


def make_posture(kind: str, arms: Array, rng: np.random.Generator, body: Body) -> Array:
    """Draw postures of a kind: local rotations (N, 24, 3, 3), float64.

    :param arms: (N, 24, 3, 3) captured poses whose arms (collars to wrists) stay where a posture leaves its arms free.
    :raises KeyError: `kind` is not one of `FAMILIES`.

    Nothing is tested here: the caller rejects what interpenetrates (`limits.penetration`).
    """
    makers = FAMILIES[kind]
    choice = rng.choice(len(makers), len(arms), p=[share for _, share in makers])
    out = np.broadcast_to(np.eye(3), arms.shape).copy()
    limbs = [_J[f"{s}_{k}"] for s in ("left", "right") for k in ("collar", "shoulder", "elbow", "wrist")]
    for k, (maker, _) in enumerate(makers):
        rows = np.flatnonzero(choice == k)
        if not len(rows):
            continue
        part = out[rows]
        left, right = maker(part, rng, body)
        part[:, limbs] = arms[rows][:, limbs]
        place_arms(part, left, right, rng, body, rng.random(len(rows)) < 0.7)
        out[rows] = part
    return out
