"""Training on a little data: it learns, goes on as if it had not been stopped, stops at NaN, makes a bundle."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")
L = pytest.importorskip("lightning", reason="the training half needs the [train] extra")

from model_helpers import save_shards  # noqa: E402

from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.config import ConfigError, TrainConfig, load_config, read_config  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.retarget import MocapError  # noqa: E402
from hmr_prob_ros.training.data.shards import ShardError  # noqa: E402
from hmr_prob_ros.training.models import MODELS, CheckpointError, load_checkpoint  # noqa: E402
from hmr_prob_ros.training.modules import TrainingError, validate  # noqa: E402
from hmr_prob_ros.training.streams import (  # noqa: E402
    DataError,
)
from hmr_prob_ros.training.train import train, train_on  # noqa: E402

SMALL = [
    *(
        "model.hidden=16",
        "model.condition=16",
        "model.encoder_width=16",
        "model.encoder_depth=1",
        "model.head_hidden=16",
    ),
    *("optimiser.batch=16", "optimiser.warmup=2", "losses.sampled=8", "losses.samples=2", "data.pool=400"),
    *("engine.steps=8", "engine.threads=1", "engine.workers=0", "engine.progress=false", "engine.accelerator=cpu"),
    *("engine.checkpoint_every=4", "engine.validate_every=4", "data.validation=1", "data.test=20"),
]
MORE = {
    "multi_head": ["model.heads=4", "model.prior_hidden=8", "model.prior_couplings=2"],
    "mdn": ["model.components=4"],
    "prohmr": ["model.couplings=2"],
    "flow": ["model.couplings=2"],
    "joint": ["model.couplings=2", "model.hypotheses=4", "model.nested=[2]"],
    "lifting": ["model.couplings=2"],
}


def tiny(name: str = "joint", *settings: str) -> TrainConfig:
    return load_config(name, None, [*SMALL, *MORE.get(name, []), *settings])


pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder(L.Callback):
    """The loss of every step, to the last bit."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))


def run(examples: Examples, config: TrainConfig, body: TorchBody, out: Path, **options):
    recorder = Recorder()
    model = train_on(examples, config, body, out, callbacks=[recorder], **options)
    return recorder.losses, model


