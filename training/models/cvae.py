r"""SMPL-CVAE (Biggs et al. 2020, appendix C; Sohn et al. 2015): a conditional variational autoencoder of bodies.

Training: the true body and the condition -> Gaussian q(z), the condition and z ~ q -> body, whose distance to the true
one is minimised together with the divergence of q from the standard normal. Use: z ~ N(0, I).
"""

from __future__ import annotations

__all__ = ["VariationalConfig", "VariationalPosterior"]

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmr_prob_ros.skeleton import NUM_JOINTS, NUM_KEYPOINTS

from .. import losses as L
from ..data.examples import Examples
from ..loss_config import LossConfig
from ..rotations import rotation6d_to_matrix
from .base import POSE_SIZE, LiftingModel, ModelConfig
from .encoder import Condition, turn_root
from .regressor import pose_network

REACH = 0.5
"""Metres: about how far from the pelvis the points of a body lie."""


@dataclass(frozen=True)
class VariationalConfig(ModelConfig):
    """Everything that shapes a :class:`VariationalPosterior`.

    Attributes:
        latent: Z, the numbers of a latent. The paper does not tell its size.
        layers: of the truth encoder and of the decoder.
    """

    hidden: int = 1024
    latent: int = 32
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent < 1:
            raise ValueError(f"model.latent must be at least 1, not {self.latent}")


class VariationalPosterior(LiftingModel):
    """p(pose, betas | keypoints, box) as a decoder of standard normal latents; latent zero is the single answer.

    What differs from the paper, and what it leaves open:

    - Its truth encoder reads the 6,890 vertices of the true mesh. Here it reads the true joints and surface keypoints
      (47 points) and the rotations in 6D: keypoint training poses no mesh, whose first layer alone would outweigh
      the rest of the model. It reads the condition too, as Sohn et al. do.
    - The decoder's betas are an offset to the shape head's mean, so that the head stays what it is in other methods.
    - Losses of the single answer, Biggs' total loss (``total_loss``) among them, apply to the body decoded from
      z ~ q, which is what the paper trains; those of samples (``sample_keypoints``, ``mmd``, ``mask``,
      ``adversarial``), which the paper does not use, see bodies of z ~ N(0, I) too.
    - The weight of the divergence is not published: the paper adds it as it is.
    - Where the true pose is unknown, z ~ N(0, I) and the divergence counts nothing.

    There is no density in closed form.
    """

    name = "cvae"
    config_class = VariationalConfig

    def __init__(self, config: VariationalConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        points = 3 * (NUM_JOINTS + NUM_KEYPOINTS)
        self.recognise = pose_network(
            points + POSE_SIZE + config.condition, config.hidden, config.layers, 2 * config.latent
        )
        self.decode = pose_network(
            config.condition + config.latent, config.hidden, config.layers, POSE_SIZE + config.num_betas
        )
        self.register_buffer("mean", torch.zeros(POSE_SIZE))
        self.register_buffer("std", torch.ones(POSE_SIZE))

    @property
    def latent_size(self) -> int:
        return self.config.latent

    @torch.no_grad()
    def fit_statistics(self, pose6d: Tensor, floor: float = 0.02) -> None:
        """Measures mean and deviation of training poses (T, 144): the networks speak in their units."""
        self.mean.copy_(pose6d.mean(0))
        self.std.copy_(pose6d.std(0).clamp_min(floor))

    def encode(self, pose6d: Tensor, betas: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (B, Z) of q(z), given the true pose (B, 144) and betas (B, 10)."""
        pose6d = turn_root(pose6d[:, None], condition.turn)[:, 0]
        # Posed anew, the points are as the turned camera sees them and fit the rotations, whatever else is known.
        joints, surface = self.body(
            rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6))), betas, torch.zeros_like(betas[:, :3])
        )
        points = (torch.cat((joints, surface), dim=1) - self.rest_pelvis(betas)[:, None]) / REACH
        with self.networks():
            inputs = torch.cat((points.flatten(1), (pose6d - self.mean) / self.std, condition.code), dim=-1)
            mean, log_sigma = self.recognise(inputs).to(self.mean.dtype).chunk(2, dim=-1)
        return mean, log_sigma.clamp(-8.0, 4.0)

    def decoded(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Poses in 6D (B, N, 144), not yet orthonormal, and offsets of the betas (B, N, 10), of latents (B, N, Z)."""
        with self.networks():
            code = condition.code[:, None].expand(latents.shape[:2] + condition.code.shape[1:])
            out = self.decode(torch.cat((code, latents), dim=-1)).to(self.mean.dtype)
        pose6d, offsets = out.split((POSE_SIZE, self.config.num_betas), dim=-1)
        return turn_root(pose6d * self.std + self.mean, condition.turn.transpose(-1, -2)), offsets

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        condition = self.condition(keypoints, box, image)
        pose6d, offsets = self.decoded(latents, condition)
        shape, camera = self.guesses(condition)
        out = self.bodies(pose6d, shape.mean[:, None] + offsets, keypoints, box, camera)
        return {**out, "sample_weight": torch.full_like(pose6d[..., 0], 1 / latents.shape[1])}

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        with self.networks():
            condition = self.condition(examples.keypoints, examples.box, examples.image)
        condition = condition.first(len(examples))
        mean, log_sigma = self.encode(examples.pose6d, examples.betas, condition)
        if examples.has_pose is not None:
            known = examples.has_pose[:, None]
            mean, log_sigma = torch.where(known, mean, 0.0), torch.where(known, log_sigma, 0.0)
        terms = {"kl": config.kl * L.kl_standard_normal(mean, log_sigma)} if config.kl else {}
        further = config.sample_keypoints or config.mmd or config.mask or config.adversarial
        latents = torch.randn(len(mean), config.samples if further else 1, mean.shape[1]).to(mean)
        latents = torch.cat((mean[:, None] + torch.exp(log_sigma)[:, None] * latents[:, :1], latents[:, 1:]), dim=1)
        pose6d, offsets = self.decoded(latents, condition)
        shape, camera = self.guesses(condition)
        betas = shape.mean[:, None] + offsets
        out = self.bodies(pose6d, betas, examples.keypoints, examples.box, camera)
        terms |= self.head_losses(examples, shape, camera, config) | self.sample_losses(out, examples, config)
        return terms | self.total_loss(out, examples, config)
