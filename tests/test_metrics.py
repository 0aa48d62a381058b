"""Metrics against scipy, against known transformations, and against the law of the normal distribution."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hmr_prob_ros.metrics import (
    CHI2_3,
    align_similarity,
    best_of,
    coverage,
    mahalanobis,
    mpjpe,
    pa_mpjpe,
    pve,
    split_mean,
    spread,
)

rng = np.random.default_rng(3)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.linalg.det(q)


def test_mpjpe_ignores_translation_only() -> None:
    truth = rng.standard_normal((5, 24, 3))
    assert np.allclose(mpjpe(truth + np.array([1.0, -2.0, 3.0]), truth), 0)
    assert np.allclose(mpjpe(truth + np.array([3.0, 0.0, 4.0]), truth, root=None), 5)
    moved = truth.copy()
    moved[:, 7] += (0.0, 0.3, 0.4)
    assert np.allclose(mpjpe(moved, truth), 0.5 / 24)


@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0])
def test_alignment_undoes_a_similarity(scale: float) -> None:
    truth = rng.standard_normal((4, 24, 3))
    moved = scale * truth @ rotation(1).T + np.array([5.0, 1.0, -3.0])
    assert np.allclose(align_similarity(moved, truth), truth, atol=1e-9)
    assert np.allclose(pa_mpjpe(moved, truth), 0, atol=1e-9)


def test_alignment_never_mirrors() -> None:
    truth = rng.standard_normal((24, 3))
    assert pa_mpjpe(truth * (-1, 1, 1), truth) > 0.1


def test_alignment_agrees_with_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform")
    for _ in range(5):
        truth, guess = rng.standard_normal((24, 3)), rng.standard_normal((24, 3))
        fitted = transform.SimilarityTransform(dimensionality=3)
        fitted.estimate(guess, truth)
        assert np.allclose(align_similarity(guess, truth), fitted(guess), atol=1e-6)


def test_alignment_agrees_with_scipy_where_no_mirroring_is_wanted() -> None:
    spatial = pytest.importorskip("scipy.spatial")
    truth = rng.standard_normal((24, 3))
    guess = truth @ rotation(5).T * 2 + 0.1 * rng.standard_normal((24, 3))
    disparity = spatial.procrustes(truth, guess)[2]
    # scipy normalises the truth to unit size and gives the sum of squares.
    size = ((truth - truth.mean(0)) ** 2).sum()
    assert np.allclose(((align_similarity(guess, truth) - truth) ** 2).sum() / size, disparity, atol=1e-9)


def test_alignment_is_the_best_one() -> None:
    truth, guess = rng.standard_normal((24, 3)), rng.standard_normal((24, 3))
    best = ((align_similarity(guess, truth) - truth) ** 2).sum()
    aligned = align_similarity(guess, truth)
    centre = aligned.mean(0)
    for seed in range(20):
        small = np.random.default_rng(seed).standard_normal(3) * 0.05
        turn = np.eye(3) + np.array([[0, -small[2], small[1]], [small[2], 0, -small[0]], [-small[1], small[0], 0]])
        u, _, vt = np.linalg.svd(turn)
        other = (1 + small[0]) * (aligned - centre) @ (u @ vt).T + centre
        assert ((other - truth) ** 2).sum() >= best - 1e-9


def test_unknown_joints_are_left_out() -> None:
    truth, guess = rng.standard_normal((3, 24, 3)), rng.standard_normal((3, 24, 3))
    hidden = truth.copy()
    hidden[:, 20:] = np.nan
    assert np.allclose(mpjpe(guess, hidden), mpjpe(guess[:, :20], truth[:, :20]))
    assert np.allclose(pa_mpjpe(guess, hidden), pa_mpjpe(guess[:, :20], truth[:, :20]))
    hidden[0] = np.nan
    assert np.isnan(mpjpe(guess, hidden)[0])
    assert np.isnan(pa_mpjpe(guess, hidden)[0])
    assert np.isfinite(pa_mpjpe(guess, hidden)[1:]).all()


def test_hypotheses_broadcast_against_one_truth() -> None:
    truth, guesses = rng.standard_normal((6, 24, 3)), rng.standard_normal((6, 10, 24, 3))
    batch = pa_mpjpe(guesses, truth[:, None])
    assert batch.shape == (6, 10)
    assert np.allclose(batch[2, 3], pa_mpjpe(guesses[2, 3], truth[2]))


def test_coverage_of_a_normal_distribution() -> None:
    count = 40_000
    root = rng.standard_normal((3, 3))
    points = rng.standard_normal((count, 1, 3)) @ root.T
    covariance = np.broadcast_to(root @ root.T, (count, 1, 3, 3))
    squared = mahalanobis(np.zeros((count, 1, 3)), covariance, points, floor=0.0)
    assert abs(coverage(squared, 0.5) - 0.5) < 0.01
    assert abs(coverage(squared, 0.9) - 0.9) < 0.01
    points[0, 0, 0] = np.nan
    assert np.isnan(mahalanobis(np.zeros((count, 1, 3)), covariance, points)[0, 0])


def test_quantiles_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for probability, value in CHI2_3.items():
        assert abs(stats.chi2.ppf(probability, 3) - value) < 1e-9


def test_pa_mpjpe_agrees_with_scipys_orthogonal_procrustes() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    for _ in range(10):
        truth = rng.standard_normal((14, 3))
        guess = truth @ rotation(7) * 3 + 0.2 * rng.standard_normal((14, 3)) + 5
        x, y = guess - guess.mean(0), truth - truth.mean(0)
        turn, size = linalg.orthogonal_procrustes(x, y)
        assert np.linalg.det(turn) > 0
        expected = np.linalg.norm(size / (x**2).sum() * x @ turn - y, axis=1).mean()
        assert pa_mpjpe(guess, truth) == pytest.approx(expected, abs=1e-12)


def test_both_ways_to_pa_mpjpe_agree() -> None:
    truth, guess = rng.standard_normal((8, 24, 3)), rng.standard_normal((8, 5, 24, 3))
    slow = mpjpe(align_similarity(guess, truth[:, None]), truth[:, None], root=None)
    assert np.allclose(pa_mpjpe(guess, truth[:, None]), slow, atol=1e-12)
    assert np.allclose(
        pa_mpjpe(truth[:1] * 0, truth[:1]), np.linalg.norm(truth[:1] - truth[:1].mean(1), axis=-1).mean()
    )


def test_a_diverged_sample_is_nan_and_no_error() -> None:
    truth, guess = rng.standard_normal((1, 24, 3)), rng.standard_normal((3, 24, 3))
    guess[1, 5] = np.inf
    guess[2] = np.nan
    errors = pa_mpjpe(guess, truth)
    assert np.isfinite(errors[0])
    assert np.isnan(errors[1:]).all()
    assert best_of(errors, [3])[3] == errors[0]


def test_many_alignments_take_seconds() -> None:
    truth = rng.standard_normal((200, 1, 24, 3))
    guess = truth + 0.1 * rng.standard_normal((200, 100, 24, 3))
    began = time.perf_counter()
    pa_mpjpe(guess, truth)
    assert time.perf_counter() - began < 5.0  # a tenth of 2,000 people with 100 samples; takes 0.1 s on a free core


def test_best_of_known_distributions() -> None:
    # The least of n uniform numbers has mean 1 / (n + 1), that of n exponential ones 1 / n.
    counts = (1, 5, 25)
    uniform = best_of(rng.random((40_000, 25)), counts)
    exponential = best_of(rng.exponential(size=(40_000, 25)), counts)
    for n in counts:
        assert uniform[n].mean() == pytest.approx(1 / (n + 1), rel=0.03)
        assert exponential[n].mean() == pytest.approx(1 / n, rel=0.03)
    assert np.isnan(best_of(np.ones((3, 4)), [5])[5]).all()


def test_spread_of_a_normal_distribution() -> None:
    sigma = np.array([0.1, 0.5])
    samples = sigma[:, None] * rng.standard_normal((400, 50, 2, 3))
    # E|x| of three dimensions is 2 sigma sqrt(2 / pi); the samples' own mean takes 1/N of the variance.
    expected = 2 * sigma * np.sqrt(2 / np.pi) * np.sqrt(1 - 1 / 50)
    assert np.allclose(spread(samples).mean(axis=0), expected, rtol=0.01)
    assert np.allclose(spread(samples, np.full((400, 50), 1 / 50)), spread(samples))
    # A weight of two is as good as a sample given twice.
    pair, weights = samples[:, :2], np.broadcast_to([2 / 3, 1 / 3], (400, 2))
    assert np.allclose(spread(pair, weights), spread(pair[:, [0, 0, 1]]))


def test_split_mean() -> None:
    values, visible = np.array([[1.0, 2.0, np.nan], [3.0, 6.0, 8.0]]), np.array([[1, 0, 1], [1, 1, 0]], bool)
    means = split_mean(values, visible)
    assert means == {"all": 4.0, "visible": pytest.approx(10 / 3), "invisible": 5.0}
    assert np.isnan(split_mean(values, ~np.zeros_like(visible))["invisible"])


def test_pve() -> None:
    truth, guess = rng.standard_normal((2, 1, 30, 3)), rng.standard_normal((2, 4, 30, 3))
    roots, true_roots = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 1, 3))
    given = pve(guess, truth, roots, true_roots)
    assert given.shape == (2, 4)
    a, b = guess[1, 2] - roots[1, 2], truth[1, 0] - true_roots[1, 0]
    assert given[1, 2] == pytest.approx(np.mean([np.linalg.norm(p - q) for p, q in zip(a, b)]))
    assert np.allclose(pve(truth + (3, 0, 4), truth), 5)
    truth[0] = np.nan
    assert np.isnan(pve(guess, truth)[0]).all()