@pytest.mark.parametrize("name", ["joint", "flow", "prohmr", "lifting", "multi_head", "mdn", "cvae", "regressor"])
def test_every_named_configuration_trains(name: str, examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    config = tiny(name, "engine.steps=4", "engine.precision=bf16-networks", "engine.ema=0.9")
    _, model = run(examples, config, torch_body, tmp_path, validation=examples[:32])
    saved, meta = load_checkpoint(tmp_path / "model.pt", torch_body)
    assert type(saved) is MODELS[config.method]
    assert (meta["steps"], meta["name"], meta["body_hash"]) == (4, name, torch_body.body_hash)
    assert meta["metrics"]["val/mode_mpjpe"] >= meta["metrics"]["val/min25_mpjpe"] > 0
    assert ("val/nll" in meta["metrics"]) == model.has_density
    assert read_config(tmp_path / "config.yaml") == config
    for key, value in model.state_dict().items():
        assert torch.isfinite(value).all(), key
    assert (tmp_path / "log" / "metrics.csv").is_file()


def test_it_learns(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    config = tiny(
        "joint", "engine.steps=60", "model.hidden=32", "optimiser.rate=3e-3", "engine.ema=0", "losses.sampled=0"
    )
    few = examples[:48]
    losses, model = run(few, config, torch_body, tmp_path)
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.3
    metrics = validate(model, few, 0.01)
    blank, _ = run(few, replace(config, engine=replace(config.engine, steps=1)), torch_body, tmp_path / "blank")[::-1]
    assert metrics["nll"][0] < validate(blank, few, 0.01)["nll"][0] - 20
    assert metrics["mode_mpjpe"][0] < validate(blank, few, 0.01)["mode_mpjpe"][0]


@pytest.mark.parametrize(
    "settings", [("joint", "engine.ema=0.9"), ("prohmr", "engine.ema=0"), ("joint", "engine.precision=bf16-networks")]
)
def test_stopped_and_resumed_is_the_same_training(
    settings: tuple[str, ...], examples: Examples, torch_body: TorchBody, tmp_path: Path
) -> None:
    """8 steps in one go and 4 + 4 give the same losses and the same weights, bit for bit; also with noise, latents,
    dropout, batch statistics and an adversary."""
    config = tiny(*settings)
    whole, model = run(examples, config, torch_body, tmp_path / "whole", validation=examples[:32])

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            if trainer.global_step == 6:
                raise InterruptedError

    recorder = Recorder()
    with pytest.raises(InterruptedError):
        train_on(examples, config, torch_body, tmp_path / "parts", examples[:32], [recorder, Stop()])
    rest, other = run(examples, config, torch_body, tmp_path / "parts", validation=examples[:32])
    assert recorder.losses[:6] == whole[:6]
    assert rest == whole[4:]  # the checkpoint is of step 4
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
import hmr_prob_ros.training, lightning
from test_train import Recorder, run, tiny
from hmr_prob_ros.training.data.examples import Examples
from hmr_prob_ros.training.body import TorchBody
class Slow(Recorder):
    def on_train_batch_end(self, *a):
        super().on_train_batch_end(*a)
        time.sleep(0.2)
import test_train; test_train.Recorder = Slow
examples = Examples(**torch.load({data!r}, weights_only=True))
run(examples, tiny("joint", "engine.steps=400"), TorchBody(mesh=False), Path({out!r}))
"""


def test_a_killed_process_goes_on(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    out, data = tmp_path / "run", tmp_path / "examples.pt"
    torch.save({f.name: v for f in dataclasses.fields(examples) if (v := getattr(examples, f.name)) is not None}, data)
    script = SCRIPT.format(tests=str(Path(__file__).parent), data=str(data), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, env=dict(os.environ))
    last, end = out / "checkpoints" / "last.ckpt", time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert last.is_file(), errors.decode()[-2000:]
    assert not (out / "model.pt").exists()
    done = torch.load(last, weights_only=True)["global_step"]
    assert done >= 4
    config = tiny("joint", "engine.steps=400")
    short = replace(config, engine=replace(config.engine, steps=done + 3))
    losses, _ = run(examples, short, torch_body, out)
    assert len(losses) == 3
    assert (out / "model.pt").is_file()


def test_a_finished_run_is_kept_and_may_be_lengthened(
    examples: Examples, torch_body: TorchBody, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny("regressor")
    run(examples, config, torch_body, tmp_path)
    assert run(examples, config, torch_body, tmp_path)[0] == []
    longer = replace(config, engine=replace(config.engine, steps=12), losses=replace(config.losses, rotations=0.5))
    assert len(run(examples, longer, torch_body, tmp_path)[0]) == 4
    assert (
        "goes on from step 8 with other settings: losses.rotations: 0.0046 -> 0.5; engine.steps: 8 -> 12" in caplog.text
    )
    other = load_config("regressor", tmp_path / "config.yaml", ["model.hidden=24", "engine.steps=16"])
    with pytest.raises(ConfigError, match=r"another model \(model.hidden: 16 -> 24.*--out"):
        run(examples, other, torch_body, tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"last.ckpt cannot be read.*delete it"):
        run(examples, replace(longer, engine=replace(longer.engine, steps=20)), torch_body, tmp_path)


def test_a_checkpoint_of_another_version_is_refused(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    config = tiny("joint")
    run(examples, config, torch_body, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    del state["state_dict"]["model.quantiser.outer.bias"]
    torch.save(state, last)
    longer = replace(config, engine=replace(config.engine, steps=12))
    with pytest.raises(CheckpointError, match=r"no model.quantiser.outer.bias: .* another version of joint; .*--out"):
        run(examples, longer, torch_body, tmp_path)


def test_killed_between_the_last_step_and_the_file(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    """The averaged weights of the last checkpoint become the model."""
    config = tiny("joint", "engine.ema=0.9")
    _, model = run(examples, config, torch_body, tmp_path)
    (tmp_path / "model.pt").unlink()
    losses, other = run(examples, config, torch_body, tmp_path)
    assert losses == []
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_another_body_is_refused(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    run(examples, tiny("regressor"), torch_body, tmp_path)
    body = TorchBody(mesh=False)
    body.body_hash = "f" * 64
    with pytest.raises(CheckpointError, match=r"begun with the body .*, not ffffffffffff.*--body"):
        run(examples, tiny("regressor", "engine.steps=12"), body, tmp_path)


def test_a_broken_loss_stops_the_run(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    """Parameters made NaN at step 5: the run stops and names the terms; the checkpoints of steps 4 and 2 stay."""

    class Break(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            if trainer.global_step == 5:
                next(module.model.person.parameters()).data.fill_(torch.nan)

    config = tiny("regressor", "engine.checkpoint_every=2")
    with pytest.raises(TrainingError, match=r"step 5: .*betas_nll.*lower optimiser.rate.*checkpoint"):
        train_on(examples, config, torch_body, tmp_path, callbacks=[Break()])
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
    previous = torch.load(tmp_path / "checkpoints" / "previous.ckpt", weights_only=True)
    assert previous["global_step"] == 2
    assert len(run(examples, config, torch_body, tmp_path)[0]) == 4


@pytest.mark.parametrize("field", ["betas", "rotations", "keypoints", "translation"])
def test_nan_in_data_is_named(field: str, examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    broken = getattr(examples, field).clone()
    broken[3].view(-1)[1] = torch.nan
    with pytest.raises(DataError, match=rf"{field} of example \d+ \(1 of 16\) is NaN.*has_pose"):
        run(replace(examples, **{field: broken}), tiny("regressor", "engine.steps=20"), torch_body, tmp_path)


def test_losses_that_do_nothing_are_told(
    examples: Examples,
    torch_body: TorchBody,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without heatmaps and masks there is nothing to compare samples with."""
    monkeypatch.setattr("hmr_prob_ros.training.modules.LOG_EVERY", 3)
    run(examples, tiny("flow", "engine.steps=4"), torch_body, tmp_path)
    told = [record.getMessage() for record in caplog.records if "never computes" in record.getMessage()]
    assert told == ["flow never computes some losses that are on from this data: mask, mmd"]


def test_a_machine_that_is_not_there_is_named(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot train with engine\.accelerator=nothing"):
        run(examples, tiny("regressor", "engine.accelerator=nothing"), torch_body, tmp_path)


def test_early_stop(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    config = tiny(
        "regressor", "engine.patience=1", "engine.validate_every=2", "optimiser.rate=1e-12", "engine.steps=40"
    )
    losses, _ = run(examples, config, torch_body, tmp_path, validation=examples[:16])
    assert 4 <= len(losses) < 10
    assert run(examples, config, torch_body, tmp_path)[0] == []  # and counts as finished
    with pytest.raises(ConfigError, match=r"engine.patience.*no validation data"):
        run(examples, config, torch_body, tmp_path / "other")


def test_adversary_learns_and_is_not_saved(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    scores: list[float] = []

    class Watch(L.Callback):
        def on_train_start(self, trainer, module) -> None:
            self.start = [p.clone() for p in module.model.adversary.parameters()]

        def on_train_end(self, trainer, module) -> None:
            moved = zip(self.start, module.model.adversary.parameters())
            scores.extend(float((a - b).abs().max()) for a, b in moved)

    config = tiny("prohmr", "losses.adversarial=0.01", "optimiser.adversary_rate=0.01")
    _, model = run(examples, config, torch_body, tmp_path / "run")
    train_on(examples, config, torch_body, tmp_path / "watched", callbacks=[Watch()])
    assert min(scores) > 0
    assert not [
        key for key in torch.load(tmp_path / "run" / "model.pt", weights_only=True)["state"] if "adversary" in key
    ]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in model.adversary.parameters()}


def test_training_on_shards(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    """Without pictures, and with, through a backbone; examples whose pose is unknown are taken too."""
    folder = tmp_path / "shards"
    some = replace(examples, has_pose=torch.arange(len(examples)) % 3 > 0)
    save_shards(some, torch_body, folder, pictures=True)
    config = tiny("cvae", "engine.steps=2", "optimiser.batch=8")
    data = replace(config.data, shards=(str(folder),), validation_shards=(str(folder / "2.npz"),))
    assert train(replace(config, data=data), tmp_path / "plain") == tmp_path / "plain" / "model.pt"
    with pytest.raises(ShardError, match="leave some of them"):
        train(replace(config, data=replace(data, validation_shards=(str(folder),))), tmp_path / "none")
    pytest.importorskip("timm", reason="backbones need the [images] extra")
    model = replace(config.model, image="mobilenetv3_small_050")
    path = train(replace(config, data=data, model=model), tmp_path / "pictures")
    assert load_checkpoint(path, torch_body)[1]["metrics"] == {}  # two steps, no validation


@pytest.fixture(scope="module")
def takes(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three short recordings, unpacked from one archive."""
    import tarfile

    folder = tmp_path_factory.mktemp("mocap")
    with tarfile.open(test_data / "mocap" / "makehuman.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return sorted(map(str, folder.rglob("*.bvh")))


def test_motion_capture_to_checkpoint(takes: list[str], tmp_path: Path) -> None:
    config = tiny("cvae", "engine.steps=2", "engine.workers=1")
    with pytest.raises(ConfigError, match=r"--mocap PATH.* or --data"):
        train(config, tmp_path)
    config = replace(config, data=replace(config.data, mocap=tuple(takes)))
    assert train(config, tmp_path) == tmp_path / "model.pt"
    assert load_checkpoint(tmp_path / "model.pt", TorchBody())[1]["steps"] == 2
    assert list((tmp_path / "tensorboard").glob("events*"))
    with pytest.raises(ConfigError, match=r"model.image.*no pictures"):
        train(replace(config, model=replace(config.model, image="resnet18")), tmp_path / "other")
    with pytest.raises(MocapError, match="leaves no frames"):
        train(replace(config, data=replace(config.data, mocap=tuple(takes[:1]))), tmp_path / "few")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joint", "regressor"])
def test_motion_capture_to_bundle(takes: list[str], tmp_path: Path, name: str) -> None:
    """One call from recordings to a bundle that the robot half loads and runs."""
    from hmr_prob_ros.bundle import Bundle
    from hmr_prob_ros.engines import make_engine

    config = tiny(name, "engine.steps=4")
    out = train(replace(config, data=replace(config.data, mocap=tuple(takes))), tmp_path)
    inputs = {"keypoints": np.zeros((1, 23, 3), np.float32), "box": np.array([[0, 0, 0.5]], np.float32)}
    if name == "regressor":
        assert make_engine("onnxruntime", out).run(inputs)["joints"].shape == (1, 24, 3)
        return
    bundle = Bundle.load(out)
    assert bundle.card["training"]["examples"] == 4 * 16
    latents = np.zeros((1, 12, bundle.latent_size), np.float32)
    joints = make_engine("onnxruntime", bundle.model_path).run({**inputs, "latents": latents})["mode_joints"]
    assert np.isfinite(joints).all()
