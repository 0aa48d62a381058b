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

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")
L = pytest.importorskip("lightning", reason="the training half needs the [train] extra")

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.config import ConfigError, TrainConfig, load_config, read_config  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.noise import DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.retarget import MocapError  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.models import MODELS, CheckpointError, load_checkpoint  # noqa: E402
from hmr_prob_ros.training.modules import TrainingError, validate  # noqa: E402
from hmr_prob_ros.training.streams import (  # noqa: E402
    DataError,
    FixedSource,
    MixedSource,
    MocapSource,
    ShardSource,
    Stream,
    fixed_examples,
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


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def torch_body() -> TorchBody:
    return TorchBody(Body.load(), mesh=False)


@pytest.fixture(scope="module")
def examples(torch_body: TorchBody, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    poses = 0.2 * np.random.default_rng(0).standard_normal((300, 24, 3)).astype(np.float32)
    synthesizer = Synthesizer(torch_body, [DetectorNoise.load("blazepose")])
    return fixed_examples(tmp_path_factory.mktemp("data") / "set.npz", poses, synthesizer, 200, progress=False)


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
    """Parameters made NaN at step 6: the run stops and names the terms; the checkpoint of step 4 stays and is good."""

    class Break(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            if trainer.global_step == 6:
                next(module.model.person.parameters()).data.fill_(torch.nan)

    with pytest.raises(TrainingError, match=r"step 6: .*betas_nll.*lower optimiser.rate.*checkpoint"):
        train_on(examples, tiny("regressor"), torch_body, tmp_path, callbacks=[Break()])
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
    assert len(run(examples, tiny("regressor"), torch_body, tmp_path)[0]) == 4


@pytest.mark.parametrize("field", ["betas", "rotations", "keypoints", "translation"])
def test_nan_in_data_is_named(field: str, examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    broken = getattr(examples, field).clone()
    broken[3].view(-1)[1] = torch.nan
    with pytest.raises(DataError, match=rf"{field} of example \d+ \(1 of 16\) is NaN.*has_pose"):
        run(replace(examples, **{field: broken}), tiny("regressor", "engine.steps=20"), torch_body, tmp_path)


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


def _equal(a: Examples, b: Examples) -> bool:
    return all(
        (x is None and y is None) or torch.equal(x, y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Examples))
    )


def _source(kind: str, examples: Examples, body: TorchBody, folder: Path, pictures: bool = False):
    if kind == "fixed":
        return FixedSource(examples, 48, seed=3)
    if kind == "shards":
        from hmr_prob_ros.training.data.shards import Shard

        names = [f.name for f in dataclasses.fields(examples) if getattr(examples, f.name) is not None]
        picture = cv2.imencode(".jpg", np.full((64, 64, 3), 90, np.uint8))[1].tobytes()
        for i, part in enumerate((examples[:30], examples[30:70], examples[70:75], examples[75:110])):
            fields = {n: getattr(part, n).numpy() for n in names if n != "pose6d"}
            jpeg = (picture,) * len(part) if pictures else None
            Shard({**fields, "take": np.array(["a"] * len(part))}, body.body_hash, jpeg).save(folder / f"{i}.npz")
        return ShardSource([folder], 48, seed=3, body=body.body_hash, mix=2)
    poses = 0.2 * np.random.default_rng(1).standard_normal((50, 24, 3)).astype(np.float32)
    mocap = MocapSource(poses, Synthesizer(body, [DetectorNoise.load("tinypose")]), 300, seed=3)
    return mocap if kind == "mocap" else MixedSource(mocap, FixedSource(examples, 300, seed=3), 0.4)


@pytest.mark.parametrize("kind", ["fixed", "shards", "mocap", "mixed"])
def test_batches_are_functions_of_their_number(kind: str, examples, torch_body, tmp_path: Path) -> None:
    """Any batch can be had again, alone, and in parts; loaders with workers keep the order."""
    source, again = (_source(kind, examples, torch_body, tmp_path) for _ in range(2))
    batches = [source.batch(step) for step in range(5)]
    assert all(len(batch) == source.size for batch in batches)
    for step in (4, 0, 3):
        assert _equal(again.batch(step), batches[step])
        assert _equal(Examples.cat([again.batch(step, rank, 3) for rank in range(3)]), batches[step])
    assert not _equal(batches[0], batches[1])
    loader = torch.utils.data.DataLoader(Stream(source, start=1), batch_size=None, num_workers=2 * (kind == "mocap"))
    for step, batch in zip((1, 2, 3, 4), loader):
        assert _equal(batch, batches[step])


@pytest.mark.parametrize("kind", ["fixed", "shards"])
def test_an_epoch_shows_every_example_once(
    kind: str, examples: Examples, torch_body: TorchBody, tmp_path: Path
) -> None:
    source = _source(kind, replace(examples, index=torch.arange(len(examples)))[:110], torch_body, tmp_path)
    seen = torch.cat([source.batch(step).index for step in range(5)])
    for epoch in (seen[:110], seen[110:220]):
        assert sorted(epoch.tolist()) == list(range(110))
    assert seen[:110].tolist() != seen[110:220].tolist()
    assert seen[:110].tolist() != list(range(110))


def test_mixture_keeps_its_share(examples: Examples) -> None:
    first, second = FixedSource(examples[:100], 10), FixedSource(examples[100:], 10)
    source = MixedSource(first, second, 0.3)
    from_second = [bool((source.batch(step).box[:1] == examples.box[100:]).all(1).any()) for step in range(20)]
    assert sum(from_second) == 6
    assert max(len(run_) for run_ in "".join("x" if s else " " for s in from_second).split()) == 1


def test_shards_of_another_body_are_refused(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    from hmr_prob_ros.training.data.shards import ShardError

    _source("shards", examples, torch_body, tmp_path)
    with pytest.raises(ShardError, match=r"made with the body .*--body"):
        ShardSource([tmp_path], 8, body="0" * 64)
    with pytest.raises(ShardError, match="no pictures"):
        ShardSource([tmp_path], 8, images=True)


def test_training_on_shards(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    """Without pictures, and with, through a backbone; examples whose pose is unknown are taken too."""
    folder = tmp_path / "shards"
    some = replace(examples, has_pose=torch.arange(len(examples)) % 3 > 0)
    _source("shards", some, torch_body, folder, pictures=True)
    config = tiny("cvae", "engine.steps=2", "optimiser.batch=8")
    data = replace(config.data, shards=(str(folder),), validation_shards=(str(folder / "2.npz"),))
    assert train(replace(config, data=data), tmp_path / "plain") == tmp_path / "plain" / "model.pt"
    pytest.importorskip("timm", reason="backbones need the [images] extra")
    model = replace(config.model, image="mobilenetv3_small_050")
    path = train(replace(config, data=data, model=model), tmp_path / "pictures")
    assert load_checkpoint(path, torch_body)[1]["metrics"] == {}  # two steps, no validation


def test_fixed_examples_are_kept(torch_body: TorchBody, examples: Examples, tmp_path: Path) -> None:
    poses = 0.2 * np.random.default_rng(0).standard_normal((30, 24, 3)).astype(np.float32)
    path = tmp_path / "set.npz"
    made = fixed_examples(path, poses, Synthesizer(torch_body), 20, progress=False)
    before = path.stat().st_mtime_ns
    assert _equal(made, fixed_examples(path, poses, Synthesizer(torch_body), 20, progress=False))
    assert path.stat().st_mtime_ns == before
    assert len(fixed_examples(path, poses, Synthesizer(torch_body), 25, progress=False)) == 25
    joints, surface = torch_body(made.rotations, made.betas, made.translation)
    torch.testing.assert_close(made.joints, joints)
    torch.testing.assert_close(made.keypoints3d, surface)
    # True keypoints are what the body projects to, to half precision.
    seen = (made.keypoints[..., 2] > 0) & (made.keypoints[..., :2].abs() < 1).all(-1)
    rays = made.box[:, None, :2] + made.keypoints[..., :2] * made.box[:, None, 2:] / 2
    assert (surface[..., :2] / surface[..., 2:] - rays)[seen].abs().max() < 2e-3
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match="delete it"):
        fixed_examples(path, poses, Synthesizer(torch_body), 20, progress=False)


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
