"""Evaluation sets as batches of examples, through the same crop as on the robot."""

from __future__ import annotations

__all__ = ["examples_from_set"]

import logging

import numpy as np
import torch
from torch import Tensor

from hmr_prob_ros.camera import condition
from hmr_prob_ros.setfile import PoseSet, SetError
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES

from ..rotations import matrix_to_rotation6d
from .examples import Examples
from .noise import HIDDEN_BY_OBJECT, VISIBLE

logger = logging.getLogger(__name__)


def examples_from_set(data: PoseSet, body_hash: str | None = None) -> Examples:
    """The examples of a set that can be used, each with its place in the set as ``index``.

    Left out are those of whom too little is seen to place a crop, and those without a single true joint. What is not
    known becomes zero with its ``has_*`` flag off. A set tells which joints are visible, examples tell it of keypoints:
    those of the limbs take it from the joint of their name, those of head and feet from head and foot.

    Args:
        data: the set.
        body_hash: of the body that the examples are for: rotations and shapes of another body are left out.

    Raises:
        SetError: no example can be used.
    """
    given = [condition(data.keypoints[i], data.camera(i)) for i in range(len(data))]
    known = np.isfinite(data.joints).all(axis=-1)
    rows = np.array([i for i in range(len(data)) if given[i] is not None and known[i].any()], dtype=int)
    if not rows.size:
        raise SetError(
            "no example of the set can be used: each needs two keypoints above confidence 0.3 and a known joint"
        )
    data, known = data[rows], known[rows]
    seen = [given[i] for i in rows]
    other = body_hash is not None and data.rotations is not None and data.body != body_hash
    if other:
        logger.warning(
            "the set's rotations belong to another body (%.12s, not %.12s): likelihood and vertices are left out",
            data.body,
            body_hash,
        )
    rotations, has_pose = _filled(None if other else data.rotations, np.eye(3, dtype=np.float32), (len(rows), 24, 3, 3))
    betas, has_betas = _filled(None if other else data.betas, 0.0, (len(rows), 10))
    translation, _ = _filled(None if other else data.translation, 0.0, (len(rows), 3))
    return Examples(
        keypoints=torch.from_numpy(np.stack([g[0] for g in seen if g is not None])),
        box=torch.from_numpy(np.stack([g[1] for g in seen if g is not None])),
        pose6d=matrix_to_rotation6d(rotations).flatten(1),
        rotations=rotations,
        betas=betas,
        translation=translation,
        joints=torch.from_numpy(np.where(known[..., None], data.joints, 0.0).astype(np.float32)),
        keypoints3d=torch.from_numpy(np.nan_to_num(data.keypoints3d, nan=0.0)),
        state=torch.from_numpy(_states(data.visible)),
        detected=torch.from_numpy(data.keypoints),
        intrinsics=torch.from_numpy(data.intrinsics),
        size=torch.from_numpy(data.image_size),
        index=torch.from_numpy(rows),
        has_pose=has_pose,
        has_betas=has_betas,
        has_joints=torch.from_numpy(known),
        has_translation=torch.from_numpy(known[:, 0]),
    )


def _filled(values: np.ndarray | None, empty: np.ndarray | float, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values with ``empty`` where an example's are not all finite, and where they are (B,)."""
    if values is None:
        values = np.full(shape, np.nan, np.float32)
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    filled = np.where(finite.reshape(-1, *(1,) * (len(shape) - 1)), values, empty)
    return torch.from_numpy(filled.astype(np.float32)), torch.from_numpy(finite)


def _shows(keypoint: str) -> int:
    """The joint whose visibility tells of a keypoint's."""
    if keypoint in JOINT_NAMES:
        return JOINT_NAMES.index(keypoint)
    side, _, part = keypoint.partition("_")
    return JOINT_NAMES.index("head" if part in ("", "eye", "ear") else f"{side}_foot")


_SHOWN = [_shows(name) for name in KEYPOINT_NAMES]


def _states(visible: np.ndarray) -> np.ndarray:
    """(B, 23) states of keypoints from visible joints (B, 24)."""
    return np.where(visible[:, _SHOWN], VISIBLE, HIDDEN_BY_OBJECT)
