"""Reader for AMASS and SMPL motion archives (npz with `poses`, `trans` and a frame rate)."""

from __future__ import annotations

__all__ = ["is_amass", "read_amass"]

from pathlib import Path
from typing import IO

import numpy as np

from .retarget import MocapError, Motion
from .rotations import axis_angle_to_matrix, matrix_to_axis_angle

_RATES = ("mocap_framerate", "mocap_frame_rate", "fps")


def is_amass(names: list[str]) -> bool:
    """Whether the array names of an npz are those of an AMASS motion."""
    return "poses" in names and "trans" in names


def read_amass(file: str | Path | IO[bytes], name: str = "amass", up: str = "z") -> Motion:
    """Read an AMASS motion (SMPL 72, SMPL+H 156 or SMPL-X 165 columns of axis-angle) as a `Motion` of 24 joints.

    The 21 body joints are the same in all three; the hand joints 22 and 23 are left at rest. AMASS has z up: the root
    and the translation are turned to y up (`up` "y" leaves them). `betas` and `gender` are not used.
    The turn is about the rest pelvis, as SMPL rotates; the few centimetres between that and the origin are kept in
    `trans`, which the synthesis of examples does not rely on.
    """
    with np.load(file, allow_pickle=False) as data:
        if not is_amass(data.files):
            raise MocapError(f"{name}: lacks `poses` and `trans`; not an AMASS motion")
        poses = np.asarray(data["poses"], dtype=np.float64)
        trans = np.asarray(data["trans"], dtype=np.float64)
        rate = next((float(data[key]) for key in _RATES if key in data.files), 0.0)
    poses = poses.reshape(len(poses), -1)
    if poses.shape[1] < 66 or poses.shape[1] % 3 or len(trans) != len(poses):
        raise MocapError(f"{name}: poses {poses.shape} and trans {trans.shape} are not those of an AMASS motion")
    if rate <= 0:
        raise MocapError(f"{name}: no frame rate; an AMASS file names it `mocap_framerate`")
    if up not in ("y", "z"):
        raise MocapError(f"{name}: up axis {up!r} is not 'y' or 'z'")
    pose = np.zeros((len(poses), 24, 3))
    pose[:, :22] = poses[:, :66].reshape(-1, 22, 3)
    if up == "z":
        turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
        pose[:, 0] = matrix_to_axis_angle(turn @ axis_angle_to_matrix(pose[:, 0]))
        trans = trans @ turn.T
    return Motion(name, rate, pose, trans)
