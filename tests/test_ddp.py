"""Two processes, each with half of every batch, reach what one process reaches."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")
pytest.importorskip("lightning", reason="the training half needs the [train] extra")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.config import load_config, write_config  # noqa: E402
from hmr_prob_ros.training.data.noise import DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.models import load_checkpoint  # noqa: E402
from hmr_prob_ros.training.streams import fixed_examples  # noqa: E402
from hmr_prob_ros.training.train import train_on  # noqa: E402

# Without noise, further samples, dropout and batch statistics, which are drawn and measured by each process for itself.
# Sums in another order differ in the last digit, which Adam's first steps magnify: they are of the same size whatever
# the gradient's.
SETTINGS = [
    *("losses.noise=0", "losses.samples=1", "losses.sampled=0", "losses.adversarial=0.001", "losses.camera=0.05"),
    *(
        "model.hidden=16",
        "model.condition=16",
        "model.encoder_width=16",
        "model.encoder_depth=1",
        "model.head_hidden=16",
    ),
    *("model.couplings=2", "model.flow_dropout=0", "model.batch_norm=false", "optimiser.batch=16", "optimiser.clip=1"),
    *("engine.steps=6", "engine.threads=1", "engine.workers=0", "engine.progress=false", "engine.accelerator=cpu"),
    *("engine.ema=0.9", "engine.validate_every=3", "engine.checkpoint_every=3"),
]

SCRIPT = """
import os
import sys
from pathlib import Path

import numpy as np

from hmr_prob_ros.training.body import TorchBody
from hmr_prob_ros.training.config import read_config
from hmr_prob_ros.training.data.noise import DetectorNoise
from hmr_prob_ros.training.data.synthesize import Synthesizer
from hmr_prob_ros.training.streams import fixed_examples
from hmr_prob_ros.training.train import train_on

folder = Path(sys.argv[1])
body = TorchBody(mesh=False)
poses = np.load(folder / "poses.npy")
synthesizer = Synthesizer(body, [DetectorNoise.load("blazepose")])
examples = fixed_examples(folder / "set.npz", poses, synthesizer, 64, progress=False)
train_on(examples, read_config(folder / "config.yaml"), body, folder / "two", examples[:16])
(folder / f"process{os.environ['LOCAL_RANK']}").touch()
"""


def test_two_processes_reach_what_one_reaches(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    body = TorchBody(Body.load(), mesh=False)
    poses = 0.2 * np.random.default_rng(0).standard_normal((100, 24, 3)).astype(np.float32)
    np.save(tmp_path / "poses.npy", poses)
    examples = fixed_examples(
        tmp_path / "set.npz", poses, Synthesizer(body, [DetectorNoise.load("blazepose")]), 64, progress=False
    )
    config = load_config("prohmr", None, SETTINGS)
    one = train_on(examples, config, body, tmp_path / "one", examples[:16])

    two = dataclasses.replace(config, engine=dataclasses.replace(config.engine, devices=2))
    write_config(two, tmp_path / "config.yaml")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Lightning starts the second process itself and has the two meet on this machine.
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    clean["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob("process*")) == ["process0", "process1"]

    other, meta = load_checkpoint(tmp_path / "two" / "model.pt", body)
    assert meta["steps"] == 6
    start = start_weights(config, examples, body)
    moved = 0.0
    for key, value in one.state_dict().items():
        if key.startswith(("body.", "adversary.")) or not value.is_floating_point():
            continue
        torch.testing.assert_close(other.state_dict()[key], value, atol=2e-5, rtol=1e-3, msg=key)
        moved = max(moved, float((value - start[key]).abs().max()))
    assert moved > 1e-4  # there was something to agree on

    def losses(folder: str) -> list[float]:
        with open(tmp_path / folder / "log" / "metrics.csv") as stream:
            return [float(row["val/mode_mpjpe"]) for row in csv.DictReader(stream) if row["val/mode_mpjpe"]]

    assert losses("two") == pytest.approx(losses("one"), rel=1e-3)
    assert len(losses("two")) == 2


def start_weights(config, examples, body) -> dict[str, torch.Tensor]:
    """The weights that a training of ``config`` starts from."""
    import lightning

    from hmr_prob_ros.training.models import build_model

    lightning.seed_everything(config.engine.seed, verbose=False)
    model = build_model({"model": config.method, **dataclasses.asdict(config.model)}, body)
    model.fit_statistics(examples.pose6d)
    return model.state_dict()
