"""What a learned posterior must beat: random training poses, and a Gaussian round the single answer.

Both stand on a trained method and have its interface, so :func:`.evaluate.evaluate_model` measures them alike. Index 0
is the method's single answer; the other samples keep its shape and its place, so that only poses are compared.

>>> from hmr_prob_ros.training.body import TorchBody
>>> from hmr_prob_ros.training.models import FlowConfig, FlowPosterior
>>> model = FlowPosterior(FlowConfig(hidden=8, condition=8, encoder_width=8, head_hidden=8), TorchBody(mesh=False))
>>> pool = RandomPoses(model, torch.randn(50, 144))
>>> pool(torch.rand(2, 23, 3), torch.rand(2, 3) + 0.2, pool.latents(2, 5))["sample_joints"].shape
torch.Size([2, 5, 24, 3])
"""

from __future__ import annotations

__all__ = ["DrawsOnly", "GaussianRoundMode", "RandomPoses", "mode_deviations"]

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hmr_prob_ros.skeleton import NUM_JOINTS

from .data.examples import Examples
from .models.base import POSE_SIZE
from .models.encoder import Condition, turn_root
from .rotations import matrix_to_rotation6d, rotation6d_to_matrix


class DrawsOnly(nn.Module):
    """A method with learned modes, without them: the single answer, then draws.

    Args:
        model: a method whose ``modes`` is above 0.
    """

    heads: int | None = None
    modes = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.name = model, f"{model.name}, draws only"

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)

    def latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents (count, N, D), the first of each example zero; the learned modes are put in by :meth:`forward`."""
        drawn = self.model.latents(count, samples + self.model.modes - 1, generator)
        return torch.cat((drawn[:, :1], drawn[:, self.model.modes :]), dim=1)

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As ``LiftingModel.forward``."""
        modes = latents.new_zeros(latents.shape[0], self.model.modes, latents.shape[2])
        out = self.model(keypoints, box, torch.cat((modes, latents[:, 1:]), dim=1), image)
        out = {name: torch.cat((value[:, :1], value[:, modes.shape[1] :]), dim=1) for name, value in out.items()}
        return {**out, "sample_weight": torch.full_like(out["sample_weight"], 1 / latents.shape[1])}


