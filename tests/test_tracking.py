"""Identities: over motion, gaps, crossings, and on a real clip."""

from __future__ import annotations

import numpy as np
import pytest

from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.skeleton import NUM_KEYPOINTS
from hmr_prob_ros.tracking import Tracker, box_iou, keypoint_similarity

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


def test_identity_follows_motion_and_survives_a_gap() -> None:
    tracker = Tracker(max_missed=8)
    for i in range(30):
        if 12 <= i < 19:  # seven frames unseen, in which the person walks two body widths on
            assert tracker.update([]) == []
            continue
        (tracked,) = tracker.update([person(100 + 25 * i, jitter=2, seed=i)])
        assert tracked.id == 0, f"frame {i}"


def test_identity_ends_after_a_long_gap() -> None:
    tracker = Tracker(max_missed=3)
    assert tracker.update([person(100)])[0].id == 0
    for _ in range(4):
        tracker.update([])
    assert tracker.update([person(100)])[0].id == 1
    tracker.reset()
    assert tracker.update([person(100)])[0].id == 0


def test_crossing_people_keep_their_identities() -> None:
    tracker = Tracker()
    for i in range(41):
        pair = [person(100 + 12 * i, 240, jitter=2, seed=i), person(580 - 12 * i, 260, jitter=2, seed=100 + i)]
        order = [0, 1] if i % 2 == 0 else [1, 0]  # the detector's order means nothing
        tracked = tracker.update([pair[j] for j in order])
        assert [tracked[order.index(0)].id, tracked[order.index(1)].id] == [0, 1], f"frame {i}"


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


@pytest.mark.parametrize("options", [{"min_similarity": 2.0}, {"momentum": -1}, {"max_missed": -1}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Tracker(**options)  # type: ignore[arg-type]
