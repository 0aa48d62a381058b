"""Readers for the pickles of 3DPW and EMDB: one sequence a file, seen by a moving camera.

Both give bodies in the world and a camera for each frame, ``x_camera = R x + t``. SMPL turns the body about the rest
pelvis J_0, so the pelvis stands at J_0 + trans in the world, and the same body before the camera has

    root' = R root,    translation' = R (J_0 + trans) + t - J_0.

J_0 belongs to a licensed body, which is not needed: 3DPW stores the joints, and in EMDB the pelvis' projections over a
sequence fix it (`pelvis`).
"""

from __future__ import annotations

__all__ = ["read_3dpw", "read_emdb"]

import warnings
from pathlib import Path

import numpy as np

from ..annotations import AnnotationError, Annotations
from ..rotations import axis_angle_to_matrix
from .fields import Fields
from .joints import DETECTED, OPENPOSE_18, SMPL_POINTS, projected_joints, to_keypoints
from .pelvis import rest_pelvis

_BOX = 1.2  # side of the square over the box of the points or the person, as SPIN's script for 3DPW


def _camera_pose(
    extrinsics: np.ndarray, root: np.ndarray, pelvis: np.ndarray, rest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Root rotation (K, 3, 3) and translation (K, 3) before the camera; see the head of this file.

    Args:
        extrinsics: (K, 4, 4) world to camera. root: (K, 3, 3) body to world. pelvis: (K, 3) in the world, J_0 + trans.
        rest: (K, 3) or (3,) the rest pelvis J_0.
    """
    turn, shift = extrinsics[:, :3, :3], extrinsics[:, :3, 3]
    return turn @ root, np.einsum("kij,kj->ki", turn, pelvis) + shift - rest


def _square(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (low + high) / 2, _BOX * (high - low).max(axis=-1)


def read_3dpw(path: str | Path) -> Annotations:
    """Read a sequence of 3DPW (``sequenceFiles/*/*.pkl``) with all its people.

    Facts from the data set's readme and nkolot/SPIN (datasets/preprocess/pw3d.py): ``poses`` a person (N, 72),
    ``trans`` (N, 3), ``betas`` (10 or more), ``jointPositions`` (N, 72) 24 SMPL joints in the world, ``poses2d``
    (N, 3, 18) OpenPose's points, ``campose_valid`` (N,); ``cam_poses`` (N, 4, 4) world to camera, ``cam_intrinsics``
    (3, 3). Frames without a valid camera are left out; the square is 1.2 times the box of the points found. Poses are
    those of SMPL's male and female bodies.

    Raises:
        AnnotationError: a field is missing or of the wrong shape, no frame is valid, or values are not finite.
    """
    path = Path(path)
    with Fields.open(path) as data:
        cameras = data.array("cam_poses", None, 4, 4)
        frames = len(cameras)
        k = data.array("cam_intrinsics", 3, 3)
        sequence = str(data.raw("sequence"))
        people = len(data.each("poses"))
        for name in ("betas", "campose_valid", "trans", "jointPositions", "poses2d"):
            if (name in data or name in ("betas", "campose_valid")) and len(data.each(name)) != people:
                raise data.error(name, f"has {len(data.each(name))} people where poses has {people}")
    names = np.array([f"imageFiles/{sequence}/image_{i:05d}.jpg" for i in range(frames)], dtype=np.str_)
    parts = [
        part
        for person in range(people)
        if (part := _person_3dpw(data, sequence, person, cameras, k, names)) is not None
    ]
    if not parts:
        raise AnnotationError(f"{path}: field 'campose_valid' leaves no frame with points: leave this sequence out")
    return Annotations.concatenate(parts, name=sequence)


def _person_3dpw(
    data: Fields,
    sequence: str,
    person: int,
    cameras: np.ndarray,
    k: np.ndarray,
    names: np.ndarray,
) -> Annotations | None:
    frames = len(cameras)
    keep = data.array_of("campose_valid", person, frames) > 0
    pose = axis_angle_to_matrix(data.array_of("poses", person, frames, 72).reshape(frames, 24, 3))
    betas = data.array_of("betas", person, None)[:10]
    keypoints = np.zeros((frames, 23, 3))
    low, high = np.full((frames, 2), np.inf), np.full((frames, 2), -np.inf)
    if "poses2d" in data:
        points = data.array_of("poses2d", person, frames, 3, 18).transpose(0, 2, 1).copy()
        found = points[..., 2:] > 0
        low = np.where(found, points[..., :2], np.inf).min(axis=1)
        high = np.where(found, points[..., :2], -np.inf).max(axis=1)
        points[..., 2] = points[..., 2] >= DETECTED
        keypoints = to_keypoints(points, OPENPOSE_18)
    translation = joints = None
    if "jointPositions" in data and "trans" in data:
        world = data.array_of("jointPositions", person, frames, 72).reshape(frames, 24, 3)
        rest = world[:, 0] - data.array_of("trans", person, frames, 3)
        pose[:, 0], translation = _camera_pose(cameras, pose[:, 0], world[:, 0], rest)
        joints = np.einsum("kij,knj->kni", cameras[:, :3, :3], world) + cameras[:, None, :3, 3]
        pixels = joints[..., :2] / np.maximum(joints[..., 2:], 0.1) * (k[0, 0], k[1, 1]) + (k[0, 2], k[1, 2])
        none = (high <= low).any(axis=1)[:, None]
        low, high = np.where(none, pixels.min(axis=1), low), np.where(none, pixels.max(axis=1), high)
    else:
        pose[:, 0] = cameras[:, :3, :3] @ pose[:, 0]
    keep &= (high > low).all(axis=1)
    if not keep.any():
        return None
    centre, size = _square(low[keep], high[keep])
    count = int(keep.sum())
    try:
        return Annotations(
            name=sequence,
            image=names[keep],
            centre=centre,
            size=size,
            intrinsics=np.tile((k[0, 0], k[1, 1], k[0, 2], k[1, 2]), (count, 1)),
            keypoints=keypoints[keep],
            rotations=pose[keep],
            betas=np.tile(betas, (count, 1)),
            translation=None if translation is None else translation[keep],
            joints=None if joints is None else joints[keep],
            take=np.full(count, sequence, dtype=np.str_),
            body="smpl",
        )
    except AnnotationError as error:
        raise AnnotationError(f"{data.path}: person {person}: {error}") from error


def read_emdb(path: str | Path) -> Annotations:
    """Read a sequence of EMDB (``P?/<sequence>/P?_<sequence>_data.pkl``).

    Facts from eth-ait/emdb (dataset.md, visualize.py): ``smpl`` with ``poses_root`` (N, 3), ``poses_body`` (N, 69),
    ``trans`` (N, 3) and ``betas`` (10,) in the world; ``camera`` with ``intrinsics`` (3, 3) and ``extrinsics``
    (N, 4, 4) world to camera; ``kp2d`` (N, 24, 2) projected SMPL joints; ``bboxes`` with ``bboxes`` (N, 4) x0, y0, x1,
    y1 and ``invalid_idxs``; ``good_frames_mask`` (N,). Bad frames are left out; the square is 1.2 times the longer side
    of the box. Of the 3D joints only the pelvis is known without SMPL. Shapes are those of the body of ``gender``.

    Where the projections do not fix the rest pelvis (a still camera and person), the translation stays unknown.

    Raises:
        AnnotationError: a field is missing or of the wrong shape, no frame is good, or values are not finite.
    """
    path = Path(path)
    with Fields.open(path) as data:
        name = str(data.raw("name"))
        smpl, camera, boxes = data.inner("smpl"), data.inner("camera"), data.inner("bboxes")
        root = smpl.array("poses_root", None, 3)
        frames = len(root)
        vectors = np.concatenate((root, smpl.array("poses_body", frames, 69)), axis=1).reshape(frames, 24, 3)
        trans, betas = smpl.array("trans", frames, 3), smpl.array("betas", None)[:10]
        k, extrinsics = camera.array("intrinsics", 3, 3), camera.array("extrinsics", frames, 4, 4)
        points = data.array("kp2d", frames, 24, 2)
        box = boxes.array("bboxes", frames, 4)
        keep = data.array("good_frames_mask", frames) > 0
        if "invalid_idxs" in boxes:
            keep[boxes.array("invalid_idxs", None).astype(int)] = False
    keep &= (box[:, 2:] > box[:, :2]).all(axis=1)
    if not keep.any():
        raise AnnotationError(f"{path}: field 'good_frames_mask' leaves no frame: leave this sequence out")
    extrinsics, trans, points, box = extrinsics[keep], trans[keep], points[keep], box[keep]
    intrinsics = np.tile((k[0, 0], k[1, 1], k[0, 2], k[1, 2]), (len(trans), 1))
    rest, known = rest_pelvis(trans, intrinsics, points[:, 0], extrinsics)
    if not known.all():
        warnings.warn(f"{path}: field 'kp2d' does not fix where the body stands: it stays unknown", stacklevel=2)
    rotations = axis_angle_to_matrix(vectors[keep])
    rotations[:, 0], translation = _camera_pose(extrinsics, rotations[:, 0], trans + rest, rest)
    count = len(rotations)
    joints, has_joints = np.zeros((count, 24, 3)), np.zeros((count, 24), bool)
    joints[:, 0], has_joints[:, 0] = translation + rest, known
    centre, size = _square(box[:, :2], box[:, 2:])
    subject, _, scene = name.partition("_")
    labelled = np.concatenate((points, np.ones((count, 24, 1))), axis=2)
    try:
        return Annotations(
            name=name,
            image=np.array([f"{subject}/{scene}/images/{i:05d}.jpg" for i in np.flatnonzero(keep)], dtype=np.str_),
            centre=centre,
            size=size,
            intrinsics=intrinsics,
            keypoints=projected_joints(labelled, SMPL_POINTS[:24]),
            rotations=rotations,
            betas=np.tile(betas, (count, 1)),
            translation=translation,
            has_translation=known,
            joints=joints,
            has_joints=has_joints,
            take=np.full(count, name, dtype=np.str_),
            body="smpl",
        )
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from error
