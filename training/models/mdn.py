r"""SMPL-MDN (Biggs et al. 2020, appendix C): a mixture of M Gaussians over the log-rotations of the pose.

.. math:: p(\theta) = \sum_m \alpha_m N(\theta \mid \mu_m, \sigma_m), \qquad \alpha_m = 1/M, \quad \sigma_m = 0.001,

where only the means are learned: they are the hypotheses. Losses that need a single pose get the means weighted by the
posterior of the true one (equation 9),

.. math:: \hat\theta = \sum_m r_m \mu_m, \qquad
    r_m = \frac{\alpha_m N(\theta \mid \mu_m, \sigma_m)}{\sum_n \alpha_n N(\theta \mid \mu_n, \sigma_n)} .
"""

from __future__ import annotations

__all__ = ["MixtureConfig", "MixtureDensity"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmr_prob_ros.skeleton import NUM_JOINTS

from ..data.examples import Examples
from ..loss_config import LossConfig
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rotation6d, rotation6d_to_matrix
from .base import LiftingModel, ModelConfig
from .encoder import Condition, turn_root
from .regressor import pose_network

SIZE = 3 * NUM_JOINTS
"""Numbers of a pose as log-rotations."""


@dataclass(frozen=True)
class MixtureConfig(ModelConfig):
    """Everything that shapes a :class:`MixtureDensity`.

    Attributes:
        components: M, how many means there are.
        layers: of the network that makes them.
        variance: of every Gaussian along every axis, rad^2. The paper calls its sigma = 0.001 a variance and a
            covariance; whoever reads it as a deviation sets 1e-6 here. Both give almost one-hot posteriors.
    """

    hidden: int = 1024
    components: int = 25
    layers: int = 2
    variance: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 1 or self.variance <= 0:
            raise ValueError(
                "model.components must be at least 1 and model.variance positive, "
                f"not {self.components} and {self.variance}"
            )


class MixtureDensity(LiftingModel):
    """keypoints, box -> M poses as log-rotations, one shape and camera.

    What the paper leaves open, and what is done here:

    - Log-rotations of the root are taken relative to a person who stands upright and faces the camera. As rotations
      from the body's rest they would all have the angle pi, where the logarithm jumps: an upright body is upside down
      in a frame whose y points down. What remains of the jump lies where a person faces away; distances to a mean are
      therefore taken from that logarithm of the true rotation that is nearest to it (:func:`nearest_logarithm`).
    - The posterior weights take no gradient, as the responsibilities of an EM step: through sharp weights it would be
      zero almost everywhere and huge at ties.
    - Where the true pose is unknown, one mean drawn from the mixture weights takes the losses.
    - The weight of the likelihood is not published. Its gradient is that of the nearest mean's squared distance over
      twice the variance: with ``losses.likelihood`` at twice the variance that distance (rad^2) counts once.
    - The paper draws a random mean where it needs a single pose. The single answer here, index 0, is the mean nearest
      to all others on average (chordal distance of the rotations).

    Losses of the single answer and Biggs' total loss (``total_loss``) apply to the body of equation 9, which with
    one component is a plain regression.

    The mixture's width is fixed, not estimated, and it lives on 72 log-rotations: its density is no measure of how
    well the method knows its errors, nor comparable with a flow's, so it trains the means and is not given out.
    """

    name = "mdn"
    config_class = MixtureConfig

    def __init__(self, config: MixtureConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        self.pose = pose_network(config.condition, config.hidden, config.layers, config.components * SIZE)
        self.register_buffer("mean", torch.zeros(SIZE))
        self.register_buffer("std", torch.ones(SIZE))
        # Upright and facing the camera, from the body's axes to the camera's: half a turn about x.
        self.register_buffer("upright", torch.tensor([1.0, -1.0, -1.0] * 2), persistent=False)

    @property
    def heads(self) -> int:
        return self.config.components

    @torch.no_grad()
    def fit_statistics(self, pose6d: Tensor, floor: float = 0.02) -> None:
        """Measures mean and deviation of training poses (T, 144) as log-rotations: the output is relative to them."""
        logarithms = self.logarithms(pose6d)
        self.mean.copy_(logarithms.mean(0))
        self.std.copy_(logarithms.std(0).clamp_min(floor))

    def logarithms(self, pose6d: Tensor) -> Tensor:
        """Log-rotations (..., 72), each of length at most pi, of poses in 6D (..., 144)."""
        pose6d = torch.cat((pose6d[..., :6] * self.upright, pose6d[..., 6:]), dim=-1)
        return matrix_to_axis_angle(rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))).flatten(-2)

    def poses(self, logarithms: Tensor) -> Tensor:
        """Poses in 6D (..., 144) of log-rotations (..., 72)."""
        pose6d = matrix_to_rotation6d(axis_angle_to_matrix(logarithms.unflatten(-1, (NUM_JOINTS, 3)))).flatten(-2)
        return torch.cat((pose6d[..., :6] * self.upright, pose6d[..., 6:]), dim=-1)

    def means(self, condition: Condition) -> Tensor:
        """The means (B, M, 72), log-rotations as the turned camera sees them."""
        offsets = self.pose(condition.code).to(self.mean.dtype).unflatten(-1, (self.config.components, SIZE))
        return offsets * self.std + self.mean

    def component_log_prob(self, logarithms: Tensor, means: Tensor) -> Tensor:
        """Log of weight times density (B, M) of true log-rotations (B, 72) under each component."""
        gap = nearest_logarithm(logarithms, means) - means
        variance, count = self.config.variance, self.config.components
        return -(gap * gap).sum(-1) / (2 * variance) - SIZE / 2 * math.log(2 * math.pi * variance) - math.log(count)

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor | None = None, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        condition = self.condition(keypoints, box, image)
        pose6d = turn_root(central_first(self.poses(self.means(condition))), condition.turn.transpose(-1, -2))
        shape, camera = self.guesses(condition)
        betas = shape.mean[:, None].expand(pose6d.shape[:2] + (self.config.num_betas,))
        out = self.bodies(pose6d, betas, keypoints, box, camera)
        return {**out, "sample_weight": torch.full_like(pose6d[..., 0], 1 / self.config.components)}

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        with self.networks():
            condition = self.condition(examples.keypoints, examples.box, examples.image)
            means = self.means(condition)
        condition = condition.first(len(examples))
        true = self.logarithms(turn_root(examples.pose6d[:, None], condition.turn)[:, 0])
        component = self.component_log_prob(true, means)
        known = torch.ones_like(component[:, 0]) if examples.has_pose is None else examples.has_pose.to(component)
        terms = {}
        if config.likelihood:
            terms["likelihood"] = -config.likelihood * (known * component.logsumexp(1)).mean()
        drawn = torch.randint(self.config.components, (len(examples),), device=means.device)
        drawn = nn.functional.one_hot(drawn, self.config.components).to(means)
        weight = torch.where(known[:, None] > 0, component.detach().softmax(1), drawn)
        single = self.poses((weight[..., None] * means).sum(1, keepdim=True))
        shape, camera = self.guesses(condition)
        pose6d = turn_root(single, condition.turn.transpose(-1, -2))
        out = self.bodies(pose6d, shape.mean[:, None], examples.keypoints, examples.box, camera)
        terms |= self.head_losses(examples, shape, camera, config) | self.sample_losses(out, examples, config)
        return terms | self.total_loss(out, examples, config)