class _RoundMode(nn.Module):
    """Samples made from the single answer of ``model``."""

    name = ""
    heads: int | None = None
    has_density = False
    latent_size = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def body(self) -> nn.Module:
        """The body of the method."""
        return self.model.body

    def latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal latents (count, samples, D), the first of each example zero."""
        latents = torch.randn(count, samples, self.latent_size, generator=generator)
        latents[:, 0] = 0
        return latents.to(self.model.latents(1, 1).device)

    def condition(self, keypoints: Tensor, box: Tensor, image: Tensor | None = None) -> Condition:
        """That of the method."""
        return self.model.condition(keypoints, box, image)

    def single(self, keypoints: Tensor, box: Tensor, image: Tensor | None) -> dict[str, Tensor]:
        """The method's single answer, every value (B, 1, ...)."""
        latents = self.model.latents(len(keypoints), 1)
        out = self.model(keypoints, box, torch.zeros_like(latents), image)
        return {name: value[:, :1] for name, value in out.items()}

    def rotations(self, single: Tensor, latents: Tensor, condition: Condition) -> Tensor:
        """Rotations (B, N, 24, 3, 3) of latents (B, N, D) round the single answer's (B, 1, 24, 3, 3)."""
        raise NotImplementedError

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As ``LiftingModel.forward``; a latent of zeros gives the single answer."""
        single = self.single(keypoints, box, image)
        count = latents.shape[1]
        own = single["sample_rotations"]
        drawn = self.rotations(own, latents, self.condition(keypoints, box, image))
        still = (latents == 0).all(-1)[..., None, None, None]
        rotations = torch.where(still, own, drawn)
        betas = single["sample_betas"].expand(-1, count, -1)
        translation = single["sample_translation"].expand(-1, count, -1)
        joints, surface = self.body(rotations, betas, translation)
        return {
            "sample_joints": joints,
            "sample_keypoints": surface,
            "sample_rotations": rotations,
            "sample_betas": betas,
            "sample_translation": translation,
            "sample_pose6d": matrix_to_rotation6d(rotations).flatten(2),
            "sample_weight": torch.full_like(latents[..., 0], 1 / count),
        }


class RandomPoses(_RoundMode):
    """Poses of the training data with the single answer's root, shape and place: what any sampler of poses must beat.

    Args:
        model: the method.
        poses: pool (T, 144) of poses in 6D; their roots are not used.
    """

    name = "random poses"
    latent_size = 1

    def __init__(self, model: nn.Module, poses: Tensor) -> None:
        super().__init__(model)
        if poses.ndim != 2 or poses.shape[1] != POSE_SIZE or not len(poses):
            raise ValueError(f"a pool of poses is (T, {POSE_SIZE}) with T above 0, not {tuple(poses.shape)}")
        self.register_buffer("poses", poses.detach().clone(), persistent=False)

    def rotations(self, single: Tensor, latents: Tensor, condition: Condition) -> Tensor:
        # The normal distribution function turns a latent into an even choice.
        even = torch.special.ndtr(latents[..., 0].double())
        index = (even * len(self.poses)).long().clamp_max(len(self.poses) - 1)
        drawn = rotation6d_to_matrix(self.poses[index].unflatten(-1, (NUM_JOINTS, 6)))
        return torch.cat((single[:, :, :1].expand(-1, index.shape[1], -1, -1, -1), drawn[:, :, 1:]), dim=2)


class GaussianRoundMode(_RoundMode):
    r"""The single answer plus independent noise, :math:`x = \mu + \sigma \odot \epsilon`, in 6D relative to the camera
    that looks straight at the crop; drawn columns are made orthonormal.

    Args:
        model: the method.
        deviations: (144,) positive, see :func:`mode_deviations`.
    """

    name = "gaussian"
    latent_size = POSE_SIZE
    has_density = True

    def __init__(self, model: nn.Module, deviations: Tensor) -> None:
        super().__init__(model)
        if deviations.shape != (POSE_SIZE,) or not bool((deviations > 0).all()):
            raise ValueError(f"deviations are ({POSE_SIZE},) numbers above 0, not {tuple(deviations.shape)}")
        self.register_buffer("deviations", deviations.detach().clone(), persistent=False)

    def condition(self, keypoints: Tensor, box: Tensor, image: Tensor | None = None) -> Condition:
        condition = super().condition(keypoints, box, image)
        pose6d = self.single(keypoints, box, image)["sample_rotations"]
        # The density needs the single answer, and a condition is what it is given.
        centre = turn_root(matrix_to_rotation6d(pose6d).flatten(2), condition.turn)[:, 0]
        return condition._replace(code=centre)

    def rotations(self, single: Tensor, latents: Tensor, condition: Condition) -> Tensor:
        pose6d = condition.code[:, None] + self.deviations * latents
        pose6d = turn_root(pose6d, condition.turn.transpose(-1, -2))
        return rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))

    def log_prob(self, pose6d: Tensor, condition: Condition) -> Tensor:
        """Log-density (B, P) of poses (B, P, 144); ``condition`` is of :meth:`condition`."""
        score = (turn_root(pose6d, condition.turn) - condition.code[:, None]) / self.deviations
        return -0.5 * (score * score).sum(-1) - (self.deviations.log() + 0.5 * math.log(2 * math.pi)).sum()


@torch.no_grad()
def mode_deviations(model: nn.Module, examples: Iterable[Examples], noise: float = 0.005) -> Tensor:
    """Deviations (144,) for :class:`GaussianRoundMode`: root mean squares of truth minus single answer, per number.

    Args:
        model: the method.
        examples: batches that it was not trained on; those without a true pose are left out.
        noise: of the likelihood, added so that no deviation is zero.
    """
    gaussian = GaussianRoundMode(model, torch.ones(POSE_SIZE, device=model.latents(1, 1).device))
    total, count = torch.zeros(POSE_SIZE, dtype=torch.float64), 0
    for part in examples:
        part = part if part.has_pose is None else part[part.has_pose]
        if not len(part):
            continue
        condition = gaussian.condition(part.keypoints, part.box, part.image)
        difference = turn_root(part.pose6d[:, None], condition.turn)[:, 0] - condition.code
        total += (difference.double() ** 2).sum(0).cpu()
        count += len(part)
    if not count:
        raise ValueError("no example has a true pose: deviations need some")
    return (total / count + noise**2).sqrt().float()
