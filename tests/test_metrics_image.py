"""Metrics in the picture against loops, against scipy's distance transform, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from hmr_prob_ros.camera import Camera, condition
from hmr_prob_ros.metrics_image import keypoint_error, mask_distance, mask_metrics, project_to_crop

rng = np.random.default_rng(11)


def test_projection_is_that_of_the_condition() -> None:
    camera = Camera.guess(640, 480)
    points = rng.uniform([-0.4, -0.8, 2.5], [0.4, 0.8, 3.5], (23, 3)).astype(np.float32)
    pixels = np.concatenate([camera.project(points), np.ones((23, 1), np.float32)], axis=1)
    given = condition(pixels, camera)
    assert given is not None
    seen, box = given
    assert np.allclose(project_to_crop(points[None, None], box[None])[0, 0], seen[:, :2], atol=1e-4)
    behind = project_to_crop(np.array([[[0.0, 0.0, -5.0]]]), np.array([[0.0, 0.0, 1.0]]))
    assert np.isfinite(behind).all()


def test_keypoint_error_against_a_loop() -> None:
    points, truth = rng.uniform(-1, 1, (2, 5, 17, 2)), rng.uniform(-1, 1, (2, 17, 2))
    visible = rng.random((2, 17)) < 0.6
    truth[0, 3] = np.nan
    error = keypoint_error(points, truth, visible)
    for b, n, k in np.ndindex(2, 5, 17):
        if visible[b, k] and np.isfinite(truth[b, k]).all():
            # A crop of 256 pixels: (x + 1) * 128.
            a, c = (points[b, n, k] + 1) * 128, (truth[b, k] + 1) * 128
            assert error[b, n, k] == pytest.approx(np.hypot(*(a - c)))
        else:
            assert np.isnan(error[b, n, k])


def blobs(size: int, seed: int) -> np.ndarray:
    """A mask of a few overlapping discs, touching the border now and then."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    mask = np.zeros((size, size), bool)
    for cx, cy, radius in random.uniform([0, 0, 0.05], [1, 1, 0.3], (4, 3)) * size:
        mask |= (x - cx) ** 2 + (y - cy) ** 2 < radius**2
    return mask


def test_distance_against_all_cells() -> None:
    masks = np.stack([blobs(16, 1), blobs(16, 2), np.zeros((16, 16), bool)])
    points = rng.uniform(-1.6, 1.6, (3, 40, 4, 2))
    use = np.array([[True, False, True, True]] * 3)
    distance = mask_distance(points, masks, use)
    assert np.isnan(distance[:, :, 1]).all()
    assert np.isnan(distance[2]).all()
    for b, n, k in ((b, n, k) for b in range(2) for n in range(40) for k in (0, 2, 3)):
        place = (points[b, n, k] + 1) * 128
        least = np.inf
        for row, column in np.argwhere(masks[b]):
            low = np.array([column, row]) * 16.0
            nearest = np.clip(place, low, low + 16)
            least = min(least, float(np.hypot(*(place - nearest))))
        assert distance[b, n, k] == pytest.approx(least, abs=1e-9)


def test_distance_against_scipys_transform() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = blobs(64, 3)
    # On a grid of pixels, each cell of the mask being four of them wide, centres of pixels are whole distances apart.
    fine = np.kron(mask, np.ones((4, 4), bool))
    expected = ndimage.distance_transform_edt(~fine)
    row, column = np.mgrid[:256, :256]
    points = np.stack([column + 0.5, row + 0.5], axis=-1) / 128 - 1
    distance = mask_distance(points.reshape(1, -1, 1, 2), mask[None], np.ones((1, 1), bool)).reshape(256, 256)
    assert ((distance == 0) == fine).all()
    # From centre to square instead of centre to centre: up to half a pixel's diagonal less.
    gap = (expected - distance)[~fine]
    assert gap.min() > -1e-9
    assert gap.max() < np.sqrt(0.5) + 1e-9
    assert np.isclose(gap.min(), 0.5)


def test_plausibility_of_a_known_share() -> None:
    # The right half is person, and points are even: half of them lie inside.
    mask = np.zeros((1, 64, 64), bool)
    mask[:, :, 32:] = True
    points = rng.uniform(-1, 1, (1, 40_000, 1, 2))
    metrics = mask_metrics(mask_distance(points, mask, np.ones((1, 1), bool)))
    assert metrics["perc_in"] == pytest.approx(0.5, abs=0.01)
    assert metrics["min_dist"] == pytest.approx(32.0, rel=0.03)  # half of the time 0, else even from 0 to 128 pixels


def test_strange_input() -> None:
    mask = np.ones((2, 8, 8), bool)
    points = np.zeros((2, 3, 1, 2))
    points[0, 1] = np.nan
    distance = mask_distance(points, mask, np.ones((2, 1), bool))
    assert np.isnan(distance[0, 1, 0])
    assert (distance[0, [0, 2]] == 0).all()
    assert np.isnan(mask_metrics(np.full((3, 2), np.nan))["perc_in"])
    with pytest.raises(ValueError, match="square"):
        mask_distance(points, np.ones((2, 8, 9), bool), np.ones((2, 1), bool))
