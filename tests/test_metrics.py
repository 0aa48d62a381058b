"""Metrics against scipy, against known transformations, and against the law of the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest

from hmr_prob_ros.metrics import CHI2_3, align_similarity, coverage, mahalanobis, mpjpe, pa_mpjpe

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
