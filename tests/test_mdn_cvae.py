"""Biggs' baselines, mixture density and conditional variational autoencoder, against independent formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from scipy.spatial.transform import Rotation  # noqa: E402
from scipy.special import softmax  # noqa: E402
from torch import distributions as D  # noqa: E402

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import build_model, load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.encoder import Condition, turn_root  # noqa: E402
from hmr_prob_ros.training.models.mdn import central_first, nearest_logarithm  # noqa: E402
from hmr_prob_ros.training.rotations import axis_angle_to_matrix, matrix_to_rotation6d  # noqa: E402

SMALL = {"hidden": 32, "condition": 24, "encoder_width": 32, "encoder_depth": 1, "head_hidden": 16}
LOSSES = LossConfig(
    likelihood=2e-3,
    kl=0.1,
    mode_joints=1.0,
    mode_keypoints=0.1,
    rotations=0.1,
    betas=0.1,
    betas_nll=0.1,
    camera=0.1,
    translation=0.1,
    samples=3,
)


@pytest.fixture(scope="module")
def body() -> TorchBody:
    torch.set_num_threads(1)
    return TorchBody(Body.load(), mesh=False)


@pytest.fixture(scope="module")
def examples(body: TorchBody):
    poses = 0.3 * np.random.default_rng(0).standard_normal((40, 24, 3))
    return Synthesizer(body, seed=3)(poses)[:16]


def _model(name: str, body: TorchBody, examples, noise: float = 0.02, **changes):
    """A model with weights that are not near zero any more."""
    torch.manual_seed(0)
    model = build_model({"model": name, **SMALL, **changes}, body)
    model.fit_statistics(examples.pose6d)
    with torch.no_grad():
        for value in model.parameters():
            value += noise * torch.randn_like(value)
    return model


def _names(name: str) -> tuple[str, ...]:
    shared = ("mode_joints", "mode_keypoints", "rotations", "betas", "betas_nll", "camera", "translation")
    return (*shared, {"mdn": "likelihood", "cvae": "kl"}[name])


@pytest.mark.parametrize("name", ["mdn", "cvae"])
def test_the_common_interface(name: str, body: TorchBody, examples, tmp_path: Path) -> None:
    model = _model(name, body, examples, **({"components": 5} if name == "mdn" else {"latent": 7}))
    assert (model.heads, model.latent_size) == ((5, 0) if name == "mdn" else (None, 7))
    assert not model.has_density
    latents = model.latents(16, 6, torch.Generator().manual_seed(0))
    count = 5 if name == "mdn" else 6
    assert latents.shape == (16, count, model.latent_size)
    model.eval()
    with torch.no_grad():
        out = model(examples.keypoints, examples.box, latents)
        again = model(examples.keypoints, examples.box, latents)
        one = model(examples.keypoints[:1], examples.box[:1], latents[:1])
    shapes = {"joints": (24, 3), "keypoints": (23, 3), "rotations": (24, 3, 3), "betas": (10,), "translation": (3,)}
    shapes |= {"pose6d": (144,), "weight": ()}
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "sample_" + key: (16, count, *shape) for key, shape in shapes.items()
    }
    for key, value in out.items():
        assert torch.isfinite(value).all(), key
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)
        torch.testing.assert_close(one[key], value[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["sample_weight"].sum(1), torch.ones(16))
    joints, surface = body(out["sample_rotations"], out["sample_betas"], out["sample_translation"])
    torch.testing.assert_close(joints, out["sample_joints"], rtol=0, atol=1e-5)
    torch.testing.assert_close(surface, out["sample_keypoints"], rtol=0, atol=1e-5)
    assert out["sample_joints"].std(1).max() > 1e-3

    save_checkpoint(tmp_path / "m.ckpt", model, {"step": 3})
    loaded, meta = load_checkpoint(tmp_path / "m.ckpt", body)
    assert (meta, type(loaded), loaded.config) == ({"step": 3}, type(model), model.config)
    with torch.no_grad():
        for key, value in loaded(examples.keypoints, examples.box, latents).items():
            torch.testing.assert_close(value, out[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mdn", "cvae"])
def test_losses_reach_every_parameter(name: str, body: TorchBody, examples) -> None:
    model = _model(name, body, examples)
    terms = model.losses(examples, LOSSES)
    assert sorted(terms) == sorted(_names(name))
    sum(terms.values()).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert torch.isfinite(value.grad).all(), key
        assert value.grad.abs().sum() > 0, key
    assert model.losses(examples, LossConfig()) == {}
    assert all(torch.isfinite(value) for value in model.losses(examples[:1], LOSSES).values())


@pytest.mark.parametrize("name", ["mdn", "cvae"])
def test_training_brings_the_losses_down(name: str, body: TorchBody, examples) -> None:
    model = _model(name, body, examples, noise=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        terms = model.losses(examples, LOSSES)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append(float(terms["mode_joints"].detach()))
    assert np.mean(history[-5:]) < 0.6 * history[0]


@pytest.mark.parametrize("name", ["mdn", "cvae"])
def test_networks_in_bfloat16_change_little(name: str, body: TorchBody, examples) -> None:
    model = _model(name, body, examples)
    torch.manual_seed(1)
    exact = model.losses(examples, LOSSES)
    model.bfloat16 = True
    torch.manual_seed(1)
    rough = model.losses(examples, LOSSES)
    for key, value in exact.items():
        assert rough[key].dtype == torch.float32, key
        torch.testing.assert_close(rough[key], value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["mdn", "cvae"])
def test_an_unknown_pose_is_not_looked_at(name: str, body: TorchBody, examples) -> None:
    model = _model(name, body, examples)
    unknown = replace(examples, has_pose=torch.zeros(16, dtype=torch.bool))
    identity = torch.eye(3).expand(16, 24, 3, 3)
    other = replace(unknown, rotations=identity, pose6d=matrix_to_rotation6d(identity).flatten(1))
    losses = []
    for batch in (unknown, other):
        torch.manual_seed(2)
        losses.append(model.losses(batch, LOSSES))
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key], rtol=1e-5, atol=1e-6)
    assert losses[0]["rotations"] == 0
    assert losses[0][_names(name)[-1]] == 0
    assert losses[0]["mode_keypoints"] > 0


# --- mixture density ---------------------------------------------------------------------------------------------


def test_log_rotations_against_scipy(body: TorchBody, examples) -> None:
    """They are those of another library; zero is upright and facing the camera; there and back is the same pose."""
    model = _model("mdn", body, examples)
    logarithms = model.logarithms(examples.pose6d)
    rotations = examples.rotations.numpy().astype(float)
    rotations[:, 0] = Rotation.from_euler("x", 180, degrees=True).as_matrix() @ rotations[:, 0]
    expected = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_rotvec().reshape(16, 72)
    np.testing.assert_allclose(logarithms, expected, atol=2e-4)
    torch.testing.assert_close(model.poses(logarithms), examples.pose6d, rtol=0, atol=1e-4)
    facing = axis_angle_to_matrix(torch.tensor([torch.pi, 0.0, 0.0])).expand(24, 3, 3)
    assert model.logarithms(matrix_to_rotation6d(facing).flatten())[:3].abs().max() < 1e-3


def test_the_nearest_logarithm_crosses_the_jump() -> None:
    """One body turned by just less than half a turn, a mean just beyond: near, and still the same rotation."""
    true, means = torch.zeros(1, 72), torch.zeros(1, 2, 72)
    true[0, 1], true[0, 4] = torch.pi - 0.05, 0.01
    means[0, 0, 1], means[0, 1, 1] = -torch.pi + 0.05, 0.3  # the same side for the second
    near = nearest_logarithm(true, means)
    torch.testing.assert_close(near[0, 0, 1], torch.tensor(-torch.pi - 0.05))
    torch.testing.assert_close(near[0, 1], true[0])
    assert float((near - means)[0, 0].norm()) == pytest.approx((0.1**2 + 0.01**2) ** 0.5, rel=1e-3)
    random = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(50, 72, generator=random)
    means = 3.0 * torch.randn(50, 4, 72, generator=random)
    near = nearest_logarithm(true, means)
    assert ((near - means).norm(dim=-1) <= (true[:, None] - means).norm(dim=-1) + 1e-5).all()
    rotations = axis_angle_to_matrix(near.unflatten(-1, (24, 3)))
    expected = axis_angle_to_matrix(true.unflatten(-1, (24, 3)))[:, None].expand_as(rotations)
    torch.testing.assert_close(rotations, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variance", [0.3, 1e-3, 1e-6])
def test_mixture_against_torch_distributions(body: TorchBody, examples, variance: float) -> None:
    """Density, posterior (scipy's softmax) and the gradient of the likelihood, which is the posterior's pull."""
    model = _model("mdn", body, examples, components=4, variance=variance)
    random = torch.Generator().manual_seed(0)
    true = 0.2 * torch.randn(6, 72, generator=random).double()
    means = (true[:, None] + 0.2 * torch.randn(6, 4, 72, generator=random).double()).requires_grad_()
    component = model.component_log_prob(true, means)
    normal = D.Independent(D.Normal(means, torch.full_like(means, variance**0.5)), 1)
    mixture = D.MixtureSameFamily(D.Categorical(torch.ones(6, 4).double()), normal)
    log_prob = component.logsumexp(1)
    torch.testing.assert_close(log_prob, mixture.log_prob(true))
    square = ((true[:, None] - means) ** 2).sum(-1).detach().numpy()
    posterior = softmax(-square / (2 * variance), axis=1)
    np.testing.assert_allclose(component.detach().softmax(1), posterior, atol=1e-9)
    (gradient,) = torch.autograd.grad(log_prob.sum(), means)
    pull = torch.as_tensor(posterior)[..., None] * (true[:, None] - means.detach()) / variance
    torch.testing.assert_close(gradient, pull, rtol=1e-6, atol=1e-6 / variance)


@pytest.mark.parametrize("variance", [50.0, 1e-3])
def test_losses_see_the_posterior_weighted_mean(body: TorchBody, examples, variance: float) -> None:
    """Equation 9 by scipy, through the body, gives the loss; with a wide mixture all means take part."""
    model = _model("mdn", body, examples, components=4, variance=variance)
    with torch.no_grad():
        condition = model.condition(examples.keypoints, examples.box)
        means = model.means(condition)
        true = model.logarithms(turn_root(examples.pose6d[:, None], condition.turn)[:, 0])
        square = ((nearest_logarithm(true, means) - means) ** 2).sum(-1).numpy().astype(float)
        weight = softmax(-square / (2 * variance), axis=1)
        assert (weight.max(1) < 0.9).all() if variance > 1 else (weight.max(1) > 0.99).mean() > 0.8
        single = torch.as_tensor(np.einsum("bm,bmd->bd", weight, means.numpy()), dtype=torch.float32)
        pose6d = turn_root(model.poses(single)[:, None], condition.turn.transpose(-1, -2))
        shape, camera = model.guesses(condition)
        joints = model.bodies(pose6d, shape.mean[:, None], examples.keypoints, examples.box, camera)["sample_joints"]
        gap = (joints[:, 0] - joints[:, 0, :1]) - (examples.joints - examples.joints[:, :1])
        losses = model.losses(examples, LOSSES)
    assert float(losses["mode_joints"]) == pytest.approx(float(gap.abs().sum() / 16), rel=1e-4)


def test_one_component_is_regression(body: TorchBody, examples) -> None:
    """The losses of forward's only body, and a squared error for likelihood."""
    model = _model("mdn", body, examples, components=1)
    with torch.no_grad():
        losses = model.losses(examples, LOSSES)
        out = model(examples.keypoints, examples.box, model.latents(16, 1))
        condition = model.condition(examples.keypoints, examples.box)
        shape, camera = model.guesses(condition)
        expected = model.sample_losses(out, examples, LOSSES) | model.head_losses(examples, shape, camera, LOSSES)
        true = model.logarithms(turn_root(examples.pose6d[:, None], condition.turn)[:, 0])
        mean = model.means(condition)
        square = (nearest_logarithm(true, mean) - mean).square().sum() / 16
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=1e-5)
    constant = 2e-3 * 36 * np.log(2 * np.pi * 1e-3)
    assert float(losses["likelihood"]) == pytest.approx(float(square) + constant, rel=1e-4)


