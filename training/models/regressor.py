"""The single-hypothesis baseline (M = 1, the HMR/SPIN row): one pose per person, same encoder, heads and translation.

What every probabilistic method is to be compared with: trained on the same examples, it gives the mean of what a
posterior spreads out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.examples import Examples
from ..loss_config import LossConfig
from .base import POSE_SIZE, LiftingModel, ModelConfig
from .encoder import Condition, turn_root

__all__ = ["Regressor", "RegressorConfig", "pose_network"]


def pose_network(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """ReLU layers that start near zero."""
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Linear(inputs if i == 0 else hidden, hidden), nn.ReLU()]
    last = nn.Linear(hidden, outputs)
    nn.init.normal_(last.weight, std=1e-2 / hidden**0.5)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*parts, last)


@dataclass(frozen=True)
class RegressorConfig(ModelConfig):
    """Everything that shapes a :class:`Regressor`; ``layers`` of its pose network."""

    hidden: int = 1024
    layers: int = 2


class Regressor(LiftingModel):
    """keypoints, box -> one pose in 6D, betas and translation."""

    name = "regressor"
    config_class = RegressorConfig

    def __init__(self, config: RegressorConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        self.pose = pose_network(config.condition, config.hidden, config.layers, POSE_SIZE)
        self.register_buffer("mean", torch.zeros(POSE_SIZE))
        self.register_buffer("std", torch.ones(POSE_SIZE))

    @property
    def heads(self) -> int:
        return 1

    @torch.no_grad()
    def fit_statistics(self, pose6d: Tensor, floor: float = 0.02) -> None:
        """Measures mean and deviation of training poses (T, 144): the output is relative to them."""
        self.mean.copy_(pose6d.mean(0))
        self.std.copy_(pose6d.std(0).clamp_min(floor))

    def pose6d(self, condition: Condition) -> Tensor:
        """Pose in 6D (B, 144), not yet orthonormal."""
        pose6d = self.pose(condition.code).to(self.mean.dtype) * self.std + self.mean
        return turn_root(pose6d[:, None], condition.turn.transpose(-1, -2))[:, 0]

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor | None = None, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        condition = self.condition(keypoints, box, image)
        shape, camera = self.guesses(condition)
        out = self.bodies(self.pose6d(condition)[:, None], shape.mean[:, None], keypoints, box, camera)
        return {**out, "sample_weight": torch.ones_like(box[:, :1])}

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        with self.networks():
            condition = self.condition(examples.keypoints, examples.box, examples.image)
            pose6d = self.pose6d(condition)
        shape, camera = self.guesses(condition.first(len(examples)))
        out = self.bodies(pose6d[:, None], shape.mean[:, None], examples.keypoints, examples.box, camera)
        terms = self.head_losses(examples, shape, camera, config) | self.place_loss(out, examples, camera, config)
        return terms | self.sample_losses(out, examples, config)
