"""Weights of all losses; which method uses which is told in ``training/configs``."""

from __future__ import annotations

__all__ = ["LossConfig"]

from dataclasses import dataclass

_NO_WEIGHTS = ("noise", "samples", "distribution_samples", "sampled", "mmd_unbiased", "best_of_m_squared")


@dataclass(frozen=True)
class LossConfig:
    """Weights, 0 for off. Every loss is summed over joints and coordinates and averaged over batch and samples.

    Attributes:
        likelihood: negative log-likelihood of the true pose (or of the true 3D joints, for lifting), nats.
        noise: deviation of the Gaussian noise added to the true 6D pose, which has no density without it: rotations
            fill only 72 of its 144 dimensions.
        samples: samples of each example that the sample losses see, the mode included.
        distribution_samples: draws that ``mmd`` and ``mask`` see of examples with heatmaps, without the mode.
        sampled: examples of each batch that the sample losses see, 0 for all; samples cost most of a step.
        mode_joints: L1 of the single answer's joints relative to the pelvis, metres.
        mode_keypoints: L1 of its projected keypoints, crop units; ``sample_keypoints``: of the other samples.
        sample_joints: distance of the whole pose for the best of the samples, metres, as ``best_of_m`` for heads.
        rotations: squared differences of the single answer's rotation matrices; ``betas``: of its betas.
        betas_nll, camera, translation: likelihoods of shape head, camera head and translation fit.
        place: where the single answer stands, in parts of its distance; its pose and shape do not learn from it.
        orthonormality: of the 6D columns of samples.
        adversarial: least-squares GAN on rotations and betas of the samples.
        mmd: projected samples against heatmap samples; ``mmd_unbiased`` leaves the diagonal out.
        mask: samples of invisible joints outside the person's mask are pulled in.
        best_of_m: joints of the best of M heads, as the norm of the whole pose or, with ``best_of_m_squared``, the mean
            of its squares; ``reprojection``: keypoints of all heads; ``best_rotations``, ``best_betas``,
            ``best_vertices``, ``best_keypoints``: further losses of the best head.
        latents: half the squared latents of learned hypotheses: of those that fit equally well the densest is wanted,
            and what joints do not show, as girth, stays as it probably is.
        kl: of a variational encoder against the standard normal.
    """

    likelihood: float = 0.0
    noise: float = 0.01
    samples: int = 2
    distribution_samples: int = 25
    sampled: int = 96
    mode_joints: float = 0.0
    mode_keypoints: float = 0.0
    sample_keypoints: float = 0.0
    sample_joints: float = 0.0
    rotations: float = 0.0
    betas: float = 0.0
    betas_nll: float = 0.0
    camera: float = 0.0
    translation: float = 0.0
    place: float = 0.0
    orthonormality: float = 0.0
    adversarial: float = 0.0
    mmd: float = 0.0
    mmd_unbiased: bool = False
    mask: float = 0.0
    best_of_m: float = 0.0
    best_of_m_squared: bool = False
    reprojection: float = 0.0
    best_rotations: float = 0.0
    best_betas: float = 0.0
    best_vertices: float = 0.0
    best_keypoints: float = 0.0
    latents: float = 0.0
    kl: float = 0.0

    @property
    def on(self) -> list[str]:
        """Names of the losses whose weight is above 0."""
        return [name for name, value in vars(self).items() if name not in _NO_WEIGHTS and value > 0]

    def samples_for(self, heatmaps: bool) -> int:
        """Samples of an example, the mode included, by whether it has heatmaps."""
        return max(self.samples, 1 + self.distribution_samples if heatmaps and (self.mmd or self.mask) else 0)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"losses.samples must be at least 1, not {self.samples}")
        negative = [name for name, value in vars(self).items() if value < 0]
        if negative:
            raise ValueError(f"losses.{negative[0]} must not be negative: 0 switches a loss off")
