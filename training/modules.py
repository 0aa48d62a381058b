"""What Lightning trains: one module for all methods, which are told apart by ``model.losses`` alone."""

from __future__ import annotations

__all__ = ["LOG_EVERY", "Batches", "MethodModule", "TrainingError", "validate"]

import logging
import math
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .config import TrainConfig
from .data.examples import Examples
from .losses import discriminator_loss
from .models import CheckpointError, LiftingModel
from .models.lifting import Lifting
from .streams import Source, Stream, check_examples, key

logger = logging.getLogger(__name__)

LOG_EVERY = 50
"""Steps between two entries of the log; computing them would slow down every step."""


_STAYS = (
    "checkpoints/last.ckpt, from before it, stays: the same command goes on from there; should that break at once, put "
    "checkpoints/previous.ckpt in its place"
)


class TrainingError(FloatingPointError):
    """A loss or gradient became NaN or infinite; the text says which, and what is kept."""


class MethodModule(L.LightningModule):
    """Any method: the sum of its losses, one optimiser, and where ``losses.adversarial`` is on, an adversary.

    All randomness of a step is seeded by (seed, step, process), so that a training that goes on from a checkpoint
    repeats the one that was not stopped.

    Args:
        model: what is trained; its ``adversary`` is set here.
        config: losses, optimiser, engine.
        body_hash: of the body that the data is made of; a checkpoint of another one is refused.
    """

    def __init__(self, model: LiftingModel, config: TrainConfig, body_hash: str) -> None:
        super().__init__()
        self.model, self.config, self.body_hash = model, config, body_hash
        self.loss_config = config.losses
        model.bfloat16 = config.engine.precision == "bf16-networks"
        self.adversary_optimizer: torch.optim.Optimizer | None = None
        if config.losses.adversarial > 0:
            from .models.adversary import PoseDiscriminator

            # Not the model's optimiser's: `requires_grad` off keeps it out of that and of DDP's averaging.
            model.adversary = PoseDiscriminator().requires_grad_(False)
            self.adversary_optimizer = torch.optim.AdamW(
                model.adversary.parameters(),
                lr=config.optimiser.adversary_rate,
                weight_decay=config.optimiser.weight_decay,
            )
        self._real: tuple[Tensor, Tensor] | None = None
        self._idle, self._steps = set(config.losses.on), 0

    def on_fit_start(self) -> None:
        losses = self.config.losses
        self.loss_config = replace(losses, sampled=-(-losses.sampled // self.trainer.world_size))
        if self.adversary_optimizer is not None:
            _move(self.adversary_optimizer, self.device)

    def on_before_batch_transfer(self, batch: Examples, _: int) -> Examples:
        if self.trainer.training:
            check_examples(batch, f"batch {self.global_step}")
        return batch

    def on_train_batch_start(self, batch: Examples, batch_idx: int) -> None:
        torch.manual_seed(key(self.config.engine.seed, self.global_step, self.global_rank, 1))

    def training_step(self, batch: Examples, _: int) -> Tensor:
        terms = self.model.losses(batch, self.loss_config)
        if not terms:
            raise ValueError(
                f"no loss is on that {self.model.name} can compute from these examples: set one of losses.*, see "
                "`hmr-prob train --help`"
            )
        self._tell_of_idle_losses(terms)
        total = torch.stack(tuple(terms.values())).sum()
        if self._looks():
            self._require_finite(total, terms)
        if (self.global_step + 1) % LOG_EVERY == 0:
            self.log("loss", total, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in terms.items()})
        if self.adversary_optimizer is not None:
            self._real = batch.rotations, batch.betas
            if batch.has_pose is not None:
                self._real = batch.rotations[batch.has_pose], batch.betas[batch.has_pose]
        return total

    def _tell_of_idle_losses(self, terms: dict[str, Tensor]) -> None:
        """Warns once, when every kind of batch has come, of losses that are on and were never computed."""
        self._idle -= terms.keys()
        self._steps += 1
        if self._steps == LOG_EVERY and self._idle and self.global_rank == 0:
            idle = ", ".join(sorted(self._idle))
            logger.warning("%s never computes some losses that are on from this data: %s", self.model.name, idle)

    def _looks(self) -> bool:
        """Whether this step looks at its numbers: always on a CPU, on a GPU, which would wait, now and then and before
        each checkpoint. Weights once broken break all losses that follow."""
        after, every = self.global_step + 1, self.config.engine.checkpoint_every
        return self.device.type == "cpu" or after % LOG_EVERY == 0 or after % every == 0

    def _require_finite(self, total: Tensor, terms: dict[str, Tensor]) -> None:
        if torch.isfinite(total):
            return
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
        broken = ", ".join(name for name, value in terms.items() if not torch.isfinite(value)) or "the sum"
        raise TrainingError(
            f"the loss is not finite at step {self.global_step}: {broken} ({values}); lower optimiser.rate or that "
            f"loss's weight. {_STAYS}"
        )

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        clip = self.config.optimiser.clip
        if not clip and not self._looks():
            return
        norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip or math.inf)
        # The scaler of 16-mixed means to overflow now and then, and leaves such a step out.
        if self.config.engine.precision != "16-mixed" and self._looks() and not torch.isfinite(norm):
            names = [n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            raise TrainingError(
                f"the gradient is not finite at step {self.global_step} ({len(names)} parameters, the first is "
                f"{names[0]}): lower optimiser.rate. {_STAYS}"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.adversary_optimizer is not None:  # before callbacks write a checkpoint
            self._train_adversary()

    def _train_adversary(self) -> None:
        """One step of the adversary on what the model has just drawn and as many real poses."""
        adversary, optimizer, model = self.model.adversary, self.adversary_optimizer, self.model
        if adversary is None or optimizer is None or model.drawn is None or self._real is None:
            return
        parameters = list(adversary.parameters())
        adversary.requires_grad_(True)
        loss = discriminator_loss(adversary(*self._real), adversary(*model.drawn))
        gradients = torch.autograd.grad(loss, parameters)
        adversary.requires_grad_(False)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = self.trainer.strategy.reduce(gradient, reduce_op="mean")
        optimizer.step()
        optimizer.zero_grad()
        model.drawn = None
        if self.trainer.global_step % LOG_EVERY == 0:
            self.log("train/adversary", loss.detach())

    def configure_optimizers(self) -> Any:
        settings, steps = self.config.optimiser, self.config.engine.steps

        def scale(step: int) -> float:
            if step < settings.warmup:
                return 0.01 + 0.99 * step / settings.warmup
            if settings.schedule == "constant":
                return 1.0
            done = min((step - settings.warmup) / max(steps - settings.warmup, 1), 1.0)
            return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2

        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # The scaler of 16-mixed and clipping want gradients that the fused form unscales by itself.
        fused = self.config.engine.precision != "16-mixed"
        optimizer = torch.optim.AdamW(parameters, settings.rate, weight_decay=settings.weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["body_hash"] = self.body_hash
        if self.adversary_optimizer is not None:
            checkpoint["adversary_optimizer"] = self.adversary_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("body_hash", self.body_hash)
        if found != self.body_hash:
            raise CheckpointError(
                f"the training that is to go on was begun with the body {found[:12]}, not {self.body_hash[:12]}: "
                "give that body's file with --body, or another folder with --out"
            )
        missing = self.state_dict().keys() - checkpoint["state_dict"].keys()
        if missing:
            raise CheckpointError(
                f"the training that is to go on has no {sorted(missing)[0]}: it was begun with another version of "
                f"{self.model.name}; give another folder with --out to begin again"
            )
        if self.adversary_optimizer is not None and "adversary_optimizer" in checkpoint:
            self.adversary_optimizer.load_state_dict(checkpoint["adversary_optimizer"])

    def validation_step(self, batch: Examples, _: int) -> None:
        for name, (value, count) in validate(self.model, batch, self.config.losses.noise).items():
            self.log(f"val/{name}", value, prog_bar=True, batch_size=count)


@torch.no_grad()
def validate(model: LiftingModel, batch: Examples, noise: float) -> dict[str, tuple[Tensor, int]]:
    """Means over a batch, and over how many examples, of any method: ``mode_mpjpe``, ``min25_mpjpe``, ``absolute``, in
    millimetres, and ``nll`` in nats of the true pose with noise. Draws the same latents for the same batch size.

    ``mode`` is the single answer, ``min25`` the best of it and 24 samples, or of all heads.
    """
    generator = torch.Generator().manual_seed(0)
    out: dict[str, tuple[Tensor, int]] = {}
    if model.has_density:
        jitter = noise * torch.randn(batch.pose6d.shape, generator=generator).to(batch.pose6d)
        condition = model.condition(batch.keypoints, batch.box, batch.image)
        out["nll"] = _mean(-model.log_prob((batch.pose6d + jitter)[:, None], condition)[:, 0], batch.has_pose)
    latents = model.latents(len(batch), 25, generator)
    drawn = model(batch.keypoints, batch.box, latents, batch.image)
    if isinstance(model, Lifting):  # joints relative to the pelvis and nothing else
        true = model.joints17(batch.joints, batch.keypoints3d)
        error = 1000 * (drawn["sample_joints17"] - true[:, None]).norm(dim=-1).mean(-1)
        all_known = model.known(batch) > 0
        return {"mode_mpjpe": _mean(error[:, 0], all_known), "min25_mpjpe": _mean(error.amin(1), all_known)}
    joints = drawn["sample_joints"].float()
    known = torch.ones_like(batch.joints[..., 0]) if batch.has_joints is None else batch.has_joints.to(batch.joints)
    relative = (joints - joints[:, :, :1]) - (batch.joints - batch.joints[:, :1])[:, None]
    count = known.sum(1).clamp_min(1)
    error = 1000 * (relative.norm(dim=-1) * known[:, None]).sum(-1) / count[:, None]  # (B, N)
    any_known = known.any(1)
    out["mode_mpjpe"] = _mean(error[:, 0], any_known)
    out["min25_mpjpe"] = _mean(error.amin(1), any_known)
    distance = 1000 * ((joints[:, 0] - batch.joints).norm(dim=-1) * known).sum(-1) / count
    out["absolute"] = _mean(distance, any_known if batch.has_translation is None else any_known & batch.has_translation)
    return {name: (value, number) for name, (value, number) in out.items() if number}


def _mean(value: Tensor, known: Tensor | None) -> tuple[Tensor, int]:
    value = value if known is None else value[known.bool()]
    return value.mean(), len(value)


def _move(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """The optimiser's own numbers to where its parameters have gone; counters stay on the CPU, as Adam wants them."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim:
                state[name] = value.to(device)


class Batches(L.LightningDataModule):
    """Training batches from where the checkpoint stopped, each process its part, and fixed ones for validation.

    Args:
        source: of training batches.
        validation: batches, the same each time; may be empty.
        workers: processes that make batches.
    """

    def __init__(self, source: Source, validation: list[Examples], workers: int) -> None:
        super().__init__()
        self.source, self.validation, self.workers = source, validation, workers

    def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        trainer = self.trainer
        assert trainer is not None
        stream = Stream(self.source, trainer.global_step, trainer.global_rank, trainer.world_size)
        ahead = {"prefetch_factor": 4, "persistent_workers": True} if self.workers else {}
        return DataLoader(stream, batch_size=None, num_workers=self.workers, **ahead)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader | list[Any]:  # type: ignore[type-arg]
        return DataLoader(self.validation, batch_size=None) if self.validation else []  # type: ignore[arg-type]
