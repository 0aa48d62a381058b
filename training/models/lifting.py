"""The 2D lifting variant of ProHMR (Kolotouros et al. 2021, supplement 2 and 3): 17 points of a picture -> 17 joints.

The residual MLP of Martinez et al. ("A simple yet effective baseline for 3D human pose estimation", ICCV 2017) makes
the condition, and the additive flow of :mod:`.prohmr` is a density over the 48 coordinates of Human3.6M's joints
relative to their pelvis. There is no body, shape or place in it: it draws joints and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmr_prob_ros.joint_sets import H36M_NAMES, joint_set
from hmr_prob_ros.skeleton import NUM_JOINTS, NUM_KEYPOINTS

from .. import losses as L
from ..data.examples import Examples
from ..loss_config import LossConfig
from ..rotations import rotation6d_to_matrix
from .base import LiftingModel
from .encoder import Condition, face_crop
from .prohmr import Glow, PointNorm, ProHMRConfig

__all__ = ["Lifting", "LiftingConfig", "Martinez", "joint_map"]

POINTS = 17
"""Keypoints that it sees: COCO's, the first of the 23."""
JOINTS = len(H36M_NAMES)
SIZE = 3 * (JOINTS - 1)
"""Numbers of a pose: the pelvis, which is zero, has none."""


def joint_map() -> Tensor:
    """Human3.6M's joints as a linear map (17, 47) of 24 joints and 23 keypoints."""
    matrix = torch.zeros(JOINTS, NUM_JOINTS + NUM_KEYPOINTS)
    for row, parts in enumerate(joint_set("h36m").rows):
        for column, weight in parts:
            matrix[row, column] = weight
    return matrix


