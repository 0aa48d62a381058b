r"""From many samples to n weighted modes, in numpy: the same steps as in the exported graph, for any n.

n-quantisation (Biggs et al., "3D Multi-bodies", NeurIPS 2020): weighted k-means over the samples' pelvis-relative
joints; each cluster is represented by the sample nearest to its centre, so that a mode is a body and not a mean of
bodies, and weighs as much as its samples together. Starts by greedy k-means++ (Arthur and Vassilvitskii 2007; greedy:
the best of several candidates a step), whose random numbers are fixed and evenly spread, so equal samples give equal
modes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CANDIDATES", "STEPS", "Modes", "candidate_uniforms", "quantize"]

CANDIDATES = 6
"""Candidates of each greedy k-means++ step."""

STEPS = 6
"""Lloyd steps; more do not help, the start does."""

_WEIGHT_GRID = float(2**20)
_GOLDEN = 0.6180339887498949


class Modes(NamedTuple):
    """Modes sorted by weight, heaviest first.

    ``index`` (n,) int64: the sample that stands for each mode, all different; ``weight`` (n,) float32, sums to one;
    ``assignment`` (N,) int64: the mode of each sample.
    """

    index: NDArray[np.int64]  # type: ignore[assignment]  # tuple.index is of no use here
    weight: NDArray[np.float32]
    assignment: NDArray[np.int64]


def candidate_uniforms(n: int, candidates: int = CANDIDATES) -> NDArray[np.float32]:
    """Uniform numbers (n, candidates) in (0, 1): a stratified row for each centre, shifted by the golden ratio."""
    shift = (np.arange(1, n + 1)[:, None] * _GOLDEN) % 1.0
    return ((np.arange(candidates) + shift) / candidates).astype(np.float32)


def _distances(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    squares = (points * points).sum(-1) - 2.0 * (centres @ points.T) + (centres * centres).sum(-1, keepdims=True)
    return np.asarray(np.maximum(squares, 0.0))


def quantize(
    joints: NDArray[np.float32],
    n: int,
    weights: NDArray[np.float32] | None = None,
    candidates: int = CANDIDATES,
    steps: int = STEPS,
) -> Modes:
    """Weighted k-means of samples to n modes.

    Args:
        joints: joints of the samples, (N, J, 3) m, the pelvis first.
        n: number of modes, 1 to N.
        weights: of the samples, (N,), non-negative; None: all equal.
        candidates: of each greedy k-means++ step.
        steps: Lloyd steps.

    Raises:
        ValueError: ``joints`` or ``weights`` have another shape, or n is not within 1 to N.
    """
    joints = np.asarray(joints, np.float32)
    if joints.ndim != 3 or joints.shape[-1] != 3:
        raise ValueError(f"joints must be (N, J, 3), not {joints.shape}")
    count = len(joints)
    if not 1 <= n <= count:
        raise ValueError(f"cannot make {n} modes of {count} samples: ask for 1 to {count} modes, or draw more samples")
    mass = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    if mass.shape != (count,) or not np.isfinite(mass).all() or mass.min() < 0 or mass.sum() <= 0:
        raise ValueError(f"weights must be {count} finite numbers >= 0 with a positive sum")
    mass = mass / mass.sum()
    points = (joints - joints[:, :1]).reshape(count, -1)
    points = points - points.mean(0)

    # Greedy k-means++.
    uniforms = candidate_uniforms(n, candidates)
    nearest = np.ones(count, np.float32)
    centres = np.empty((n, points.shape[1]), np.float32)
    for k in range(n):
        reach = np.cumsum(mass * nearest)
        picks = (reach > uniforms[k][:, None] * reach[-1]).argmax(-1)
        distances = _distances(points, points[picks])
        if k:
            distances = np.minimum(distances, nearest)
        best = int(np.argmin((distances * mass).sum(-1)))
        nearest, centres[k] = distances[best], points[picks[best]]

    # Lloyd; an empty cluster stays where it is, and before the last step moves to the sample that costs most.
    for step in range(steps):
        distances = _distances(points, centres)
        member = (distances.argmin(0) == np.arange(n)[:, None]) * mass
        total = member.sum(-1, keepdims=True)
        rest = points[np.argmax(distances.min(0) * mass)] if step == steps - 2 else centres
        centres = np.where(total > 0, member @ points / np.maximum(total, 1e-12), rest).astype(np.float32)

    # The member nearest to the centre stands for its cluster; an empty one takes a sample that nobody took.
    distances = _distances(points, centres)
    assignment = distances.argmin(0)
    member = assignment == np.arange(n)[:, None]
    empty = ~member.any(-1)
    index = np.argmin(np.where(member, distances, np.inf), -1)
    taken = np.zeros(count, bool)
    taken[index[~empty]] = True
    index[empty] = np.flatnonzero(~taken)[: int(empty.sum())]
    assignment[index] = np.arange(n)

    weight = np.bincount(assignment, mass, n)
    order = np.argsort(-np.round(weight * _WEIGHT_GRID), kind="stable")
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    weight = weight[order] / weight.sum()
    return Modes(index[order].astype(np.int64), weight.astype(np.float32), rank[assignment])
