"""Counting identity switches: hand-made cases with known answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'hmr_prob_ros[bench]'")

from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.training.identities import IdentityScores, score_identities

SHAPE = np.random.default_rng(3).uniform(-1, 1, (23, 2)) * (40, 100)


def person(x: float, identity: int) -> Person2D:
    points = np.concatenate([SHAPE + (x, 240), np.full((23, 1), 0.9)], 1)
    return Person2D(np.array([x - 45, 130, x + 45, 350]), 0.9, points, identity)


def score(
    places: list[list[float]], frames: list[list[tuple[float, int]]], hidden: Sequence[int] = ()
) -> IdentityScores:
    """Scores of people at ``places`` (T, P), reported as (x, identity); person 1 is hidden in the frames ``hidden``."""
    keypoints = np.array([[SHAPE + (x, 240) for x in row] for row in places])
    state = np.zeros(keypoints.shape[:3], np.int8)
    state[list(hidden), 1] = 2
    return score_identities(keypoints, state, [[person(*p) for p in frame] for frame in frames])


def test_perfect_tracking() -> None:
    got = score([[100, 300]] * 4, [[(100, 7), (300, 3)], [(301, 3), (99, 7)]] * 2)
    assert got == IdentityScores(switches=0, present=8, found=8, ghosts=0, right=8, reported=8)
    assert got.idf1 == 1


def test_swap_costs_two_switches_and_half_of_the_frames() -> None:
    got = score([[100, 300]] * 4, [[(100, 0), (300, 1)]] * 2 + [[(100, 1), (300, 0)]] * 2)
    assert (got.switches, got.right, got.idf1) == (2, 4, 0.5)


def test_new_identity_after_hiding_is_one_switch_and_the_old_one_is_none() -> None:
    places = [[100, 300]] * 6
    seen, gone = [(100, 0), (300, 1)], [(100, 0)]
    assert score(places, [seen, seen, gone, gone, seen, seen], hidden=[2, 3]).switches == 0
    late = score(places, [seen, seen, gone, gone, [(100, 0), (300, 2)], [(100, 0), (300, 2)]], hidden=[2, 3])
    assert (late.switches, late.present, late.right) == (1, 10, 8)
    missed = score(places, [seen, seen, gone, gone, seen, seen])
    assert (missed.switches, missed.present, missed.found) == (0, 12, 10)
    assert missed.idf1 == pytest.approx(20 / 22)


def test_ghosts_and_detections_of_hidden_people_are_no_switches() -> None:
    got = score([[100, 300]] * 2, [[(100, 0), (300, 1), (500, 2)]] * 2)
    assert (got.switches, got.ghosts, got.found, got.idf1) == (0, 2, 4, 1)
    got = score([[100, 300]] * 2, [[(100, 0), (300, 5)], [(100, 0), (300, 1)]], hidden=[0])
    assert (got.switches, got.ghosts, got.found) == (0, 0, 3)


def test_scores_add_up() -> None:
    one = score([[100, 300]], [[(100, 0), (300, 1)]])
    assert one + one == IdentityScores(present=4, found=4, right=4, reported=4)
    assert sum([one, one], IdentityScores()).idf1 == 1
    assert IdentityScores().idf1 == 0
