"""Training on a little real motion capture: it learns, it goes on after being stopped, it ends in a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")
pytest.importorskip("lightning", reason="the training half needs the [train] extra")

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.mocap import load_mocap  # noqa: E402
from hmr_prob_ros.training.data.noise import DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.models import FlowConfig, FlowPosterior, RegressorConfig, load_checkpoint  # noqa: E402
from hmr_prob_ros.training.modules import ExampleStream, LossWeights, PosteriorModule  # noqa: E402
from hmr_prob_ros.training.train import TrainConfig, apply_settings, fit, train  # noqa: E402

TINY = TrainConfig(
    steps=4,
    batch=32,
    warmup=2,
    pool=400,
    validation=1,
    validate_every=4,
    checkpoint_every=2,
    sampled=16,
    flow=FlowConfig(hidden=16, couplings=2, condition=32, encoder_width=32, encoder_depth=1, head_hidden=16),
    regressor=RegressorConfig(hidden=32, condition=32, encoder_width=32, encoder_depth=1, head_hidden=16),
)


@pytest.fixture(scope="module")
def takes(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three short recordings, unpacked from one archive."""
    import tarfile

    folder = tmp_path_factory.mktemp("mocap")
    with tarfile.open(test_data / "mocap" / "makehuman.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return sorted(folder.rglob("*.bvh"))


@pytest.fixture(scope="module")
def mocap(takes: list[Path], tmp_path_factory: pytest.TempPathFactory):
    return load_mocap(takes, Body.load(), tmp_path_factory.mktemp("cache") / "mocap.npz")


def test_the_likelihood_rises() -> None:
    """A small flow trained on one batch explains it better and better."""
    torch.manual_seed(0)
    body = TorchBody(Body.load(), mesh=False)
    poses = 0.2 * np.random.default_rng(0).standard_normal((96, 24, 3))
    examples = next(iter(ExampleStream(poses, Synthesizer(body, [DetectorNoise.load("blazepose")]), 48)))
    model = FlowPosterior(replace(TINY.flow, hidden=64, couplings=4), body)
    model.fit_statistics(examples.pose6d)
    module = PosteriorModule(model, LossWeights(), 2e-3, 40, 2, sampled=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        terms = module.losses(examples)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
    for name in ("likelihood", "mode_joints", "camera"):
        assert history[-1][name] < history[0][name], name


def test_stream_is_repeatable_and_full() -> None:
    """The same seed gives the same batches, always of the size asked for."""
    body = TorchBody(Body.load(), mesh=False)
    poses = 0.2 * np.random.default_rng(0).standard_normal((50, 24, 3))
    streams = [iter(ExampleStream(poses, Synthesizer(body, seed=4), 40, seed=4)) for _ in range(2)]
    for _ in range(3):
        first, second = (next(stream) for stream in streams)
        assert len(first) == 40
        torch.testing.assert_close(first.keypoints, second.keypoints, atol=0, rtol=0)


def test_goes_on_where_it_was_stopped(mocap, tmp_path: Path) -> None:
    """A run stopped at step 4 of 8 starts again at step 4, not at 0."""
    body = Body.load()
    fit(TINY, mocap, body, tmp_path)
    first = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    fit(replace(TINY, steps=8), mocap, body, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert (first, last) == (4, 8)
    rows = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    assert len(rows) > 1
    model, meta = load_checkpoint(tmp_path / "model.pt", TorchBody(body))
    assert meta["steps"] == 8
    assert torch.isfinite(torch.cat([p.flatten() for p in model.parameters()])).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flow", "regressor"])
def test_motion_capture_to_bundle(takes: list[Path], tmp_path: Path, method: str) -> None:
    """One call from recordings to a bundle that the robot half loads and runs."""
    from hmr_prob_ros.bundle import Bundle
    from hmr_prob_ros.engines import make_engine

    out = train(replace(TINY, method=method), takes, tmp_path)
    inputs = {"keypoints": np.zeros((1, 23, 3), np.float32), "box": np.array([[0, 0, 0.5]], np.float32)}
    if method == "regressor":
        assert make_engine("onnxruntime", out).run(inputs)["joints"].shape == (1, 24, 3)
        return
    bundle = Bundle.load(out)
    assert bundle.card["training"]["examples"] == TINY.steps * TINY.batch
    latents = np.zeros((1, 12, bundle.latent_size), np.float32)
    joints = make_engine("onnxruntime", bundle.model_path).run({**inputs, "latents": latents})["mode_joints"]
    assert np.isfinite(joints).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("flow.width=3", "flow.width"),
        ("speed=3", "speed"),
        ("steps", "NAME=VALUE"),
        ("method=magic", "magic"),
        ("flow.hidden=abc", r"'flow.hidden' cannot be 'abc' \(int needed\): try 256"),
        ("steps=2.5", "int needed"),
        ("steps=0", "steps must be at least 1"),
        ("detectors=blazepose", "list needed"),
        ("flow=3", "is a group: set flow.hidden"),
        ("rate=[1", "not YAML"),
    ],
)
def test_unknown_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_settings(TrainConfig(), [setting])


def test_settings_reach_nested_configurations() -> None:
    assert apply_settings(TrainConfig(), ["rate=5e-4"]).rate == 5e-4  # which YAML takes for a text
    config = apply_settings(TrainConfig(), ["flow.hidden=64", "synthesis.cameras.pitch_sd=3", "detectors=[blazepose]"])
    assert (config.flow.hidden, config.synthesis.cameras.pitch_sd, config.detectors) == (64, 3.0, ("blazepose",))
