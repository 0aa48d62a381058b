"""Who is who and who is near, in the estimator on the shipped bundle."""

from __future__ import annotations

import numpy as np
import pytest
from people_helpers import CAMERA, standing

from hmr_prob_ros import Bundle, Camera, Estimator, Person2D
from hmr_prob_ros.body import Body


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load()


@pytest.fixture(scope="module")
def estimator(bundle: Bundle) -> Estimator:
    return Estimator(bundle, detector=None, threads=1)


class Scripted:
    """A detector that finds what it is told."""

    name, max_people = "scripted", 8

    def __init__(self, *people: Person2D) -> None:
        self.people, self.stamps = list(people), []

    def detect(self, image: np.ndarray, stamp: float | None = None) -> list[Person2D]:
        self.stamps.append(stamp)
        return self.people

    def reset(self) -> None: ...

    def close(self) -> None: ...


class PicturesOnly(Scripted):
    def detect(self, image: np.ndarray) -> list[Person2D]:  # type: ignore[override]
        return super().detect(image)


def test_nearest_first_and_no_more_than_asked_for(bundle: Bundle, body: Body) -> None:
    far = CAMERA.scaled(320, 240)  # half as large in the picture: twice as far away
    small = standing(body, Camera(640, 480, far.fx, far.fy, 150.0, 240.0)).with_id(-1)
    people = [small, standing(body).with_id(-1)]
    frame = np.zeros((480, 640, 3), np.uint8)
    capped = Estimator(bundle, detector=Scripted(*people), max_people=1, threads=1)
    (first,) = capped(frame, CAMERA, stamp=1.0)
    capped.max_people = None
    both = capped(frame, CAMERA, stamp=1.1)
    assert [person.id for person in both] == [first.id, 1 - first.id], "who was left out kept an identity, too"
    assert both[0].mean[0, 2] < 0.7 * both[1].mean[0, 2]
    assert capped.detector.stamps == [1.0, 1.1]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="max_people is 0"):
        Estimator(bundle, detector=None, max_people=0)


def test_stamps_decide_how_long_somebody_is_remembered(bundle: Bundle, body: Body) -> None:
    detector = PicturesOnly(standing(body).with_id(-1))
    estimator = Estimator(bundle, detector=detector, threads=1)
    frame = np.zeros((480, 640, 3), np.uint8)
    ids = [estimator.detect(frame, CAMERA, stamp=stamp)[0].id for stamp in (100.0, 101.5, 110.0)]
    assert ids == [0, 0, 1]
    estimator.reset()
    assert [estimator.detect(frame, CAMERA)[0].id for _ in range(3)] == [0, 0, 0]


def test_people_of_another_program_keep_their_identities(estimator: Estimator, body: Body) -> None:
    assert [p.id for p in estimator.track([standing(body).with_id(7)], CAMERA, 0.0)] == [7]
    estimator.reset()
    assert [p.id for p in estimator.track([standing(body).with_id(-1)], CAMERA, 0.0)] == [0]
    estimator.reset()
