"""Readers for physics-character clips: DeepMimic's JSON and the AMP humanoid's arrays (npz)."""

from __future__ import annotations

__all__ = ["read_amp", "read_deepmimic"]

import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from .retarget import Clip, MocapError, canonical
from .rotations import axis_angle_to_matrix, quaternion_to_matrix

_ORDER = ("chest", "neck", "right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow",
          "left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow")  # fmt: skip
_SAME = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
_PLACES = {"pelvis": "root", "spine3": "chest", "neck": "neck"}
_PLACES |= {f"{s}_{k}": f"{s}_{k}" for s in ("left", "right") for k in _SAME}
# The one neck joint of the character moves the head; the retargeting gives half of it to SMPL's neck.
_DRIVERS = {k: v for k, v in _PLACES.items() if k not in ("neck", "left_wrist", "right_wrist")} | {"head": "neck"}

_AMP_SIDE = {"hip": "thigh", "knee": "shin", "ankle": "foot", "shoulder": "upper_arm", "elbow": "lower_arm",
             "wrist": "hand"}  # fmt: skip
_AMP_PLACES = {"pelvis": "pelvis", "spine3": "torso", "neck": "head"}
_AMP_PLACES |= {f"{s}_{k}": f"{s}_{v}" for s in ("left", "right") for k, v in _AMP_SIDE.items()}
_AMP_DRIVERS = {k: v for k, v in _AMP_PLACES.items() if k not in ("neck", "left_wrist", "right_wrist")}
_AMP_DRIVERS |= {"head": "head"}


def _chain(parents: list[int], names: list[str], offsets: np.ndarray, local: dict[str, np.ndarray], root: np.ndarray):
    """Global rotations and positions of every node, and its rest position, as dictionaries."""
    rotations: dict[str, np.ndarray] = {}
    positions: dict[str, np.ndarray] = {}
    rest: dict[str, np.ndarray] = {}
    for j, node in enumerate(names):
        if parents[j] < 0:
            rotations[node], positions[node], rest[node] = local[node], root, np.zeros(3)
            continue
        above = names[parents[j]]
        rotations[node] = rotations[above] @ local[node] if node in local else rotations[above]
        positions[node] = positions[above] + rotations[above] @ offsets[j]
        rest[node] = rest[above] + offsets[j]
    return rotations, positions, rest


def read_deepmimic(text: str, skeleton: dict[str, Any], name: str = "deepmimic") -> Clip:
    """Read a DeepMimic motion with its character file (parsed JSON) into a `Clip` (metres, y up, facing +x at rest).

    A frame holds a duration, the root's position and quaternion, then the joints: quaternions w x y z, or one angle
    about z for knees and elbows. The rate is that of the first duration. Raises `MocapError` on a wrong width.
    """
    frames = np.array(json.loads(text)["Frames"], dtype=np.float64)
    if frames.ndim != 2 or frames.shape[1] != 44:
        raise MocapError(f"{name}: frames of {frames.shape[1:]} numbers; the humanoid's have 44")
    joints = skeleton["Skeleton"]["Joints"]
    names = [j["Name"] for j in joints]
    parents = [int(j["Parent"]) for j in joints]
    offsets = np.array([[j["AttachX"], j["AttachY"], j["AttachZ"]] for j in joints], dtype=np.float64)
    local = {"root": quaternion_to_matrix(frames[:, 4:8])}
    column = 8
    for joint in _ORDER:
        if joint.endswith(("knee", "elbow")):
            angle = np.zeros((len(frames), 3))
            angle[:, 2] = frames[:, column]
            local[joint] = axis_angle_to_matrix(angle)
            column += 1
        else:
            local[joint] = quaternion_to_matrix(frames[:, column : column + 4])
            column += 4
    rotations, positions, rest = _chain(parents, names, offsets, local, frames[:, 1:4])
    still = {key: np.eye(3) for key in rotations}
    return canonical(name, 1.0 / frames[0, 0], rotations, positions, still, rest, _DRIVERS, _PLACES)


def read_amp(file: str | Path | IO[bytes], name: str = "amp") -> Clip:
    """Read an AMP humanoid motion (npz: names, parents, local_translation, rotation_xyzw, root_translation, fps)."""
    with np.load(file, allow_pickle=False) as data:
        needed = ("names", "parents", "local_translation", "rotation_xyzw", "root_translation", "fps")
        missing = [key for key in needed if key not in data.files]
        if missing:
            raise MocapError(f"{name}: lacks {', '.join(missing)}; not an AMP motion")
        arrays = {key: data[key] for key in needed}
        is_local = bool(data["is_local"]) if "is_local" in data.files else True
    if not is_local:
        raise MocapError(f"{name}: rotations are global; only local ones are read")
    names = [str(n) for n in arrays["names"]]
    quaternion = arrays["rotation_xyzw"].astype(np.float64)[..., [3, 0, 1, 2]]
    matrices = quaternion_to_matrix(quaternion)
    # z up -> y up: (x, y, z) becomes (x, z, -y).
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    local = {node: turn @ matrices[:, j] @ turn.T for j, node in enumerate(names)}
    offsets = arrays["local_translation"].astype(np.float64) @ turn.T
    root = arrays["root_translation"].astype(np.float64) @ turn.T
    rotations, positions, rest = _chain([int(p) for p in arrays["parents"]], names, offsets, local, root)
    still = {key: np.eye(3) for key in rotations}
    return canonical(name, float(arrays["fps"]), rotations, positions, still, rest, _AMP_DRIVERS, _AMP_PLACES)
