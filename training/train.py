"""``hmr-prob train``: from motion capture to a model bundle, in one command.

    hmr-prob train --mocap DIR --out runs/flow

reads and retargets the motion capture, builds a pool of poses, trains on synthetic views of them, and writes the bundle
to ``OUT/bundle``. Each stage is kept below ``OUT`` and not done again when the command is called again: a killed
training goes on from its last checkpoint.
"""

from __future__ import annotations

__all__ = ["TrainConfig", "apply_settings", "build_model", "fit", "main", "train"]

import argparse
import dataclasses
import json
import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from hmr_prob_ros.body import Body
from hmr_prob_ros.bundle import Bundle, update_card
from hmr_prob_ros.evaluate import evaluate

from .body import TorchBody
from .data.mocap import SPLITS, Mocap, load_mocap
from .data.noise import DetectorNoise
from .data.retarget import MocapError
from .data.synthesize import Examples, SynthesisConfig, Synthesizer
from .data.widen import load_pool
from .make_set import make_set
from .models import FlowConfig, FlowPosterior, Regressor, RegressorConfig, save_checkpoint
from .modules import ExampleStream, LossWeights, PosteriorModule, RegressorModule

logger = logging.getLogger(__name__)

METHODS = ("flow", "regressor")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training. Saved beside the run as ``config.yaml``."""

    method: str = "flow"
    steps: int = 40_000
    batch: int = 512
    rate: float = 5e-4
    warmup: int = 500
    ema: float = 0.999
    clip: float = 1.0
    pool: int = 200_000
    """Poses in the training pool: captured, parts mixed, and invented sitting, reaching, crouching and lying."""
    validation: int = 1024
    test: int = 2000
    """Examples of the test takes that the bundle's card reports on."""
    validate_every: int = 2000
    checkpoint_every: int = 500
    noise: float = 0.01
    """Deviation of the noise on the true 6D pose."""
    samples: int = 2
    """Samples of an example that the losses on bodies see, the mode included."""
    sampled: int = 96
    """Examples of a batch that these losses see; they cost most of a step."""
    detectors: tuple[str, ...] = ("blazepose", "tinypose")
    seed: int = 0
    flow: FlowConfig = field(default_factory=lambda: FlowConfig(hidden=256, sample_shape=True, sample_translation=True))
    regressor: RegressorConfig = field(default_factory=RegressorConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    losses: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: use one of {', '.join(METHODS)}")
        low = [name for name in ("steps", "batch", "pool", "test", "samples", "sampled") if getattr(self, name) < 1]
        if low:
            raise ValueError(f"{', '.join(low)} must be at least 1")


def _validation_batches(poses: np.ndarray, body: TorchBody, config: TrainConfig) -> list[Examples]:
    """Fixed examples of the validation takes, in batches of 256."""
    synthesizer = Synthesizer(body, _noises(config), config.synthesis, seed=config.seed + 1)
    stream = iter(ExampleStream(poses, synthesizer, 256, seed=config.seed + 1))
    return [next(stream) for _ in range(max(config.validation // 256, 1))]


def _noises(config: TrainConfig) -> list[DetectorNoise]:
    return [DetectorNoise.load(name) for name in config.detectors]


def build_model(config: TrainConfig, body: TorchBody) -> nn.Module:
    """The model of a configuration, with fresh weights."""
    return FlowPosterior(config.flow, body) if config.method == "flow" else Regressor(config.regressor, body)


def _module(config: TrainConfig, model: nn.Module) -> L.LightningModule:
    common = (model, config.losses, config.rate, config.steps, config.warmup)
    if config.method == "regressor":
        return RegressorModule(*common)
    return PosteriorModule(*common, noise=config.noise, samples=config.samples, sampled=config.sampled)


def fit(config: TrainConfig, mocap: Mocap, body: Body, out: Path) -> Path:
    """Train, or go on with a training that was stopped; returns the checkpoint ``OUT/model.pt``.

    Raises:
        FloatingPointError: the loss became NaN or infinite; the last good checkpoint stays in ``OUT/checkpoints``.
    """
    L.seed_everything(config.seed)
    torch.set_float32_matmul_precision("medium")
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples to lists, which yaml can say
    (out / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    poses, _ = load_pool(out / "pool_train.npz", mocap, "train", config.pool, config.seed, body)
    held_out, _ = load_pool(out / "pool_validation.npz", mocap, "validation", config.pool // 20, config.seed + 1, body)

    model = build_model(config, TorchBody(body, mesh=False))
    # A body of its own: examples are made on the CPU, also where the model goes to a GPU.
    torch_body = TorchBody(body, mesh=False)
    checkpoints = out / "checkpoints"
    last = checkpoints / "last.ckpt"
    done = torch.load(last, map_location="cpu", weights_only=True)["global_step"] if last.exists() else 0
    synthesizer = Synthesizer(torch_body, _noises(config), config.synthesis, seed=config.seed + 17 * done)
    stream = ExampleStream(poses, synthesizer, config.batch, seed=config.seed + 17 * done)
    model.fit_statistics(_camera_poses(poses, synthesizer))
    trainer = L.Trainer(
        max_steps=config.steps,
        accelerator="auto",
        devices=1,
        gradient_clip_val=config.clip,
        logger=CSVLogger(out, name="", version=f"log_{done}" if done else "log"),
        log_every_n_steps=50,
        val_check_interval=min(config.validate_every, config.steps),
        num_sanity_val_steps=0,
        callbacks=[
            EMAWeightAveraging(decay=config.ema),
            ModelCheckpoint(checkpoints, every_n_train_steps=config.checkpoint_every, save_last=True, save_top_k=0),
            LearningRateMonitor("step"),
            TQDMProgressBar(refresh_rate=20),
        ],
        enable_model_summary=False,
    )
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)
    validation = DataLoader(_validation_batches(held_out, torch_body, config), batch_size=None)
    module = _module(config, model)
    trainer.fit(module, loader, validation, ckpt_path=last if done else None, weights_only=True)

    path = out / "model.pt"
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    meta = {"method": config.method, "steps": config.steps, "seed": config.seed}
    meta |= {"metrics": metrics, "body_hash": body.hash}
    save_checkpoint(path, module.model, meta)
    return path


def _camera_poses(poses: np.ndarray, synthesizer: Synthesizer) -> torch.Tensor:
    """6D poses (T, 144) as cameras see them, for the flow's normalisation."""
    return torch.cat([synthesizer(poses[i::40][:4096]).pose6d for i in range(4)])


def train(config: TrainConfig, mocap_paths: list[Path], out: Path, body_file: Path | None = None) -> Path:
    """Motion capture to bundle; returns the bundle's folder, or the file ``regressor.onnx`` of the baseline."""
    from .export import export, export_regressor

    out.mkdir(parents=True, exist_ok=True)
    body = Body.load(body_file)
    mocap = load_mocap(mocap_paths, body, out / "mocap.npz")
    checkpoint = out / "model.pt"
    if checkpoint.exists():
        logger.warning("%s was trained already and is only exported: name another --out to train again", checkpoint)
    else:
        for split in ("train", "validation"):
            if not len(mocap.select(split)):
                raise MocapError(
                    f"the motion capture ({len(mocap.takes)} takes) leaves no frames for the {split} split: "
                    "give recordings of at least five takes"
                )
        fit(config, mocap, body, out)
    if config.method == "regressor":
        return export_regressor(checkpoint, out / "regressor.onnx", body_file)
    bundle = export(checkpoint, out / "bundle", body_file, name="default", extra=_card(config, mocap))
    update_card(bundle.path, metrics=_test(bundle, mocap_paths, out, body, config))
    return bundle.path


def _test(bundle: Bundle, mocap_paths: list[Path], out: Path, body: Body, config: TrainConfig) -> dict[str, Any]:
    """Errors on the test takes in mm, for the bundle's card; empty where no take was held out."""
    metrics: dict[str, Any] = {}
    for occlusion in ("none", "biggs"):
        try:
            data = make_set(mocap_paths, config.test, 0, occlusion, body, split="test", cache=out / "mocap.npz")
        except MocapError:
            return metrics
        result = evaluate(data, bundle, counts=(10, 25))
        kept = {"count": result["count"], "mode": result["mode"], "min_of_25": result["min_of"]["25"]}
        metrics[occlusion] = {**kept, "quantised_10": result["quantised"]["10"], "nll": result["nll"]}
    return metrics


def _card(config: TrainConfig, mocap: Mocap) -> dict[str, Any]:
    """What the bundle's card tells about data and training."""
    return {
        "licence": "Apache-2.0; made from the motion capture and the body that NOTICE names",
        "training": {
            "data": "motion capture, retargeted and widened; synthetic cameras, occlusion and detector noise",
            "takes": len(mocap.takes),
            "frames": {name: int((mocap.split == k).sum()) for k, name in enumerate(SPLITS)},
            "pool": config.pool,
            "steps": config.steps,
            "batch": config.batch,
            "examples": config.steps * config.batch,
            "detectors": list(config.detectors),
            "noise": config.noise,
            "seed": config.seed,
        },
    }


def apply_settings(config: TrainConfig, assignments: list[str]) -> TrainConfig:
    """``name=value`` and ``group.name=value`` put into a configuration; values are read as yaml.

    Raises:
        ValueError: no such setting, no ``=``, or a value that the setting cannot have.
    """
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise ValueError(f"{assignment!r} is not NAME=VALUE, for example flow.hidden=256")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"setting {name!r}: {value!r} is not YAML") from error
        config = _set(config, name.split("."), parsed, name)
    return config


def _set(config: Any, path: list[str], value: Any, name: str) -> Any:
    known = {f.name for f in dataclasses.fields(config)}
    if path[0] not in known:
        raise ValueError(f"unknown setting {name!r}: {path[0]!r} is not one of {', '.join(sorted(known))}")
    current = getattr(config, path[0])
    if len(path) > 1:
        return dataclasses.replace(config, **{path[0]: _set(current, path[1:], value, name)})
    kind, example = ("list", list(current)) if isinstance(current, tuple) else (type(current).__name__, current)
    if dataclasses.is_dataclass(current):
        inner = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(current))
        raise ValueError(f"setting {name!r} is a group: set {inner}")
    fits = {"list": list, "str": str, "bool": bool, "int": int}.get(kind, (int, float, str))
    try:
        if not isinstance(value, fits) or (isinstance(value, bool) and kind != "bool"):
            raise ValueError
        value = tuple(value) if kind == "list" else type(current)(value)  # YAML reads 5e-4 as a text
    except ValueError:
        raise ValueError(f"setting {name!r} cannot be {value!r} ({kind} needed): try {example!r}") from None
    return dataclasses.replace(config, **{path[0]: value})


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="hmr-prob train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mocap",
        type=Path,
        nargs="+",
        required=True,
        help="folders or files: index.json with archives, .bvh, .amc, AMASS .npz",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; call again to go on")
    parser.add_argument("--method", choices=METHODS, default="flow", help="flow, or the deterministic baseline")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--body", type=Path, help="a licensed SMPL file instead of the free body")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="any setting of TrainConfig, e.g. flow.hidden=256"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    config = apply_settings(TrainConfig(method=options.method, steps=options.steps), options.set)
    print(train(config, options.mocap, options.out, options.body))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
