r"""n-quantised best-of-M (Biggs et al., "3D Multi-bodies", NeurIPS 2020): M heads, of which only the best must fit.

keypoints, box -> condition -> one network whose last layer gives M bodies (pose, shape, camera) -> weights by a pose
prior -> any n < M of them by weighted k-means (``hmr_prob_ros.quantize.quantize_heads``).

Losses beyond those of all methods: the best head's joints (equation 1, ``best_of_m``), its angles, betas, surface and
keypoints (equations 6 and 7, ``best_*``), and the visible keypoints of all heads (equation 5, ``reprojection``). As in
the published code the losses of the best head are also applied to head 0, which so becomes the single estimate. Its
further loss, which keeps the scale of a weak perspective positive, is not needed here: depths are exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hmr_prob_ros.skeleton import NUM_JOINTS

from ...quantize import quantize_heads
from .. import losses as L
from ..data.examples import Examples
from ..flow import Standardise
from ..loss_config import LossConfig
from .base import POSE_SIZE, LiftingModel, ModelConfig
from .encoder import CameraGuess, Condition, ShapeGuess, turn_root
from .pose_prior import PosePrior, PriorConfig, train_prior
from .regressor import pose_network

__all__ = ["HeadCameras", "MultiHead", "MultiHeadConfig", "fit_prior", "quantize_heads"]


@dataclass(frozen=True)
class MultiHeadConfig(ModelConfig):
    """Everything that shapes a :class:`MultiHead`.

    Attributes:
        heads: M.
        layers: of the network before the last one.
        spread: deviation, in those of the training poses, by which heads differ at the start; equal heads would stay
            equal.
        refine_translation: off, each head has a camera of its own; on, its translation is fitted to the keypoints.
        prior: weigh heads by a pose prior, which :func:`fit_prior` trains; ``prior_*``: its sizes, see ``PriorConfig``.
    """

    hidden: int = 1024
    layers: int = 2
    heads: int = 25
    spread: float = 0.3
    refine_translation: bool = False
    prior: bool = False
    prior_hidden: int = 512
    prior_couplings: int = 20
    prior_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.layers < 1:
            raise ValueError("model.heads and model.layers must be at least 1")

    @property
    def prior_config(self) -> PriorConfig:
        """Sizes of the pose prior."""
        return PriorConfig(self.prior_hidden, self.prior_couplings, self.prior_dropout)


class HeadCameras(NamedTuple):
    """A camera for each head, in crop units as ``CameraGuess``: ``offset`` (B, M, 2), ``log_depth`` (B, M)."""

    offset: Tensor
    log_depth: Tensor

    def pelvis(self, box: Tensor) -> Tensor:
        """Pelvis (B, M, 3) in the optical frame, metres, for boxes (B, 3) = (cx, cy, size)/focal."""
        depth = torch.exp(self.log_depth) / box[:, 2:]
        ray = box[:, None, :2] + self.offset * (box[:, None, 2:] / 2)
        return torch.cat((ray, torch.ones_like(ray[..., :1])), dim=-1) * depth[..., None]


class MultiHead(LiftingModel):
    """keypoints, box -> M bodies, the first of them the single estimate."""

    name = "multi_head"
    config_class = MultiHeadConfig
    prior: PosePrior | None

    def __init__(self, config: MultiHeadConfig, body: nn.Module) -> None:
        super().__init__(config, body)
        self.sizes = (POSE_SIZE, config.num_betas, 3)
        self.network = pose_network(config.condition, config.hidden, config.layers, config.heads * sum(self.sizes))
        bias = torch.zeros(config.heads, sum(self.sizes))
        bias[1:, :POSE_SIZE] = config.spread * torch.randn(config.heads - 1, POSE_SIZE)
        with torch.no_grad():
            self.network[-1].bias.copy_(bias.flatten())
        self.standardise = Standardise(POSE_SIZE)
        self.prior = PosePrior(config.prior_config).requires_grad_(False) if config.prior else None
        self.translation_fit.requires_grad_(config.refine_translation)  # or nothing would ever train it

    @property
    def heads(self) -> int:
        return self.config.heads

    def train(self, mode: bool = True) -> MultiHead:
        """As everywhere, but the prior stays as it is evaluated."""
        super().train(mode)
        if self.prior is not None:
            self.prior.eval()
        return self

    def finish(
        self, batches: Iterator[Examples], rotations: Callable[[], Tensor], steps: int, seed: int, progress: bool
    ) -> None:
        """Trains the pose prior, where there is one."""
        if self.prior is not None:
            fit_prior(self, rotations(), steps=min(4000, steps), seed=seed, progress=progress)

    def fit_statistics(self, pose6d: Tensor) -> None:
        """Measures mean and deviation of training poses (T, 144): the output is relative to them."""
        self.standardise.fit(pose6d)

    def attach_prior(self, prior: PosePrior) -> None:
        """Weighs heads by ``prior`` from now on; it is saved with the model's checkpoint."""
        sizes = prior.config
        self.config = replace(
            self.config,
            prior=True,
            prior_hidden=sizes.hidden,
            prior_couplings=sizes.couplings,
            prior_dropout=sizes.dropout,
        )
        self.prior = prior.requires_grad_(False).eval().to(self.pelvis_offset.device)

    def hypotheses(
        self, condition: Condition, shape: ShapeGuess, camera: CameraGuess
    ) -> tuple[Tensor, Tensor, HeadCameras]:
        """Poses in 6D (B, M, 144), not yet orthonormal, betas (B, M, 10) and cameras of the heads.

        Shape and camera are relative to what the shared heads guess, which likelihoods may train too.
        """
        with self.networks():
            out = self.network(condition.code)
        out = out.to(self.standardise.mean.dtype).unflatten(-1, (self.heads, -1))
        pose, betas, place = out.split(self.sizes, dim=-1)
        pose6d = turn_root(self.standardise.inverse(pose)[0], condition.turn.transpose(-1, -2))
        cameras = HeadCameras(camera.offset[:, None] + place[..., :2], camera.log_depth[:, None] + place[..., 2])
        return pose6d, shape.mean[:, None] + betas, cameras

    def _bodies(
        self, keypoints: Tensor, box: Tensor, image: Tensor | None
    ) -> tuple[dict[str, Tensor], ShapeGuess, CameraGuess]:
        with self.networks():
            condition = self.condition(keypoints, box, image)
        condition = condition.first(box.shape[0])  # len() would fix the batch of an exported graph
        shape, camera = self.guesses(condition)
        pose6d, betas, cameras = self.hypotheses(condition, shape, camera)
        refine = self.config.refine_translation
        out = self.bodies(pose6d, betas, keypoints, box, camera if refine else cameras)
        return out, shape, camera

    def log_weights(self, joints: Tensor) -> Tensor:
        r"""Logarithms (B, M) of :math:`p(X_i)/\sum_k p(X_k)` (equation 2) for joints (B, M, 24, 3); uniform without a
        trained prior. Weights of heads that are thousands of nats apart are 0 and 1, their logarithms still tell."""
        if self.prior is None:
            return torch.full_like(joints[..., 0, 0], -math.log(joints.shape[1]))
        density = self.prior.log_prob(joints.detach())
        # No branch, which an exported graph could not take.
        return torch.log_softmax(torch.where(self.prior.steps > 0, density, torch.zeros_like(density)), dim=-1)

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor | None = None, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        out, _, _ = self._bodies(keypoints, box, image)
        return {**out, "sample_weight": torch.exp(self.log_weights(out["sample_joints"]))}

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        out, shape, camera = self._bodies(examples.keypoints, examples.box, examples.image)
        terms = self.head_losses(examples, shape, camera, config) | self.sample_losses(out, examples, config)
        has_joints = None if examples.has_joints is None else examples.has_joints.to(out["sample_joints"])

        def distance(heads: slice) -> tuple[Tensor, Tensor]:
            joints = out["sample_joints"][:, heads]
            return L.best_of_m(joints, examples.joints, weight=has_joints, squared=config.best_of_m_squared)

        best, index = distance(slice(None))
        if config.best_of_m:
            terms["best_of_m"] = config.best_of_m * best.mean()
            terms["first_head"] = config.best_of_m * distance(slice(0, 1))[0].mean()
        chosen = torch.stack((index, torch.zeros_like(index)), dim=1)  # the best head and head 0
        return terms | self.best_losses(out, examples, config, chosen)


