"""Rotations in torch: 6D (two columns), matrices, axis-angle; all differentiable, the first exportable.

The 6D form is the first two **columns** of the matrix, one after the other (Zhou et al., "On the continuity of
rotation representations in neural networks", CVPR 2019): ``[a0x, a0y, a0z, a1x, a1y, a1z]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["axis_angle_to_matrix", "matrix_to_axis_angle", "matrix_to_rotation6d", "rotation6d_to_matrix"]

_TINY = 1e-12


def rotation6d_to_matrix(rotation6d: Tensor) -> Tensor:
    r"""Gram-Schmidt of the two columns, (..., 6) -> (..., 3, 3).

    .. math:: b_0 = a_0/|a_0|, \quad b_1 = (a_1 - (b_0\cdot a_1) b_0)/|\cdot|, \quad b_2 = b_0 \times b_1

    Any 6 numbers give a rotation, unless the two columns are parallel or zero.

    >>> rotation6d_to_matrix(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))[:, 1]
    tensor([ 0.8729,  0.2182, -0.4364])
    """
    # Component by component: in an exported graph this is a handful of cheap elementwise nodes, where a norm over
    # a last axis of length three is a reduction that runs one row at a time.
    x0, y0, z0, x1, y1, z1 = rotation6d.unbind(-1)
    r0 = (x0 * x0 + y0 * y0 + z0 * z0).clamp_min(_TINY).rsqrt()
    x0, y0, z0 = x0 * r0, y0 * r0, z0 * r0
    dot = x0 * x1 + y0 * y1 + z0 * z1
    x1, y1, z1 = x1 - dot * x0, y1 - dot * y0, z1 - dot * z0
    r1 = (x1 * x1 + y1 * y1 + z1 * z1).clamp_min(_TINY).rsqrt()
    x1, y1, z1 = x1 * r1, y1 * r1, z1 * r1
    x2, y2, z2 = y0 * z1 - z0 * y1, z0 * x1 - x0 * z1, x0 * y1 - y0 * x1
    rows = torch.stack((x0, x1, x2, y0, y1, y2, z0, z1, z2), dim=-1)
    return rows.reshape(rotation6d.shape[:-1] + (3, 3))


def matrix_to_rotation6d(matrix: Tensor) -> Tensor:
    """First two columns of a rotation matrix, (..., 3, 3) -> (..., 6)."""
    return torch.cat((matrix[..., 0], matrix[..., 1]), dim=-1)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    r"""Rodrigues' formula, (..., 3) rad -> (..., 3, 3); smooth (also its gradient) through angle zero.

    .. math:: R = I + \frac{\sin\theta}{\theta} K + \frac{1-\cos\theta}{\theta^2} K^2, \quad K = [\omega]_\times
    """
    square = (axis_angle * axis_angle).sum(-1)
    small = square < 1e-8
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    a = torch.where(small, 1 - square / 6, angle.sin() / angle)[..., None, None]
    # 2 sin^2(t/2) instead of 1 - cos t, which loses all digits for small angles.
    b = torch.where(small, 0.5 - square / 24, 2 * (angle / 2).sin() ** 2 / safe)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).reshape(axis_angle.shape[:-1] + (3, 3))
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + a * cross + b * (cross @ cross)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation vector of a matrix, (..., 3, 3) -> (..., 3) rad, length in [0, pi].

    Goes through the quaternion with its largest component as divisor (Shepperd 1978), so it is exact near pi too,
    where the antisymmetric part of the matrix vanishes.
    """
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    # Row i is 4 q_i (w, x, y, z).
    products = (
        (1 + xx + yy + zz, wx, wy, wz),
        (wx, 1 + xx - yy - zz, xy, xz),
        (wy, xy, 1 - xx + yy - zz, yz),
        (wz, xz, yz, 1 - xx - yy + zz),
    )
    table = torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)
    best = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(table, best[..., None, None], dim=-2)[..., 0, :]
    quaternion = row / row.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    real, imaginary = quaternion[..., 0], quaternion[..., 1:]
    square = (imaginary * imaginary).sum(-1)
    small = square < 1e-12
    length = torch.where(small, torch.ones_like(square), square).sqrt()
    factor = torch.where(small, torch.full_like(real, 2.0), 2 * torch.atan2(length, real) / length)
    return imaginary * factor[..., None]
