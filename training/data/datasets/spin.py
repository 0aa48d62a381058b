"""Reader for SPIN's npz files: Human3.6M, MPI-INF-3DHP, MPII, COCO and 3DPW in one form.

Facts from nkolot/SPIN (constants.py, datasets/base_dataset.py and datasets/preprocess): K people a file,

* ``imgname`` (K,) path below the data set's folder; ``center`` (K, 2) pixels; ``scale`` (K,) box side / 200 pixels;
* ``part`` (K, 24, 3) labelled points, pixels counted from 0 and 1 or 0; ``openpose`` (K, 25, 3) detected ones;
* ``S`` (K, 24, 4) metres and known flag, measured from the pelvis along the camera's axes (x right, y down, z ahead);
* ``pose`` (K, 72) axis-angle of the 24 SMPL joints, the root turned into the camera's frame; ``shape`` (K, 10);
  ``has_smpl`` (K,), all known without it.

There are no cameras and no translations in these files.
"""

from __future__ import annotations

__all__ = ["read_spin"]

import re
from pathlib import Path

import numpy as np

from ..annotations import AnnotationError, Annotations
from ..rotations import axis_angle_to_matrix
from .fields import Fields
from .joints import DETECTED, OPENPOSE_25, SPIN_24, spin_joints, to_keypoints

_H36M = re.compile(r"(S\d+_[^/]*?)(?:\.\d+)?_\d+\.\w+$")  # S1_Directions_1.54138969_000001.jpg
_3DHP = re.compile(r"(S\d+/Seq\d+)/")
_LOOSE = ("", "images", "train2014", "val2014", "train2017", "val2017")  # folders of pictures that are no recordings


def _take(image: str) -> str:
    """The recording of a picture: all cameras that saw the same moment, or the picture alone."""
    if found := _H36M.search(image) or _3DHP.search(image):
        return found.group(1)
    folder, _, file = image.rpartition("/")
    return Path(file).stem if folder.rpartition("/")[2] in _LOOSE else folder


def read_spin(path: str | Path) -> Annotations:
    """Read one of SPIN's files.

    Keypoints are those of ``part``; where it has no label, OpenPose's with a confidence of `DETECTED` or more.

    Raises:
        AnnotationError: a field is missing or of the wrong shape, or known values are not finite.
    """
    path = Path(path)
    with Fields.open(path) as data:
        image = data.text("imgname")
        count = len(image)
        if not {"part", "openpose", "S", "pose"} & set(data):
            raise data.error("part", "is missing, and so are openpose, S and pose", "give a file with labels")
        keypoints = np.zeros((count, 23, 3))
        if "openpose" in data:
            found = data.array("openpose", count, 25, 3)
            found[..., 2] = found[..., 2] >= DETECTED
            keypoints = to_keypoints(found, OPENPOSE_25)
        if "part" in data:
            own = to_keypoints(data.array("part", count, 24, 3), SPIN_24)
            keypoints = np.where(own[..., 2:] > 0, own, keypoints)
        rotations = betas = joints = None
        known: np.ndarray | None = None
        has_joints = None
        if "pose" in data:
            known = data.array("has_smpl", count) > 0 if "has_smpl" in data else np.ones(count, bool)
            rotations = axis_angle_to_matrix(data.array("pose", count, 72).reshape(count, 24, 3))
            betas = data.array("shape", count, 10)
        if "S" in data:
            joints, has_joints = spin_joints(data.array("S", count, 24, 4))
        centre, scale = data.array("center", count, 2), data.array("scale", count)
    try:
        return Annotations(
            name=path.stem,
            image=image,
            centre=centre,
            size=200.0 * scale,
            keypoints=keypoints,
            rotations=rotations,
            has_pose=known,
            betas=betas,
            has_betas=known,
            joints=joints,
            has_joints=has_joints,
            take=np.array([_take(name) for name in image.tolist()], dtype=np.str_),
            body="smpl" if rotations is not None else "",
        )
    except AnnotationError as error:
        where = "; in this file has_smpl and the last number of S say so" if "has_" in str(error) else ""
        raise AnnotationError(f"{path}: {error}{where}") from error
