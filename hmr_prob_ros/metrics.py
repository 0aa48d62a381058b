r"""Distances between estimated and true joints, for batches, in the unit of their inputs.

* **MPJPE**: mean distance of the joints after both skeletons were moved to the same root.
* **PA-MPJPE**: the same after the best similarity (scale, rotation, translation),
  :math:`\min_{s, R, t} \sum_j \lVert s R x_j + t - y_j \rVert^2`, in closed form (Umeyama 1991, equations 34 to 42).
* **coverage**: share of true joints inside the ellipsoid that a covariance claims for a given probability.

A joint whose truth is unknown (NaN) is left out; an example without any known joint gives NaN.
"""

from __future__ import annotations

__all__ = ["CHI2_3", "align_similarity", "align_root", "coverage", "mahalanobis", "mpjpe", "pa_mpjpe"]

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
    x, y = np.where(known, x - x_mean, 0.0), np.where(known, y - y_mean, 0.0)
    u, singular, vt = np.linalg.svd(np.swapaxes(y, -1, -2) @ x)
    sign = np.ones_like(singular)
    sign[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * sign[..., None, :]) @ vt
    variance = (x**2).sum(axis=(-1, -2))
    scale = np.where(variance > 0, (singular * sign).sum(axis=-1) / np.where(variance > 0, variance, 1.0), 1.0)
    few = known.sum(axis=(-1, -2)) < 3
    scale = np.where(few, 1.0, scale)[..., None, None]
    rotation = np.where(few[..., None, None], np.eye(3), rotation)
    return scale * (estimate - x_mean) @ np.swapaxes(rotation, -1, -2) + y_mean


def pa_mpjpe(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean per-joint position error after the best similarity; arguments and NaN as for :func:`mpjpe`."""
    return mpjpe(align_similarity(estimate, truth), truth, root=None)


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
