"""The losses against arithmetic done another way."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")

from hmr_prob_ros.training.losses import keypoint_loss, orthonormality_loss, pelvis_relative_l1  # noqa: E402


def test_pelvis_relative_ignores_translation() -> None:
    true = torch.randn(3, 24, 3, dtype=torch.float64)
    joints = true[:, None] + torch.randn(3, 5, 1, 3, dtype=torch.float64)
    assert pelvis_relative_l1(joints, true) < 1e-12
    moved = joints.clone()
    moved[:, :, 7, 1] += 0.24
    # One coordinate of 72 is off by 0.24.
    assert pelvis_relative_l1(moved, true) == pytest.approx(0.24 / 72)


def test_orthonormality_is_zero_on_rotations_and_counts_scale() -> None:
    matrices = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 24, 3, 3)))[0]
    pose6d = torch.as_tensor(np.concatenate((matrices[..., 0], matrices[..., 1]), -1).reshape(5, 144))
    assert orthonormality_loss(pose6d) < 1e-12
    # A^T A = 4 I: two of four entries are 3 too large.
    assert orthonormality_loss(2 * pose6d) == pytest.approx(4.5)


def test_keypoint_loss_is_in_half_crops_and_weighted() -> None:
    true = torch.tensor([0.1, -0.2, 2.0]).expand(1, 23, 3)
    moved = true[:, None].clone()
    moved[..., 0] += 0.1  # 0.05 in ray units
    weight = torch.zeros(1, 23)
    assert keypoint_loss(moved, true, torch.tensor([0.4]), weight) == 0
    weight[0, 4] = 1
    assert keypoint_loss(moved, true, torch.tensor([0.4]), weight) == pytest.approx(0.25)
    moved[:, :, 5] += 5.0  # weight zero: must not count
    assert keypoint_loss(moved, true, torch.tensor([0.4]), weight) == pytest.approx(0.25)
