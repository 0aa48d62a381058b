r"""Ours, the default: one joint posterior over pose, shape and camera translation, and its learned quantisation.

The flow gives a density and any number of draws, but a few draws in 157 dimensions cover little: their best is hardly
nearer to the truth than the mode. Heads trained for their best (Biggs et al. 2020) cover well, but have no density and
no weights. Here both are one: a small network gives M latents of the flow for a person,

.. math:: z_1 = 0, \quad (z_2, \dots, z_M) = q(c), \qquad x_m = f^{-1}(z_m; c),

trained like Biggs' heads: the best of them is drawn to the truth. So the hypotheses lie where the posterior has its
mass, each has a log-density, and the share of draws that are nearest to it is its probability. The hypotheses are
nested: the loss is the mean over several prefixes, so that the first n are good modes for n < M too. Behind them comes
a codebook: latents that are the same for everyone, learned on the finished model (:func:`fit_codebook`), for whoever
wants a hundred bodies that cover more than a hundred draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .. import losses as L
from ..data.examples import Examples
from ..loss_config import LossConfig
from .base import true_keypoints
from .encoder import Condition
from .flow import FlowConfig, FlowPosterior

__all__ = ["JointConfig", "JointPosterior", "Quantiser", "fit_codebook"]


@dataclass(frozen=True)
class JointConfig(FlowConfig):
    """Everything that shapes a :class:`JointPosterior`.

    Attributes:
        hypotheses: M, the mode among them.
        codebook: further ones, whose latents do not depend on the person.
        nested: prefixes of the hypotheses that the loss wants to be good modes too.
        quantiser_hidden: width of the network that gives their latents.
    """

    hidden: int = 256
    sample_shape: bool = True
    sample_translation: bool = True
    hypotheses: int = 25
    codebook: int = 75
    nested: tuple[int, ...] = (5, 10)
    quantiser_hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hypotheses < 2:
            raise ValueError(f"model.hypotheses is {self.hypotheses}: it must be 2 or more, or use the method flow")
        if any(not 1 < n < self.hypotheses for n in self.nested):
            raise ValueError(f"model.nested is {self.nested}: its numbers must lie between 1 and model.hypotheses")
        object.__setattr__(self, "nested", tuple(self.nested))  # a list in files


class Quantiser(nn.Module):
    """Latents of the hypotheses of a person.

    Args:
        condition: width C of the condition.
        hidden: width of the network.
        size: D, the numbers of one latent.
        hypotheses: M.
    """

    def __init__(self, condition: int, hidden: int, size: int, hypotheses: int) -> None:
        super().__init__()
        self.size = size
        self.inner = nn.Linear(condition, hidden)
        self.outer = nn.Linear(hidden, (hypotheses - 1) * size)
        with torch.no_grad():
            # Different from the start, or the same hypothesis would always be the best.
            self.outer.weight.mul_(0.3)
            self.outer.bias.normal_(0, 0.5)

    def forward(self, code: Tensor, count: int) -> Tensor:
        """Latents (B, count, D), the first zero, of conditions (B, C)."""
        rows = (count - 1) * self.size
        hidden = torch.relu(self.inner(code))
        others = F.linear(hidden, self.outer.weight[:rows], self.outer.bias[:rows])
        others = torch.cat((others.new_zeros(code.shape[0], self.size), others), dim=1)
        return others.unflatten(-1, (count, self.size))

    def leading(self, count: int) -> Quantiser:
        """A copy for the first ``count`` hypotheses alone: an exported graph holds no weights that it does not use."""
        short = Quantiser(self.inner.in_features, self.inner.out_features, self.size, count)
        short.load_state_dict(
            {
                key: value[: len(own)]
                for (key, value), own in zip(self.state_dict().items(), short.state_dict().values())
            }
        )
        return short


class JointPosterior(FlowPosterior):
    """p(pose, shape, translation | keypoints, box) and M hypotheses that stand for it."""

    name = "joint"
    config_class = JointConfig

    def __init__(self, config: JointConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        self.quantiser = Quantiser(config.condition, config.quantiser_hidden, self.latent_size, config.hypotheses)
        self.register_buffer("codebook", 0.4 * torch.randn(config.codebook, self.latent_size))

    @property
    def modes(self) -> int:
        """Hypotheses and codebook: so many samples come first in :meth:`forward`, and each prefix is a good choice."""
        return self.config.hypotheses + self.config.codebook

    def hypotheses(self, condition: Condition, count: int | None = None) -> Tensor:
        """Latents (B, M, D) of the hypotheses, the first of them zero; or of the first ``count`` of hypotheses and
        codebook."""
        count = self.config.hypotheses if count is None else count
        own = self.quantiser(condition.code, min(count, self.config.hypotheses)).to(condition.turn.dtype)
        more = self.codebook[: max(count - own.shape[1], 0)]
        return torch.cat((own, more.expand(len(own), *more.shape)), dim=1) if len(more) else own

    def finish(
        self, batches: Iterator[Examples], rotations: Callable[[], Tensor], steps: int, seed: int, progress: bool
    ) -> None:
        """Learns the codebook, where there is one."""
        if self.config.codebook:
            fit_codebook(self, batches, steps=min(200, steps), progress=progress)

    def latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents (count, N, D): zeros for hypotheses and codebook, then standard normal draws."""
        latents = super().latents(count, samples, generator)
        latents[:, : self.modes] = 0
        return latents

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As ``LiftingModel.forward``. The first latents count from those of the hypotheses, so zeros give them; those
        after ``modes`` are draws. Draws weigh the same; hypotheses, which are none, weigh nothing where there are
        draws."""
        condition = self.condition(keypoints, box, image)
        count, draws = latents.shape[1], latents.shape[1] - self.modes
        offset = self.hypotheses(condition, min(count, self.modes))
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
        count = self.config.hypotheses if config.best_of_m or config.reprojection else 1
        joints = out["sample_joints"][:, :count]
        known = None if examples.has_joints is None else examples.has_joints.to(joints)
        if config.best_of_m:
            prefixes = (*self.config.nested, count)
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


def fit_codebook(
    model: JointPosterior,
    batches: Iterator[Examples],
    steps: int = 200,
    examples: int = 32,
    rate: float = 0.03,
    latents: float = 0.001,
    progress: bool = True,
) -> list[float]:
    """Learns the codebook of a trained model, which stays as it is otherwise.

    Minimises the squared error of the best of hypotheses and codebook, as ``best_of_m`` with ``squared``, and half the
    squared latents with a small weight. A few hundred steps are enough for a few thousand numbers.

    Args:
        model: trained.
        batches: training examples with known joints; each gives as many steps as it has portions of ``examples``.
        latents: weight of the latents against the error, whose weight is 25.

    Returns:
        The losses of the steps.
    """
    codebook = model.codebook.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([codebook], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[float] = []
    training, hypotheses = model.training, model.config.hypotheses
    model.eval()
    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    portions = (batch[i : i + examples] for batch in batches for i in range(0, len(batch), examples))
    for few in itertools.islice(tqdm(portions, desc="codebook", total=steps, disable=not progress), steps):
        few = few.to(codebook.device)
        zeros = torch.zeros(len(few), hypotheses, model.latent_size, device=codebook.device)
        offset = torch.cat((zeros, (codebook - model.codebook).expand(len(few), -1, -1)), dim=1)
        joints = model(few.keypoints, few.box, offset, few.image)["sample_joints"]
        best, _ = L.best_of_m(
            joints, few.joints, weight=None if few.has_joints is None else few.has_joints, squared=True
        )
        loss = 25 * best.mean() + latents * 0.5 * codebook.square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append(float(loss.detach()))
    for parameter in frozen:
        parameter.requires_grad_(True)
    model.codebook.copy_(codebook.detach())
    model.train(training)
    return history
