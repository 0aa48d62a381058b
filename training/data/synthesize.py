"""Training examples from poses: body, camera, occlusion, detector noise, and what the model sees of them."""

from __future__ import annotations

__all__ = ["SynthesisConfig", "Synthesizer"]

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hmr_prob_ros.skeleton import KEYPOINT_NAMES

from ..body import TorchBody
from ..rotations import axis_angle_to_matrix, matrix_to_rotation6d
from .examples import Examples, batch_condition
from .noise import HIDDEN_BY_SELF, OUTSIDE, VISIBLE, DetectorNoise, person_scale
from .views import CameraRange, Views, look, occlude, self_occlusion

_FEET = [k for k, name in enumerate(KEYPOINT_NAMES) if name.endswith(("toe", "heel"))]


@dataclass(frozen=True)
class SynthesisConfig:
    """How examples are made. Shares are of all examples."""

    cameras: CameraRange = field(default_factory=CameraRange)
    biggs: float = 0.25
    truncation: float = 0.2
    objects: float = 0.25
    clean: float = 0.1
    """Share of examples with the true keypoints (a perfect detector)."""
    no_feet: float = 0.3
    """Share of examples from detectors without the six feet points."""
    betas_sd: float = 1.0
    min_depth: float = 0.3
    """Bodies with a joint nearer to the camera's plane than this, in metres, are drawn again."""
    min_seen: int = 4
    """Fewest keypoints above the crop's confidence."""


class Synthesizer:
    """Makes examples from poses.

    Args:
        body: the body, in torch.
        noises: what each detector does to true keypoints; one of them sees each example. Without any, points are true.
        config: shares and limits.
        seed: of all randomness.
    """

    def __init__(
        self,
        body: TorchBody,
        noises: Sequence[DetectorNoise] = (),
        config: SynthesisConfig | None = None,
        seed: int = 0,
    ):
        self.body, self.noises, self.config = body, tuple(noises), config or SynthesisConfig()
        self.generator = torch.Generator().manual_seed(seed)
        self.numpy = np.random.default_rng(seed)

    def __call__(self, poses: np.ndarray | Tensor, occlusion: str = "mixed") -> Examples:
        """Examples from poses; those without a usable picture are left out, so fewer may come back.

        Args:
            poses: (B, 24, 3) axis-angle relative to the parent, the root's from body to world (y up).
            occlusion: ``mixed`` as in training, or ``none``, ``biggs``, ``truncation``, ``objects`` for all.
        """
        with torch.no_grad():
            return self._make(torch.as_tensor(poses, dtype=torch.float32), occlusion)

    def _make(self, poses: Tensor, occlusion: str) -> Examples:
        config, generator, count = self.config, self.generator, len(poses)
        rotations = axis_angle_to_matrix(poses)
        yaw = 2 * torch.pi * torch.rand(count, generator=generator)
        turn = axis_angle_to_matrix(torch.stack((torch.zeros(count), yaw, torch.zeros(count)), dim=1))
        root = turn @ rotations[:, 0]
        betas = (config.betas_sd * torch.randn(count, 10, generator=generator)).clamp(-3, 3)

        zero = torch.zeros(count, 3)
        world = torch.cat((root[:, None], rotations[:, 1:]), dim=1)
        joints, keypoints = self.body(world, betas, zero)
        lowest = torch.minimum(keypoints[..., 1].amin(dim=1), joints[..., 1].amin(dim=1) - 0.03)
        views = look(joints, lowest, generator, config.cameras)

        rotations = torch.cat(((views.rotation @ root)[:, None], rotations[:, 1:]), dim=1)
        # SMPL turns the body about the rest pelvis, which the translation must follow into the optical frame.
        pelvis = joints[:, 0]
        translation = (views.rotation @ pelvis[..., None])[..., 0] + views.offset - pelvis
        joints, keypoints = views.place(joints), views.place(keypoints)
        pixels = views.project(keypoints)

        state, removed = self._states(joints, keypoints, pixels, views, occlusion)
        detected = self._detect(pixels, views, state, removed)
        seen, box, sure = batch_condition(detected, views.intrinsics, views.size)
        examples = Examples(
            seen,
            box,
            matrix_to_rotation6d(rotations).flatten(1),
            rotations,
            betas,
            translation,
            joints,
            keypoints,
            state,
            detected,
            views.intrinsics,
            views.size,
            torch.arange(count),
        )
        usable = (joints[..., 2].amin(dim=1) > config.min_depth) & (sure >= config.min_seen)
        usable &= (state != OUTSIDE).sum(dim=1) >= config.min_seen
        return examples[usable]

    def _states(
        self, joints: Tensor, keypoints: Tensor, pixels: Tensor, views: Views, occlusion: str
    ) -> tuple[Tensor, Tensor]:
        """Keypoint states (B, 23) and the keypoints that the protocol cuts off."""
        config, generator = self.config, self.generator
        state = torch.where(self_occlusion(joints, keypoints), HIDDEN_BY_SELF, VISIBLE)
        inside = ((pixels >= 0) & (pixels < views.size[:, None])).all(dim=-1) & (keypoints[..., 2] > 0.1)
        state = torch.where(inside, state, OUTSIDE)
        removed = torch.zeros_like(inside)
        if occlusion == "none":
            return state, removed
        draw = torch.rand(len(pixels), generator=generator)
        start = 0.0
        for kind in ("biggs", "truncation", "objects"):
            share = getattr(config, kind) if occlusion == "mixed" else float(kind == occlusion)
            chosen = ((draw >= start) & (draw < start + share))[:, None]
            start += share
            hidden, cut = occlude(pixels, state, kind, generator)
            state, removed = torch.where(chosen, hidden, state), removed | (chosen & cut)
        return state, removed

    def _detect(self, pixels: Tensor, views: Views, state: Tensor, removed: Tensor) -> Tensor:
        """(B, 23, 3) what a detector reports."""
        count, generator = len(pixels), self.generator
        detected = torch.cat((pixels, (state == VISIBLE).float()[..., None]), dim=-1)
        if self.noises:
            clean = torch.rand(count, generator=generator) < self.config.clean
            seen_by = torch.randint(len(self.noises), (count,), generator=generator).masked_fill(clean, -1)
            for detector, noise in enumerate(self.noises):
                rows = (seen_by == detector).nonzero(as_tuple=True)[0]
                true, size = pixels[rows].numpy(), views.size[rows].numpy()
                noisy = noise.sample(true, person_scale(true, size), state[rows].numpy(), size, self.numpy)
                detected[rows] = torch.as_tensor(noisy, dtype=torch.float32)
        no_feet = torch.rand(count, generator=generator) < self.config.no_feet
        feet = torch.zeros(len(KEYPOINT_NAMES), dtype=torch.bool)
        feet[_FEET] = True
        confidence = detected[..., 2].masked_fill(removed | (no_feet[:, None] & feet), 0.0)
        return torch.cat((detected[..., :2], confidence[..., None]), dim=-1)
