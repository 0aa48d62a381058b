"""Reader for exponential-map text: rows of a root position and one rotation vector per joint."""

from __future__ import annotations

__all__ = ["read_expmap"]

import io
from typing import Any

import numpy as np

from .retarget import Clip, MocapError, canonical
from .rotations import axis_angle_to_matrix

_SIDE = {
    "hip": "{}UpLeg", "knee": "{}Leg", "ankle": "{}Foot", "foot": "{}ToeBase", "collar": "{}Shoulder",
    "shoulder": "{}Arm", "elbow": "{}ForeArm", "wrist": "{}Hand",
}  # fmt: skip
_NODES = {"pelvis": "Hips", "spine1": "Spine", "spine2": "Spine1", "spine3": "Neck", "neck": "Neck1", "head": "Head"}
_NODES |= {f"{s}_{k}": v.format(s.capitalize()) for s in ("left", "right") for k, v in _SIDE.items()}
# The spine bones start one node below their end: LowerBack turns pelvis -> Spine, and so on.
_DRIVERS = _NODES | {"spine1": "LowerBack", "spine2": "Spine", "spine3": "Spine1", "neck": "Neck", "head": "Head"}


def read_expmap(text: str, skeleton: dict[str, Any], fps: float, rest_row: bool = True, name: str = "expmap") -> Clip:
    """Read rows of 3 + 3*S numbers with a `skeleton` of `joints`, `parents` and offsets (S, 3) into a `Clip`.

    The maps are those of the transposed local rotations (the source works with row vectors), so in columns
    ``R_j = R_parent @ exp(v_j)^T`` and ``x_j = x_parent + R_parent @ offset_j``. `offsets_m_thorax_restored` is
    taken where the skeleton has it: the source's own offsets lack the thorax bone. `rest_row` drops row 0.
    """
    rows = np.loadtxt(io.StringIO(text), delimiter="," if "," in text[:400] else None, ndmin=2)
    names, parents = list(skeleton["joints"]), list(skeleton["parents"])
    if rows.shape[1] != 3 + 3 * len(names):
        raise MocapError(f"{name}: {rows.shape[1]} columns do not fit a skeleton of {len(names)} joints (3 + 3 each)")
    offsets = np.asarray(skeleton.get("offsets_m_thorax_restored", skeleton["offsets_m"]), dtype=np.float64)
    rows = rows[1:] if rest_row else rows
    local = np.swapaxes(axis_angle_to_matrix(rows[:, 3:].reshape(len(rows), -1, 3)), -1, -2)
    unit = float(skeleton.get("unit_m", 1.0))
    rotations: dict[str, np.ndarray] = {}
    positions: dict[str, np.ndarray] = {}
    rest: dict[str, np.ndarray] = {}
    for j, (node, parent) in enumerate(zip(names, parents)):
        if parent < 0:
            rotations[node], positions[node], rest[node] = local[:, j], rows[:, :3] * unit, np.zeros(3)
            continue
        above = names[parent]
        rotations[node] = rotations[above] @ local[:, j]
        positions[node] = positions[above] + rotations[above] @ offsets[j]
        rest[node] = rest[above] + offsets[j]
    still = {key: np.eye(3) for key in rotations}
    return canonical(name, fps, rotations, positions, still, rest, _DRIVERS, _NODES)
