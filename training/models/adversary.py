"""The adversarial pose prior of HMR (Kanazawa et al., "End-to-end recovery of human shape and pose", CVPR 2018), which
ProHMR takes over: it judges rotations and betas, never pictures, so motion capture alone trains it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmr_prob_ros.skeleton import NUM_JOINTS

__all__ = ["NUM_SCORES", "PoseDiscriminator"]

NUM_SCORES = NUM_JOINTS - 1 + 2
"""One for each body joint, one for the betas, one for all joints together."""


class PoseDiscriminator(nn.Module):
    """25 judgements of a body: near 1 for real ones and near 0 for drawn ones, by least squares.

    Every rotation but the root's, which the camera decides, passes the same two layers (the published 1x1 convolutions
    over joints) of 32 features; each joint has a score from its own, and an MLP of 1024 scores them all together.
    Losses: ``generator_loss`` and ``discriminator_loss`` in :mod:`..losses`.

    Args:
        num_betas: how many betas a body has.
        features, hidden: widths.
    """

    def __init__(self, num_betas: int = 10, features: int = 32, hidden: int = 1024) -> None:
        super().__init__()
        body_joints = NUM_JOINTS - 1
        self.shared = nn.Sequential(nn.Linear(9, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU())
        self.each_weight = nn.Parameter(torch.empty(body_joints, features))
        self.each_bias = nn.Parameter(torch.zeros(body_joints))
        self.together = nn.Sequential(
            nn.Linear(body_joints * features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        self.betas = nn.Sequential(nn.Linear(num_betas, 10), nn.ReLU(), nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        bound = (6 / (features + 1)) ** 0.5  # Xavier of each row, a layer of one output
        nn.init.uniform_(self.each_weight, -bound, bound)

    def forward(self, rotations: Tensor, betas: Tensor) -> Tensor:
        """Rotations (..., 24, 3, 3), of which the root is left out, and betas (..., 10) -> scores (..., 25)."""
        features = self.shared(rotations[..., 1:, :, :].flatten(-2))
        each = (features * self.each_weight).sum(-1) + self.each_bias
        return torch.cat((each, self.betas(betas), self.together(features.flatten(-2))), dim=-1)
