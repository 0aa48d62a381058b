"""What is trained: the flow posterior and the deterministic regressor, as Lightning modules over synthetic examples."""

from __future__ import annotations

__all__ = ["ExampleStream", "LossWeights", "PosteriorModule", "RegressorModule"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hmr_prob_ros.skeleton import NUM_JOINTS

from .data.noise import VISIBLE
from .data.synthesize import Examples, Synthesizer
from .losses import keypoint_loss, orthonormality_loss, pelvis_relative_l1
from .rotations import rotation6d_to_matrix


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; the likelihood counts per dimension of the pose."""

    likelihood: float = 1.0
    mode_joints: float = 2.0
    keypoints: float = 0.2
    camera: float = 0.05
    translation: float = 0.02
    betas: float = 0.01
    orthonormality: float = 0.1


class ExampleStream(IterableDataset):
    """Endless batches of examples drawn from a pool of poses.

    Args:
        poses: (T, 24, 3) axis-angle.
        synthesizer: makes examples of them.
        batch: examples a batch, exactly; more poses are drawn to make up for those without a usable picture.
        seed: of the draw; the same seed gives the same batches.
    """

    def __init__(self, poses: np.ndarray, synthesizer: Synthesizer, batch: int, seed: int = 0):
        self.poses, self.synthesizer, self.batch = poses, synthesizer, batch
        self.rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Examples]:
        torch.set_num_threads(1)
        draw = int(self.batch * 1.5)
        while True:
            examples = self.synthesizer(self.poses[self.rng.integers(len(self.poses), size=draw)])
            if len(examples) >= self.batch:
                yield examples[: self.batch]
            else:
                draw = int(draw * 1.2)


class _Module(L.LightningModule):
    """Optimiser and schedule, common to all methods: AdamW, linear warm-up, cosine decay."""

    def __init__(self, model: nn.Module, weights: LossWeights, rate: float, steps: int, warmup: int):
        super().__init__()
        self.model, self.weights = model, weights
        self.rate, self.steps, self.warmup = rate, steps, warmup

    def losses(self, examples: Examples) -> dict[str, Tensor]:
        """Weighted terms of the loss."""
        raise NotImplementedError

    def training_step(self, batch: Examples, _: int) -> Tensor:
        terms = self.losses(batch)
        total = torch.stack(tuple(terms.values())).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {float(value):.3g}" for name, value in terms.items())
            raise FloatingPointError(
                f"the loss is not finite at step {self.global_step} ({values}): lower `rate`; the last checkpoint stays"
            )
        self.log("loss", total, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        return total

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.rate, weight_decay=1e-4)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, self.warmup)
        rest = max(self.steps - self.warmup, 1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest, self.rate * 0.01)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [self.warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PosteriorModule(_Module):
    """The flow: likelihood of the true pose, and losses on the mode and a few samples.

    Args:
        noise: deviation of the Gaussian noise added to the true 6D pose, which has no density without it: rotations
            fill only 72 of its 144 dimensions.
        samples: samples of each example that the sample losses see, the mode included.
        sampled: examples of each batch that the sample losses see; samples cost most of a step.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: LossWeights,
        rate: float,
        steps: int,
        warmup: int,
        noise: float = 0.01,
        samples: int = 3,
        sampled: int = 128,
    ):
        super().__init__(model, weights, rate, steps, warmup)
        self.noise, self.samples, self.sampled = noise, samples, sampled

    def losses(self, examples: Examples) -> dict[str, Tensor]:
        model, weights = self.model, self.weights
        pose = examples.pose6d + self.noise * torch.randn_like(examples.pose6d)
        few = examples[: self.sampled]
        latents = self._latents(len(few), self.samples).to(pose)
        # The networks run in bfloat16, which is enough in latent units; kinematics and cameras stay in float32.
        with torch.autocast(pose.device.type, dtype=torch.bfloat16):
            condition = model.condition(examples.keypoints, examples.box)
            likelihood = model.log_prob(pose[:, None], condition).mean() / pose.shape[-1]
            pose6d, _ = model.sample(latents, condition.first(len(few)))
        shape, camera = model.guesses(condition.first(len(pose)))
        out = model.bodies(pose6d, latents, condition.first(len(few)), few.keypoints, few.box)
        seen = (few.state == VISIBLE).float()
        pelvis = examples.joints[:, 0]
        relative = examples.keypoints3d - pelvis[:, None]
        translation = model.translation_fit.nll(relative, examples.keypoints, examples.box, camera, pelvis)
        return {
            "likelihood": -weights.likelihood * likelihood,
            "mode_joints": weights.mode_joints * pelvis_relative_l1(out["sample_joints"][:, :1], few.joints),
            "keypoints": weights.keypoints
            * keypoint_loss(out["sample_keypoints"], few.keypoints3d, few.box[:, 2], seen),
            "camera": weights.camera * camera.nll(examples.box, pelvis).mean(),
            "translation": weights.translation * translation.mean(),
            "betas": weights.betas * shape.nll(examples.betas).mean(),
            "orthonormality": weights.orthonormality * orthonormality_loss(out["sample_pose6d"]),
        }

    def _latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal latents (count, samples, D), the first of each example zero: the mode."""
        latents = torch.randn(count, samples, self.model.latent_size, generator=generator)
        latents[:, 0] = 0
        return latents

    def validation_step(self, batch: Examples, _: int) -> None:
        model = self.model
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch.pose6d.shape, generator=generator).to(batch.pose6d)
        condition = model.condition(batch.keypoints, batch.box)
        nll = -model.log_prob((batch.pose6d + self.noise * noise)[:, None], condition).mean()
        latents = self._latents(len(batch), 25, generator).to(batch.pose6d)
        joints = model(batch.keypoints, batch.box, latents)["sample_joints"]
        relative = (joints - joints[:, :, :1]) - (batch.joints - batch.joints[:, :1])[:, None]
        error = 1000 * relative.norm(dim=-1).mean(dim=-1)
        absolute = 1000 * (joints[:, 0] - batch.joints).norm(dim=-1).mean()
        self.log_dict(
            {
                "val/nll": nll,
                "val/mode_mpjpe": error[:, 0].mean(),
                "val/min25_mpjpe": error.amin(dim=1).mean(),
                "val/absolute": absolute,
            },
            prog_bar=True,
            batch_size=len(batch),
        )


class RegressorModule(_Module):
    """The deterministic baseline: the same encoder and losses, one answer (the HMR/SPIN row, M = 1)."""

    def losses(self, examples: Examples) -> dict[str, Tensor]:
        weights = self.weights
        model = self.model
        with torch.autocast(examples.box.device.type, dtype=torch.bfloat16):  # as for the flow
            condition = model.condition(examples.keypoints, examples.box)
            pose6d = model.pose6d(condition)
        condition = condition.first(len(examples))
        shape, camera = model.guesses(condition)
        betas, translation = model.place(pose6d, condition, examples.keypoints, examples.box)
        rotations = rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))
        joints, surface = model.body(rotations, betas, translation)
        seen = (examples.state == VISIBLE).float()
        pelvis = examples.joints[:, 0]
        relative = examples.keypoints3d - pelvis[:, None]
        translation_nll = model.translation_fit.nll(relative, examples.keypoints, examples.box, camera, pelvis)
        return {
            "mode_joints": weights.mode_joints * pelvis_relative_l1(joints[:, None], examples.joints),
            "rotations": (rotations - examples.rotations).square().mean(),
            "keypoints": weights.keypoints
            * keypoint_loss(surface[:, None], examples.keypoints3d, examples.box[:, 2], seen),
            "camera": weights.camera * camera.nll(examples.box, pelvis).mean(),
            "translation": weights.translation * translation_nll.mean(),
            "betas": weights.betas * shape.nll(examples.betas).mean(),
            "orthonormality": weights.orthonormality * orthonormality_loss(pose6d),
        }

    def validation_step(self, batch: Examples, _: int) -> None:
        pose6d, betas, translation = self.model(batch.keypoints, batch.box)
        rotations = rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))
        joints, _ = self.model.body(rotations, betas, translation)
        relative = (joints - joints[:, :1]) - (batch.joints - batch.joints[:, :1])
        self.log("val/mode_mpjpe", 1000 * relative.norm(dim=-1).mean(), prog_bar=True, batch_size=len(batch))
