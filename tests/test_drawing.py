"""Drawing: covariances against the sampled truth, colours in order, nothing mutated, any number of people."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hmr_prob_ros.camera import Camera
from hmr_prob_ros.drawing import (
    ELLIPSE_SIGMAS,
    compose,
    draw_overlay,
    draw_side_view,
    project_covariance,
    weight_colours,
)
from hmr_prob_ros.hypotheses import HypothesisSet

PINHOLE = Camera(640, 480, 500.0, 520.0, 322.0, 238.0)
LENS = Camera(640, 480, 500.0, 520.0, 322.0, 238.0, (-0.25, 0.08, 0.001, -0.002, 0.0))
FISHEYE = Camera(640, 480, 300.0, 300.0, 320.0, 240.0, (0.02, -0.01, 0.0, 0.0), "equidistant")


def person(
    seed: int = 0, modes: int = 10, at: tuple[float, float, float] = (0.0, 0.0, 3.0), spread: float = 0.05
) -> HypothesisSet:
    """A cloud of joints round ``at``; its lower half is unseen and vaguer."""
    rng = np.random.default_rng(seed)
    base = rng.uniform([-0.3, -0.8, -0.2], [0.3, 0.8, 0.2], size=(24, 3)) + at
    size = np.where(base[:, 1] > at[1], 4 * spread, spread)
    joints = base + rng.normal(size=(modes, 24, 3)) * size[:, None]
    keypoints = np.zeros((23, 3))
    keypoints[:, :2] = PINHOLE.project(base[:23])
    keypoints[:, 2] = rng.uniform(size=23)
    weights = np.sort(rng.dirichlet(np.ones(modes)))[::-1]
    return HypothesisSet(
        id=seed,
        box=np.concatenate([keypoints[:, :2].min(axis=0), keypoints[:, :2].max(axis=0)]),
        score=0.9,
        keypoints=keypoints,
        weights=weights,
        log_density=np.zeros(modes),
        rotations=np.tile(np.eye(3), (modes, 24, 1, 1)),
        betas=np.zeros((modes, 10)),
        translation=np.zeros((modes, 3)),
        joints=joints,
        keypoints3d=np.zeros((modes, 23, 3)),
        mean=base,
        covariance=size[:, None, None] ** 2 * np.eye(3),
        visibility=np.where(base[:, 1] > at[1], 0.1, 0.9),
    )


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, size=(480, 640, 3), dtype=np.uint8)


@pytest.mark.parametrize("camera", [PINHOLE, LENS, FISHEYE], ids=["pinhole", "lens", "fisheye"])
def test_projected_covariance_is_that_of_projected_samples(camera: Camera) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3)) * 0.01
    covariance = root @ root.T
    mean = np.array([0.6, -0.4, 2.5])
    samples = rng.multivariate_normal(mean, covariance, size=200_000)
    truth = np.cov(camera.project(samples).astype(np.float64).T)
    found = project_covariance(mean, covariance, camera)
    np.testing.assert_allclose(found, truth, rtol=0.03, atol=0.03 * np.abs(truth).max())


def test_closed_form_jacobian_agrees_with_differences() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform([-1, -1, 1], [1, 1, 5], size=(24, 3))
    root = rng.normal(size=(24, 3, 3)) * 0.1
    covariance = root @ np.swapaxes(root, -1, -2)
    barely = Camera(640, 480, 500.0, 520.0, 322.0, 238.0, (1e-12, 0.0, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(
        project_covariance(points, covariance, PINHOLE),
        project_covariance(points, covariance, barely),
        rtol=2e-2,
        atol=1.0,
    )


def test_an_ellipse_covers_the_mass_it_says() -> None:
    samples = np.random.default_rng(0).normal(size=(100_000, 2))
    inside = (samples**2).sum(axis=1) < ELLIPSE_SIGMAS**2
    assert inside.mean() == pytest.approx(0.6827, abs=0.006)


def test_brightness_grows_with_weight() -> None:
    colours = weight_colours(np.linspace(0, 1, 30)).astype(float)
    luma = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > 0).all()


@pytest.mark.parametrize("people", [0, 1, 4])
@pytest.mark.parametrize("size", [(640, 480), (320, 240), (1280, 720)])
def test_any_number_of_people_at_any_size(people: int, size: tuple[int, int]) -> None:
    width, height = size
    image = np.full((height, width, 3), 90, np.uint8)
    before = image.copy()
    sets = [person(k, modes=1 + 3 * k, at=(0.4 * k - 0.5, 0.0, 2.5 + k)) for k in range(people)]
    arrays = [s.joints.copy() for s in sets]
    overlay = draw_overlay(image, sets, PINHOLE.scaled(width, height))
    side = draw_side_view(sets, (width // 2, height))
    frame = compose(overlay, side, frame=3, people=people, latency_ms=12.3)
    np.testing.assert_array_equal(image, before)
    for s, joints in zip(sets, arrays, strict=True):
        np.testing.assert_array_equal(s.joints, joints)
    assert overlay.shape == image.shape
    assert overlay.dtype == np.uint8
    assert side.shape == (height, width // 2, 3)
    assert frame.shape[0] % 2 == 0
    assert frame.shape[1] % 2 == 0
    assert frame.shape[1] >= width + width // 2
    assert (overlay != before).any() == (people > 0)


def test_overlay_takes_a_read_only_view_and_wild_bodies(picture: np.ndarray) -> None:
    picture.flags.writeable = False
    behind = person(1, at=(0.0, 0.0, -2.0))
    at_lens = person(2, at=(0.0, 0.0, 0.05), spread=0.5)
    far_aside = person(3, at=(500.0, 0.0, 1.0), spread=50.0)
    for camera in (PINHOLE, LENS):
        assert draw_overlay(picture, [behind, at_lens, far_aside], camera).shape == picture.shape
    assert draw_side_view([behind, at_lens, far_aside]).dtype == np.uint8


def test_the_heaviest_mode_is_on_top() -> None:
    """Where the best mode's thigh is drawn, its colour prevails over the others'."""
    sure = person(0, modes=2)
    weights = np.array([0.9, 0.1], np.float32)
    joints = np.tile(sure.joints[:1], (2, 1, 1))
    both = HypothesisSet(**{**vars(sure), "weights": weights, "joints": joints})
    image = draw_overlay(np.zeros((480, 640, 3), np.uint8), [both], PINHOLE)
    heavy, light = weight_colours(weights).astype(int)
    thigh = PINHOLE.project(joints[0, [1, 4]]).mean(axis=0).astype(int)
    patch = image[thigh[1] - 2 : thigh[1] + 3, thigh[0] - 2 : thigh[0] + 3].reshape(-1, 3).astype(int)
    assert np.abs(patch - heavy).sum(axis=1).min() < 40
    assert np.abs(patch - heavy).sum(axis=1).min() < np.abs(patch - light).sum(axis=1).min()


def test_side_view_is_metric_and_refuses_other_views() -> None:
    near, far = person(0, at=(0, 0, 2.0), spread=0.01), person(0, at=(0, 0, 3.0), spread=0.01)
    blank = draw_side_view([], (400, 420), view="top", depth=5.0)

    def middle(s: HypothesisSet) -> float:
        changed = (draw_side_view([s], (400, 420), view="top", depth=5.0).astype(int) - blank).any(axis=2)
        return float(np.nonzero(changed)[1].mean())

    step = (400 - 36 * 400 / 420) / 5.25  # pixels a metre: the margins are 36 pixels at a width of 420
    assert middle(far) - middle(near) == pytest.approx(step, abs=1.5)
    with pytest.raises(ValueError, match="'side', 'top' or 'both'"):
        draw_side_view([], view="front")


def test_overlay_is_fast_enough_for_every_frame(picture: np.ndarray) -> None:
    one = person(0)
    draw_overlay(picture, [one], PINHOLE)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        draw_overlay(picture, [one], PINHOLE)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02
