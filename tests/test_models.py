"""The models: shapes, gradients, consistency, the closed-form translation against a solver, checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from model_helpers import random_poses  # noqa: E402

from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.noise import DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.graph import OUTPUTS, PosteriorGraph  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import (  # noqa: E402
    MODELS,
    CheckpointError,
    FlowConfig,
    FlowPosterior,
    LiftingModel,
    Regressor,
    RegressorConfig,
    build_model,
    load_checkpoint,
    save_checkpoint,
)
from hmr_prob_ros.training.streams import MocapSource  # noqa: E402

SMALL = FlowConfig(hidden=32, couplings=2, condition=24, encoder_width=32, encoder_depth=1, head_hidden=16)


@pytest.fixture(scope="module")
def body() -> TorchBody:
    return TorchBody(mesh=False)


def _flow(body: TorchBody, **changes) -> FlowPosterior:
    torch.manual_seed(0)
    model = FlowPosterior(FlowConfig(**{**SMALL.__dict__, **changes}), body)
    model.fit_statistics(random_poses(200))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("last.weight"):
                value.normal_(0, 0.05)
    return model


def _inputs(model: FlowPosterior, persons: int = 3, count: int = 20) -> tuple[torch.Tensor, ...]:
    """Keypoints of bodies that the model itself draws, so that they are people."""
    random = torch.Generator().manual_seed(1)
    box = torch.tensor([[0.1, -0.2, 0.6], [-0.4, 0.1, 0.3], [0.0, 0.0, 1.1]])[:persons]
    latents = torch.randn(persons, count, model.latent_size, generator=random)
    latents[:, 0] = 0
    keypoints = torch.zeros(persons, 23, 3)
    with torch.no_grad():
        points = model(keypoints, box, latents[:, 1:2])["sample_keypoints"][:, 0]
    keypoints[..., :2] = (points[..., :2] / points[..., 2:] - box[:, None, :2]) / (box[:, None, 2:] / 2)
    keypoints[..., 2] = torch.rand(persons, 23, generator=random)
    keypoints[:, 17:] = 0
    return keypoints, box, latents


@pytest.mark.parametrize(("sample_shape", "sample_translation"), [(False, False), (True, False), (True, True)])
def test_flow_posterior(body: TorchBody, sample_shape: bool, sample_translation: bool) -> None:
    model = _flow(body, sample_shape=sample_shape, sample_translation=sample_translation)
    assert model.latent_size == 144 + 10 * sample_shape + 3 * sample_translation
    keypoints, box, latents = _inputs(model)
    out = model(keypoints, box, latents)
    shapes = {
        "joints": (24, 3),
        "keypoints": (23, 3),
        "log_density": (),
        "rotations": (24, 3, 3),
        "betas": (10,),
        "translation": (3,),
        "pose6d": (144,),
    }
    shapes |= {"weight": ()}
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "sample_" + key: (3, 20, *shape) for key, shape in shapes.items()
    }
    np.testing.assert_allclose(out["sample_weight"].sum(1).detach(), 1, atol=1e-6)
    condition = model.condition(keypoints, box)
    log_prob = model.log_prob(out["sample_pose6d"], condition)
    np.testing.assert_allclose(log_prob.detach(), out["sample_log_density"].detach(), rtol=1e-4, atol=1e-2)
    # What comes out is the body of what comes out.
    joints, surface = body(out["sample_rotations"], out["sample_betas"], out["sample_translation"])
    np.testing.assert_allclose(joints.detach(), out["sample_joints"].detach(), atol=1e-5)
    np.testing.assert_allclose(surface.detach(), out["sample_keypoints"].detach(), atol=1e-5)
    spread = out["sample_betas"].std(1).max()
    assert (spread > 0.01) if sample_shape else (spread == 0)

    shape, camera = model.guesses(condition)
    loss = out["sample_joints"].square().mean() - model.log_prob(random_poses(3)[:, None], condition).mean()
    pelvis = torch.tensor([[0.1, 0.2, 3.0]] * 3)
    loss = loss + shape.nll(torch.zeros(3, 10)).mean() + camera.nll(box, pelvis).mean()
    loss = loss + model.translation_fit.nll(surface[:, 0] - joints[:, 0, :1], keypoints, box, camera, pelvis).mean()
    loss.backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert torch.isfinite(value.grad).all(), key
        assert value.grad.abs().sum() > 0, key


def test_the_fitted_translation_explains_the_keypoints_better(body: TorchBody) -> None:
    model = _flow(body)
    keypoints, box, latents = _inputs(model)
    keypoints[..., :2] = 0.7 * keypoints[..., :2] + 0.2  # farther away and aside of what the untrained heads guess

    @torch.no_grad()
    def misfit(refine: bool) -> float:
        other = _flow(body, refine_translation=refine)
        points = other(keypoints, box, latents)["sample_keypoints"]
        rays = box[:, None, :2] + keypoints[..., :2] * box[:, None, 2:] / 2
        gap = (points[..., :2] / points[..., 2:] - rays[:, None]) / box[:, None, None, 2:]
        return float((gap.norm(dim=-1) * keypoints[:, None, :, 2]).mean())

    assert misfit(True) < 0.8 * misfit(False)


def test_without_keypoints_the_translation_is_the_heads(body: TorchBody) -> None:
    model = _flow(body)
    box = torch.tensor([[0.1, -0.2, 0.6]])
    out = model(torch.zeros(1, 23, 3), box, torch.randn(1, 4, 144))
    shape, camera = model.guesses(model.condition(torch.zeros(1, 23, 3), box))
    translation = camera.pelvis(box) - model.rest_pelvis(shape.mean)
    np.testing.assert_allclose(out["sample_translation"].detach(), translation.detach().expand(1, 4, 3), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"sample_shape": True}, {"sample_shape": True, "sample_translation": True}, {"refine_translation": False}],
)
def test_the_graph_layout_gives_the_models_numbers(body: TorchBody, changes: dict) -> None:
    model = _flow(body, **changes).eval()
    keypoints, box, latents = _inputs(model)
    with torch.no_grad():
        expected = model(keypoints, box, latents)
        given = dict(zip(OUTPUTS, PosteriorGraph(model, 4)(keypoints, box, latents), strict=True))
    for name, value in expected.items():
        if name in given:
            np.testing.assert_allclose(given[name], value, atol=5e-5, rtol=1e-5, err_msg=name)


def test_regressor(body: TorchBody) -> None:
    torch.manual_seed(0)
    model = Regressor(RegressorConfig(hidden=32, condition=24, encoder_width=32, encoder_depth=1, head_hidden=16), body)
    model.fit_statistics(random_poses(100))
    keypoints, box, _ = _inputs(_flow(body))
    out = model(keypoints, box)
    assert {key: tuple(out["sample_" + key].shape) for key in ("pose6d", "betas", "translation", "weight")} == {
        "pose6d": (3, 1, 144),
        "betas": (3, 1, 10),
        "translation": (3, 1, 3),
        "weight": (3, 1),
    }
    assert (model.heads, model.latent_size, model.has_density) == (1, 0, False)
    translation = out["sample_translation"][:, 0]
    _, camera = model.guesses(model.condition(keypoints, box))
    fit = model.translation_fit.nll(torch.zeros(3, 23, 3), keypoints, box, camera, translation.detach() + 0.1)
    (
        out["sample_pose6d"].square().mean() + out["sample_betas"].square().mean() + translation.square().mean()
    ).backward()
    fit.mean().backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0, key


@pytest.fixture(scope="module")
def examples(body: TorchBody) -> Examples:
    poses = 0.2 * np.random.default_rng(0).standard_normal((60, 24, 3)).astype(np.float32)
    return MocapSource(poses, Synthesizer(body, [DetectorNoise.load("blazepose")]), 12).batch(0)


WIDTHS = {"hidden": 16, "condition": 16, "encoder_width": 16, "encoder_depth": 1, "head_hidden": 16}


def _any(name: str, body: TorchBody, **options) -> LiftingModel:
    torch.manual_seed(0)
    model = build_model({"model": name, **WIDTHS, **options}, body)
    model.fit_statistics(random_poses(200))
    return model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_method_keeps_the_interface(name: str, body: TorchBody, examples: Examples, tmp_path: Path) -> None:
    model = _any(name, body).eval()
    latents = model.latents(len(examples), 7, torch.Generator().manual_seed(0))
    count = model.heads or 7
    assert latents.shape == (12, count, model.latent_size)
    assert (latents[:, 0] == 0).all()
    with torch.no_grad():
        out = model(examples.keypoints, examples.box, latents)
        single = model(examples.keypoints, examples.box, latents[:, :1])
    np.testing.assert_allclose(out["sample_weight"].sum(1), 1, atol=1e-5)
    assert ("sample_log_density" in out) == (model.has_density or name == "lifting")
    for key, value in out.items():
        assert value.shape[:2] == (12, count), key
        assert torch.isfinite(value).all(), key
        if key != "sample_weight":  # the single answer does not depend on what else is drawn
            np.testing.assert_allclose(single[key][:, 0], value[:, 0], atol=1e-3, rtol=1e-4, err_msg=key)
    if name != "lifting":
        joints, surface = body(out["sample_rotations"], out["sample_betas"], out["sample_translation"])
        np.testing.assert_allclose(out["sample_joints"], joints, atol=1e-4)
        np.testing.assert_allclose(out["sample_keypoints"], surface, atol=1e-4)
    save_checkpoint(tmp_path / "model.pt", model)
    other, _ = load_checkpoint(tmp_path / "model.pt", body)
    with torch.no_grad():
        again = other(examples.keypoints, examples.box, latents)
    for key, value in out.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_losses_of_every_method(name: str, body: TorchBody, examples: Examples) -> None:
    """All losses that it knows are finite and lead somewhere, in float32 and bfloat16; none is on by itself."""
    assert _any(name, body).losses(examples, LossConfig(noise=0.01)) == {}
    weights = {f.name: 0.1 for f in dataclasses.fields(LossConfig) if f.type == "float" and f.name != "adversarial"}
    for bfloat16 in (False, True):
        model = _any(name, body).train()
        model.bfloat16 = bfloat16
        terms = model.losses(examples, LossConfig(**weights, samples=2, sampled=8))
        assert terms
        assert all(value.ndim == 0 and value.dtype == torch.float32 for value in terms.values())
        sum(terms.values()).backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
        unused = () if getattr(model.config, "refine_translation", False) else ("translation_fit.",)
        missing = [key for key, gradient in gradients.items() if gradient is None and not key.startswith(unused)]
        assert not missing
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None)
    # Examples of which nothing is known but the picture change no weight through what is unknown.
    none = torch.zeros(12, dtype=torch.bool)
    blank = dataclasses.replace(
        examples,
        has_pose=none,
        has_betas=none,
        has_joints=none[:, None].expand(12, 24),
        has_translation=none,
        true_keypoints=torch.zeros(12, 23, 3),
    )
    off = {"orthonormality": 0.0, "kl": 0.0, "latents": 0.0}  # they ask for no truth
    total = sum(_any(name, body).losses(blank, LossConfig(**{**weights, **off})).values())
    assert total.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["joint", "regressor"])
def test_place_moves_the_body_and_does_not_bend_it(name: str, body: TorchBody, examples: Examples) -> None:
    model = _any(name, body).train()
    loss = model.losses(examples, LossConfig(place=2.0, sampled=0))["place"]
    with torch.no_grad():
        pelvis = model(examples.keypoints, examples.box, model.latents(12, 1))["sample_joints"][:, 0, 0]
    true = examples.joints[:, 0]
    torch.testing.assert_close(loss.detach(), 2 * ((pelvis - true).abs().sum(-1) / true[:, 2]).mean())
    loss.backward()
    learns = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == {"encoder", "person", "translation_fit"}
    assert not model.person.outer.weight.grad[:20].any()  # mean and deviation of ten betas; the camera follows
    assert model.person.outer.weight.grad[20:].any()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bfloat16_is_for_networks_only(body: TorchBody, examples: Examples, bfloat16: bool) -> None:
    """Close to float32, but not the same; and nothing when it is off."""
    model = _any("flow", body, couplings=2)
    weights = LossConfig(likelihood=1 / 144, mode_joints=0.03, noise=0.0, samples=1)
    plain = model.losses(examples, weights)
    model.bfloat16 = bfloat16
    terms = model.losses(examples, weights)
    for key, value in plain.items():
        assert float(terms[key].detach()) == pytest.approx(float(value.detach()), rel=0.02), key
    assert (sum(terms.values()).item() != sum(plain.values()).item()) == bfloat16


def test_checkpoint_round_trip(body: TorchBody, tmp_path: Path) -> None:
    model = _flow(body).eval()
    path = tmp_path / "runs" / "model.pt"
    save_checkpoint(path, model, {"steps": 3, "takes": ["a"]})
    other, meta = load_checkpoint(path, body)
    assert meta == {"steps": 3, "takes": ["a"]}
    assert other.config == model.config
    assert not other.training
    inputs = _inputs(model)
    np.testing.assert_array_equal(other(*inputs)["sample_joints"].detach(), model(*inputs)["sample_joints"].detach())
    assert not [key for key in torch.load(path, weights_only=True)["state"] if "body" in key]


def _damage(path: Path, kind: str) -> None:
    data = torch.load(path, weights_only=True)
    if kind == "absent":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "misfit":
        torch.save({**data, "config": {**data["config"], "couplings": 3}}, path)
    elif kind == "width":
        torch.save({**data, "config": {**data["config"], "hidden": 16}}, path)
    elif kind == "model":
        torch.save({**data, "config": {**data["config"], "model": "gan"}}, path)
    else:
        torch.save({**data, "config": {**data["config"], "colour": 1}}, path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("absent", "hmr-prob train"),
        ("truncated", "cannot be read"),
        ("foreign", "lacks config, state, meta"),
        ("misfit", "does not fit"),
        ("width", "does not fit"),
        ("model", "unknown model 'gan'"),
        ("field", "no field colour"),
    ],
)
def test_checkpoint_errors(body: TorchBody, tmp_path: Path, kind: str, text: str) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, _flow(body))
    _damage(path, kind)
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint(path, body)


def test_build_model_knows_its_methods(body: TorchBody) -> None:
    assert isinstance(build_model({"model": "flow", "hidden": 8, "couplings": 1}, body), FlowPosterior)
    assert isinstance(build_model({"model": "regressor", "hidden": 8}, body), Regressor)
