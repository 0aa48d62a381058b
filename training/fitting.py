"""The training loop: Lightning's trainer round :class:`.modules.MethodModule`, resumable at any step."""

from __future__ import annotations

__all__ = ["Material", "fit"]

import dataclasses
import itertools
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .body import TorchBody
from .config import ConfigError, TrainConfig, differences, read_config, write_config
from .data.examples import Examples
from .models import CheckpointError, LiftingModel, build_model, save_checkpoint
from .modules import LOG_EVERY, Batches, MethodModule
from .streams import Source

logger = logging.getLogger(__name__)

_NOISE = (
    "not have many workers",  # batches are made faster than used
    "directory .* exists and is not empty",  # a training that goes on
    "in eval mode",  # a pose prior, a frozen backbone
    "overridden `on_before",
    "sync_dist=True",  # all processes validate on the same examples
    "LeafSpec",
)
"""Warnings of Lightning about what is meant."""


@dataclass(frozen=True)
class Material:
    """What a training needs of its data.

    Attributes:
        source: of batches.
        pose6d: (T, 144) poses as cameras see them, for the models' normalisation.
        rotations: gives (T, 24, 3, 3) poses with any root, for the pose prior.
        validation: batches.
    """

    source: Source
    pose6d: Tensor
    rotations: Callable[[], Tensor]
    validation: list[Examples]


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, whenever the process is killed; the one before is kept as
    ``previous.ckpt``, for weights may be spoilt some steps before the loss is NaN."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        if path.is_file():
            shutil.copyfile(path, partial)
            os.replace(partial, path.with_name("previous.ckpt"))
        torch.save(checkpoint, partial)
        os.replace(partial, path)


def fit(
    config: TrainConfig,
    material: Material,
    body: TorchBody,
    out: Path,
    callbacks: Sequence[L.Callback] = (),
    tensorboard: bool = False,
) -> LiftingModel:
    """Trains, or goes on with a training that was stopped, and writes ``OUT/model.pt``.

    Returns:
        The model, in evaluation mode, with averaged weights where ``engine.ema`` is on.

    Raises:
        ConfigError: ``out`` holds a training of another model.
        CheckpointError: the last checkpoint cannot be read, or was made with another body.
        TrainingError: the loss became NaN or infinite; the last good checkpoint stays in ``OUT/checkpoints``.
    """
    engine = config.engine
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(engine.seed, verbose=False)
    torch.set_float32_matmul_precision("medium")
    if engine.threads:
        torch.set_num_threads(engine.threads)
    last = out / "checkpoints" / "last.ckpt"
    done = _steps_done(last)
    if done:
        _compare(out, config, done)
    model = build_model({"model": config.method, **dataclasses.asdict(config.model)}, body)
    assert isinstance(model, LiftingModel)
    model.fit_statistics(material.pose6d)
    module = MethodModule(model, config, body.body_hash)
    trainer = _trainer(config, out, done, bool(material.validation), callbacks, tensorboard)
    if trainer.is_global_zero:
        write_config(config, out / "config.yaml")
    if done < engine.steps:
        batches = Batches(material.source, material.validation, engine.workers)
        with warnings.catch_warnings():
            for text in _NOISE:
                warnings.filterwarnings("ignore", f".*{text}.*")
            trainer.fit(module, datamodule=batches, ckpt_path=last if done else None, weights_only=True)
    else:  # killed after the last step
        state = torch.load(last, map_location="cpu", weights_only=True)
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])
    if trainer.is_global_zero:
        _finish(config, material, model, trainer, out)
    return model.eval()


def _steps_done(last: Path) -> int:
    if not last.is_file():
        return 0
    try:
        return int(torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        reason = type(error).__name__  # torch's text is a page
        raise CheckpointError(f"{last} cannot be read ({reason}): delete it to begin again") from error


def _compare(out: Path, config: TrainConfig, done: int) -> None:
    """Says in what a training that goes on differs from what was begun; another model cannot go on."""
    path = out / "config.yaml"
    changed = differences(read_config(path), config) if path.is_file() else []
    changed = [text for text in changed if not text.startswith(("engine.progress", "engine.workers"))]
    if any(text.startswith(("method:", "model.")) for text in changed):
        raise ConfigError(
            f"{out} holds a training of another model ({'; '.join(changed)}): go on with --config {path}, or give "
            "another folder with --out"
        )
    if changed:
        logger.warning("%s goes on from step %d with other settings: %s", out, done, "; ".join(changed))


def _trainer(
    config: TrainConfig, out: Path, done: int, validates: bool, callbacks: Sequence[L.Callback], tensorboard: bool
) -> L.Trainer:
    engine = config.engine
    loggers: list[Any] = [CSVLogger(out, name="", version=f"log_{done}" if done else "log")]
    if tensorboard:
        loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
    every = engine.checkpoint_every
    checkpoints = ModelCheckpoint(out / "checkpoints", every_n_train_steps=every, save_last=True, save_top_k=0)
    used: list[L.Callback] = [checkpoints]
    if engine.ema:
        # All parameters in one call; Lightning's own goes one by one, 8 ms of a step on a CPU. Buffers are taken as
        # they are: statistics of batches, and numbers that must not be averaged.
        used.append(WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(engine.ema)))
    if tensorboard:
        used.append(LearningRateMonitor("step"))
    if engine.patience:
        if not validates:
            raise ConfigError("engine.patience stops by validation, but there is no validation data: set it to 0")
        used.append(EarlyStopping("val/mode_mpjpe", patience=engine.patience, mode="min"))
    if engine.progress:
        used.append(TQDMProgressBar(refresh_rate=20))
    several = engine.devices * engine.nodes > 1
    strategy: Any = engine.strategy
    if several and strategy in ("auto", "ddp"):
        # Which parameters a step uses depends on the losses that are on and on what the data knows.
        strategy = DDPStrategy(find_unused_parameters=True)
    try:
        return L.Trainer(
            max_steps=engine.steps,
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.nodes,
            strategy=strategy,
            precision="32-true" if engine.precision in ("32", "bf16-networks") else engine.precision,
            logger=loggers,
            log_every_n_steps=LOG_EVERY,
            val_check_interval=engine.validate_every,
            check_val_every_n_epoch=None,  # counts steps, not those of an epoch
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            callbacks=[*used, *callbacks],
            plugins=[_WholeFiles()],
            use_distributed_sampler=False,  # the source deals out
            enable_model_summary=False,
            enable_progress_bar=engine.progress,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"this machine cannot train with engine.accelerator={engine.accelerator}, devices={engine.devices}, "
            f"strategy={engine.strategy}, precision={engine.precision}: {reason}"
        ) from error


def _finish(config: TrainConfig, material: Material, model: LiftingModel, trainer: L.Trainer, out: Path) -> None:
    """What a method trains at its end, and the file of the model."""
    taken = trainer.global_step or config.engine.steps
    model.to(trainer.strategy.root_device)
    batches = (material.source.batch(step) for step in itertools.count(taken))
    model.finish(batches, material.rotations, taken, config.engine.seed, config.engine.progress)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    meta = {"method": config.method, "name": config.name, "steps": taken, "seed": config.engine.seed}
    meta |= {"complete": config.engine.steps, "metrics": metrics, "body_hash": model.body.body_hash}
    save_checkpoint(out / "model.pt", model, meta)
