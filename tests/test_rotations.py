"""6D, matrices and axis-angle against the notes' numbers and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
Rotation = pytest.importorskip("scipy.spatial.transform").Rotation

from hmr_prob_ros.training.rotations import (  # noqa: E402
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation6d,
    rotation6d_to_matrix,
)


def _random(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rotations = Rotation.random(count, random_state=seed)
    return torch.from_numpy(rotations.as_rotvec()), torch.from_numpy(rotations.as_matrix())


def test_columns_of_a_known_6d() -> None:
    matrix = rotation6d_to_matrix(torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64))
    expected = [[0.267261, 0.534522, 0.801784], [0.872872, 0.218218, -0.436436], [-0.408248, 0.816497, -0.408248]]
    np.testing.assert_allclose(matrix.T.numpy(), expected, atol=1e-6)


def test_6d_holds_the_first_two_columns() -> None:
    _, matrix = _random(50)
    sixd = matrix_to_rotation6d(matrix)
    np.testing.assert_array_equal(sixd[:, :3], matrix[:, :, 0])
    np.testing.assert_array_equal(sixd[:, 3:], matrix[:, :, 1])
    np.testing.assert_allclose(rotation6d_to_matrix(sixd), matrix, atol=1e-12)


def test_any_6d_gives_a_rotation() -> None:
    sixd = torch.randn(200, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = rotation6d_to_matrix(sixd)
    eye = torch.eye(3, dtype=torch.float64).expand_as(matrix)
    np.testing.assert_allclose(matrix @ matrix.transpose(-1, -2), eye, atol=1e-10)
    np.testing.assert_allclose(torch.linalg.det(matrix), 1.0, atol=1e-10)
    # The first axis keeps its direction, and the second stays on its side of the plane of both.
    assert (matrix[..., 0] * sixd[..., :3]).sum(-1).min() > 0
    assert (matrix[..., 1] * sixd[..., 3:]).sum(-1).min() > 0


def test_axis_angle_against_scipy() -> None:
    vector, matrix = _random(300)
    np.testing.assert_allclose(axis_angle_to_matrix(vector), matrix, atol=1e-12)
    np.testing.assert_allclose(matrix_to_axis_angle(matrix), vector, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-7])
def test_axis_angle_round_trip_at_the_ends(angle: float) -> None:
    axis = torch.tensor([[1.0, 0, 0], [0, -0.6, 0.8], [0.48, 0.6, -0.64]], dtype=torch.float64)
    vector = axis * angle
    matrix = axis_angle_to_matrix(vector)
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(vector.numpy()).as_matrix(), atol=1e-14)
    np.testing.assert_allclose(matrix_to_axis_angle(matrix), vector, atol=2e-9)


def test_gradients() -> None:
    vector, matrix = _random(3, seed=1)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, vector.clone().requires_grad_())
    assert torch.autograd.gradcheck(rotation6d_to_matrix, matrix_to_rotation6d(matrix).requires_grad_())
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    axis_angle_to_matrix(zero)[2, 1].backward()
    np.testing.assert_allclose(zero.grad, [1.0, 0, 0])
