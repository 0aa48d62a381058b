"""What joints of a body can do: plausibility of poses, and ranges to draw new ones from.

Ranges are those of textbooks on joint motion (American Academy of Orthopaedic Surgeons, and the CMU skeletons' own
limits), in the frames of SMPL: T-pose, y up, facing +z, left at +x. A left limb's ranges; the right one's are mirrored.
"""

from __future__ import annotations

__all__ = ["RANGES", "clip_to_range", "elbow_bend", "knee_bend", "mend", "penetration", "plausible"]

import numpy as np

from hmr_prob_ros.skeleton import JOINT_NAMES

from .rotations import axis_angle_to_matrix

_J = {name: k for k, name in enumerate(JOINT_NAMES)}


def knee_bend(rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flexion and sideways angle (...) in degrees of knee rotations (..., 3, 3): the shank seen from the thigh."""
    shank = -rotation[..., :, 1]
    return (
        np.degrees(np.arctan2(-shank[..., 2], -shank[..., 1])),
        np.degrees(np.arcsin(np.clip(shank[..., 0], -1.0, 1.0))),
    )


def elbow_bend(rotation: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Flexion (...) and direction (...) in degrees of elbow rotations (..., 3, 3).

    In the T-pose with palms down a forearm bends forwards (direction 0) to upwards (90), never backwards (180).
    """
    forearm = rotation[..., :, 0] * (1.0 if side == "left" else -1.0)
    along = forearm[..., 0] * (1.0 if side == "left" else -1.0)
    flexion = np.degrees(np.arctan2(np.hypot(forearm[..., 1], forearm[..., 2]), along))
    return flexion, np.degrees(np.arctan2(forearm[..., 1], forearm[..., 2]))


_MOST = {"ankle": 85.0, "foot": 85.0, "wrist": 110.0, "head": 65.0, "neck": 65.0}


def mend(pose: np.ndarray) -> np.ndarray:
    """Copy of the poses (T, 24, 3) with feet, hands and head that are turned round put to rest.

    Capture loses the few markers there first, while the rest of the body is sound: of 1,500 frames with such a glitch
    only 60 have another.
    """
    out = pose.copy()
    angle = np.degrees(np.linalg.norm(pose, axis=-1))
    for joint, most in _MOST.items():
        for name in (joint,) if joint in _J else (f"left_{joint}", f"right_{joint}"):
            out[angle[:, _J[name]] > most, _J[name]] = 0.0
    return out


def plausible(pose: np.ndarray) -> np.ndarray:
    """Which of the poses (T, 24, 3), axis-angle, a body can take: a (T,) mask.

    Wide on purpose, to catch glitches of capture and nothing else: knees and elbows bent backwards or sideways, feet,
    head, spine or hands turned round.
    """
    matrix = axis_angle_to_matrix(pose.astype(np.float64))
    angle = np.degrees(np.linalg.norm(pose, axis=-1))
    good = np.isfinite(pose).all(axis=(1, 2))
    for side in ("left", "right"):
        flexion, sideways = knee_bend(matrix[:, _J[f"{side}_knee"]])
        good &= (flexion > -20) & (flexion < 165) & (np.abs(sideways) < 30)
        bend, towards = elbow_bend(matrix[:, _J[f"{side}_elbow"]], side)
        good &= (bend < 165) & ((bend < 35) | ((towards > -75) & (towards < 120)))
        for joint in ("ankle", "foot", "wrist"):
            good &= angle[:, _J[f"{side}_{joint}"]] < _MOST[joint] + 1.0
        good &= angle[:, _J[f"{side}_hip"]] < 150
        good &= angle[:, _J[f"{side}_collar"]] < 60
    for joint, most in (("spine1", 80), ("spine2", 60), ("spine3", 60), ("neck", 66), ("head", 66)):
        good &= angle[:, _J[joint]] < most
    return good


RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "left_hip": ((-125, 30), (-40, 50), (-30, 50)),
    "left_knee": ((-2, 150), (-6, 6), (-8, 10)),
    "left_ankle": ((-28, 50), (-35, 35), (-22, 22)),
    "left_foot": ((-45, 40), (-12, 12), (-8, 8)),
    "spine1": ((-18, 50), (-20, 20), (-20, 20)),
    "spine2": ((-14, 32), (-18, 18), (-16, 16)),
    "spine3": ((-14, 26), (-14, 14), (-14, 14)),
    "neck": ((-26, 32), (-38, 38), (-22, 22)),
    "head": ((-26, 32), (-38, 38), (-22, 22)),
    "left_collar": ((-12, 12), (-30, 16), (-26, 36)),
    "left_shoulder": ((-90, 85), (-115, 50), (-100, 60)),
    "left_elbow": ((-60, 60), (-148, 0), (-12, 75)),
    "left_wrist": ((-55, 55), (-45, 45), (-60, 60)),
}
"""Components (x, y, z) of axis-angle vectors in degrees that `clip_to_range` allows; right limbs mirrored."""


def _bounds() -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full((2, len(JOINT_NAMES), 3), np.inf)
    low = -low
    for name, ranges in RANGES.items():
        values = np.radians(np.array(ranges, dtype=np.float64))
        low[_J[name]], high[_J[name]] = values[:, 0], values[:, 1]
        if name.startswith("left_"):
            other = _J["right_" + name[5:]]
            low[other] = [values[0, 0], -values[1, 1], -values[2, 1]]
            high[other] = [values[0, 1], -values[1, 0], -values[2, 0]]
    return low, high


