"""Rotations in numpy: against the matrix exponential, their inverses and products."""

from __future__ import annotations

import numpy as np
import pytest

from hmr_prob_ros.training.data.rotations import (
    axis_angle_to_matrix,
    between,
    euler_to_matrix,
    interpolate,
    matrix_to_axis_angle,
    quaternion_to_matrix,
    twist_about,
)

torch = pytest.importorskip("torch")


def test_axis_angle_is_the_matrix_exponential():
    rng = np.random.default_rng(0)
    vector = rng.normal(size=(50, 3)) * 1.5
    x, y, z = vector.T
    o = np.zeros_like(x)
    skew = np.stack([np.stack([o, -z, y], -1), np.stack([z, o, -x], -1), np.stack([-y, x, o], -1)], axis=-2)
    assert np.allclose(
        axis_angle_to_matrix(vector), torch.linalg.matrix_exp(torch.from_numpy(skew)).numpy(), atol=1e-10
    )


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, np.pi - 1e-7, np.pi])
def test_axis_angle_round_trip(angle: float):
    axis = np.random.default_rng(1).normal(size=(200, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    matrix = axis_angle_to_matrix(axis * angle)
    assert np.allclose(axis_angle_to_matrix(matrix_to_axis_angle(matrix)), matrix, atol=1e-8)
    assert np.linalg.norm(matrix_to_axis_angle(matrix), axis=1) == pytest.approx(np.full(200, angle), abs=1e-7)


def test_euler_is_the_product_in_the_order_named():
    a, b, c = np.radians([20.0, -50.0, 110.0])
    one = np.eye(3)
    expected = axis_angle_to_matrix(one[2] * a) @ axis_angle_to_matrix(one[0] * b) @ axis_angle_to_matrix(one[1] * c)
    assert np.allclose(euler_to_matrix(np.array([a, b, c]), "ZXY"), expected)
    with pytest.raises(ValueError, match="order"):
        euler_to_matrix(np.zeros(3), "ZX")


def test_between_turns_one_direction_into_the_other_by_the_smallest_angle():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 100, 3))
    a[0], b[0] = (0, 0, 1), (0, 0, -2)  # opposite
    a[1], b[1] = (0, 1, 0), (0, 3, 0)  # equal
    turned = (between(a, b) @ a[..., None])[..., 0]
    ua, ub = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    assert np.allclose(turned / np.linalg.norm(a, axis=1, keepdims=True), ub, atol=1e-7)
    angle = np.linalg.norm(matrix_to_axis_angle(between(a, b)), axis=1)
    assert np.allclose(angle, np.arccos(np.clip((ua * ub).sum(1), -1, 1)), atol=1e-6)


def test_twist_of_swing_and_twist():
    rng = np.random.default_rng(3)
    axis = np.array([0.6, 0.0, 0.8])
    across = np.cross(axis, rng.normal(size=(50, 3)))
    angle = rng.uniform(-3, 3, 50)
    matrix = axis_angle_to_matrix(0.4 * across) @ axis_angle_to_matrix(angle[:, None] * axis)
    assert np.allclose(twist_about(matrix, axis), angle, atol=1e-8)


def test_interpolation_moves_at_constant_speed():
    a, b = axis_angle_to_matrix(np.random.default_rng(4).normal(size=(2, 3)))
    third = interpolate(a, b, 1 / 3)
    assert np.allclose(third @ (a.T @ third) @ (a.T @ third), b, atol=1e-9)


def test_world_rotations_survive_quaternions():
    quaternion = np.random.default_rng(7).normal(size=(20, 4))
    matrix = quaternion_to_matrix(quaternion)
    assert np.allclose(matrix @ np.swapaxes(matrix, -1, -2), np.eye(3))
    assert np.allclose(np.linalg.det(matrix), 1.0)
