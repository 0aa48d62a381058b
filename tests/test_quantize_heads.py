"""n of M weighted heads (Biggs et al. 2020), whatever their weights: likely, unlikely, none at all."""

from __future__ import annotations

import numpy as np
import pytest

from hmr_prob_ros.quantize import quantize, quantize_heads


def _heads(seed: int, count: int = 25) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    joints = (
        0.1 * random.normal(size=(count, 24, 3)) + 0.3 * random.normal(size=(5, 24, 3))[random.integers(5, size=count)]
    )
    # On a grid, so that a body that is moved is the same to the last bit.
    return np.round(4096 * joints).astype(np.float32) / 4096, random.normal(0, (0.5, 20.0, 1e4)[seed % 3], count)


def _energy(joints: np.ndarray, logs: np.ndarray, index: np.ndarray) -> float:
    """Equation 3 with the representatives as the quantised set."""
    points = (joints - joints[:, :1]).reshape(len(joints), -1).astype(np.float64)
    share = np.exp(logs - logs.max())
    return float(share / share.sum() @ np.square(points[:, None] - points[index]).sum(-1).min(1))


@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 10, 24, 25])
def test_quantised_heads(n: int, keep_first: bool) -> None:
    for seed in range(6):
        joints, logs = _heads(seed)
        modes = quantize_heads(joints, n, logs, keep_first)
        assert len(set(modes.index.tolist())) == n, "two modes share a head"
        np.testing.assert_array_equal(modes.assignment[modes.index], np.arange(n))
        share = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
        np.testing.assert_allclose(modes.weight, np.bincount(modes.assignment, share, n), atol=1e-6)
        assert modes.weight.sum() == pytest.approx(1, abs=1e-5)
        assert (np.diff(modes.weight[keep_first:]) <= 1e-6).all(), "not sorted by weight"
        if keep_first:
            assert modes.index[0] == 0
            assert n == 1 or (modes.assignment == 0).sum() == 1, "head 0 stands alone"
        if n == 25:
            assert sorted(modes.index.tolist()) == list(range(25))
        moved = quantize_heads(joints + 4, n, logs + 1000, keep_first)  # place and constant do not matter
        np.testing.assert_array_equal(moved.index, modes.index)


def test_quantised_energy_is_below_random_choice() -> None:
    for seed in range(12):
        joints, logs = _heads(seed)
        random = np.random.default_rng(100 + seed)
        for n in (1, 2, 5, 10):
            ours = _energy(joints, logs, quantize_heads(joints, n, logs).index)
            chance = [_energy(joints, logs, random.choice(25, n, replace=False)) for _ in range(50)]
            assert ours <= np.mean(chance), (seed, n)


def test_the_likely_stand_for_their_cluster_also_among_the_unlikely() -> None:
    joints = np.zeros((9, 24, 3), np.float32)
    joints[:3, 5, 0], joints[3:6, 5, 0], joints[6:, 5, 0] = 0.0, 1.0, 2.0
    joints[:, 6, 1] = np.tile([-0.1, 0.0, 0.1], 3)
    logs = np.array([0, -60, -60, -900, -1000, -1060, -5e4, -4e4, -6e4])
    modes = quantize_heads(joints, 3, logs)
    assert modes.index.tolist() == [0, 3, 7]  # unweighted, the middle ones would be nearest: 1, 4, 7
    np.testing.assert_allclose(modes.weight, [1, 0, 0], atol=1e-20)
    assert sorted(quantize_heads(joints, 3).index.tolist()) == [1, 4, 7]


@pytest.mark.parametrize("distinct", [1, 3])
def test_equal_heads_and_weightless_heads(distinct: int) -> None:
    joints = np.repeat(_heads(0, distinct)[0], 8, axis=0)
    logs = np.full(len(joints), -np.inf)
    logs[3] = -5.0
    for weights in (None, logs):
        for n in (1, 4, len(joints)):
            for keep_first in (False, True):
                modes = quantize_heads(joints, n, weights, keep_first)
                assert len(set(modes.index.tolist())) == n
                assert sorted(set(modes.assignment.tolist())) == list(range(n)), "an empty cluster"
                assert np.isfinite(modes.weight).all()


@pytest.mark.parametrize(
    ("joints", "n", "logs", "text"),
    [
        (np.zeros((5, 72)), 2, None, "must be"),
        (np.zeros((5, 24, 3)), 6, None, "cannot make"),
        (np.zeros((5, 24, 3)), 0, None, "cannot make"),
        (np.full((5, 24, 3), np.nan), 2, None, "not finite"),
        (np.zeros((5, 24, 3)), 2, np.zeros(4), "log_weights"),
        (np.zeros((5, 24, 3)), 2, np.full(5, -np.inf), "log_weights"),
        (np.zeros((5, 24, 3)), 2, np.array([0, 0, 0, 0, np.nan]), "log_weights"),
    ],
)
def test_heads_that_cannot_be_quantised(joints: np.ndarray, n: int, logs: np.ndarray | None, text: str) -> None:
    for keep_first in (False, True):
        with pytest.raises(ValueError, match=text):
            quantize_heads(joints, n, logs, keep_first)


@pytest.mark.parametrize("tiny", [0.0, 1e-30, 1e-14])
def test_underflown_weights_are_harmless_to_plain_modes(tiny: float) -> None:
    """Also the quantisation of samples, in numpy and in the exported graph, must take a prior's weights."""
    torch = pytest.importorskip("torch")
    from hmr_prob_ros.training.quantize import Quantizer, relative_points

    joints = np.zeros((30, 24, 3), np.float32)
    joints[:10, 5], joints[10:20, 5], joints[20:, 5] = 1.0, 2.0, 10.0
    joints[:, 6, 0] = 1e-2 * np.tile(np.arange(10), 3)
    weights = np.repeat(np.float32([1, tiny, tiny]), 10)
    modes = quantize(joints, 3, weights)
    assert len(set(modes.index.tolist())) == 3
    assert np.isfinite(modes.weight).all()
    share = torch.from_numpy(weights / weights.sum())[None]
    index, weight, _ = Quantizer(3)(relative_points(torch.from_numpy(joints)[None]), share)
    assert len(set(index[0].tolist())) == 3
    assert torch.isfinite(weight).all()
    assert weight.sum() == pytest.approx(1, abs=1e-5)