_LOW, _HIGH = _bounds()


def clip_to_range(pose: np.ndarray) -> np.ndarray:
    """Poses (T, 24, 3), axis-angle, with every component brought into `RANGES`; root and hands as they are."""
    return np.clip(pose, _LOW, _HIGH)


# Capsules for the test of interpenetration: (joint, joint, radius in metres) and pairs that must not touch.
_CAPSULES: dict[str, tuple[str, str, float]] = {
    "pelvis": ("left_hip", "right_hip", 0.09),
    "waist": ("pelvis", "spine2", 0.11),
    "chest": ("spine2", "neck", 0.11),
    "head": ("head", "head", 0.10),
}
for _s in ("left", "right"):
    _CAPSULES |= {
        f"{_s} side": (f"{_s}_hip", f"{_s}_shoulder", 0.065),
        f"{_s} thigh": (f"{_s}_hip", f"{_s}_knee", 0.065),
        f"{_s} lower thigh": (f"{_s}_hip", f"{_s}_knee", 0.055),
        f"{_s} shank": (f"{_s}_knee", f"{_s}_ankle", 0.048),
        f"{_s} foot": (f"{_s}_ankle", f"{_s}_foot", 0.035),
        f"{_s} upper arm": (f"{_s}_shoulder", f"{_s}_elbow", 0.042),
        f"{_s} forearm": (f"{_s}_elbow", f"{_s}_wrist", 0.036),
        f"{_s} hand": (f"{_s}_wrist", f"{_s}_hand", 0.030),
    }
_PAIRS: list[tuple[str, str]] = [
    ("left lower thigh", "right lower thigh"),
    ("left thigh", "right shank"),
    ("right thigh", "left shank"),
    ("left shank", "right shank"),
    ("left foot", "right foot"),
    ("left shank", "right foot"),
    ("left foot", "right shank"),
]
_PAIRS += [(f"left {a}", f"right {b}") for a in ("forearm", "hand") for b in ("forearm", "hand", "upper arm")]
_PAIRS += [(f"right {a}", "left upper arm") for a in ("forearm", "hand")]
for _s in ("left", "right"):
    _o = "right" if _s == "left" else "left"
    for _a in ("forearm", "hand"):
        _PAIRS += [(f"{_s} {_a}", k) for k in ("pelvis", "waist", "chest", "head", f"{_o} side")]
        _PAIRS += [(f"{_s} {_a}", f"{t} {k}") for t in ("left", "right") for k in ("thigh", "shank", "foot")]
    _PAIRS += [(f"{_s} hand", f"{_s} side"), (f"{_s} upper arm", "head"), (f"{_s} upper arm", f"{_o} side")]
    _PAIRS += [(f"{_s} upper arm", f"{t} shank") for t in ("left", "right")]
    _PAIRS += [(f"{_s} {k}", t) for k in ("shank", "foot") for t in ("pelvis", "waist", "chest", "head")]
_NAMES = list(_CAPSULES)
_ENDS = np.array([[_J[a], _J[b]] for a, b, _ in _CAPSULES.values()])
_RADII = np.array([r for _, _, r in _CAPSULES.values()], dtype=np.float32)
_FIRST = np.array([_NAMES.index(a) for a, _ in _PAIRS])
_SECOND = np.array([_NAMES.index(b) for _, b in _PAIRS])


def _segment_distance(a0: np.ndarray, a1: np.ndarray, b0: np.ndarray, b1: np.ndarray) -> np.ndarray:
    """Distance (...) between the segments a0 a1 and b0 b1, each (..., 3).

    The closest points of the two lines, each clamped to its segment in turn (Ericson 2005, section 5.1.9).
    """
    u, v, w = a1 - a0, b1 - b0, a0 - b0
    a, b, c = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    d, e = (u * w).sum(-1), (v * w).sum(-1)
    det = a * c - b * b
    s = np.clip(np.where(det > 1e-9, (b * e - c * d) / np.maximum(det, 1e-9), 0.0), 0.0, 1.0)
    t = np.where(c > 1e-9, (b * s + e) / np.maximum(c, 1e-9), 0.0)
    t = np.clip(t, 0.0, 1.0)
    s = np.clip(np.where(a > 1e-9, (b * t - d) / np.maximum(a, 1e-9), 0.0), 0.0, 1.0)
    return np.linalg.norm(w + s[..., None] * u - t[..., None] * v, axis=-1)


def penetration(joints: np.ndarray) -> np.ndarray:
    """How deep (T,) in metres limbs lie inside other parts of the body, at worst, from its joints (T, 24, 3).

    Capsules of an adult's girth; neighbours in the skeleton do not count. Clothes and flesh give way by 2 or 3 cm, so a
    knot is what exceeds that.
    """
    points = joints.astype(np.float32)
    start, end = points[:, _ENDS[:, 0]], points[:, _ENDS[:, 1]]
    head = _NAMES.index("head")  # its sphere lies above the joint, along the neck
    up = points[:, _J["head"]] - points[:, _J["neck"]]
    start[:, head] += 0.8 * up
    for side in ("left", "right"):  # thighs touch near the hips: only what lies below is compared
        part = _NAMES.index(f"{side} lower thigh")
        start[:, part] += (end[:, part] - start[:, part]) / 3.0
    end[:, head] = start[:, head]
    gap = _segment_distance(start[:, _FIRST], end[:, _FIRST], start[:, _SECOND], end[:, _SECOND])
    return (_RADII[_FIRST] + _RADII[_SECOND] - gap).max(axis=1)
