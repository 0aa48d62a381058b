"""The values that are passed on check themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hmr_prob_ros.hypotheses import HypothesisError, HypothesisSet, Person2D


def person(**change: Any) -> Person2D:
    given: dict[str, Any] = {"box": np.array([1, 2, 30, 40]), "score": 0.9, "keypoints": np.zeros((23, 3))}
    return Person2D(**{**given, **change})


def hypotheses(n: int = 4, **change: Any) -> HypothesisSet:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((24, 3, 3))
    given: dict[str, Any] = {
        "id": 3,
        "box": np.array([1, 2, 30, 40]),
        "score": 0.9,
        "keypoints": np.zeros((23, 3)),
        "weights": np.arange(n, 0, -1) / np.arange(n + 1).sum(),
        "log_density": np.zeros(n),
        "rotations": np.tile(np.eye(3), (n, 24, 1, 1)),
        "betas": np.zeros((n, 10)),
        "translation": np.zeros((n, 3)),
        "joints": rng.standard_normal((n, 24, 3)),
        "keypoints3d": np.zeros((n, 23, 3)),
        "mean": np.zeros((24, 3)),
        "covariance": root @ root.transpose(0, 2, 1),
        "visibility": np.zeros(24),
    }
    return HypothesisSet(**{**given, **change})


def test_person_becomes_float32_and_keeps_its_points_when_named() -> None:
    found = person()
    assert found.box.dtype == found.keypoints.dtype == np.float32
    assert found.id == -1
    named = found.with_id(7)
    assert named.id == 7
    assert named.keypoints is found.keypoints


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"box": np.zeros(3)}, "box has shape"),
        ({"keypoints": np.zeros((17, 3))}, "keypoints has shape"),
        ({"keypoints": np.full((23, 3), np.nan)}, "not finite"),
    ],
)
def test_wrong_people_are_refused(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(HypothesisError, match=words):
        person(**change)


def test_set_iterates_over_weighted_bodies() -> None:
    found = hypotheses()
    assert len(found) == 4
    weights = [weight for weight, joints in found if joints.shape == (24, 3)]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1)
    assert np.array_equal(found[2][1], found.joints[2])


def test_spread_is_the_root_mean_square_distance() -> None:
    found = hypotheses()
    root = np.linalg.cholesky(found.covariance.astype(np.float64))
    drawn = np.random.default_rng(1).standard_normal((20_000, 3)) @ root[5].T
    assert found.spread.shape == (24,)
    assert found.spread[5] == pytest.approx(np.sqrt((drawn**2).sum(axis=1).mean()), rel=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": np.array([0.5, 0.5])}, "log_density has shape"),
        ({"weights": np.full(4, 0.5)}, "sum to one"),
        ({"weights": np.array([1.2, -0.2, 0.0, 0.0])}, "positive"),
        ({"joints": np.zeros((4, 22, 3))}, "joints has shape"),
        ({"covariance": np.full((24, 3, 3), np.inf)}, "covariance holds a number that is not finite"),
        (
            {"samples": np.zeros((5, 24, 3)), "samples_keypoints3d": np.zeros((6, 23, 3))},
            "samples_keypoints3d has shape",
        ),
    ],
)
def test_wrong_sets_are_refused(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(HypothesisError, match=words):
        hypotheses(**change)


def test_a_set_needs_a_mode() -> None:
    with pytest.raises(HypothesisError, match="at least one mode"):
        hypotheses(0, weights=np.zeros(0))
