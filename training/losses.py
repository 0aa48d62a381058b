r"""Losses of the default recipe: pure functions, averaged over the batch; lengths in metres."""

from __future__ import annotations

__all__ = ["keypoint_loss", "orthonormality_loss", "pelvis_relative_l1"]

import torch
from torch import Tensor


def pelvis_relative_l1(joints: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of joints relative to the pelvis, in metres (Kolotouros et al. 2021, equation 6).

    Args:
        joints: (B, S, 24, 3).
        true: (B, 24, 3).
    """
    relative = joints - joints[..., :1, :]
    return (relative - (true - true[:, :1])[:, None]).abs().mean()


def orthonormality_loss(pose6d: Tensor) -> Tensor:
    r"""Mean of :math:`(A^\top A - I)^2` over the 3 x 2 matrices of a 6D pose (Kolotouros et al. 2021, equation 9).

    Args:
        pose6d: (..., 144), the two columns of each joint's matrix one after the other.
    """
    columns = pose6d.unflatten(-1, (-1, 2, 3))
    gram = columns @ columns.transpose(-1, -2)
    return (gram - torch.eye(2, dtype=gram.dtype, device=gram.device)).square().mean()


def keypoint_loss(keypoints3d: Tensor, true: Tensor, size: Tensor, weight: Tensor) -> Tensor:
    """Mean L1 distance between projections, in halves of the crop (Kolotouros et al. 2021, equation 7).

    Args:
        keypoints3d: (B, S, 23, 3) in the optical frame.
        true: (B, 23, 3) in the optical frame.
        size: (B,) side of the crop in ray units.
        weight: (B, 23); 0 leaves a keypoint out.
    """
    rays = keypoints3d[..., :2] / keypoints3d[..., 2:].clamp_min(0.1)
    target = (true[..., :2] / true[..., 2:].clamp_min(0.1))[:, None]
    error = ((rays - target) / (size[:, None, None, None] / 2)).abs().sum(-1).clamp_max(2.0)
    return (error * weight[:, None]).sum() / (weight.sum() * error.shape[1]).clamp_min(1.0)