def fit_prior(model: MultiHead, rotations: Tensor, betas: Tensor | None = None, **options: object) -> Tensor:
    """Trains the pose prior of a model, which gets one if it has none; before or after the heads, they do not mix.

    Args:
        model: what is to weigh its heads.
        rotations: local rotations (T, 24, 3, 3) of training poses; the root's does not matter.
        betas: their shapes (T, 10); None: drawn from a standard normal.
        options: ``steps``, ``batch``, ... of ``train_prior``; its ``seed`` also draws the betas.

    Returns:
        As ``train_prior``.
    """
    if model.prior is None:
        model.attach_prior(PosePrior(model.config.prior_config))
    if rotations.shape[1:] != (NUM_JOINTS, 3, 3):
        raise ValueError(f"the prior needs rotations (T, {NUM_JOINTS}, 3, 3), not {tuple(rotations.shape)}")
    if betas is None:
        generator = torch.Generator().manual_seed(int(options.get("seed", 0)))  # type: ignore[call-overload]
        betas = torch.randn(len(rotations), model.config.num_betas, generator=generator).clamp(-3, 3)
    device = model.pelvis_offset.device
    with torch.no_grad():
        joints = [
            model.body(r.float().to(device), b.float().to(device), b.new_zeros(len(b), 3).float().to(device))[0]
            for r, b in zip(rotations.split(4096), betas.split(4096), strict=True)
        ]
    return train_prior(model.prior, torch.cat(joints), **options)
