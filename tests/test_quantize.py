"""n-quantised modes: numpy and graph alike, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from hmr_prob_ros.quantize import Modes, candidate_uniforms, quantize


def _samples(seed: int, count: int = 100, groups: int = 6) -> np.ndarray:
    """Samples (N, 24, 3) about some bodies, every second set on a plane of few dimensions."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        joints = rng.normal(size=(count, 5)) @ (0.1 * rng.normal(size=(5, 72)))
    else:
        centres = 0.3 * rng.normal(size=(groups, 72))
        joints = centres[rng.integers(0, groups, count)] + 0.15 * rng.uniform(0.5, 2) * rng.normal(size=(count, 72))
    return joints.reshape(count, 24, 3).astype(np.float32)


def _inertia(joints: np.ndarray, assignment: np.ndarray, n: int) -> float:
    points = (joints - joints[:, :1]).reshape(len(joints), -1)
    return sum(float(((own - own.mean(0)) ** 2).sum()) for k in range(n) if len(own := points[assignment == k]))


def _check(modes: Modes, count: int, n: int, weights: np.ndarray) -> None:
    assert modes.index.shape == (n,)
    assert modes.index.dtype == np.int64
    assert len(set(modes.index.tolist())) == n, "two modes share a sample"
    assert modes.weight.dtype == np.float32
    assert modes.weight.min() >= 0
    assert modes.weight.sum() == pytest.approx(1, abs=1e-6)
    assert (np.diff(modes.weight) <= 1e-6).all(), "not sorted by weight"
    assert modes.assignment.shape == (count,)
    np.testing.assert_array_equal(modes.assignment[modes.index], np.arange(n))
    np.testing.assert_allclose(modes.weight, np.bincount(modes.assignment, weights / weights.sum(), n), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 25, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_modes_are_samples_and_share_the_weight(n: int, seed: int) -> None:
    joints = _samples(seed)
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(joints)).astype(np.float32)
    _check(quantize(joints, n, weights), len(joints), n, weights)
    _check(quantize(joints, n), len(joints), n, np.ones(len(joints)))


def test_each_mode_is_the_member_nearest_to_the_centre() -> None:
    joints = _samples(0)
    modes = quantize(joints, 6, steps=30)  # converged, so the members' mean is the centre
    points = (joints - joints[:, :1]).reshape(len(joints), -1)
    for k, index in enumerate(modes.index):
        own = np.flatnonzero(modes.assignment == k)
        distances = np.linalg.norm(points[own] - points[own].mean(0), axis=-1)
        assert np.linalg.norm(points[index] - points[own].mean(0)) == pytest.approx(distances.min(), rel=1e-4)


def test_inertia_against_scikit_learn() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    for n in (5, 10, 25):
        ratios = []
        for seed in range(8):
            joints = _samples(seed)
            points = (joints - joints[:, :1]).reshape(len(joints), -1)
            best = min(cluster.KMeans(n, n_init=1, random_state=s).fit(points).inertia_ for s in range(20))
            ratios.append(_inertia(joints, quantize(joints, n).assignment, n) / best)
        assert np.mean(ratios) < 1.06, (n, ratios)


def test_place_in_the_room_does_not_matter() -> None:
    joints = _samples(0)
    moved = joints + np.random.default_rng(0).normal(size=(len(joints), 1, 3)).astype(np.float32)
    np.testing.assert_array_equal(quantize(joints, 5).index, quantize(moved, 5).index)


def test_weights_pull_the_modes() -> None:
    joints = np.zeros((30, 24, 3), np.float32)
    joints[:10, 5], joints[10:20, 5], joints[20:, 5] = 1.0, 2.0, 10.0
    joints[:, 6, 0] = 1e-3 * np.arange(30)
    weights = np.repeat(np.float32([1, 2, 5]), 10)
    modes = quantize(joints, 3, weights)
    np.testing.assert_allclose(modes.weight, np.array([5, 2, 1]) / 8, atol=1e-6)
    assert [index // 10 for index in modes.index] == [2, 1, 0]


@pytest.mark.parametrize("distinct", [1, 3])
def test_equal_samples_still_give_n_different_modes(distinct: int) -> None:
    joints = np.repeat(_samples(0, distinct), 12, axis=0)
    modes = quantize(joints, 5)
    _check(modes, len(joints), 5, np.ones(len(joints)))


@pytest.mark.parametrize(
    ("joints", "n", "weights", "text"),
    [
        (np.zeros((10, 72)), 3, None, "must be"),
        (np.zeros((10, 24, 3)), 11, None, "11 modes of 10 samples"),
        (np.zeros((10, 24, 3)), 0, None, "0 modes"),
        (np.zeros((10, 24, 3)), 3, np.ones(9), "10 finite numbers"),
        (np.zeros((10, 24, 3)), 3, np.zeros(10), "positive sum"),
        (np.zeros((10, 24, 3)), 3, np.full(10, np.nan), "finite"),
    ],
)
def test_errors(joints: np.ndarray, n: int, weights: np.ndarray | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        quantize(joints, n, weights)


def test_uniforms_are_stratified() -> None:
    uniforms = candidate_uniforms(20, 6)
    assert uniforms.min() > 0
    assert uniforms.max() < 1
    np.testing.assert_array_equal((uniforms * 6).astype(int), np.tile(np.arange(6), (20, 1)))


@pytest.mark.parametrize("n", [1, 5, 10, 25])
def test_graph_does_the_same(n: int) -> None:
    torch = pytest.importorskip("torch")
    from hmr_prob_ros.training.quantize import Quantizer, relative_points

    joints = np.stack([_samples(seed) for seed in range(4)] + [np.repeat(_samples(0, 4), 25, axis=0)])
    weights = np.random.default_rng(0).uniform(0.5, 1, joints.shape[:2]).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    with torch.no_grad():
        index, weight, choice = Quantizer(n)(relative_points(torch.from_numpy(joints)), torch.from_numpy(weights))
    np.testing.assert_array_equal(choice.argmax(-1), index)
    np.testing.assert_array_equal(choice.sum(-1), 1)
    for b, one in enumerate(joints):
        expected = quantize(one, n, weights[b])
        assert len(set(index[b].tolist())) == n
        np.testing.assert_allclose(weight[b], expected.weight, atol=1e-5)
        # In a cluster of two both are equally near to the centre, and rounding decides.
        for mine, other in zip(index[b].tolist(), expected.index.tolist(), strict=True):
            pair = (expected.assignment == expected.assignment[other]).sum() <= 2
            twin = np.array_equal(one[mine], one[other])
            assert mine == other or twin or (pair and expected.assignment[mine] == expected.assignment[other])