def nearest_logarithm(logarithms: Tensor, means: Tensor) -> Tensor:
    r"""The true log-rotations (B, 72) as seen from means (B, M, 72), (B, M, 72).

    A rotation by :math:`|\theta|` about an axis is one by :math:`|\theta| - 2\pi` too. Of the two the one nearer to the
    mean is taken, joint by joint, so that a mean just beyond pi is near a truth just short of it.
    """
    true = logarithms.unflatten(-1, (NUM_JOINTS, 3))[:, None]
    means = means.detach().unflatten(-1, (NUM_JOINTS, 3))
    angle = true.norm(dim=-1, keepdim=True)
    # The other logarithm of a small rotation is a whole turn away, and its axis unknown.
    other = torch.where(angle > 0.1, true - 2 * math.pi * true / angle.clamp_min(0.1), true)
    nearer = (other - means).square().sum(-1, keepdim=True) < (true - means).square().sum(-1, keepdim=True)
    return torch.where(nearer, other, true).flatten(-2)


def central_first(pose6d: Tensor) -> Tensor:
    """Poses (B, M, 144) with the one that is nearest to their average, as matrices' columns, swapped to the front."""
    gap = pose6d - pose6d.mean(1, keepdim=True)
    best = (gap * gap).sum(-1).argmin(1, keepdim=True)  # (B, 1)
    place = torch.arange(pose6d.shape[1], device=pose6d.device)[None]
    order = torch.where(place == 0, best, torch.where(place == best, torch.zeros_like(place), place))
    return torch.take_along_dim(pose6d, order[..., None], dim=1)