class Martinez(nn.Module):
    """Residual MLP with batch normalisation, (B, ``inputs``) -> (B, ``width``)."""

    def __init__(self, inputs: int, width: int = 1024, depth: int = 2, dropout: float = 0.5) -> None:
        super().__init__()

        def layer(size: int) -> list[nn.Module]:
            return [nn.Linear(size, width), PointNorm(width), nn.ReLU(), nn.Dropout(dropout)]

        self.enter = nn.Sequential(*layer(inputs))
        self.blocks = nn.ModuleList(nn.Sequential(*layer(width), *layer(width)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return x


@dataclass(frozen=True)
class LiftingConfig(ProHMRConfig):
    """Everything that shapes a :class:`Lifting`; the defaults are the published ones.

    Attributes:
        condition, encoder_depth, dropout: width, blocks and dropout of the Martinez network.
        use_box: turn the camera to the crop first, so that a person looks the same wherever in the picture.
        hidden, couplings, blocks, flow_dropout, batch_norm: of the flow.
    """

    condition: int = 1024
    encoder_depth: int = 2
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("image", "sample_shape", "sample_translation") if getattr(self, name)]
        if given or not self.use_keypoints:
            raise ValueError(
                f"model.{given[0] if given else 'use_keypoints'}: lifting goes from 17 keypoints to 17 joints, without "
                "picture, shape or place; leave it at its default or set model=prohmr"
            )


class Lifting(LiftingModel):
    """p(17 joints | 17 keypoints).

    Of the interface it has what joints can have: ``forward`` gives ``sample_joints17`` (B, N, 17, 3), metres relative
    to the pelvis in the camera's axes, in the order of ``H36M_NAMES``, ``sample_weight`` and ``sample_log_density``.
    """

    name = "lifting"
    config_class = LiftingConfig

    def __init__(self, config: LiftingConfig, body: nn.Module) -> None:
        nn.Module.__init__(self)  # and not the interface's: no heads, no kinematics
        self.adversary = None
        self.config = config
        self.body = body  # only to make joints of the poses that `fit_statistics` is given
        self.encoder = Martinez(2 * POINTS, config.condition, config.encoder_depth, config.dropout)
        self.flow = Glow(
            SIZE,
            config.condition,
            config.hidden,
            config.couplings,
            config.blocks,
            config.flow_dropout,
            config.batch_norm,
        )
        self.register_buffer("joint_map", joint_map(), persistent=False)

    @property
    def latent_size(self) -> int:
        return SIZE

    def joints17(self, joints: Tensor, keypoints3d: Tensor) -> Tensor:
        """Human3.6M's joints (..., 17, 3) less their pelvis, of joints (..., 24, 3) and keypoints (..., 23, 3)."""
        points = torch.cat((joints, keypoints3d), dim=-2)
        # A sum of products: autocast would round a matrix product to bfloat16.
        mapped = (self.joint_map[..., None] * points[..., None, :, :]).sum(-2)
        return mapped - mapped[..., :1, :]

    def fit_statistics(self, pose6d: Tensor) -> None:
        """Starts the flow's ActNorms on training poses (T, 144), at the body's mean shape."""
        rotations = rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))
        none = pose6d.new_zeros(len(pose6d), self.config.num_betas)
        joints = self.joints17(*self.body(rotations, none, none[:, :3]))
        self.flow.fit(joints[:, 1:].flatten(1))

    def condition(self, keypoints: Tensor, box: Tensor, image: Tensor | None = None) -> Condition:
        """What the first 17 of keypoints (B, 23, 3) tell; unseen ones are zero. There is no picture in it."""
        if self.config.use_box:
            keypoints, turn = face_crop(keypoints, box)
        else:
            turn = torch.eye(3, dtype=box.dtype, device=box.device).expand(len(box), 3, 3)
        return Condition(self.encoder(keypoints[:, :POINTS, :2].flatten(1)), turn)

    def log_prob(self, joints17: Tensor, condition: Condition) -> Tensor:
        """Log-density (B, P), nats per volume in metres, of joints (B, P, 17, 3) relative to their pelvis."""
        turned = _turned(joints17[..., 1:, :], condition.turn)
        return self.flow.log_prob(turned.flatten(-2), condition.code)

    def sample(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Joints (B, N, 17, 3) relative to their pelvis and their log-density (B, N), of latents (B, N, 48)."""
        numbers, log_density = self.flow.sample(latents, condition.code)
        joints = _turned(numbers.unflatten(-1, (JOINTS - 1, 3)), condition.turn.transpose(-1, -2))
        return torch.cat((torch.zeros_like(joints[..., :1, :]), joints), dim=-2), log_density

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        joints, log_density = self.sample(latents, self.condition(keypoints, box))
        return {
            "sample_joints17": joints,
            "sample_log_density": log_density,
            "sample_weight": torch.full_like(log_density, 1 / latents.shape[1]),
        }

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        """``likelihood`` of the true joints with ``noise`` in metres added, and ``mode_joints``, their L1 distance."""
        true = self.joints17(examples.joints, examples.keypoints3d)
        known = self.known(examples)
        noisy = true + config.noise * torch.randn_like(true)
        with self.networks():
            condition = self.condition(examples.keypoints, examples.box)
            log_prob = self.log_prob(noisy[:, None], condition)[:, 0]
            mode, _ = self.sample(true.new_zeros(len(true), 1, SIZE), condition)
        terms = {}
        if config.likelihood:
            terms["likelihood"] = -config.likelihood * (known * log_prob).mean()
        if config.mode_joints:
            terms["mode_joints"] = config.mode_joints * L.joints_l1(mode, true, known)
        return terms

    @staticmethod
    def known(examples: Examples) -> Tensor:
        """1 (B,) where all 17 joints are known: the 24 joints, and the pose, which the head's keypoints follow from."""
        known = torch.ones_like(examples.box[:, 0])
        if examples.has_joints is not None:
            known = known * examples.has_joints.all(-1).to(known)
        return known if examples.has_pose is None else known * examples.has_pose.to(known)


def _turned(joints: Tensor, turn: Tensor) -> Tensor:
    """Joints (B, N, J, 3) turned by (B, 3, 3); sums of products, which autocast leaves in float32."""
    return (joints[..., None, :] * turn[:, None, None]).sum(-1)
