"""Reader for the npz files of BEDLAM (the labels of BEDLAM-CLIFF) and of AGORA in the same form.

Facts from pixelite1201/BEDLAM (data_processing/df_full_body.py and df_full_body_smpl.py, train/dataset/dataset.py) and
pixelite1201/agora_evaluation (agora_processing_code): K people a file,

* ``imgname`` (K,), ``center`` (K, 2), ``scale`` (K,) box side / 200 pixels;
* ``pose_cam`` axis-angle, the root turned into the camera's frame: 72 numbers for SMPL, 165 (or the first 66) for
  SMPL-X, whose first 22 joints are SMPL's; ``shape`` 10 numbers or more;
* ``cam_int`` (K, 3, 3); the body stands at ``cam_ext[:, :3, 3]`` (K, 4, 4) **plus** ``trans_cam`` (K, 3) where the file
  has that (BEDLAM has, AGORA has not); the rotation in ``cam_ext`` is within ``pose_cam`` already. It is SMPL's
  translation: projecting (joints of pose_cam and shape + translation) with cam_int gives ``gtkps``;
* ``gtkps`` (K, P, 2 or 3) all points that the `smplx` package gives, in pixels: 45 for SMPL, 127 or 144 for SMPL-X.

BEDLAM's 3DPW labels have ``smplx_pose`` and ``smplx_shape`` and 18 OpenPose points instead. In BEDLAM 2 the points
begin with OpenPose's 25.
"""

from __future__ import annotations

__all__ = ["read_bedlam"]

from pathlib import Path

import numpy as np

from hmr_prob_ros.skeleton import JOINT_NAMES

from ..annotations import AnnotationError, Annotations
from ..rotations import axis_angle_to_matrix
from .fields import Fields
from .joints import DETECTED, OPENPOSE_18, OPENPOSE_25, SMPL_POINTS, SMPLX_POINTS, projected_joints, to_keypoints
from .pelvis import rest_pelvis

_BODY_OF = {72: "smpl", 66: "smplx", 165: "smplx"}
_FAR = 1.0  # points farther outside than this many picture sizes may be behind the camera, mirrored


def read_bedlam(path: str | Path) -> Annotations:
    """Read one of BEDLAM's or AGORA's files.

    Hands of SMPL-X are not SMPL's two hand joints: those two are the identity. Of more than ten shape numbers the
    first ten are taken. Scenes that were filmed upright are stored lying on their side (`Annotations.quarter_turns`).
    The pelvis in 3D follows from its projections and the translations of all people of the file, other joints only from
    the licensed body.

    Raises:
        AnnotationError: a field is missing or of the wrong shape, or known values are not finite.
    """
    path = Path(path)
    with Fields.open(path) as data:
        image = data.text("imgname")
        count = len(image)
        pose_name, shape_name = ("pose_cam", "shape") if "pose_cam" in data else ("smplx_pose", "smplx_shape")
        pose = data.array(pose_name, count, None)
        if pose.shape[1] not in _BODY_OF:
            raise data.error(pose_name, f"is {pose.shape}, not (K, 72) of SMPL nor (K, 66) or (K, 165) of SMPL-X")
        body = "smplx" if pose_name == "smplx_pose" else _BODY_OF[pose.shape[1]]
        betas = data.array(shape_name, count, None)
        if betas.shape[1] < 10:
            raise data.error(shape_name, f"is {betas.shape}, not (K, 10 or more)")
        intrinsics = _intrinsics(data, count)
        translation = None
        if "cam_ext" in data:  # trans_cam alone is only a part of the way
            translation = data.array("cam_ext", count, 4, 4)[:, :3, 3]
            if "trans_cam" in data:
                translation = translation + data.array("trans_cam", count, 3)
        keypoints = _keypoints(data, count, body, intrinsics) if "gtkps" in data else None
        joints, has_joints = _pelvis(data, translation, intrinsics, betas)
        centre, scale = data.array("center", count, 2), data.array("scale", count)
    turned = 22 if body == "smplx" else 24
    vectors = np.zeros((count, 24, 3))
    vectors[:, :turned] = pose[:, : 3 * turned].reshape(count, turned, 3)
    folders = [name.rpartition("/")[0] for name in image.tolist()]
    takes = [f"{path.stem}/{f}" if f else Path(n).stem for f, n in zip(folders, image.tolist())]
    # AGORA's pictures and most scenes are wide; a high camera means that the picture was turned for the labels.
    upright = np.nan_to_num(intrinsics[:, 2]) < np.nan_to_num(intrinsics[:, 3])
    try:
        return Annotations(
            name=path.stem,
            image=image,
            centre=centre,
            size=200.0 * scale,
            intrinsics=intrinsics,
            keypoints=keypoints,
            rotations=axis_angle_to_matrix(vectors),
            betas=betas[:, :10],
            translation=translation,
            joints=joints,
            has_joints=has_joints,
            take=np.array(takes, dtype=np.str_),
            body=body,
            quarter_turns=upright.astype(np.uint8),
        )
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from error


