r"""Distances between estimated and true joints, for batches, in the unit of their inputs.

* **MPJPE**: mean distance of the joints after both skeletons were moved to the same root.
* **PA-MPJPE**: the same after the best similarity (scale, rotation, translation),
  :math:`\min_{s, R, t} \sum_j \lVert s R x_j + t - y_j \rVert^2`, in closed form (Umeyama 1991, equations 34 to 42).
* **PVE**: mean distance of the vertices after both meshes were moved to the same root.
* **best of n**: the smallest of n samples' errors.
* **spread**: mean distance of samples to their mean.
* **coverage**: share of true joints inside the ellipsoid that a covariance claims for a given probability.

A joint whose truth is unknown (NaN) is left out; an example without any known joint gives NaN. What is measured in
the picture is in :mod:`.metrics_image`.
"""

from __future__ import annotations

__all__ = [
    "CHI2_3",
    "align_root",
    "align_similarity",
    "best_of",
    "coverage",
    "mahalanobis",
    "mpjpe",
    "pa_mpjpe",
    "pve",
    "split_mean",
    "spread",
]

from collections.abc import Sequence

import numpy as np

CHI2_3: dict[float, float] = {0.5: 2.365973884375338, 0.9: 6.251388631170325}
"""Quantiles of the chi-squared distribution with three degrees of freedom, by probability."""


def _known(truth: np.ndarray) -> np.ndarray:
    """(..., J) bool: joints with three finite coordinates."""
    return np.isfinite(truth).all(axis=-1)


