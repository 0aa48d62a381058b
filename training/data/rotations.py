"""Rotations in numpy for the motion-capture readers: axis-angle, Euler, quaternion, swing and twist.

Every function works on any leading shape `...`; matrices are column-vector matrices, ``y = R @ x``.
"""

from __future__ import annotations

__all__ = [
    "axis_angle_to_matrix",
    "between",
    "euler_to_matrix",
    "interpolate",
    "matrix_to_axis_angle",
    "matrix_to_quaternion",
    "quaternion_to_matrix",
    "twist_about",
]

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


def axis_angle_to_matrix(vector: Array) -> Array:
    r"""Rodrigues' formula, ``R = I + sin(a) K + (1 - cos(a)) K^2``: rotation vectors (..., 3) rad to (..., 3, 3)."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    small = angle < 1e-8
    safe = np.where(small, 1.0, angle)
    s = np.where(small, 1.0, np.sin(safe) / safe)[..., 0]
    c = np.where(small, 0.5, (1.0 - np.cos(safe)) / safe**2)[..., 0]
    x, y, z = vector[..., 0], vector[..., 1], vector[..., 2]
    out = np.empty((*vector.shape[:-1], 3, 3), dtype=vector.dtype)
    out[..., 0, 0] = 1.0 - c * (y * y + z * z)
    out[..., 1, 1] = 1.0 - c * (x * x + z * z)
    out[..., 2, 2] = 1.0 - c * (x * x + y * y)
    out[..., 0, 1], out[..., 1, 0] = c * x * y - s * z, c * x * y + s * z
    out[..., 0, 2], out[..., 2, 0] = c * x * z + s * y, c * x * z - s * y
    out[..., 1, 2], out[..., 2, 1] = c * y * z - s * x, c * y * z + s * x
    return out


def quaternion_to_matrix(quaternion: Array) -> Array:
    """Quaternions (..., 4) in the order w, x, y, z, of any length, to matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(matrix: Array) -> Array:
    """Matrices (..., 3, 3) to unit quaternions (..., 4), w x y z with w >= 0; the largest of the four is divided by
    (Shepperd 1978), so it is exact to rounding near half turns as well."""
    m = matrix
    diagonal = np.stack([m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]], axis=-1)
    trace = diagonal.sum(axis=-1)
    choice = np.argmax(np.concatenate([trace[..., None], diagonal], axis=-1), axis=-1)
    xx = m[..., 2, 1] - m[..., 1, 2]
    yy = m[..., 0, 2] - m[..., 2, 0]
    zz = m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    own = 1.0 - trace[..., None] + 2.0 * diagonal
    candidates = np.stack(
        [
            np.stack([1.0 + trace, xx, yy, zz], axis=-1),
            np.stack([xx, own[..., 0], xy, xz], axis=-1),
            np.stack([yy, xy, own[..., 1], yz], axis=-1),
            np.stack([zz, xz, yz, own[..., 2]], axis=-1),
        ],
        axis=-2,
    )
    quaternion = np.take_along_axis(candidates, choice[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_to_axis_angle(matrix: Array) -> Array:
    """Matrices (..., 3, 3) to rotation vectors (..., 3) in radians, of length 0 to pi."""
    quaternion = matrix_to_quaternion(matrix)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quaternion[..., :1])
    scale = np.where(sine < 1e-9, 2.0, angle / np.maximum(sine, 1e-12))
    return quaternion[..., 1:] * scale


def euler_to_matrix(angles: Array, order: str) -> Array:
    """Angles (..., n) in radians about the axes named by `order` (n letters of "XYZ") to ``R_0 @ R_1 @ ... @ R_{n-1}``.

    This is the product that BVH channels mean when they are listed in that order.
    """
    if angles.shape[-1] != len(order) or not set(order) <= set("XYZ") or not order:
        raise ValueError(f"order {order!r} does not name the axes of {angles.shape[-1]} angles")
    out: Array | None = None
    for k, letter in enumerate(order):
        vector = np.zeros((*angles.shape[:-1], 3), dtype=angles.dtype)
        vector[..., "XYZ".index(letter)] = angles[..., k]
        step = axis_angle_to_matrix(vector)
        out = step if out is None else out @ step
    assert out is not None
    return out


def interpolate(first: Array, second: Array, weight: Array | float) -> Array:
    """Geodesic interpolation ``first @ exp(w log(first^T second))``; `weight` (...) broadcasts against (..., 3, 3)."""
    step = matrix_to_axis_angle(np.swapaxes(first, -1, -2) @ second)
    return first @ axis_angle_to_matrix(step * np.asarray(weight, dtype=step.dtype)[..., None])


def between(source: Array, target: Array) -> Array:
    """Smallest rotation (..., 3, 3) that turns the direction of `source` (..., 3) into that of `target` (..., 3)."""
    a = source / np.linalg.norm(source, axis=-1, keepdims=True)
    b = target / np.linalg.norm(target, axis=-1, keepdims=True)
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, np.sum(a * b, axis=-1, keepdims=True))
    # Opposite directions leave the axis open: any one at right angles to `a` will do.
    pick = np.where(np.abs(a[..., :1]) < 0.9, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    spare = np.cross(a, pick)
    spare = spare / np.linalg.norm(spare, axis=-1, keepdims=True)
    unit = np.where(sine < 1e-8, spare, axis / np.maximum(sine, 1e-12))
    return axis_angle_to_matrix(unit * angle)


def twist_about(matrix: Array, axis: Array) -> Array:
    """Angle (...) in (-pi, pi] of the twist of `matrix` (..., 3, 3) about the unit vector `axis` (..., 3).

    Swing-twist decomposition ``R = swing @ twist``: the twist is the projection of the quaternion on the axis.
    """
    quaternion = matrix_to_quaternion(matrix)
    along = np.sum(quaternion[..., 1:] * axis, axis=-1)
    angle = 2.0 * np.arctan2(along, quaternion[..., 0])
    return (angle + np.pi) % (2.0 * np.pi) - np.pi