def _intrinsics(data: Fields, count: int) -> np.ndarray:
    if "cam_int" not in data:
        return np.full((count, 4), np.nan)
    matrix = data.array("cam_int", count, 3, 3)
    out = np.stack((matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2]), axis=1)
    return np.where((matrix == 0).all(axis=(1, 2))[:, None], np.nan, out)  # zeros stand for an unknown camera


def _pelvis(
    data: Fields, translation: np.ndarray | None, intrinsics: np.ndarray, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (K, 24, 3), of which at most the pelvis is known (K, 24)."""
    count = len(betas)
    joints, known = np.zeros((count, 24, 3)), np.zeros((count, 24), bool)
    points = data.array("gtkps", count, None, None) if "gtkps" in data else np.zeros((count, 0, 2))
    # Points of BEDLAM 2 begin with OpenPose's, the 18 of 3DPW are detections: neither has SMPL's pelvis first.
    if translation is None or not 18 < points.shape[1] <= 144:
        return joints, known
    # Every gender's body has a rest pelvis of its own (where the labels are not those of the neutral body).
    sexes = data.text("gender") if "gender" in data else np.zeros(count)
    for sex in np.unique(sexes):
        rows = sexes == sex
        rest, sure = rest_pelvis(translation[rows], intrinsics[rows], points[rows, 0, :2], betas=betas[rows])
        joints[rows, 0], known[rows, 0] = translation[rows] + rest, sure
    return joints, known


def _keypoints(data: Fields, count: int, body: str, intrinsics: np.ndarray) -> np.ndarray:
    points = data.array("gtkps", count, None, None)
    if points.shape[2] not in (2, 3):
        raise data.error("gtkps", f"is {points.shape}, not (K, P, 2 or 3)")
    if points.shape[2] == 2:
        points = np.concatenate((points, np.ones_like(points[..., :1])), axis=2)
    size = points.shape[1]
    if size == 18:
        points[..., 2] = points[..., 2] >= DETECTED
        return to_keypoints(points, OPENPOSE_18)
    if size > 144:
        # BEDLAM 2 puts OpenPose's order first; its hips are those of SMPL.
        keypoints = projected_joints(points, OPENPOSE_25)
    elif size in (22, 24):
        keypoints = projected_joints(points, JOINT_NAMES[:22])
    elif size in (45, 127, 144, 76):
        keypoints = projected_joints(points, SMPL_POINTS if size == 45 else SMPLX_POINTS)
    else:
        raise data.error(
            "gtkps", f"has {size} points, not 45 of SMPL, 127 or 144 of SMPL-X, or 22 or 24 joints", "see its script"
        )
    middle = np.where(np.isnan(intrinsics[:, 2:]), np.inf, intrinsics[:, 2:])[:, None]
    near = (np.abs(keypoints[..., :2] - np.where(np.isinf(middle), 0, middle)) < (1 + 2 * _FAR) * middle).all(axis=-1)
    return np.where(near[..., None], keypoints, 0.0)
