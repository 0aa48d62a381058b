r"""Ours, the default: one joint posterior over pose, shape and camera translation, and its learned quantisation.

The flow gives a density and any number of draws, but a few draws in 157 dimensions cover little: their best is hardly
nearer to the truth than the mode. Heads trained for their best (Biggs et al. 2020) cover well, but have no density and
no weights. Here both are one: a small network gives M latents of the flow for a person,

.. math:: z_1 = 0, \quad (z_2, \dots, z_M) = q(c), \qquad x_m = f^{-1}(z_m; c),

trained like Biggs' heads: the best of them is drawn to the truth. So the hypotheses lie where the posterior has its
mass, each has a log-density, and the share of draws that are nearest to it is its probability. The hypotheses are
nested: the loss is the mean over several prefixes, so that the first n are good modes for n < M too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import losses as L
from ..data.examples import Examples
from ..loss_config import LossConfig
from .base import true_keypoints
from .encoder import Condition
from .flow import FlowConfig, FlowPosterior

__all__ = ["JointConfig", "JointPosterior"]


@dataclass(frozen=True)
class JointConfig(FlowConfig):
    """Everything that shapes a :class:`JointPosterior`.

    Attributes:
        hypotheses: M, the mode among them.
        nested: prefixes of the hypotheses that the loss wants to be good modes too.
        quantiser_hidden: width of the network that gives their latents.
    """

    hidden: int = 256
    sample_shape: bool = True
    sample_translation: bool = True
    hypotheses: int = 25
    nested: tuple[int, ...] = (5, 10)
    quantiser_hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hypotheses < 2:
            raise ValueError(f"model.hypotheses is {self.hypotheses}: it must be 2 or more, or use the method flow")
        if any(not 1 < n < self.hypotheses for n in self.nested):
            raise ValueError(f"model.nested is {self.nested}: its numbers must lie between 1 and model.hypotheses")
        object.__setattr__(self, "nested", tuple(self.nested))  # a list in files


class JointPosterior(FlowPosterior):
    """p(pose, shape, translation | keypoints, box) and M hypotheses that stand for it."""

    name = "joint"
    config_class = JointConfig

    def __init__(self, config: JointConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        outputs = (config.hypotheses - 1) * self.latent_size
        self.quantiser = nn.Sequential(
            nn.Linear(config.condition, config.quantiser_hidden), nn.ReLU(), nn.Linear(config.quantiser_hidden, outputs)
        )
        with torch.no_grad():
            # Different from the start, or the same hypothesis would always be the best.
            self.quantiser[-1].weight.mul_(0.3)
            self.quantiser[-1].bias.normal_(0, 0.5)

    @property
    def modes(self) -> int:
        """M: this many samples come first in :meth:`forward` and stand for the posterior, each prefix of them too."""
        return self.config.hypotheses

    def hypotheses(self, condition: Condition, quantiser: nn.Module | None = None) -> Tensor:
        """Latents (B, M, D) of the hypotheses, the first of them zero; with :meth:`leading`'s network, of n."""
        others = (self.quantiser if quantiser is None else quantiser)(condition.code)
        others = others.to(condition.turn.dtype).unflatten(-1, (-1, self.latent_size))
        return torch.cat((torch.zeros_like(others[:, :1]), others), dim=1)

    def leading(self, count: int) -> nn.Sequential:
        """The network of the first ``count`` hypotheses alone, for an exported graph, which gives no more.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 < count <= self.modes:
            raise ValueError(f"the model has {self.modes} hypotheses: it cannot give {count} modes, export 2 or more")
        last = self.quantiser[-1]
        rows = (count - 1) * self.latent_size
        short = nn.Linear(last.in_features, rows)
        with torch.no_grad():
            short.weight.copy_(last.weight[:rows])
            short.bias.copy_(last.bias[:rows])
        return nn.Sequential(*self.quantiser[:-1], short)

    def latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents (count, N, D): zeros for the M hypotheses, then standard normal draws."""
        latents = super().latents(count, samples, generator)
        latents[:, : self.modes] = 0
        return latents

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As ``LiftingModel.forward``. The first M latents count from those of the hypotheses, so zeros give them; the
        others are draws. Draws weigh the same; hypotheses, which are none, have no weight where there are draws."""
        condition = self.condition(keypoints, box, image)
        count, draws = latents.shape[1], latents.shape[1] - self.modes
        offset = self.hypotheses(condition)[:, :count]
        latents = torch.cat((latents[:, : self.modes] + offset, latents[:, self.modes :]), dim=1)
        pose6d, log_density = self.sample(latents, condition)
        shape, camera = self.guesses(condition)
        out = self.bodies(
            pose6d, self.draw_betas(shape, latents), keypoints, box, camera, self.translation_latents(latents)
        )
        weight = torch.full_like(log_density, 1 / count)
        if draws > 0:
            drawn = torch.arange(count, device=weight.device) >= self.modes
            weight = (drawn / draws).to(weight).expand_as(weight)
        return {**out, "sample_log_density": log_density, "sample_weight": weight}

    def training_latents(self, condition: Condition, config: LossConfig, examples: Examples) -> Tensor:
        samples = config.samples_for(examples.heatmap is not None)
        zero = torch.zeros(len(examples), 1, self.latent_size, device=condition.turn.device)
        drawn = torch.randn(len(examples), samples - 1, self.latent_size, device=condition.turn.device)
        hypotheses = self.hypotheses(condition) if config.best_of_m or config.reprojection else zero
        return torch.cat((hypotheses, drawn), dim=1)

    def sample_losses(self, out: dict[str, Tensor], examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        """Of the mode and the draws as for all methods; of the hypotheses what Biggs' heads have, and how far out in
        latent space they are."""
        terms = {}
        count = self.modes if config.best_of_m or config.reprojection else 1
        joints = out["sample_joints"][:, :count]
        known = None if examples.has_joints is None else examples.has_joints.to(joints)
        if config.best_of_m:
            prefixes = (*self.config.nested, self.modes)
            best = [
                L.best_of_m(joints[:, :n], examples.joints, weight=known, squared=config.best_of_m_squared)[0]
                for n in prefixes
            ]
            terms["best_of_m"] = config.best_of_m * torch.stack(best).mean()
        if config.latents and count > 1:
            learned = out["latents"][:, 1:count]
            terms["latents"] = config.latents * 0.5 * learned.square().sum(-1).mean()
        if config.reprojection:
            true, seen = true_keypoints(examples)
            points = L.project_to_crop(out["sample_keypoints"][:, 1:count], examples.box)
            terms["reprojection"] = config.reprojection * L.keypoints_l1(points, true, seen, clamp=2.0)
        rest = {name: torch.cat((value[:, :1], value[:, count:]), dim=1) for name, value in out.items()}
        return terms | super().sample_losses(rest, examples, config)
