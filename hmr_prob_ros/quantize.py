r"""From many samples to n weighted modes, in numpy: the same steps as in the exported graph, for any n.

n-quantisation (Biggs et al., "3D Multi-bodies", NeurIPS 2020): weighted k-means over the samples' pelvis-relative
joints; each cluster is represented by the sample nearest to its centre, so that a mode is a body and not a mean of
bodies, and weighs as much as its samples together. Starts by greedy k-means++ (Arthur and Vassilvitskii 2007; greedy:
the best of several candidates a step), whose random numbers are fixed and evenly spread, so equal samples give equal
modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CANDIDATES", "HEAD_STEPS", "STEPS", "Modes", "candidate_uniforms", "quantize", "quantize_heads", "shares"]

CANDIDATES = 6
"""Candidates of each greedy k-means++ step."""

STEPS = 6
"""Lloyd steps; more do not help, the start does."""

HEAD_STEPS = 30
"""Most Lloyd steps of :func:`quantize_heads`, until nothing moves."""

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
        centres = np.where(total > 0, member @ points / np.maximum(total, 1e-37), rest).astype(np.float32)

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


def shares(modes: NDArray[np.float32], bodies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights (n,) of given modes: the share of bodies that lie nearest to each.

    Args:
        modes: joints of the modes, (n, J, 3) m, the pelvis first.
        bodies: joints of the modes that were not drawn and of the draws, (N, J, 3) m.
    """
    centres, points = ((x - x[:, :1]).reshape(len(x), -1) for x in (modes, bodies))
    middle = centres.mean(0)
    nearest = _distances(points - middle, centres - middle).argmin(0)
    return (np.bincount(nearest, minlength=len(modes)) / len(bodies)).astype(np.float32)


def quantize_heads(
    joints: NDArray[np.float32], n: int, log_weights: NDArray[np.floating[Any]] | None = None, keep_first: bool = False
) -> Modes:
    r"""n of the M heads of one person: k-means of their pelvis-relative joints, weighted as equation 2 tells,

    .. math:: E = \sum_i \frac{p(X_i)}{\sum_k p(X_k)} \min_j \lVert X_i - \bar X_j \rVert^2

    (equation 3), each cluster represented by the member nearest to its centre. Weights span hundreds of nats, so a
    cluster's mean takes them relative to its heaviest member, as the published code does: a cluster of unlikely heads
    has a centre too. The start is the unweighted quantisation (the code starts at random heads).

    Args:
        joints: (M, J, 3) m, the pelvis first.
        n: 1 to M.
        log_weights: (M,) up to a constant, -inf for weight zero; None: all equal.
        keep_first: head 0 is the first mode, alone, and the others are quantised to n - 1 (the published code).

    Returns:
        Modes, heaviest first; with ``keep_first`` head 0 comes before them.

    Raises:
        ValueError: other shapes, NaN, no head with a weight, or n not within 1 to M.
    """
    joints = np.asarray(joints, np.float32)
    count = len(joints)
    logs = np.zeros(count) if log_weights is None else np.asarray(log_weights, np.float64)
    if logs.shape != (count,) or np.isnan(logs).any() or not np.isfinite(logs.max(initial=-np.inf)):
        raise ValueError(f"log_weights must be {count} numbers below infinity, at least one of them finite")
    if not np.isfinite(joints).all():
        raise ValueError("joints of some head are not finite")
    # Heads without any weight are the least likely, all alike; they can be told apart from nothing.
    logs = np.where(np.isfinite(logs), logs, logs[np.isfinite(logs)].min() - 100.0)
    share = np.exp(logs - logs.max())
    share /= share.sum()
    if keep_first and 1 <= n <= count:
        if n == 1:
            return Modes(np.zeros(1, np.int64), np.ones(1, np.float32), np.zeros(count, np.int64))
        rest = quantize_heads(joints[1:], n - 1, logs[1:])
        assignment = np.concatenate(([0], rest.assignment + 1))
        index = np.concatenate(([0], rest.index + 1))
    else:
        index, assignment = _weighted_lloyd(joints, n, logs)
        order = np.argsort(-np.logaddexp.reduce(_members(assignment, n, logs), axis=1), kind="stable")
        index, assignment = index[order], np.argsort(order)[assignment]
    return Modes(index.astype(np.int64), np.bincount(assignment, share, n).astype(np.float32), assignment)


def _members(assignment: NDArray[np.int64], n: int, logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-weights (n, M) of each cluster's members, -inf for the others."""
    return np.where(assignment == np.arange(n)[:, None], logs, -np.inf)


def _weighted_lloyd(
    joints: NDArray[np.float32], n: int, logs: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Representatives (n,), all different, and the cluster of each head (M,)."""
    points = (joints - joints[:, :1]).reshape(len(joints), -1).astype(np.float64)
    assignment = quantize(joints, n).assignment
    for _ in range(HEAD_STEPS):
        member = _members(assignment, n, logs)
        relative = np.exp(member - member.max(axis=1, keepdims=True))
        centres = relative @ points / relative.sum(axis=1, keepdims=True)
        squares = ((points[None] - centres[:, None]) ** 2).sum(-1)  # (n, M)
        nearest = squares.argmin(0)
        # An empty cluster goes to the head that costs most, of those that are not alone.
        for empty in np.flatnonzero(np.bincount(nearest, minlength=n) == 0):
            alone = np.bincount(nearest, minlength=n)[nearest] == 1
            with np.errstate(divide="ignore"):
                cost = np.where(alone, -np.inf, logs + np.log(squares[nearest, np.arange(len(points))]))
            # Equal heads cost nothing; any of a crowd will do.
            nearest[np.argmax(cost) if np.isfinite(cost.max()) else np.flatnonzero(~alone)[-1]] = empty
        if np.array_equal(nearest, assignment):
            break
        assignment = nearest
    # After the last step some centres may be those of the step before: near enough to choose a member by.
    return np.where(_members(assignment, n, logs) > -np.inf, squares, np.inf).argmin(1), assignment
