"""Rendered people who cross and hide each other: who is who from the picture to the identity, against the truth."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moderngl", reason="moderngl is not installed: pip install 'hmr_prob_ros[train]'")
pytest.importorskip("scipy", reason="scipy is not installed: pip install 'hmr_prob_ros[bench]'")

from hmr_prob_ros.body import Body
from hmr_prob_ros.detectors import make_detector
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.tracking import Tracker, nearest
from hmr_prob_ros.training.data.mocap import load_mocap
from hmr_prob_ros.training.data.render import RenderError
from hmr_prob_ros.training.identities import IdentityScores, score_identities
from hmr_prob_ros.training.make_crossings import SCENES, Crossing, make_crossing, walking_cycle

RATE = 15

runs_networks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ai_edge_litert", "mediapipe")),
    reason="needs LiteRT and the networks in mediapipe's wheel: pip install 'hmr_prob_ros[blazepose]'",
)


@pytest.fixture(scope="module")
def cross(body: Body, test_data: Path) -> Callable[[str, int], Crossing]:
    archive = test_data / "mocap" / "cmu_asfamc_styles.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no motion capture at {archive}")
    cycle = walking_cycle(load_mocap([archive], body, progress=False), "asf_142_relaxedwalk")
    made: dict[tuple[str, int], Crossing] = {}

    def make(name: str, seed: int) -> Crossing:
        if (name, seed) not in made:
            try:
                made[name, seed] = make_crossing(SCENES[name], cycle, body, seed, size=(480, 360), fps=RATE)
            except RenderError as error:
                pytest.skip(str(error))
        return made[name, seed]

    return make


def follow(crossing: Crossing, found: list[list[Person2D]], tracker: Tracker) -> IdentityScores:
    named = [tracker.update(people, i / RATE, image) for i, (people, image) in enumerate(zip(found, crossing.images))]
    return score_identities(crossing.keypoints, crossing.state, named)


@runs_networks
@pytest.mark.parametrize(("name", "seed"), [("wait", 1), ("hide", 0)])
def test_identities_survive_a_second_behind_somebody_or_something(
    name: str, seed: int, cross: Callable[[str, int], Crossing]
) -> None:
    crossing = cross(name, seed)
    hidden = (crossing.seen < 0.5).sum(axis=0).max() / RATE
    assert hidden > 0.8, "the scene is there to hide somebody for about a second"
    detector = make_detector("blazepose", max_people=4)
    found = [detector.detect(image, i / RATE) for i, image in enumerate(crossing.images)]
    detector.close()
    scores = follow(crossing, found, Tracker())
    assert scores.found > 0.85 * scores.present
    assert scores.switches == 0
    assert follow(crossing, found, Tracker(max_age=0.3)).switches >= 1, "without a memory they are new people"


def test_truth_and_cap_of_a_scene(cross: Callable[[str, int], Crossing]) -> None:
    """People made of the true keypoints: nobody is lost, and the nearest is who is nearest."""
    crossing = cross("wait", 1)
    count = len(crossing.images)
    assert crossing.keypoints.shape == (count, 2, 23, 2)
    assert count == round(SCENES["wait"].seconds * RATE)
    found, firsts = [], []
    for points, state, distance in zip(crossing.keypoints, crossing.state, crossing.distance):
        people = []
        for i, (point, hidden) in enumerate(zip(points, state)):
            box = np.concatenate([point.min(0), point.max(0)])
            if (hidden < 2).mean() >= 0.5:
                keypoints = np.concatenate([point, (hidden < 2)[:, None]], 1)
                people.append(Person2D(box, 0.9, keypoints, i))
        found.append([p.with_id(-1) for p in people])
        if len(people) == 2:
            firsts.append(nearest(people, crossing.camera, 1)[0].id == int(np.argmin(distance)))
    assert len(firsts) > 20
    assert all(firsts)
    assert follow(crossing, found, Tracker()).idf1 == 1


def test_seeds_change_the_look_and_every_fourth_dresses_all_alike(body: Body, test_data: Path) -> None:
    from hmr_prob_ros.tracking import clothing, likeness
    from hmr_prob_ros.training.make_crossings import Scene

    archive = test_data / "mocap" / "cmu_asfamc_styles.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no motion capture at {archive}")
    cycle = walking_cycle(load_mocap([archive], body, progress=False), "asf_142_relaxedwalk")
    short = Scene(0.2, (((0, -0.8, 3.0), (1, -0.7, 3.0)), ((0, 0.8, 3.2), (1, 0.7, 3.2))))
    alike = {}
    for seed in (0, 1, 3):
        try:
            made = make_crossing(short, cycle, body, seed, size=(320, 240), fps=10)
        except RenderError as error:
            pytest.skip(str(error))
        points = np.concatenate([made.keypoints[0], np.ones((2, 23, 1))], -1)
        alike[seed] = likeness(*(clothing(made.images[0], p) for p in points))
    assert alike[3] > 0.7 > max(alike[0], alike[1]), alike
    with pytest.raises(ValueError, match="no recording 'swim'"):
        walking_cycle(load_mocap([archive], body, progress=False), "swim")
