r"""The default method: a conditional normalising flow over the whole pose (after ProHMR and Wehrbein et al.).

keypoints, box -> condition -> flow over 24 rotations in 6D -> shape, camera, kinematics -> samples in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...skeleton import NUM_JOINTS
from ..flow import ConditionalFlow
from ..rotations import rotation6d_to_matrix
from .encoder import CameraGuess, Condition, Encoder, PersonHeads, ShapeGuess, TranslationFit, turn_root

__all__ = ["POSE_SIZE", "FlowConfig", "FlowPosterior", "rest_pelvis"]

POSE_SIZE = 6 * NUM_JOINTS


def rest_pelvis(body: nn.Module, num_betas: int = 10) -> tuple[Tensor, Tensor]:
    """Rest pelvis as an affine map of the betas: offset (3,), slope (10, 3)."""
    with torch.no_grad():
        betas = torch.cat((torch.zeros(1, num_betas), torch.eye(num_betas)))
        rotations = torch.eye(3).expand(num_betas + 1, NUM_JOINTS, 3, 3)
        joints, _ = body(rotations, betas, torch.zeros(num_betas + 1, 3))
    pelvis = joints[:, 0]
    return pelvis[0].clone(), pelvis[1:] - pelvis[0]


@dataclass(frozen=True)
class FlowConfig:
    """Everything that shapes a :class:`FlowPosterior`.

    Attributes:
        hidden: width of the coupling networks.
        couplings: number of affine couplings.
        condition: width of the condition.
        encoder_width, encoder_depth: the residual MLP that makes the condition.
        head_hidden: width of the shape and camera heads.
        alpha: bound of the couplings' soft clamp.
        dropout: of the encoder; ``flow_dropout``: of the couplings.
        refine_translation: fit each sample's translation to the keypoints (else all take the head's).
        sample_shape: draw the betas too, from the head's Gaussian, with 10 more latents.
        sample_translation: draw the translation from the fit's Gaussian, with 3 more latents. With both, pose, shape
            and translation form one joint posterior: a small person near is a tall person far.
        seed: of the permutations.
    """

    hidden: int = 512
    couplings: int = 8
    condition: int = 256
    encoder_width: int = 512
    encoder_depth: int = 2
    head_hidden: int = 256
    alpha: float = 2.0
    dropout: float = 0.0
    flow_dropout: float = 0.0
    refine_translation: bool = True
    sample_shape: bool = False
    sample_translation: bool = False
    num_betas: int = 10
    seed: int = 0

    @property
    def latent_size(self) -> int:
        return POSE_SIZE + self.num_betas * self.sample_shape + 3 * self.sample_translation


class FlowPosterior(nn.Module):
    """p(pose, shape, translation | keypoints, box) as a flow.

    Args:
        config: sizes and options.
        body: a ``TorchBody``; it is used by :meth:`forward` and for the rest pelvis, and is not saved with the
            weights.
    """

    name = "flow"

    def __init__(self, config: FlowConfig, body: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.condition, config.encoder_width, config.encoder_depth, config.dropout)
        self.person = PersonHeads(config.condition, config.head_hidden, config.num_betas)
        self.flow = ConditionalFlow(
            POSE_SIZE,
            config.condition,
            config.hidden,
            config.couplings,
            config.alpha,
            config.flow_dropout,
            config.seed,
        )
        self.translation_fit = TranslationFit()
        self.body = body
        offset, slope = rest_pelvis(body, config.num_betas)
        self.register_buffer("pelvis_offset", offset, persistent=False)
        self.register_buffer("pelvis_slope", slope, persistent=False)

    @property
    def latent_size(self) -> int:
        """D, the numbers of one latent."""
        return self.config.latent_size

    def fit_statistics(self, pose6d: Tensor) -> None:
        """Measures the flow's data normalisation on training poses (T, 144)."""
        self.flow.standardise.fit(pose6d)

    def condition(self, keypoints: Tensor, box: Tensor) -> Condition:
        """What keypoints (B, 23, 3) in boxes (B, 3) tell; every other method takes it."""
        return self.encoder(keypoints, box)

    def log_prob(self, pose6d: Tensor, condition: Condition) -> Tensor:
        """Log-density (B, P) of poses in 6D, (B, P, 144)."""
        return self.flow.log_prob(turn_root(pose6d, condition.turn), condition.code)

    def sample(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Poses in 6D (B, N, 144), not yet orthonormal, and their log-density (B, N), of latents (B, N, D)."""
        pose6d, log_density = self.flow.sample(latents[..., :POSE_SIZE], condition.code)
        return turn_root(pose6d, condition.turn.transpose(-1, -2)), log_density

    def guesses(self, condition: Condition) -> tuple[ShapeGuess, CameraGuess]:
        """Shape and camera with their deviations; their ``nll`` methods train the heads."""
        return self.person(condition.code)

    def heads(self, condition: Condition, box: Tensor) -> tuple[Tensor, Tensor]:
        """Betas (B, 10) and SMPL translation (B, 3), metres, from the condition alone."""
        shape, camera = self.person(condition.code)
        return shape.mean, camera.pelvis(box) - self.rest_pelvis(shape.mean)

    def rest_pelvis(self, betas: Tensor) -> Tensor:
        """Pelvis of the rest pose (..., 3) for betas (..., 10)."""
        return self.pelvis_offset + betas @ self.pelvis_slope

    def shape_latents(self, latents: Tensor) -> Tensor | None:
        """The part (B, N, 10) of latents (B, N, D) that draws the betas."""
        return latents[..., POSE_SIZE : POSE_SIZE + self.config.num_betas] if self.config.sample_shape else None

    def translation_latents(self, latents: Tensor) -> Tensor | None:
        """The part (B, N, 3) of latents (B, N, D) that draws the translation."""
        return latents[..., -3:] if self.config.sample_translation else None

    def place(
        self,
        rotations: Tensor,
        betas: Tensor,
        camera: CameraGuess,
        keypoints: Tensor,
        box: Tensor,
        latents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Translation (B, N, 3), joints (B, N, 24, 3) and keypoints (B, N, 23, 3) in the optical frame, of rotations
        (B, N, 24, 3, 3) with betas (B, N, 10); ``latents`` as :class:`TranslationFit` takes them."""
        joints, surface = self.body(rotations, betas, torch.zeros_like(betas[..., :3]))
        rest = self.rest_pelvis(betas)
        if self.config.refine_translation:
            pelvis = self.translation_fit(surface - rest[..., None, :], keypoints, box, camera, latents)
        else:
            pelvis = camera.pelvis(box)[:, None].expand(joints[:, :, 0].shape)
        translation = pelvis - rest
        return translation, joints + translation[..., None, :], surface + translation[..., None, :]

    def forward(self, keypoints: Tensor, box: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Samples of whole bodies.

        Args:
            keypoints: crop keypoints in [-1, 1] and confidence, (B, 23, 3).
            box: (cx, cy, size)/focal, (B, 3).
            latents: standard normal, (B, N, D); a row of zeros gives about the densest pose.

        Returns:
            ``sample_joints`` (B, N, 24, 3), ``sample_keypoints`` (B, N, 23, 3), ``sample_log_density`` (B, N),
            ``sample_rotations`` (B, N, 24, 3, 3), ``sample_betas`` (B, N, 10), ``sample_translation`` (B, N, 3),
            and ``sample_pose6d`` (B, N, 144), which losses use and the exported graph leaves out.
        """
        condition = self.condition(keypoints, box)
        pose6d, log_density = self.sample(latents, condition)
        return {"sample_log_density": log_density, **self.bodies(pose6d, latents, condition, keypoints, box)}

    def bodies(
        self, pose6d: Tensor, latents: Tensor, condition: Condition, keypoints: Tensor, box: Tensor
    ) -> dict[str, Tensor]:
        """What :meth:`forward` gives, but for the log-density, of poses (B, N, 144) drawn with these latents."""
        rotations = rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))
        shape, camera = self.person(condition.code)
        betas = shape.mean[:, None].expand(pose6d.shape[:2] + (self.config.num_betas,))
        drawn = self.shape_latents(latents)
        if drawn is not None:
            betas = betas + torch.exp(shape.log_sigma)[:, None] * drawn
        drawn = self.translation_latents(latents)
        translation, joints, surface = self.place(rotations, betas, camera, keypoints, box, drawn)
        return {
            "sample_joints": joints,
            "sample_keypoints": surface,
            "sample_rotations": rotations,
            "sample_betas": betas,
            "sample_translation": translation,
            "sample_pose6d": pose6d,
        }
