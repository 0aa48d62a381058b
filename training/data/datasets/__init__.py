"""Readers of the files that the field trains and tests on; every one gives `Annotations`.

* `read_spin`: SPIN's npz of Human3.6M, MPI-INF-3DHP, MPII, COCO and 3DPW.
* `read_bedlam`: BEDLAM's npz (BEDLAM-CLIFF's labels, AGORA), with SMPL or SMPL-X.
* `read_3dpw`, `read_emdb`: the pickles of 3DPW and EMDB themselves.
* `read`: any of them, recognised by its fields, or a folder of them.

AMASS is motion without pictures: `hmr_prob_ros.training.data.amass` reads it. docs/datasets.md says where the files
come from.
"""

from __future__ import annotations

__all__ = ["KINDS", "read", "read_3dpw", "read_bedlam", "read_emdb", "read_spin"]

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..amass import is_amass
from ..annotations import AnnotationError, Annotations
from .bedlam import read_bedlam
from .fields import Fields
from .pickles import read_3dpw, read_emdb
from .spin import read_spin

KINDS: dict[str, Callable[[str | Path], Annotations]] = {
    "spin": read_spin,
    "bedlam": read_bedlam,
    "3dpw": read_3dpw,
    "emdb": read_emdb,
}


def read(path: str | Path, kind: str = "auto") -> Annotations:
    """Read the labelled people of a file, or of all files of a folder and the folders in it.

    In a folder, files of EMDB and 3DPW are ``.pkl`` and the others ``.npz``. Image paths of BEDLAM's scenes then begin
    with the name of the scene, ``<scene>/png/``, as its archives unpack, since each scene has its own image folder.

    Args:
        path: the file or folder.
        kind: one of `KINDS`, or ``auto`` to recognise it by its fields.

    Raises:
        AnnotationError: no such file, a kind that is not known, or a file that cannot be used.
    """
    path = Path(path)
    if kind != "auto" and kind not in KINDS:
        raise AnnotationError(f"{path}: unknown kind {kind!r}: give auto or one of {', '.join(KINDS)}")
    if not path.exists():
        raise AnnotationError(f"{path}: there is no such file: see docs/datasets.md for where it comes from")
    if path.is_file():
        return KINDS[_recognise(path) if kind == "auto" else kind](path)
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in (".npz", ".pkl") and f.is_file())
    if not files:
        raise AnnotationError(
            f"{path}: holds neither .npz nor .pkl files: see docs/datasets.md for where to place them"
        )
    parts = []
    for file in files:
        part = read(file, kind)
        if (np.char.find(part.image, "seq_") == 0).all():
            part = replace(part, image=np.char.add(f"{file.stem}/png/", part.image))
        parts.append(part)
    return Annotations.concatenate(parts, name=path.name)


def _recognise(path: Path) -> str:
    with Fields.open(path) as data:
        names = set(data)
    if {"smpl", "camera"} <= names:
        return "emdb"
    if {"poses", "cam_poses"} <= names:
        return "3dpw"
    if is_amass(sorted(names)):
        raise AnnotationError(f"{path}: is motion capture (AMASS), without pictures: give it as --mocap")
    if "imgname" in names and names & {"pose_cam", "smplx_pose"}:
        return "bedlam"
    if "imgname" in names:
        return "spin"
    held = ", ".join(sorted(names)[:12])
    raise AnnotationError(f"{path}: is of no kind that is known (it holds {held}): give one of {', '.join(KINDS)}")
