"""ProHMR and its adversary; its flow: `test_glow.py`, its lifting variant: `test_lifting.py`."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from model_helpers import random_people, random_poses, scramble  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hmr_prob_ros.training import losses as L  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import FlowConfig, FlowPosterior, load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.adversary import PoseDiscriminator  # noqa: E402
from hmr_prob_ros.training.models.encoder import turn_root  # noqa: E402
from hmr_prob_ros.training.models.lifting import LiftingConfig  # noqa: E402
from hmr_prob_ros.training.models.prohmr import (  # noqa: E402
    PointLULinear,
    ProHMR,
    ProHMRConfig,
)
from hmr_prob_ros.training.rotations import axis_angle_to_matrix  # noqa: E402

SMALL = {"hidden": 24, "couplings": 2, "condition": 20}
PUBLISHED = LossConfig(
    likelihood=0.001,
    noise=0.005,
    mode_joints=0.05,
    mode_keypoints=0.005,
    sample_keypoints=0.0005,
    rotations=0.001,
    betas=0.0005,
    orthonormality=0.2,
    adversarial=0.0005,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def _prohmr(torch_body: TorchBody, **changes) -> ProHMR:
    torch.manual_seed(0)
    encoder = {"encoder_width": 24, "encoder_depth": 1, "head_hidden": 16}
    model = ProHMR(ProHMRConfig(**{**SMALL, **encoder, **changes}), torch_body)
    model.fit_statistics(random_poses(300))
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"sample_shape": True}, {"sample_shape": True, "sample_translation": True, "refine_translation": True}],
    ids=["published", "shape", "joint"],
)
def test_prohmr(torch_body: TorchBody, changes: dict) -> None:
    model = _prohmr(torch_body, **changes).eval()
    assert model.latent_size == 144 + 10 * (len(changes) > 0) + 3 * (len(changes) > 1)
    examples = random_people(torch_body)
    latents = model.latents(6, 7)
    out = model(examples.keypoints, examples.box, latents)
    assert out["sample_joints"].shape == (6, 7, 24, 3)
    log_prob = model.log_prob(out["sample_pose6d"], model.condition(examples.keypoints, examples.box))
    np.testing.assert_allclose(log_prob.detach(), out["sample_log_density"].detach(), atol=2e-2)
    assert (out["sample_log_density"][:, :1] >= out["sample_log_density"]).all()
    assert (out["sample_betas"].std(1).max() > 0.01) == bool(changes)
    if not changes:
        assert not (out["sample_translation"] - out["sample_translation"][:, :1]).any()

    model.train()
    model.adversary = PoseDiscriminator()
    heads = {"betas_nll": 0.1, "camera": 0.1, "translation": 0.1}
    terms = model.losses(examples, LossConfig(**{**PUBLISHED.__dict__, **heads}))
    wanted = {"likelihood", "mode_joints", "mode_keypoints", "sample_keypoints", "rotations", "betas"}
    wanted |= {"orthonormality", "adversarial", "betas_nll", "camera"}
    assert set(terms) == wanted | ({"translation"} if model.config.refine_translation else set())
    sum(terms.values()).backward()
    for key, value in model.named_parameters():
        if not key.startswith("translation_fit") or model.config.refine_translation:
            assert value.grad is not None, key
            assert torch.isfinite(value.grad).all(), key
            # A bias before a batch normalisation only moves what that centres.
            assert value.grad.abs().sum() > 0 or key.endswith("bias"), key
    assert model.drawn is not None
    assert model.drawn[0].shape == (6, 2, 24, 3, 3)


def test_networks_in_bfloat16_leave_the_flow_exact(torch_body: TorchBody) -> None:
    model = _prohmr(torch_body, batch_norm=False, flow_dropout=0.0).eval()
    examples = random_people(torch_body)
    condition = model.condition(examples.keypoints, examples.box)
    exact = model.log_prob(examples.pose6d[:, None], condition)
    model.bfloat16 = True
    with model.networks():
        near = model.log_prob(examples.pose6d[:, None], condition)
        pose6d, density = model.sample(model.latents(6, 3), condition)
        back = model.log_prob(pose6d, condition)
    assert near.dtype == pose6d.dtype == torch.float32
    np.testing.assert_allclose(near.detach(), exact.detach(), rtol=0.02)
    np.testing.assert_allclose(back.detach(), density.detach(), atol=0.5)


def test_prohmr_checkpoint(torch_body: TorchBody, tmp_path: Path) -> None:
    model = _prohmr(torch_body)
    with torch.no_grad():
        for part in model.flow.transform._transforms:
            if isinstance(part, PointLULinear):
                for value in part.parameters():
                    value.add_(0.02 * torch.randn_like(value))
    model.eval()
    save_checkpoint(tmp_path / "model.pt", model)
    other, _ = load_checkpoint(tmp_path / "model.pt", torch_body)
    assert isinstance(other, ProHMR)
    assert other.config == model.config
    examples, latents = random_people(torch_body), model.latents(6, 5)
    expected = model(examples.keypoints, examples.box, latents)
    given = other(examples.keypoints, examples.box, latents)
    for name, value in expected.items():
        np.testing.assert_array_equal(given[name].detach(), value.detach(), err_msg=name)
    other.train().log_prob(random_poses(6, seed=5)[:, None] * 3, other.condition(examples.keypoints, examples.box))
    for key, value in other.flow.named_parameters():
        if "log_scale" in key:  # initialised once and for all
            np.testing.assert_array_equal(value.detach(), dict(model.flow.named_parameters())[key].detach())

    frozen = copy.deepcopy(model)
    frozen.freeze()
    for name, value in frozen(examples.keypoints, examples.box, latents).items():
        np.testing.assert_allclose(value.detach(), expected[name].detach(), atol=2e-4, err_msg=name)


class _Drawing(nn.Module):
    """Both directions of a flow, for the exporter."""

    def __init__(self, model: ProHMR) -> None:
        super().__init__()
        self.model = model

    def forward(self, keypoints: Tensor, box: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
        condition = self.model.condition(keypoints, box)
        pose6d, log_density = self.model.sample(latents, condition)
        return pose6d, log_density, self.model.log_prob(pose6d, condition)


def test_a_frozen_flow_exports_to_plain_operators(torch_body: TorchBody, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from hmr_prob_ros.training.export import compare, export_graph

    model = _prohmr(torch_body).eval()
    scramble(model.flow, by=0.02)
    model.freeze()
    examples, names = random_people(torch_body), ("pose6d", "log_density", "log_prob")
    inputs = {"keypoints": examples.keypoints, "box": examples.box, "latents": model.latents(6, 5)}
    sizes = {"keypoints": {0: "B"}, "box": {0: "B"}, "latents": {0: "B", 1: "N"}}
    export_graph(_Drawing(model), inputs, names, sizes, tmp_path / "flow.onnx")
    other = {name: value[:1] for name, value in inputs.items()} | {"latents": model.latents(1, 30)}
    for typical, worst in compare(_Drawing(model), other, names, tmp_path / "flow.onnx").values():
        assert max(typical, worst) < 1e-4


@pytest.mark.slow
def test_bundle_of_prohmr(torch_body: TorchBody, tmp_path: Path) -> None:
    from hmr_prob_ros.training.export import export

    save_checkpoint(tmp_path / "model.pt", _prohmr(torch_body))
    bundle = export(tmp_path / "model.pt", tmp_path / "bundle", modes=4, samples=20)
    assert bundle.card["method"] == "prohmr"
    assert bundle.latent_size == 144


def test_configurations_that_make_no_sense() -> None:
    for make, text in (
        (lambda: ProHMRConfig(coupling="affine"), "additive"),
        (lambda: FlowConfig(coupling="cubic"), "'affine' or 'additive'"),
        (lambda: ProHMRConfig(sample_translation=True), "refine_translation"),
        (lambda: LiftingConfig(image="resnet50"), "model.image"),
        (lambda: LiftingConfig(use_keypoints=False), "would be empty|use_keypoints"),
        (lambda: LiftingConfig(sample_shape=True), "model.sample_shape"),
    ):
        with pytest.raises(ValueError, match=text):
            make()


def test_additive_option_of_the_flow(torch_body: TorchBody) -> None:
    sizes = {"hidden": 16, "couplings": 2, "condition": 12, "encoder_width": 16, "encoder_depth": 1}
    affine, additive = (
        FlowPosterior(FlowConfig(**sizes, coupling=kind), torch_body) for kind in ("affine", "additive")
    )
    for one, other in zip(affine.flow.transform._transforms[1::2], additive.flow.transform._transforms[1::2]):
        assert (one.last.out_features, other.last.out_features) == (144, 72)
        assert one.first.weight.shape == other.first.weight.shape
    examples = random_people(torch_body, 3)
    out = additive(examples.keypoints, examples.box, additive.latents(3, 5))
    assert (out["sample_log_density"][:, :1] >= out["sample_log_density"]).all()


def test_discriminator() -> None:
    torch.manual_seed(0)
    judge = PoseDiscriminator()
    rotations = axis_angle_to_matrix(torch.randn(2, 3, 24, 3))
    betas = torch.randn(2, 3, 10)
    scores = judge(rotations, betas)
    assert scores.shape == (2, 3, 25)
    assert judge(rotations[:0], betas[:0]).shape == (0, 3, 25)
    np.testing.assert_allclose(judge(rotations[1, 2], betas[1, 2]).detach(), scores[1, 2].detach(), atol=1e-6)
    # 9 * 32 + 32, 32^2 + 32, 23 * 33; 736 * 1024 + 1024, 1024^2 + 1024, 1025; 110 + 55 + 6.
    assert sum(p.numel() for p in judge.parameters()) == 320 + 1056 + 759 + 754_688 + 1_049_600 + 1025 + 171

    def touched(changed: Tensor) -> list[int]:
        return torch.nonzero((changed != scores).any(0).any(0))[:, 0].tolist()

    turned = rotations.clone()
    turned[..., 0, :, :] = torch.eye(3)
    assert touched(judge(turned, betas)) == []  # the root does not count
    turned[..., 5, :, :] = torch.eye(3)
    assert touched(judge(turned, betas)) == [4, 24]
    assert touched(judge(rotations, betas + 1)) == [23]

    scores.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in judge.parameters())
    # It learns to tell small angles from large ones.
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for _ in range(30):
        real = judge(axis_angle_to_matrix(0.2 * torch.randn(32, 24, 3)), torch.zeros(32, 10))
        fake = judge(axis_angle_to_matrix(1.5 * torch.randn(32, 1, 24, 3)), torch.zeros(32, 1, 10))
        optimizer.zero_grad()
        L.discriminator_loss(real, fake).backward()
        optimizer.step()
    assert real[:, 24].mean() > fake[..., 24].mean() + 0.5


def test_poses_are_seen_from_the_crop(torch_body: TorchBody) -> None:
    """The density of a pose is that of the turned one."""
    model = _prohmr(torch_body).eval()
    examples = random_people(torch_body, 3)
    condition = model.condition(examples.keypoints, examples.box)
    inside = model.flow.log_prob(turn_root(examples.pose6d[:, None], condition.turn), condition.code)
    np.testing.assert_array_equal(model.log_prob(examples.pose6d[:, None], condition).detach(), inside.detach())


def test_what_captures_leave_constant_starts_in_scale(torch_body: TorchBody) -> None:
    """Hands that no capture moves have no spread but the likelihood's noise: the start is still about the Gaussian that
    fits poses and noise, and not astronomically far out."""
    generator = torch.Generator().manual_seed(3)
    pose6d = torch.randn(600, 144, generator=generator)
    pose6d[:, 100:] = 0.7
    model = _prohmr(torch_body, couplings=4)
    model.fit_statistics(pose6d)
    model.eval()
    noisy = pose6d + 0.005 * torch.randn(pose6d.shape, generator=generator)
    condition = model.condition(torch.zeros(1, 23, 3), torch.tensor([[0.0, 0.0, 0.5]]))
    with torch.no_grad():
        nll = -model.log_prob(noisy[None], condition).mean()
    deviations = torch.cat((torch.ones(100), torch.full((44,), 0.005)))
    expected = (deviations.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
    assert abs(float(nll - expected)) < 60  # of D = 144 the untrained couplings may cost a part
