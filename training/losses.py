r"""Losses of the three papers: pure functions of estimates and truth, without weights of their own.

Papers: *B* Biggs et al. 2020, "3D Multi-bodies"; *K* Kolotouros et al. 2021, "ProHMR"; *W* Wehrbein et al. 2025,
"Utilizing uncertainty in 2D pose detectors". Unless a docstring says otherwise a loss is **summed** over joints and
coordinates and **averaged** over the B examples and S samples (or M heads), as the code of *K* does, so that its
published weights hold as they are. *B*'s code averages over joints and coordinates too: divide its weights by their
number (216 for rotations, 10 for betas, 3 V for vertices, 2 K for keypoints).

``weight`` says what is known: 0 leaves an example or a joint out, the divisor stays B S. All weights zero give
exactly 0 with gradient 0. Half-precision inputs are raised to float32. Lengths are metres, rotations matrices, and
image points lie in crop coordinates: [-1, 1] across the square crop, x right, y down.
"""

from __future__ import annotations

__all__ = [
    "ARTICULATED",
    "best_of_m",
    "betas_l2",
    "discriminator_loss",
    "generator_loss",
    "inside_crop",
    "inside_mask",
    "invisible_keypoints",
    "joints_l1",
    "keypoints_l1",
    "keypoints_l2",
    "kl_standard_normal",
    "mask_loss",
    "mmd",
    "mmd_target",
    "orthonormality",
    "place_l1",
    "project_to_crop",
    "rotations_l2",
    "vertices_l1",
]

import torch
from torch import Tensor

from .losses_image import (
    ARTICULATED,
    at_least_float32,
    inside_crop,
    inside_mask,
    invisible_keypoints,
    mask_loss,
    mmd,
    mmd_target,
)


def _difference(estimate: Tensor, true: Tensor) -> Tensor:
    """``estimate`` (B, S, ...) minus ``true`` (B, ...) of each example.

    Raises:
        ValueError: the shapes do not fit; broadcasting would hide a forgotten sample axis.
    """
    if estimate.shape[:1] + estimate.shape[2:] != true.shape:
        raise ValueError(
            f"estimates {tuple(estimate.shape)} do not fit the truth {tuple(true.shape)}: they need one more axis, "
            "the samples, in second place; use estimate[:, None] for a single one"
        )
    return at_least_float32(estimate) - at_least_float32(true)[:, None]


def _weighted(error: Tensor, weight: Tensor | None) -> Tensor:
    """Errors (B, S) or (B, S, J) times weight (B,) or (B, J).

    Raises:
        ValueError: the weight is neither one of examples nor one of the joints at hand.
    """
    if weight is None:
        return error
    if weight.shape not in (error.shape[:1], error.shape[:1] + error.shape[2:]):
        raise ValueError(
            f"a weight {tuple(weight.shape)} does not fit errors {tuple(error.shape)}: it must be (B,), or (B, J) "
            "where the loss is a sum over joints"
        )
    weight = weight.to(error.dtype)[:, None]
    return error * weight.reshape(weight.shape + (1,) * (error.ndim - weight.ndim))


