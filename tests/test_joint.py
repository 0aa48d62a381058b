"""The joint posterior's learned hypotheses: where they stand, what they weigh, what trains them, and their graph."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from hmr_prob_ros.quantize import shares as numpy_shares  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.graph import OUTPUTS, PosteriorGraph  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import JointConfig, JointPosterior, load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.joint import fit_codebook  # noqa: E402
from hmr_prob_ros.training.quantize import shares  # noqa: E402

SMALL = dict(hidden=16, couplings=2, condition=24, encoder_width=32, encoder_depth=1, head_hidden=16)


@pytest.fixture(scope="module")
def body() -> TorchBody:
    return TorchBody(mesh=False)


@pytest.fixture(scope="module")
def examples(body: TorchBody):
    poses = 0.3 * np.random.default_rng(0).standard_normal((40, 24, 3))
    return Synthesizer(body, seed=3)(poses)[:12]


@pytest.fixture
def model(body: TorchBody) -> JointPosterior:
    torch.manual_seed(0)
    model = JointPosterior(JointConfig(hypotheses=6, codebook=3, nested=(3,), quantiser_hidden=20, **SMALL), body)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("last.weight"):
                value.normal_(0, 0.05)
    return model.eval()


@torch.no_grad()
def test_zeros_give_the_hypotheses_and_the_rest_are_draws(model: JointPosterior, examples) -> None:
    few = examples[:3]
    latents = model.latents(3, 13, torch.Generator().manual_seed(1))
    assert model.modes == 9
    assert not latents[:, :9].any()
    assert latents[:, 9:].std() == pytest.approx(1, abs=0.1)
    out = model(few.keypoints, few.box, latents)
    condition = model.condition(few.keypoints, few.box)
    chosen = model.hypotheses(condition)
    assert not chosen[:, 0].any()  # the first is the mode
    assert chosen.shape[1] == 6
    # The codebook is the same for everyone.
    whole = torch.cat((chosen, model.codebook.expand(3, 3, -1), latents[:, 9:]), dim=1)
    pose6d, log_density = model.sample(whole, condition)
    torch.testing.assert_close(out["sample_pose6d"], pose6d)
    torch.testing.assert_close(out["sample_log_density"], log_density)
    # A density of its own for every hypothesis, by the way back too.
    torch.testing.assert_close(model.log_prob(out["sample_pose6d"], condition), log_density, rtol=1e-3, atol=2e-2)
    # Draws alone make up the moments; without draws all weigh the same.
    weight = out["sample_weight"]
    torch.testing.assert_close(weight.sum(-1), torch.ones(3))
    assert not weight[:, :9].any()
    torch.testing.assert_close(weight[:, 9:], torch.full((3, 4), 0.25))
    for count in (1, 4, 6, 8):
        part = model(few.keypoints, few.box, model.latents(3, count))
        torch.testing.assert_close(part["sample_weight"], torch.full((3, count), 1 / count))
        torch.testing.assert_close(part["sample_joints"], out["sample_joints"][:, :count], rtol=1e-4, atol=1e-4)


def test_only_the_best_of_each_prefix_is_drawn_to_the_truth(model: JointPosterior, examples) -> None:
    """Gradients reach the best hypothesis of all six, the best of the first three, and no other."""
    few = examples[:1]
    config = LossConfig(best_of_m=25, best_of_m_squared=True, sampled=0)
    chosen = []
    real = model.hypotheses

    def spy(condition, count=None):
        chosen.append(real(condition, count))
        chosen[0].retain_grad()
        return chosen[0]

    model.hypotheses = spy
    terms = model.losses(few, config)
    assert set(terms) == {"best_of_m"}
    terms["best_of_m"].backward()
    model.hypotheses = real
    with torch.no_grad():
        joints = model(few.keypoints, few.box, model.latents(1, 6))["sample_joints"]
    relative = joints - joints[:, :, :1] - (few.joints - few.joints[:, :1])[:, None]
    squares = relative.square().mean((-1, -2))[0]
    best = {int(squares.argmin()), int(squares[:3].argmin())}
    moved = chosen[0].grad[0].abs().sum(-1)
    assert {m for m in range(1, 6) if moved[m] > 0} == best - {0}
    expected = 25 * (squares.min() + squares[:3].min()) / 2
    assert float(terms["best_of_m"].detach()) == pytest.approx(float(expected), rel=1e-3)


def test_losses_switch(model: JointPosterior, examples) -> None:
    """The mode and the draws have the losses of all methods; without its own losses nothing else is drawn."""
    config = LossConfig(mode_joints=1, sample_keypoints=1, sampled=0)
    assert set(model.losses(examples, config)) == {"mode_joints", "sample_keypoints"}
    wanted = dict(likelihood=0.1, best_of_m=1, reprojection=1, latents=0.3, orthonormality=0.1)
    terms = model.losses(examples, LossConfig(**wanted, sampled=0))
    assert set(terms) == set(wanted)
    # Minus the standard normal's log-density, but for its constant, of the hypotheses beside the mode.
    chosen = model.hypotheses(model.condition(examples.keypoints, examples.box))[:, 1:]
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = (normal.log_prob(torch.zeros(1)) - normal.log_prob(chosen)).sum(-1).mean()
    torch.testing.assert_close(terms["latents"], 0.3 * expected)
    sum(terms.values()).backward()
    for key, value in model.named_parameters():
        if key.startswith("quantiser"):
            assert value.grad is not None, key
            assert value.grad.abs().sum() > 0, key


def test_a_little_training_spreads_the_hypotheses(body: TorchBody, examples) -> None:
    """The best hypothesis comes nearer to the truth than the mode does, for the prefix too."""
    torch.manual_seed(0)
    config = JointConfig(hypotheses=6, codebook=4, nested=(3,), quantiser_hidden=32, **{**SMALL, "hidden": 32})
    model = JointPosterior(config, body)
    model.fit_statistics(examples.pose6d)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = LossConfig(mode_joints=0.03, best_of_m=25, best_of_m_squared=True, sampled=0)
    history = []
    for _ in range(60):
        terms = model.losses(examples, losses)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append(float(terms["best_of_m"].detach()))
    assert history[-1] < 0.5 * history[0]

    @torch.no_grad()
    def errors() -> torch.Tensor:
        joints = model(examples.keypoints, examples.box, model.latents(len(examples), 10))["sample_joints"]
        relative = joints - joints[:, :, :1] - (examples.joints - examples.joints[:, :1])[:, None]
        return relative.square().mean((-1, -2))

    before = errors()
    assert before[:, :6].amin(1).mean() < 0.9 * before[:, 0].mean()
    assert before[:, :3].amin(1).mean() < 0.9 * before[:, 0].mean()
    # The codebook is learned afterwards, and nothing else moves.
    weights = {key: value.clone() for key, value in model.state_dict().items() if key != "codebook"}
    history = fit_codebook(model, iter([examples] * 60), steps=60, examples=12, progress=False)
    assert len(history) == 60
    for key, value in weights.items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=0, rtol=0)
    assert all(p.requires_grad for key, p in model.named_parameters() if key.startswith(("flow", "quantiser")))
    after = errors()
    torch.testing.assert_close(after[:, :6], before[:, :6])
    # It fits, though on these few examples the hypotheses are better still.
    assert after[:, 6:].amin(1).mean() < 0.5 * before[:, 6:].amin(1).mean()
    assert after.amin(1).mean() <= before.amin(1).mean()


def test_shares_are_counts_of_nearest_draws() -> None:
    random = np.random.default_rng(2)
    modes, draws = random.standard_normal((4, 5, 6)) + 7, random.standard_normal((4, 40, 6)) + 7
    modes[..., :3] = draws[..., :3] = 7  # the pelvis
    weight = shares(torch.from_numpy(modes), torch.from_numpy(draws))
    for b in range(4):
        nearest = np.linalg.norm(draws[b][None] - modes[b][:, None], axis=-1).argmin(0)
        counts = np.bincount(nearest, minlength=5) + 1
        np.testing.assert_allclose(weight[b], counts / counts.sum())
        bodies = np.concatenate([modes[b], draws[b]]).reshape(45, 2, 3)
        of_numpy = numpy_shares(modes[b].reshape(5, 2, 3), bodies)
        np.testing.assert_allclose(of_numpy, weight[b], rtol=1e-6)


@torch.no_grad()
def test_the_graph_gives_the_hypotheses_as_modes(model: JointPosterior, examples) -> None:
    few = examples[:3]
    random = torch.Generator().manual_seed(5)
    latents = torch.randn(3, 30, model.latent_size, generator=random)
    latents[:, 0] = 0
    out = dict(zip(OUTPUTS, PosteriorGraph(model, 4)(few.keypoints, few.box, latents)))
    zeros = torch.zeros(3, 9, model.latent_size)
    whole = model(few.keypoints, few.box, torch.cat((zeros, latents[:, 1:]), dim=1))
    draws = {key: torch.cat((value[:, :1], value[:, 9:]), dim=1) for key, value in whole.items()}
    for key in ("joints", "keypoints", "log_density", "rotations", "betas", "translation"):
        torch.testing.assert_close(out["sample_" + key], draws["sample_" + key], rtol=1e-3, atol=1e-3)
        given = out["mode_" + key]
        torch.testing.assert_close(given, whole["sample_" + key][:, :4], rtol=1e-3, atol=1e-3)
    assert out["mode_index"].tolist() == [[0, 1, 2, 3]] * 3
    rooted = {key: (out[key] - out[key][:, :, :1]).flatten(2) for key in ("mode_joints", "sample_joints")}
    torch.testing.assert_close(out["mode_weight"], shares(rooted["mode_joints"], rooted["sample_joints"][:, 1:]))
    torch.testing.assert_close(out["mean"], draws["sample_joints"].mean(1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="6 hypotheses: it cannot give 7 modes"):
        PosteriorGraph(model, 7)


def test_checkpoints_and_settings(model: JointPosterior, body: TorchBody, examples, tmp_path) -> None:
    save_checkpoint(tmp_path / "model.pt", model)
    loaded, _ = load_checkpoint(tmp_path / "model.pt", body)
    assert loaded.config == model.config
    latents = model.latents(2, 12, torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (m(examples.keypoints[:2], examples.box[:2], latents) for m in (model, loaded))
    torch.testing.assert_close(first["sample_joints"], second["sample_joints"], atol=0, rtol=0)
    for wrong in (
        dict(hypotheses=1),
        dict(hypotheses=4, nested=(4,)),
        dict(nested=(1,)),
        dict(refine_translation=False),
    ):
        with pytest.raises(ValueError, match="model"):
            JointConfig(**wrong)
