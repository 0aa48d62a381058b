"""The 2D lifting variant of ProHMR: joints without a body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from model_helpers import random_people, random_poses  # noqa: E402

from hmr_prob_ros.joint_sets import joint_set  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.lifting import Lifting, LiftingConfig  # noqa: E402
from hmr_prob_ros.training.rotations import axis_angle_to_matrix  # noqa: E402

SMALL = {"hidden": 24, "couplings": 2, "condition": 20}


pytestmark = pytest.mark.usefixtures("one_thread")


def _lifting(torch_body: TorchBody, **changes) -> Lifting:
    torch.manual_seed(0)
    model = Lifting(LiftingConfig(**{**SMALL, **changes}), torch_body)
    model.fit_statistics(random_poses(300))
    return model


def test_lifting(torch_body: TorchBody, tmp_path: Path) -> None:
    model = _lifting(torch_body).eval()
    assert model.encoder.enter[0].in_features == 2 * 17
    examples = random_people(torch_body)
    latents = model.latents(6, 9)
    assert latents.shape == (6, 9, 48)
    assert not latents[:, 0].any()
    out = model(examples.keypoints, examples.box, latents)
    joints = out["sample_joints17"]
    assert joints.shape == (6, 9, 17, 3)
    assert not joints[:, :, 0].any()
    assert out["sample_weight"].sum(1).allclose(torch.ones(6))
    log_prob = model.log_prob(joints, model.condition(examples.keypoints, examples.box))
    np.testing.assert_allclose(log_prob.detach(), out["sample_log_density"].detach(), atol=1e-2)
    gap = out["sample_log_density"][:, :1] - out["sample_log_density"]
    np.testing.assert_allclose(gap.detach(), 0.5 * latents.square().sum(-1), atol=1e-3)
    # The targets are the joints that evaluation measures.
    expected = joint_set("h36m").rooted(examples.joints.numpy(), examples.keypoints3d.numpy())
    np.testing.assert_allclose(model.joints17(examples.joints, examples.keypoints3d), expected, atol=1e-5)

    save_checkpoint(tmp_path / "model.pt", model)
    other, _ = load_checkpoint(tmp_path / "model.pt", torch_body)
    assert isinstance(other, Lifting)
    again = other(examples.keypoints, examples.box, latents)
    np.testing.assert_array_equal(again["sample_joints17"].detach(), joints.detach())
    assert model(examples.keypoints[:1], examples.box[:1], latents[:1])["sample_joints17"].shape == (1, 9, 17, 3)
    assert model(examples.keypoints[:0], examples.box[:0], latents[:0])["sample_joints17"].shape == (0, 9, 17, 3)


def test_lifting_turns_with_the_camera(torch_body: TorchBody) -> None:
    """The same body seen by a turned camera has the same joints, turned."""
    model = _lifting(torch_body, batch_norm=False).eval()
    examples = random_people(torch_body, 3)
    turn = axis_angle_to_matrix(torch.tensor([[0.1, -0.35, 0.0]]))[0]
    seen = examples.keypoints3d @ turn.T
    rays = seen[..., :2] / seen[..., 2:]
    # A box about the same direction: its centre is where the old centre's ray goes.
    ahead = torch.cat((examples.box[:, :2], torch.ones(3, 1)), dim=1) @ turn.T
    centre = ahead[:, :2] / ahead[:, 2:]
    # Both virtual cameras look the same way, but for a roll; sizes as `face_crop` takes them.
    size = examples.box[:, 2:] * (ahead[:, 2:].reciprocal() * ahead.norm(dim=1, keepdim=True))
    size = size / torch.cat((examples.box[:, :2], torch.ones(3, 1)), dim=1).norm(dim=1, keepdim=True)
    local = (rays - centre[:, None]) / (size / 2)[:, None]
    keypoints = torch.cat((local * examples.keypoints[..., 2:], examples.keypoints[..., 2:]), dim=-1)
    first = model.condition(examples.keypoints, examples.box)
    second = model.condition(keypoints, torch.cat((centre, size), dim=1))
    true = model.joints17(examples.joints, examples.keypoints3d)
    turned = true @ turn.T
    upright = (true[:, None, ..., None, :] * first.turn[:, None, None]).sum(-1)
    other = (turned[:, None, ..., None, :] * second.turn[:, None, None]).sum(-1)
    np.testing.assert_allclose(upright.norm(dim=-1), other.norm(dim=-1), atol=1e-5)
    np.testing.assert_allclose(upright[..., 2], other[..., 2], atol=1e-5)  # the depth along the line of sight


def test_lifting_losses(torch_body: TorchBody) -> None:
    model = _lifting(torch_body, dropout=0.0, flow_dropout=0.0).eval()
    examples = random_people(torch_body)
    config = LossConfig(likelihood=0.001, noise=0.0, mode_joints=1.0)
    terms = model.losses(examples, config)
    true = torch.from_numpy(joint_set("h36m").rooted(examples.joints.numpy(), examples.keypoints3d.numpy()))
    out = model(examples.keypoints, examples.box, torch.zeros(6, 1, 48))
    density = model.log_prob(true[:, None], model.condition(examples.keypoints, examples.box))
    np.testing.assert_allclose(terms["likelihood"].item(), -0.001 * density.mean().item(), rtol=1e-4)
    distance = (out["sample_joints17"][:, 0] - true).abs().sum() / 6
    np.testing.assert_allclose(terms["mode_joints"].item(), distance.item(), rtol=1e-4)

    model.train()
    sum(model.losses(examples, config).values()).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0 or key.endswith("bias"), key

    # What is not known does not count.
    model.eval()
    examples.has_joints = torch.ones(6, 24, dtype=torch.bool)
    examples.has_joints[:3, 7] = False
    examples.has_pose = torch.tensor([True] * 5 + [False])
    part = model.losses(examples, config)
    known = (out["sample_joints17"][:, 0] - true).abs().sum((1, 2))[3:5].sum() / 6
    np.testing.assert_allclose(part["mode_joints"].item(), known.item(), rtol=1e-4)


def test_lifting_learns(torch_body: TorchBody) -> None:
    model = _lifting(torch_body, dropout=0.0, flow_dropout=0.0, batch_norm=False, hidden=64, condition=64)
    config = LossConfig(likelihood=0.001, noise=0.005, mode_joints=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    examples, held = random_people(torch_body, 512), random_people(torch_body, 128, seed=1)

    def error() -> float:
        with torch.no_grad():
            out = model.eval()(held.keypoints, held.box, model.latents(128, 1))["sample_joints17"][:, 0]
        return float((out - model.joints17(held.joints, held.keypoints3d)).norm(dim=-1).mean())

    before = error()
    for i in range(150):
        rows = slice(64 * (i % 8), 64 * (i % 8 + 1))
        optimizer.zero_grad()
        sum(model.train().losses(examples[rows], config).values()).backward()
        optimizer.step()
    assert error() < 0.6 * before