def _mean_of_samples(error: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of the weighted errors (B, S) or (B, S, J) over B S; 0 where there is no sample."""
    return _weighted(error, weight).sum() / max(error.shape[0] * error.shape[1], 1)


def project_to_crop(points: Tensor, box: Tensor, near: float = 0.1) -> Tensor:
    r"""Perspective projection into the crop,

    .. math:: u = \frac{2}{b} \left( \frac{(x, y)}{\max(z, z_{near})} - (c_x, c_y) \right),

    with CLIFF's box :math:`(c_x, c_y, b)` in ray units (*W*, equation 3; Li et al. 2022, equation 7).

    Args:
        points: (B, ..., K, 3) metres, optical frame.
        box: (B, 3).
        near: smallest depth in metres. Points nearer or behind are projected from there; their depth has no gradient.

    Returns:
        (B, ..., K, 2) crop coordinates.
    """
    points, box = at_least_float32(points), at_least_float32(box)
    box = box.reshape(box.shape[:1] + (1,) * (points.ndim - 2) + (3,))
    return (points[..., :2] / points[..., 2:].clamp_min(near) - box[..., :2]) / (box[..., 2:] / 2)


def joints_l1(joints: Tensor, true: Tensor, weight: Tensor | None = None, root: int | None = 0) -> Tensor:
    r"""L1 distance of 3D joints, both skeletons moved to the root (*K*, supplement 3: :math:`L_{mode,3D}`),

    .. math:: \frac{1}{BS} \sum_{b,s,j} w_{bj} \lVert (x_{bsj} - x_{bs0}) - (y_{bj} - y_{b0}) \rVert_1 .

    Args:
        joints: (B, S, J, 3) m.
        true: (B, J, 3) m. Its root joint must be known, or zero where the truth is relative to it already.
        weight: (B,) or (B, J), 0 for unknown ones.
        root: joint that both are moved to; None compares positions as they are.
    """
    error = _difference(joints, true)
    if root is not None:
        error = error - error[..., root : root + 1, :]
    return _mean_of_samples(error.abs().sum(-1), weight)


def keypoints_l1(points: Tensor, true: Tensor, weight: Tensor | None = None, clamp: float | None = None) -> Tensor:
    r"""Reprojection error of image points (*K*, supplement 3: :math:`L_{mode,2D}, L_{exp,2D}`; *W*, equation 6),

    .. math:: \frac{1}{BS} \sum_{b,s,k} w_{bk} \min( \lVert u_{bsk} - \hat u_{bk} \rVert_1, c ) .

    *K*'s image coordinates run from -0.5 to 0.5, so its 2D weights are halved here; *W*'s run from -1 to 1 as ours.

    Args:
        points: (B, S, K, 2) crop coordinates.
        true: (B, K, 2).
        weight: (B, K) or (B,): 1 or a confidence where the point is labelled, else 0.
        clamp: the most that a point counts; farther points have no gradient. None: no limit, as in the papers.
    """
    error = _difference(points, true).abs().sum(-1)
    return _mean_of_samples(error if clamp is None else error.clamp_max(clamp), weight)


def keypoints_l2(points: Tensor, true: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Squared reprojection error, as the code of *B* takes it for equations 5 and 7 (the paper writes a norm),

    .. math:: \frac{1}{BS} \sum_{b,s,k} w_{bk} \lVert u_{bsk} - \hat u_{bk} \rVert_2^2 .

    Args:
        points: (B, M, K, 2) crop coordinates, of all heads (equation 5) or of the best one (equation 7).
        true: (B, K, 2).
        weight: (B, K) or (B,), 0 for keypoints that are not visible.
    """
    return _mean_of_samples(_difference(points, true).square().sum(-1), weight)


def rotations_l2(rotations: Tensor, true: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Squared distance of rotation matrices (*K*, supplement 3: :math:`L_{mode,\theta}`; *B*, equation 6),

    .. math:: \frac{1}{BS} \sum_{b,s,j} w_b \lVert R_{bsj} - \hat R_{bj} \rVert_F^2
              = \frac{1}{BS} \sum_{b,s,j} w_b \, 4 (1 - \cos\angle(R_{bsj}, \hat R_{bj})) .

    Args:
        rotations: (B, S, 24, 3, 3), the root among them.
        true: (B, 24, 3, 3).
        weight: (B,) or (B, 24).
    """
    return _mean_of_samples(_difference(rotations, true).square().sum((-1, -2)), weight)


def betas_l2(betas: Tensor, true: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Squared distance of shape coefficients (*K*, supplement 3: :math:`L_{mode,\beta}`; *W*, equation 5),

    .. math:: \frac{1}{BS} \sum_{b,s} w_b \lVert \beta_{bs} - \hat\beta_b \rVert_2^2 .

    Args:
        betas: (B, S, 10).
        true: (B, 10).
        weight: (B,).
    """
    return _mean_of_samples(_difference(betas, true).square().sum(-1), weight)


def place_l1(pelvis: Tensor, true: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Distance of a body from its true place, relative to how far away it is (ours):

    .. math:: \frac{1}{BS} \sum_{b,s} w_b \frac{\lVert p_{bs} - \hat p_b \rVert_1}{\hat p_{b,z}} .

    Args:
        pelvis: (B, S, 3) m, camera frame.
        true: (B, 3) m, in front of the camera.
        weight: (B,).
    """
    return _mean_of_samples(_difference(pelvis, true).abs().sum(-1) / true[:, None, 2], weight)


def vertices_l1(vertices: Tensor, true: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""L1 distance of surfaces as they are given (*B*, equation 6: :math:`L_V`; its code takes L1, the paper a norm),

    .. math:: \frac{1}{BS} \sum_{b,s,v} w_b \lVert v_{bsv} - \hat v_{bv} \rVert_1 .

    Args:
        vertices: (B, S, V, 3) m, of the best head; without translation, as in *B*.
        true: (B, V, 3) m.
        weight: (B,).
    """
    return _mean_of_samples(_difference(vertices, true).abs().sum((-1, -2)), weight)


def orthonormality(pose6d: Tensor) -> Tensor:
    r"""**Mean** over all matrices and entries of how far 6D poses are from orthonormal columns (*K*, :math:`L_{orth}`),

    .. math:: \mathrm{mean} \, (A^\top A - I)^2, \quad A \in R^{3 \times 2} .

    Both published codes add this mean over the modes and the mean over the random samples.

    Args:
        pose6d: (..., 144), the two columns of each joint's matrix one after the other.
    """
    # Sums of products, not matmul, which autocast would round to eight bits.
    a, b = at_least_float32(pose6d).unflatten(-1, (-1, 2, 3)).unbind(-2)
    aa, ab, bb = (a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)
    return ((aa - 1).square() + 2 * ab.square() + (bb - 1).square()).mean() / 4


def generator_loss(scores: Tensor) -> Tensor:
    r"""Least-squares GAN, what the generator minimises (Mao et al. 2017, equation 9; *K*: :math:`L_{adv}`),

    .. math:: \frac{1}{B} \sum_{b,s,i} (D_i(x_{bs}) - 1)^2 .

    The sum runs over the samples too, as in *K*'s code; its weight 0.0005 belongs to that.

    Args:
        scores: (B, S, 25): 23 rotations, betas, all rotations.
    """
    return (at_least_float32(scores) - 1).square().sum() / max(scores.shape[0], 1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    r"""Least-squares GAN, what the discriminator minimises (Mao et al. 2017, equation 9),

    .. math:: \frac{1}{R} \sum_{r,i} (D_i(x_r) - 1)^2 + \frac{1}{BS} \sum_{b,s,i} D_i(\hat x_{bs})^2 .

    *K*'s code draws R = B S real poses and divides both sums by that.

    Args:
        real: (R, 25) scores of poses from motion capture.
        fake: (B, S, 25) scores of sampled poses, which must be detached before they are scored.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    count = max(fake.shape[:-1].numel(), 1)
    return (real - 1).square().sum() / max(real.shape[0], 1) + fake.square().sum() / count


def best_of_m(
    joints: Tensor,
    true: Tensor,
    root: int | None = 0,
    weight: Tensor | None = None,
    squared: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Best-of-M loss: only the hypothesis nearest to the truth is drawn to it (*B*, equation 1),

    .. math:: m^* = \arg\min_m \lVert X - \hat X^m \rVert, \qquad L = \lVert X - \hat X^{m^*} \rVert ,

    the norm of the whole pose of J x 3 numbers. *B*'s code takes the mean of the squares over all joints and
    coordinates (unknown ones count as zero), to which its weight 25 belongs: ``squared=True``. The choice of the head
    is the same.

    Args:
        joints: (B, M, J, 3) m.
        true: (B, J, 3) m; the root must be known, or zero where the truth is relative to it already.
        root: joint that both are moved to; None compares positions as they are.
        weight: (B,) or (B, J), 0 for unknown joints.
        squared: mean of squares (m^2) as the code instead of the norm (m) as the paper.

    Returns:
        (B,) loss of each example, not averaged; (B,) int64 index of its best head: 0 where nothing is known.
    """
    error = _difference(joints, true)
    if root is not None:
        error = error - error[..., root : root + 1, :]
    squares = _weighted(error.square().sum(-1), weight)
    index = squares.detach().sum(-1).argmin(dim=1)
    square = torch.take_along_dim(squares, index[:, None, None], dim=1)[:, 0].sum(-1)
    if squared:
        return square / (3 * true.shape[1]), index
    # The root of zero has no finite slope; zero is one of its subgradients.
    positive = square > 0
    root_of = torch.where(positive, square, torch.ones_like(square)).sqrt()
    return torch.where(positive, root_of, torch.zeros_like(square)), index


def kl_standard_normal(mean: Tensor, log_sigma: Tensor) -> Tensor:
    r"""Divergence from the standard normal (Kingma and Welling 2014, appendix B; *B*, appendix C: SMPL-CVAE),

    .. math:: \frac{1}{B} \sum_b KL = \frac{1}{2B} \sum_{b,i} ( \mu_{bi}^2 + \sigma_{bi}^2 - 1 - 2 \ln \sigma_{bi} ) .

    Args:
        mean: (B, Z) of diagonal Gaussians.
        log_sigma: (B, Z) logarithm of the standard deviations.
    """
    mean, twice = at_least_float32(mean), 2 * at_least_float32(log_sigma)
    # expm1: sigma^2 - 1 - 2 ln sigma loses all digits near sigma = 1 otherwise.
    return 0.5 * (mean.square() + torch.expm1(twice) - twice).sum() / max(mean.shape[0], 1)
