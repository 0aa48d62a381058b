"""The single-hypothesis baseline: one pose per person, same encoder, heads and translation fit as the flow.

What every probabilistic method is to be compared with: trained on the same examples, it gives the mean of what the
flow spreads out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...skeleton import NUM_JOINTS
from ..rotations import rotation6d_to_matrix
from .encoder import CameraGuess, Condition, Encoder, PersonHeads, ShapeGuess, TranslationFit, turn_root
from .flow import POSE_SIZE, rest_pelvis

__all__ = ["Regressor", "RegressorConfig"]


@dataclass(frozen=True)
class RegressorConfig:
    """Everything that shapes a :class:`Regressor`; the names are those of ``FlowConfig``."""

    hidden: int = 1024
    layers: int = 2
    condition: int = 256
    encoder_width: int = 512
    encoder_depth: int = 2
    head_hidden: int = 256
    dropout: float = 0.0
    refine_translation: bool = True
    num_betas: int = 10


class Regressor(nn.Module):
    """keypoints, box -> one pose in 6D, betas and translation.

    Args:
        config: sizes and options.
        body: a ``TorchBody``, not saved with the weights.
    """

    name = "regressor"

    def __init__(self, config: RegressorConfig, body: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.condition, config.encoder_width, config.encoder_depth, config.dropout)
        self.person = PersonHeads(config.condition, config.head_hidden, config.num_betas)
        layers: list[nn.Module] = []
        for i in range(config.layers):
            layers += [nn.Linear(config.condition if i == 0 else config.hidden, config.hidden), nn.ReLU()]
        last = nn.Linear(config.hidden, POSE_SIZE)
        nn.init.normal_(last.weight, std=1e-2 / config.hidden**0.5)
        nn.init.zeros_(last.bias)
        self.pose = nn.Sequential(*layers, last)
        self.register_buffer("mean", torch.zeros(POSE_SIZE))
        self.register_buffer("std", torch.ones(POSE_SIZE))
        self.translation_fit = TranslationFit()
        self.body = body
        offset, slope = rest_pelvis(body, config.num_betas)
        self.register_buffer("pelvis_offset", offset, persistent=False)
        self.register_buffer("pelvis_slope", slope, persistent=False)

    @torch.no_grad()
    def fit_statistics(self, pose6d: Tensor, floor: float = 0.02) -> None:
        """Measures mean and deviation of training poses (T, 144): the output is relative to them."""
        self.mean.copy_(pose6d.mean(0))
        self.std.copy_(pose6d.std(0).clamp_min(floor))

    def condition(self, keypoints: Tensor, box: Tensor) -> Condition:
        """What keypoints (B, 23, 3) in boxes (B, 3) tell; every other method takes it."""
        return self.encoder(keypoints, box)

    def guesses(self, condition: Condition) -> tuple[ShapeGuess, CameraGuess]:
        """Shape and camera with their deviations; their ``nll`` methods train the heads."""
        return self.person(condition.code)

    def rest_pelvis(self, betas: Tensor) -> Tensor:
        """Pelvis of the rest pose (..., 3) for betas (..., 10)."""
        return self.pelvis_offset + betas @ self.pelvis_slope

    def pose6d(self, condition: Condition) -> Tensor:
        """Pose in 6D (B, 144), not yet orthonormal."""
        pose6d = self.pose(condition.code).to(self.mean.dtype) * self.std + self.mean
        return turn_root(pose6d[:, None], condition.turn.transpose(-1, -2))[:, 0]

    def forward(self, keypoints: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pose in 6D (B, 144), betas (B, 10) and SMPL translation (B, 3) in metres, optical frame."""
        condition = self.condition(keypoints, box)
        pose6d = self.pose6d(condition)
        return (pose6d, *self.place(pose6d, condition, keypoints, box))

    def place(self, pose6d: Tensor, condition: Condition, keypoints: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Betas (B, 10) and translation (B, 3) for a pose (B, 144)."""
        shape, camera = self.person(condition.code)
        rest = self.rest_pelvis(shape.mean)
        if not self.config.refine_translation:
            return shape.mean, camera.pelvis(box) - rest
        rotations = rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))
        _, surface = self.body(rotations, shape.mean, torch.zeros_like(rest))
        pelvis = self.translation_fit((surface - rest[:, None])[:, None], keypoints, box, camera)
        return shape.mean, pelvis[:, 0] - rest
