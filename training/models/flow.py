r"""Conditional RealNVP over the whole pose (Wehrbein et al. 2025), and with ``sample_shape`` and ``sample_translation``
one joint posterior over pose, shape and camera translation: the default method of this package.

keypoints, box -> condition -> flow over 24 rotations in 6D -> shape, camera, kinematics -> samples in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.examples import Examples
from ..flow import ConditionalFlow
from ..loss_config import LossConfig
from .base import POSE_SIZE, LiftingModel, ModelConfig
from .encoder import Condition, ShapeGuess, turn_root

__all__ = ["FlowConfig", "FlowPosterior"]


@dataclass(frozen=True)
class FlowConfig(ModelConfig):
    """Everything that shapes a :class:`FlowPosterior`.

    Attributes:
        couplings: number of couplings.
        coupling: ``affine``, or ``additive``, whose networks only shift: latent zero is then exactly the mode.
        alpha: bound of the couplings' soft clamp.
        flow_dropout: of the couplings.
        sample_shape: draw the betas too, from the head's Gaussian, with 10 more latents.
        sample_translation: draw the translation from the fit's Gaussian, with 3 more latents. With both, pose, shape
            and translation form one joint posterior: a small person near is a tall person far.
        seed: of the permutations.
    """

    couplings: int = 8
    coupling: str = "affine"
    alpha: float = 2.0
    flow_dropout: float = 0.0
    sample_shape: bool = False
    sample_translation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coupling not in ("affine", "additive"):
            raise ValueError(f"model.coupling must be 'affine' or 'additive', not {self.coupling!r}")
        if self.sample_translation and not self.refine_translation:
            raise ValueError(
                "model.sample_translation draws round the fitted translation: set model.refine_translation"
            )


class FlowPosterior(LiftingModel):
    """p(pose, shape, translation | keypoints, box) as a flow."""

    name = "flow"
    config_class = FlowConfig
    has_density = True

    def __init__(self, config: FlowConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        self.flow = self.make_flow(config)

    def make_flow(self, config: FlowConfig) -> nn.Module:
        """The density over poses: ``log_prob(data, code)``, ``sample(latents, code)``, ``standardise.fit(data)``."""
        return ConditionalFlow(
            POSE_SIZE,
            config.condition,
            config.hidden,
            config.couplings,
            config.alpha,
            config.flow_dropout,
            config.seed,
            config.coupling == "additive",
        )

    @property
    def latent_size(self) -> int:
        config = self.config
        return POSE_SIZE + config.num_betas * config.sample_shape + 3 * config.sample_translation

    def fit_statistics(self, pose6d: Tensor) -> None:
        """Measures the flow's data normalisation on training poses (T, 144)."""
        self.flow.standardise.fit(pose6d)

    def freeze(self) -> None:
        """Makes the flow exportable, where that takes something; ends training and saving."""

    def log_prob(self, pose6d: Tensor, condition: Condition) -> Tensor:
        """Log-density (B, P) of poses in 6D, (B, P, 144)."""
        return self.flow.log_prob(turn_root(pose6d, condition.turn), condition.code)

    def sample(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Poses in 6D (B, N, 144), not yet orthonormal, and their log-density (B, N), of latents (B, N, D)."""
        pose6d, log_density = self.flow.sample(latents[..., :POSE_SIZE], condition.code)
        return turn_root(pose6d, condition.turn.transpose(-1, -2)), log_density

    def shape_latents(self, latents: Tensor) -> Tensor | None:
        """The part (B, N, 10) of latents (B, N, D) that draws the betas."""
        return latents[..., POSE_SIZE : POSE_SIZE + self.config.num_betas] if self.config.sample_shape else None

    def translation_latents(self, latents: Tensor) -> Tensor | None:
        """The part (B, N, 3) of latents (B, N, D) that draws the translation."""
        return latents[..., -3:] if self.config.sample_translation else None

    def draw_betas(self, shape: ShapeGuess, latents: Tensor) -> Tensor:
        """Betas (B, N, 10) of latents (B, N, D)."""
        drawn = self.shape_latents(latents)
        if drawn is None:
            return shape.mean[:, None].expand(latents.shape[:2] + (self.config.num_betas,))
        return shape.mean[:, None] + torch.exp(shape.log_sigma)[:, None] * drawn

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        condition = self.condition(keypoints, box, image)
        pose6d, log_density = self.sample(latents, condition)
        shape, camera = self.guesses(condition)
        betas = self.draw_betas(shape, latents)
        out = self.bodies(pose6d, betas, keypoints, box, camera, self.translation_latents(latents))
        weight = torch.full_like(log_density, 1 / latents.shape[1])
        return {**out, "sample_log_density": log_density, "sample_weight": weight}

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        pose = examples.pose6d + config.noise * torch.randn_like(examples.pose6d)
        few = examples[: config.sampled or None]
        with self.networks():
            condition = self.condition(examples.keypoints, examples.box, examples.image)
            log_prob = self.log_prob(pose[:, None], condition)[:, 0] if config.likelihood else None
            latents = self.training_latents(condition.first(len(few)), config, few)
            pose6d, _ = self.sample(latents, condition.first(len(few)))
        terms = {}
        if log_prob is not None:
            known = 1.0 if examples.has_pose is None else examples.has_pose.to(log_prob)
            terms["likelihood"] = -config.likelihood * (known * log_prob).mean()
        shape, camera = self.guesses(condition.first(len(pose)))
        terms |= self.head_losses(examples, shape, camera, config)
        betas = self.draw_betas(shape.first(len(few)), latents)
        camera = camera.first(len(few))
        out = self.bodies(pose6d, betas, few.keypoints, few.box, camera, self.translation_latents(latents))
        terms |= self.place_loss(out, few, camera, config)
        return terms | self.sample_losses({**out, "latents": latents}, few, config)

    def training_latents(self, condition: Condition, config: LossConfig, examples: Examples) -> Tensor:
        """Latents (B, S, D) of the bodies that :meth:`sample_losses` sees."""
        return self.latents(len(examples), config.samples_for(examples.heatmap is not None))
