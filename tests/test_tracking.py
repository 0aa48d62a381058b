"""Identities: over motion, gaps, crossings and changes of the frame rate, by place and by clothes; who is nearest."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.skeleton import KEYPOINT_NAMES, NUM_KEYPOINTS
from hmr_prob_ros.tracking import (
    Tracker,
    apparent_distance,
    box_iou,
    clothing,
    keypoint_similarity,
    likeness,
    nearest,
)

SHAPE = np.random.default_rng(3).uniform(-1, 1, (NUM_KEYPOINTS, 2)) * (40, 100)


def person(x: float, y: float = 240.0, confidence: float = 0.9, jitter: float = 0.0, seed: int = 0) -> Person2D:
    points = SHAPE + (x, y) + jitter * np.random.default_rng(seed).normal(size=SHAPE.shape)
    box = np.array([x - 45, y - 110, x + 45, y + 110])
    return Person2D(box, confidence, np.concatenate([points, np.full((NUM_KEYPOINTS, 1), confidence)], 1))


def test_iou_against_pixels() -> None:
    """Intersection over union counted on a raster."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.integers(0, 20, (2, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 20, (2, 2))], 1)
        grid = np.zeros((2, 40, 40), dtype=bool)
        for mask, (x0, y0, x1, y1) in zip(grid, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        assert box_iou(*boxes.astype(float)) == pytest.approx((grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum())
    assert box_iou(np.zeros(4), np.zeros(4)) == 0


def test_similarity_laws() -> None:
    a = person(100).keypoints
    area = 90.0 * 220
    assert keypoint_similarity(a, a, area) == pytest.approx(1.0)
    values = [keypoint_similarity(a, person(100 + d).keypoints, area) for d in (5, 20, 60, 200)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01
    # The same picture twice as large is as similar.
    b = person(120).keypoints
    double = [x * [2, 2, 1] for x in (a, b)]
    assert keypoint_similarity(a, b, area) == pytest.approx(keypoint_similarity(*double, 4 * area), rel=1e-5)
    assert keypoint_similarity(a, a * [1, 1, 0], area) is None, "nothing seen in both"
    far = person(160).keypoints
    loose = [keypoint_similarity(a, far, area, stray) for stray in (0, 0.3, 0.6, 100)]
    assert loose == sorted(loose), "the less is known of the place, the less it tells"
    assert loose[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("rate", [60.0, 30.0, 12.0, 5.0])
def test_identity_follows_motion_and_survives_a_second_unseen(rate: float) -> None:
    """A second is a second at every rate, and when frames come irregularly."""
    rng = np.random.default_rng(1)
    for jitter in (0.0, 0.45):
        tracker = Tracker()
        times = 5.0 + (np.arange(int(4 * rate)) + rng.uniform(-jitter, jitter, int(4 * rate))) / rate
        for i, now in enumerate(times):
            if 6.5 < now <= 7.5:  # the person walks a body width on meanwhile
                assert tracker.update([], stamp=now) == []
                continue
            (tracked,) = tracker.update([person(100 + 100 * now, jitter=2, seed=i)], stamp=now)
            assert tracked.id == 0, f"{now:.2f} s"


@pytest.mark.parametrize("rate", [30.0, 7.0])
def test_identity_ends_after_a_time_and_not_after_frames(rate: float) -> None:
    tracker = Tracker(max_age=1.0)
    assert tracker.update([person(100)], stamp=0.0)[0].id == 0
    frames = np.arange(1, int(0.95 * rate)) / rate
    for now in frames:
        tracker.update([], stamp=now)
    assert tracker.update([person(100)], stamp=0.99)[0].id == 0
    assert tracker.update([person(100)], stamp=1.99 + 1e-3)[0].id == 1, "no frame came in between"
    tracker.reset()
    assert tracker.update([person(100)], stamp=0.0)[0].id == 0


def test_frames_without_stamps_come_at_the_rate() -> None:
    tracker = Tracker(max_age=0.5, rate=10.0)
    tracker.update([person(100)])
    for _ in range(4):
        tracker.update([])
    assert tracker.update([person(100)])[0].id == 0
    for _ in range(5):
        tracker.update([])
    assert tracker.update([person(100)])[0].id == 1


def test_time_that_goes_back_begins_a_new_run() -> None:
    tracker = Tracker()
    tracker.update([person(100), person(400)], stamp=50.0)
    assert [p.id for p in tracker.update([person(400)], stamp=50.0)] == [1], "the same moment twice"
    assert [p.id for p in tracker.update([person(400)], stamp=10.0)] == [0]
    assert [p.id for p in tracker.update([person(400)], stamp=10.1)] == [0]
    with pytest.raises(ValueError, match="stamp is nan"):
        tracker.update([person(400)], stamp=float("nan"))


def test_crossing_people_keep_their_identities() -> None:
    tracker = Tracker()
    for i in range(41):
        pair = [person(100 + 12 * i, 240, jitter=2, seed=i), person(580 - 12 * i, 260, jitter=2, seed=100 + i)]
        order = [0, 1] if i % 2 == 0 else [1, 0]  # the detector's order means nothing
        tracked = tracker.update([pair[j] for j in order])
        assert [tracked[order.index(0)].id, tracked[order.index(1)].id] == [0, 1], f"frame {i}"


def test_one_hides_behind_another_for_a_second() -> None:
    """Only the one in front is seen while they are in one place; the other goes on, or turns back."""
    for turns in (False, True):
        tracker = Tracker()
        for i in range(120):
            now = i / 30
            hidden = 1.2 < now < 2.3
            away = 150 * (1.5 - now) if now < 1.5 else 150 * max(now - 2.0, 0) * (1 if turns else -1)
            people = [person(320, 260, jitter=1.5, seed=i)]
            if not hidden:
                people.append(person(320 + away, 225, jitter=1.5, seed=500 + i))
            assert [p.id for p in tracker.update(people, stamp=now)] == [0, 1][: len(people)], f"{now:.2f} s, {turns}"


def dressed(people: list[tuple[float, tuple[int, int, int]]]) -> np.ndarray:
    """A grey picture with a block of colour at each x."""
    picture = np.full((480, 640, 3), 128, np.uint8)
    for x, colour in people:
        picture[100:380, int(x) - 50 : int(x) + 50] = colour
    return picture + np.random.default_rng(0).integers(0, 6, picture.shape, dtype=np.uint8)


@pytest.mark.parametrize("brightness", [1.0, 0.85])
def test_clothes_tell_where_place_does_not(brightness: float) -> None:
    """Two who were side by side come back a second later in each other's places."""
    red, blue = (180, 40, 40), (40, 60, 170)
    later = [tuple(int(brightness * c) for c in colour) for colour in (blue, red)]
    found = {}
    for colours in (0.3, 1.0):
        tracker = Tracker(colours=colours)
        for i in range(20):
            tracker.update([person(265), person(375)], i / 30, dressed([(265, red), (375, blue)]))
        tracker.update([], 1.0)
        again = tracker.update([person(270), person(370)], 1.7, dressed([(270, later[0]), (370, later[1])]))
        found[colours] = [p.id for p in again]
    assert found == {0.3: [1, 0], 1.0: [0, 1]}


def test_clothing_is_the_painted_colour() -> None:
    standing = person(320).keypoints.copy()
    at = {"shoulder": -90, "hip": 0, "knee": 50, "ankle": 100}
    for name, y in at.items():
        for side, x in (("left", 40), ("right", -40)):
            standing[KEYPOINT_NAMES.index(f"{side}_{name}")] = (320 + x, 240 + y, 0.9)
    picture = np.zeros((480, 640, 3), np.uint8)
    bands = {150: (200, 30, 30), 240: (20, 160, 40), 290: (30, 40, 150)}
    for y, colour in bands.items():
        picture[y:] = colour
    seen = clothing(picture, standing)
    wanted = cv2.cvtColor(np.array([[list(c) for c in bands.values()]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    np.testing.assert_allclose(seen, wanted[[0, 0, 1, 1, 2, 2]], atol=1e-3)
    standing[KEYPOINT_NAMES.index("left_ankle"), 2] = 0.1
    standing[KEYPOINT_NAMES.index("right_knee"), :2] = (2000, -2000)
    hidden = np.isnan(clothing(picture, standing)).all(-1)
    assert hidden.tolist() == [False, False, False, True, True, True]
    assert np.isnan(clothing(picture, standing * [1, 1, 0])).all()


def test_likeness_laws() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(-30, 60, (6, 3)).astype(np.float32)
    assert likeness(a, a) == 1
    values = [likeness(a, a + [0, d, 0]) for d in (2, 6, 12, 40)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1
    assert likeness(a, a + [12, 0, 0]) > likeness(a, a + [0, 12, 0]), "a shadow is no other shirt"
    b = a.copy()
    b[3:] = np.nan
    assert likeness(a, b) == likeness(b, a) == 1
    assert likeness(a, np.full_like(a, np.nan)) is None


def test_newcomer_gets_a_new_identity_and_order_is_kept() -> None:
    tracker = Tracker()
    tracker.update([person(100)])
    tracked = tracker.update([person(400), person(102)])
    assert [p.id for p in tracked] == [1, 0]
    np.testing.assert_array_equal(tracked[0].keypoints, person(400).keypoints)


def test_boxes_tell_where_keypoints_do_not() -> None:
    tracker = Tracker()
    hidden = [Person2D(person(x).box, 0.5, np.zeros((NUM_KEYPOINTS, 3))) for x in (100, 110, 400)]
    assert tracker.update([hidden[0]])[0].id == 0
    assert tracker.update([hidden[1]])[0].id == 0
    assert tracker.update([hidden[2]])[0].id == 1


def test_identities_are_unique_in_a_crowd() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()
    for _ in range(50):
        tracked = tracker.update([person(*xy) for xy in rng.uniform(0, 600, (rng.integers(0, 6), 2))])
        ids = [p.id for p in tracked]
        assert len(set(ids)) == len(ids)
        assert min(ids, default=0) >= 0


@pytest.mark.parametrize(
    "options",
    [{"min_similarity": 2.0}, {"colours": -1}, {"max_age": -1}, {"max_age": np.inf}, {"rate": 0}, {"rate": np.nan}],
)
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Tracker(**options)


# Who is nearest.

CAMERA = Camera.from_fov(1280, 720, 80.0)


def seen_body(body: Body, depth: float, turn: float = 0.0, aside: float = 0.0, confidence: float = 0.9) -> Person2D:
    """The package's body in its rest pose, so many metres away, as keypoints."""
    c, s = np.cos(turn), np.sin(turn)
    rotations = np.repeat(np.eye(3, dtype=np.float32)[None], 24, axis=0)
    rotations[0] = np.diag([1.0, -1.0, -1.0]) @ [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    points = np.asarray(body.keypoints(rotations, np.zeros(10, np.float32), np.array([aside, 0, depth], np.float32)))
    pixels = CAMERA.project(points)
    box = np.concatenate([pixels.min(0), pixels.max(0)])
    return Person2D(box, confidence, np.concatenate([pixels, np.full((23, 1), confidence)], 1))


@pytest.mark.parametrize("depth", [1.5, 3.0, 8.0, 20.0])
def test_distance_of_a_mean_body(body: Body, depth: float) -> None:
    for turn in np.radians([0, 45, 90, 180]):
        points = seen_body(body, depth, turn).keypoints
        assert apparent_distance(points, CAMERA) == pytest.approx(depth, rel=0.12)
        double = CAMERA.scaled(2560, 1440)
        assert apparent_distance(points * [2, 2, 1], double) == pytest.approx(apparent_distance(points, CAMERA), 1e-4)
    legs_only = points.copy()
    legs_only[:11, 2] = 0
    assert apparent_distance(legs_only, CAMERA) == pytest.approx(depth, rel=0.12), "half a person is no farther away"
    assert apparent_distance(points * [1, 1, 0], CAMERA) == np.inf


def test_nearest_first_and_no_more(body: Body) -> None:
    depths = [5.0, 2.0, 9.0, 3.0]
    people = [seen_body(body, d, aside=0.5 * i).with_id(i) for i, d in enumerate(depths)]
    assert [p.id for p in nearest(people, CAMERA)] == [1, 3, 0, 2]
    assert [p.id for p in nearest(people, CAMERA, 2)] == [1, 3]
    assert nearest([], CAMERA, 2) == []


def test_two_as_near_do_not_alternate(body: Body) -> None:
    rng = np.random.default_rng(0)
    free, held = [], []
    before: frozenset[int] = frozenset()
    for _ in range(40):
        pair = [seen_body(body, 4 * rng.uniform(0.97, 1.03), aside=x).with_id(i) for i, x in enumerate((-1, 1))]
        free.append(nearest(pair, CAMERA, 1)[0].id)
        (kept,) = nearest(pair, CAMERA, 1, before)
        held.append(kept.id)
        before = frozenset({kept.id})
    assert len(set(free)) == 2
    assert len(set(held)) == 1
    closer = [seen_body(body, d).with_id(i) for i, d in enumerate((4.0, 4.0))]
    closer[1 - held[0]] = seen_body(body, 3.0).with_id(1 - held[0])
    assert nearest(closer, CAMERA, 1, before)[0].id == 1 - held[0], "but who comes nearer is taken"