def _mean_over_known(distances: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean over the last axis where ``known``; NaN where nothing is."""
    count = known.sum(axis=-1)
    total = np.where(known, distances, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def align_root(points: np.ndarray, root: int = 0) -> np.ndarray:
    """Points (..., J, 3) relative to joint ``root``."""
    return points - points[..., root : root + 1, :]


def mpjpe(estimate: np.ndarray, truth: np.ndarray, root: int | None = 0) -> np.ndarray:
    """Mean per-joint position error.

    Args:
        estimate: (..., J, 3).
        truth: (..., J, 3), broadcast against ``estimate``; NaN marks unknown joints.
        root: joint that both are moved to, or None to compare positions as they are.

    Returns:
        (...) errors; NaN where the root or every joint is unknown.
    """
    estimate, truth = np.broadcast_arrays(np.asarray(estimate, np.float64), np.asarray(truth, np.float64))
    if root is not None:
        estimate, truth = align_root(estimate, root), align_root(truth, root)
    known = _known(truth)
    return _mean_over_known(np.linalg.norm(estimate - np.where(known[..., None], truth, 0.0), axis=-1), known)


def _fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Matrix (..., 3, 3), scale times rotation, that best moves centred x (..., J, 3) onto centred y; NaN for NaN."""
    product = np.swapaxes(y, -1, -2) @ x
    finite = np.isfinite(product).all(axis=(-1, -2))[..., None, None]
    u, singular, vt = np.linalg.svd(np.where(finite, product, np.eye(3)))
    sign = np.ones_like(singular)
    sign[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    variance = np.einsum("...ji,...ji->...", x, x)
    scale = np.where(variance > 0, (singular * sign).sum(axis=-1) / np.where(variance > 0, variance, 1.0), 1.0)
    moved: np.ndarray = np.where(finite, scale[..., None, None] * ((u * sign[..., None, :]) @ vt), np.nan)
    return moved


def align_similarity(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``estimate`` moved onto ``truth`` by the best scale, rotation (never a mirroring) and translation.

    Args:
        estimate: (..., J, 3).
        truth: (..., J, 3), broadcast against ``estimate``; NaN joints do not count, but are moved along.

    Returns:
        (..., J, 3). Examples with fewer than three known joints are only moved to the common centre.
    """
    estimate, truth = np.broadcast_arrays(np.asarray(estimate, np.float64), np.asarray(truth, np.float64))
    known = _known(truth)[..., None]
    count = np.maximum(known.sum(axis=-2, keepdims=True), 1)
    x, y = np.where(known, estimate, 0.0), np.where(known, truth, 0.0)
    x_mean, y_mean = x.sum(axis=-2, keepdims=True) / count, y.sum(axis=-2, keepdims=True) / count
    matrix = _fit(np.where(known, x - x_mean, 0.0), np.where(known, y - y_mean, 0.0))
    matrix = np.where((known.sum(axis=(-1, -2)) < 3)[..., None, None], np.eye(3), matrix)
    return (estimate - x_mean) @ np.swapaxes(matrix, -1, -2) + y_mean


def pa_mpjpe(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean per-joint position error after the best similarity; arguments and NaN as for :func:`mpjpe`."""
    estimate, truth = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    if estimate.shape[-2] < 3 or not np.isfinite(truth).all():
        return mpjpe(align_similarity(estimate, truth), truth, root=None)
    # All joints known, the usual case: the same sums without masks, three times as fast.
    with np.errstate(invalid="ignore"):  # infinity in a diverged estimate becomes NaN
        x = estimate - estimate.mean(axis=-2, keepdims=True)
        y = truth - truth.mean(axis=-2, keepdims=True)
        difference = x @ np.swapaxes(_fit(x, y), -1, -2) - y
    return np.asarray(np.linalg.norm(difference, axis=-1).mean(axis=-1))


def pve(
    estimate: np.ndarray,
    truth: np.ndarray,
    estimate_root: np.ndarray | float = 0.0,
    truth_root: np.ndarray | float = 0.0,
) -> np.ndarray:
    r"""Per-vertex error :math:`\frac1V \sum_v \lVert (x_v - x_r) - (y_v - y_r) \rVert` (Wehrbein et al. 2025,
    section 5.1).

    Args:
        estimate: (..., V, 3) mesh.
        truth: (..., V, 3), broadcast against ``estimate``; NaN marks an unknown mesh.
        estimate_root: (..., 3) root of each estimate: the papers take the pelvis that MPJPE is relative to. 0 for none.
        truth_root: (..., 3) of the truth.

    Returns:
        (...) errors.
    """
    shift = np.asarray(estimate_root) - np.asarray(truth_root)
    difference = np.asarray(estimate) - np.asarray(truth)
    difference = difference - (shift[..., None, :] if shift.ndim else shift)
    return np.asarray(np.linalg.norm(difference, axis=-1).mean(axis=-1))


def best_of(errors: np.ndarray, counts: Sequence[int]) -> dict[int, np.ndarray]:
    """Smallest of the first n errors for each n, as in "best of n" and "minimum over n samples".

    Each metric is minimised by itself, as in the papers (Biggs et al. 2020; Kolotouros et al. 2021).

    Args:
        errors: (..., N); NaN counts as no sample.
        counts: the n; those above N give NaN.

    Returns:
        (...) for each n.
    """
    least = np.fmin.accumulate(errors, axis=-1)
    nothing = np.full(errors.shape[:-1], np.nan)
    return {n: least[..., n - 1] if n <= errors.shape[-1] else nothing for n in counts}


def spread(samples: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    r"""Mean distance of samples to their mean, :math:`\sum_i w_i \lVert x_i - \sum_k w_k x_k \rVert`, for each joint
    ("3DKP spread", Wehrbein et al. 2025, section 5.1).

    Args:
        samples: (..., N, J, 3), relative to a root.
        weights: (..., N) that sum to one; None: equal.

    Returns:
        (..., J).
    """
    if weights is None:
        return np.asarray(np.linalg.norm(samples - samples.mean(axis=-3, keepdims=True), axis=-1).mean(axis=-2))
    mass = np.asarray(weights)[..., None, None]
    mean = (samples * mass).sum(axis=-3, keepdims=True)
    return np.asarray((np.linalg.norm(samples - mean, axis=-1) * mass[..., 0]).sum(axis=-2))


def split_mean(values: np.ndarray, visible: np.ndarray) -> dict[str, float]:
    """Means over all, visible and invisible joints of values and flags of one shape; NaN values are left out."""
    known = np.isfinite(values)
    parts = {"all": known, "visible": known & visible, "invisible": known & ~visible}
    return {name: float(values[part].mean()) if part.any() else float("nan") for name, part in parts.items()}


def mahalanobis(mean: np.ndarray, covariance: np.ndarray, truth: np.ndarray, floor: float = 1e-3) -> np.ndarray:
    """Squared Mahalanobis distance of true joints (..., J, 3) from a Gaussian per joint; NaN where unknown.

    Args:
        mean: (..., J, 3).
        covariance: (..., J, 3, 3).
        truth: (..., J, 3).
        floor: standard deviation added to every direction, so that a flat covariance can be inverted.
    """
    difference = np.asarray(truth, np.float64) - mean
    spread = np.asarray(covariance, np.float64) + floor**2 * np.eye(3)
    solved = np.linalg.solve(spread, np.nan_to_num(difference)[..., None])[..., 0]
    squared = (np.nan_to_num(difference) * solved).sum(axis=-1)
    return np.where(_known(difference), squared, np.nan)


def coverage(squared: np.ndarray, probability: float) -> float:
    """Share of squared Mahalanobis distances that lie in the ellipsoid of ``probability`` (a key of ``CHI2_3``)."""
    known = squared[np.isfinite(squared)]
    return float(np.mean(known <= CHI2_3[probability])) if known.size else float("nan")
