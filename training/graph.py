"""The posterior as one graph, laid out for speed: what :mod:`.export` turns to ``model.onnx``.

The same numbers as ``FlowPosterior.forward`` gives, computed with the samples as the **last** axes, (..., B, N). With
24 joints of 3x3 numbers as the last axes instead, a CPU runtime spends its time on thousands of tiny products; here
every elementwise operation runs over contiguous samples, and gathering joints copies whole rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .flow import ConditionalFlow
from .flow_columns import sample_columns
from .models import POSE_SIZE, FlowPosterior, JointPosterior
from .models.encoder import Condition
from .quantize import Quantizer, shares

__all__ = ["OUTPUTS", "DensityGraph", "PosteriorGraph"]

OUTPUTS: tuple[str, ...] = (
    "sample_joints",
    "sample_keypoints",
    "sample_log_density",
    "sample_rotations",
    "sample_betas",
    "sample_translation",
    "mode_index",
    "mode_weight",
    "mode_log_density",
    "mode_rotations",
    "mode_betas",
    "mode_translation",
    "mode_joints",
    "mode_keypoints",
    "mean",
    "covariance",
)
"""Outputs of ``model.onnx``, in order."""

COVARIANCE_FLOOR = 1e-6
"""Square metres added to the diagonal of a covariance, so that it can always be inverted."""


class PosteriorGraph(nn.Module):
    """All of ``model.onnx``: samples, their modes, mean and covariance.

    The modes of a ``JointPosterior`` are the first of its learned hypotheses, in their order, in which the first
    ones, for any number, are good modes on their own. Of other flows they are n-quantised samples, heaviest first, and
    ``mode_index`` is the sample's.
    """

    def __init__(self, model: FlowPosterior, modes: int) -> None:
        super().__init__()
        self.model, self.modes = model, modes
        self.kinematics = model.body.kinematics
        self.columns = type(model.flow) is ConditionalFlow  # others have transforms of their own
        self.learned = isinstance(model, JointPosterior)
        if self.learned and modes > model.config.hypotheses:
            raise ValueError(
                f"the model has {model.config.hypotheses} hypotheses: it cannot give {modes} modes, export fewer"
            )
        self.quantiser = model.quantiser.leading(modes) if self.learned else Quantizer(modes)
        self.register_buffer("numbers", torch.arange(modes)[None], persistent=False)

    def forward(self, keypoints: Tensor, box: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
        """(B, 23, 3), (B, 3), (B, N, D) -> the tensors of ``OUTPUTS``."""
        model = self.model
        condition = model.condition(keypoints, box)
        if self.learned:  # the mode, the other hypotheses, the draws
            latents = torch.cat((self.quantiser(condition.code, self.modes), latents[:, 1:]), dim=1)
        shape, camera = model.guesses(condition)
        betas = shape.mean.T[..., None]  # (10, B, 1)
        drawn = model.shape_latents(latents)
        if drawn is not None:
            betas = betas + torch.exp(shape.log_sigma).T[..., None] * drawn.permute(2, 0, 1)
        pose6d, log_density = self.poses(latents, condition)
        rotations = self.kinematics.rotations(pose6d)
        joints, surface = self.kinematics(rotations, betas)

        if model.config.refine_translation:
            relative = surface.permute(2, 3, 0, 1)
            pelvis = model.translation_fit(relative, keypoints, box, camera, model.translation_latents(latents))
        else:
            pelvis = camera.pelvis(box)[:, None] + torch.zeros_like(latents[..., :3])
        shift = pelvis.permute(2, 0, 1)  # (3, B, N)
        points = joints.permute(2, 3, 0, 1).flatten(2)  # (B, N, 72)
        joints, surface = joints + shift, surface + shift
        betas = betas.permute(1, 2, 0).expand(latents.shape[:2] + (model.config.num_betas,))
        values = {
            "joints": joints.permute(2, 3, 0, 1),
            "keypoints": surface.permute(2, 3, 0, 1),
            "log_density": log_density,
            "rotations": rotations.permute(3, 4, 0, 1, 2),
            "betas": betas,
            "translation": pelvis - model.rest_pelvis(betas),
        }
        modes: dict[str, Tensor] = {}
        if self.learned:
            modes = {name: value[:, : self.modes] for name, value in values.items()}
            values = {name: torch.cat((value[:, :1], value[:, self.modes :]), 1) for name, value in values.items()}
            modes["weight"] = shares(points[:, : self.modes], points[:, self.modes :])
            modes["index"] = self.numbers.expand(latents.shape[0], self.modes)
            joints = values["joints"].permute(2, 3, 0, 1)
        # Draws of the posterior weigh the same: a cluster's share of them is its probability.
        equal = torch.ones_like(values["log_density"])
        equal = equal / equal.sum(-1, keepdim=True)
        if not self.learned:
            modes["index"], modes["weight"], choice = self.quantiser(points, equal)
            for name, value in values.items():
                rows = value[..., None] if value.ndim == 2 else value.flatten(2)
                modes[name] = (choice @ rows).reshape(choice.shape[:2] + value.shape[2:])
        outputs = {"sample_" + name: value for name, value in values.items()}
        outputs |= {"mode_" + name: value for name, value in modes.items()}
        outputs["mean"], outputs["covariance"] = self.moments(joints, equal)
        return tuple(outputs[name] for name in OUTPUTS)

    def poses(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """``FlowPosterior.sample`` of latents (B, N, D): poses in 6D (144, B, N), and their log-density (B, N)."""
        if not self.columns:
            pose6d, log_density = self.model.sample(latents, condition)
            return pose6d.permute(2, 0, 1), log_density
        pose6d, log_density = sample_columns(self.model.flow, latents[..., :POSE_SIZE].permute(2, 0, 1), condition.code)
        back = condition.turn.permute(2, 1, 0)[..., None]  # (3, 3, B, 1), transposed
        root = (back * pose6d[:6].unflatten(0, (2, 1, 3))).sum(2).flatten(0, 1)
        return torch.cat((root, pose6d[6:])), log_density

    @staticmethod
    def moments(joints: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean (B, 24, 3) and covariance (B, 24, 3, 3) of each joint of samples (24, 3, B, N) with weights (B, N).

        .. math:: \mu = \sum_i w_i x_i, \quad
            \Sigma = \frac{\sum_i w_i (x_i - \mu)(x_i - \mu)^T}{1 - \sum_i w_i^2} + \epsilon I

        The divisor makes it unbiased (for equal weights it is the usual N - 1).
        """
        mean = (joints * weights).sum(-1)
        centred = joints - mean[..., None]
        scale = weights / (1 - (weights * weights).sum(-1, keepdim=True)).clamp_min(1e-6)
        covariance = ((centred * scale)[:, :, None] * centred[:, None]).sum(-1)
        eye = COVARIANCE_FLOOR * torch.eye(3, dtype=joints.dtype, device=joints.device)
        return mean.permute(2, 0, 1), covariance.permute(3, 0, 1, 2) + eye


class DensityGraph(nn.Module):
    """All of ``density.onnx``: the log-density of given poses."""

    def __init__(self, model: FlowPosterior) -> None:
        super().__init__()
        self.model = model

    def forward(self, keypoints: Tensor, box: Tensor, pose: Tensor) -> tuple[Tensor]:
        """(B, 23, 3), (B, 3), (B, P, 144) -> (B, P)."""
        return (self.model.log_prob(pose, self.model.condition(keypoints, box)),)