def test_the_central_mean_comes_first() -> None:
    pose6d = torch.randn(5, 7, 144, generator=torch.Generator().manual_seed(0))
    out = central_first(pose6d)
    for row, new in zip(pose6d.numpy(), out.numpy(), strict=True):
        apart = ((row[:, None] - row[None]) ** 2).sum((1, 2))  # to all others: the medoid of squared distances
        best = int(apart.argmin())
        np.testing.assert_array_equal(new[0], row[best])
        np.testing.assert_array_equal(np.sort(new, axis=0), np.sort(row, axis=0))
        untouched = [m for m in range(1, 7) if m != best]
        np.testing.assert_array_equal(new[untouched], row[untouched])


def test_bad_settings_are_named() -> None:
    body = TorchBody(mesh=False)
    with pytest.raises(ValueError, match=r"model\.components"):
        build_model({"model": "mdn", "components": 0}, body)
    with pytest.raises(ValueError, match=r"model\.variance"):
        build_model({"model": "mdn", "variance": 0.0}, body)
    with pytest.raises(ValueError, match=r"model\.latent"):
        build_model({"model": "cvae", "latent": 0}, body)


# --- variational autoencoder -------------------------------------------------------------------------------------


def test_kl_against_torch_distributions(body: TorchBody, examples) -> None:
    model = _model("cvae", body, examples)
    with torch.no_grad():
        condition = model.condition(examples.keypoints, examples.box)
        mean, log_sigma = model.encode(examples.pose6d, examples.betas, condition)
        kl = D.kl_divergence(D.Normal(mean, log_sigma.exp()), D.Normal(0.0, 1.0)).sum(1)
        half = torch.arange(16) % 2 == 0
        losses = model.losses(examples, LOSSES)
        partly = model.losses(replace(examples, has_pose=half), LOSSES)
    assert mean.shape == log_sigma.shape == (16, 32)
    assert float(losses["kl"]) == pytest.approx(0.1 * float(kl.mean()), rel=1e-4)
    assert float(partly["kl"]) == pytest.approx(0.1 * float((kl * half).mean()), rel=1e-4)


def test_the_truth_enters_in_training_only(body: TorchBody, examples) -> None:
    model = _model("cvae", body, examples).eval()
    latents = model.latents(16, 3)
    with torch.no_grad():
        condition = model.condition(examples.keypoints, examples.box)
        mean, _ = model.encode(examples.pose6d, examples.betas, condition)
        assert (model.encode(examples.pose6d.flip(0), examples.betas, condition)[0] - mean).abs().max() > 1e-4
        assert (model.encode(examples.pose6d, examples.betas + 1, condition)[0] - mean).abs().max() > 1e-4
        before = model(examples.keypoints, examples.box, latents)
        for value in model.recognise.parameters():
            value.normal_()
        after = model(examples.keypoints, examples.box, latents)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0)


def test_the_encoder_sees_what_the_turned_camera_sees(body: TorchBody, examples) -> None:
    """A body turned as its camera is makes no difference."""
    model = _model("cvae", body, examples)
    code = torch.randn(16, 24)
    turn = axis_angle_to_matrix(0.4 * torch.randn(16, 3))
    still = torch.eye(3).expand(16, 3, 3)
    with torch.no_grad():
        turned = turn_root(examples.pose6d[:, None], turn)[:, 0]
        for one, other in zip(
            model.encode(examples.pose6d, examples.betas, Condition(code, turn)),
            model.encode(turned, examples.betas, Condition(code, still)),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_first_sample_is_the_latents_mean(body: TorchBody, examples) -> None:
    model = _model("cvae", body, examples)
    with torch.no_grad():
        out = model(examples.keypoints, examples.box, model.latents(16, 4))
        zero = model(examples.keypoints, examples.box, torch.zeros(16, 1, 32))
    torch.testing.assert_close(out["sample_joints"][:, :1], zero["sample_joints"], rtol=1e-4, atol=1e-5)


def test_reparameterised_gradient_against_differences(body: TorchBody, examples) -> None:
    """The slope of the reconstruction along the encoder's weights, with the noise held: through z alone."""
    model = _model("cvae", TorchBody(Body.load(), mesh=False), examples).double()
    few = examples[:4]._map(lambda value: value.double() if value.is_floating_point() else value)
    weight = model.recognise[-1].bias

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return model.losses(few, LossConfig(mode_joints=1.0))["mode_joints"]

    (gradient,) = torch.autograd.grad(loss(), weight)
    for index in (0, 31, 32, 63):  # means and deviations
        with torch.no_grad():
            weight[index] += 1e-6
            up = float(loss())
            weight[index] -= 2e-6
            down = float(loss())
            weight[index] += 1e-6
        assert float(gradient[index]) == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-7)


def test_further_samples_are_drawn_from_the_prior(body: TorchBody, examples) -> None:
    model = _model("cvae", body, examples)
    torch.manual_seed(0)
    terms = model.losses(examples, replace(LOSSES, sample_keypoints=0.1))
    assert terms["sample_keypoints"] > 0
    torch.manual_seed(0)
    assert "sample_keypoints" not in model.losses(examples, LOSSES)
