"""The detector-noise model: what is drawn follows the table, and fitting recovers a table it was drawn from."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.skeleton import KEYPOINT_FLIP, KEYPOINT_NAMES, NUM_KEYPOINTS
from hmr_prob_ros.training.data.noise import (
    BASES,
    ERROR_EDGES,
    HIDDEN_BY_SELF,
    OUTSIDE,
    RADII,
    SWAPS,
    VISIBLE,
    DetectorNoise,
    normal_cdf,
    person_scale,
    view_bin,
)

INDEX = {name: i for i, name in enumerate(KEYPOINT_NAMES)}
SIZE = (640, 480)
# A standing person from the front, about 400 pixels tall; the left side lies to the right in the picture.
LEFT = {"eye": (6, 78), "ear": (12, 80), "shoulder": (35, 130), "elbow": (48, 190), "wrist": (50, 240),
        "hip": (22, 240), "knee": (24, 340), "ankle": (24, 430), "big_toe": (30, 450), "small_toe": (36, 448),
        "heel": (24, 440)}  # fmt: skip


def standing() -> np.ndarray:
    points = np.zeros((NUM_KEYPOINTS, 2), dtype=np.float32)
    points[0] = (320, 85)
    for part, (x, y) in LEFT.items():
        points[INDEX[f"left_{part}"]], points[INDEX[f"right_{part}"]] = (320 + x, y), (320 - x, y)
    return points


def crowd(count: int) -> np.ndarray:
    return np.repeat(standing()[None], count, axis=0)


def plain(noise: DetectorNoise, **changes: object) -> DetectorNoise:
    """The table without swaps and offsets, except for what is given."""
    quiet: dict[str, object] = {"swap": np.zeros_like(noise.swap), "bias": np.zeros_like(noise.bias), "blur_px": 0.0}
    return replace(noise, **{**quiet, **changes})  # type: ignore[arg-type]


@pytest.fixture(params=["blazepose", "tinypose"])
def noise(request: pytest.FixtureRequest) -> DetectorNoise:
    return DetectorNoise.load(request.param)


def test_shipped_tables(noise: DetectorNoise, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    noise.save(path)
    assert path.stat().st_size < 200_000
    again = DetectorNoise.load(path)
    for name in ("radial", "bias", "correlation", "swap", "confidence", "confidence_correlation", "missing"):
        np.testing.assert_allclose(getattr(again, name), getattr(noise, name), atol=1e-6)
    absent = {name for name, gone in zip(KEYPOINT_NAMES, noise.missing, strict=True) if gone}
    assert {"left_small_toe", "right_small_toe"} <= absent
    flip = list(KEYPOINT_FLIP)
    np.testing.assert_allclose(noise.radial, noise.radial[flip], err_msg="left and right share their laws")
    np.testing.assert_allclose(noise.correlation, noise.correlation[flip][:, flip], atol=2e-4)


def test_form_seed_and_range(noise: DetectorNoise) -> None:
    rng = np.random.default_rng(0)
    true, state = crowd(64), rng.integers(0, 4, (64, NUM_KEYPOINTS))
    scale = person_scale(true, SIZE)
    one, two = (noise.sample(true, scale, state, SIZE, np.random.default_rng(5)) for _ in range(2))
    other = noise.sample(true, scale, state, SIZE, np.random.default_rng(6))
    assert one.shape == (64, NUM_KEYPOINTS, 3)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.isfinite(one).all()
    assert (one[..., 2] >= 0).all()
    assert (one[..., 2] <= 1).all()
    assert (one[:, noise.missing, 2] == 0).all()
    outside = ((one[..., :2] < 0) | (one[..., :2] >= SIZE)).any(-1)
    assert (one[outside, 2] == 0).all()
    kept = noise.sample(true, scale, state, SIZE, np.random.default_rng(5), zero_outside=False)
    np.testing.assert_array_equal(kept[..., :2], one[..., :2])
    np.testing.assert_array_equal(np.where(outside, 0, kept[..., 2]), one[..., 2])


def test_error_law_is_the_tables(noise: DetectorNoise) -> None:
    """Quantiles of the drawn error lengths are those of the table, whatever the copula."""
    clean = plain(noise)
    true = crowd(8000)
    scale = person_scale(true, SIZE)
    for state in (VISIBLE, OUTSIDE):
        drawn = clean.sample(true, scale, np.full(true.shape[:2], state), SIZE, np.random.default_rng(1))
        length = np.linalg.norm(drawn[..., :2] - true, axis=-1) / scale[:, None]
        for radius in (0.5, 1.0, 2.0, 2.75):
            share = 1 - np.exp(-(radius**2) / 2)
            wanted = clean.radial[:, state, round(radius / RADII[1])]
            np.testing.assert_allclose(np.quantile(length, share, axis=0), wanted, rtol=0.15, atol=3e-3)


def test_directions_are_uniform_and_neighbours_agree(noise: DetectorNoise) -> None:
    true = crowd(8000)
    error = plain(noise).sample(
        true, person_scale(true, SIZE), np.zeros(true.shape[:2], int), SIZE, np.random.default_rng(2)
    )
    unit = error[..., :2] - true
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    assert np.abs(unit.mean(0)).max() < 0.05
    agree = np.einsum("nkc,njc->kj", unit, unit) / len(unit)
    upper = np.triu_indices(NUM_KEYPOINTS, 1)
    assert np.corrcoef(agree[upper], noise.correlation[upper])[0, 1] > 0.98


def test_tails_come_together(noise: DetectorNoise) -> None:
    """With few degrees of freedom, one point's failure makes another's likely even where directions are unrelated."""
    true = crowd(8000)
    scale, state = person_scale(true, SIZE), np.zeros((8000, NUM_KEYPOINTS), int)
    together = []
    for dof in (3.0, 1e6):
        table = plain(noise, correlation=np.eye(NUM_KEYPOINTS), dof=dof)
        drawn = table.sample(true, scale, state, SIZE, np.random.default_rng(3))
        far = np.linalg.norm(drawn[..., :2] - true, axis=-1)
        worst = far > np.quantile(far, 0.95, axis=0)
        a, b = INDEX["left_wrist"], INDEX["right_ankle"]
        together.append((worst[:, a] & worst[:, b]).mean() / 0.05)
    assert together[0] > 0.12
    assert together[1] == pytest.approx(0.05, abs=0.02)


def test_confidence_law_is_the_tables(noise: DetectorNoise) -> None:
    true = crowd(8000)
    scale = person_scale(true, SIZE)
    for state in (VISIBLE, HIDDEN_BY_SELF):
        drawn = plain(noise).sample(true, scale, np.full(true.shape[:2], state), SIZE, np.random.default_rng(4), False)
        bins = np.searchsorted(ERROR_EDGES, np.linalg.norm(drawn[..., :2] - true, axis=-1) / scale[:, None])
        for name in ("nose", "left_wrist", "right_ankle"):
            k = INDEX[name]
            for e in range(len(ERROR_EDGES) + 1):
                own = drawn[bins[:, k] == e, k, 2]
                if len(own) > 1500:
                    np.testing.assert_allclose(
                        np.quantile(own, [0.2, 0.5, 0.8]), noise.confidence[k, state, e, [2, 5, 8]], atol=0.05
                    )


def test_legs_below_the_picture_are_hardly_seen(noise: DetectorNoise) -> None:
    """Most are guessed outside, where they count as unseen; those inside keep the confidence of their guess."""
    limbs = [INDEX[f"{side}_{part}"] for side in ("left", "right") for part in ("knee", "ankle")]
    mean = []
    for shift in (0, 300):
        true = crowd(2000) + np.float32((0, shift))
        state = np.where(true[..., 1] >= SIZE[1], OUTSIDE, VISIBLE)
        assert (state[:, limbs] == OUTSIDE).all() == bool(shift)
        drawn = noise.sample(true, person_scale(true, SIZE), state, SIZE, np.random.default_rng(0))
        mean.append(drawn[:, limbs, 2].mean())
    assert mean[0] > 0.7
    assert mean[1] < 0.5


def test_view() -> None:
    front = standing()[None]
    behind = front[:, list(KEYPOINT_FLIP)]
    middle = front.mean(axis=(0, 1))
    side = (front - middle) * (0.1, 1) + middle
    upside_down = 2 * middle - front  # a half turn in the picture does not change the side one sees
    scale = np.array([400.0])
    assert [int(view_bin(p, scale)[0]) for p in (front, side, behind, upside_down)] == [0, 1, 2, 0]


@pytest.mark.parametrize("group", range(3))
def test_swaps_happen_as_often_as_told(noise: DetectorNoise, group: int) -> None:
    swap = np.zeros((3, 3))
    swap[0, group] = 0.3
    still = np.zeros_like(noise.radial)
    true = crowd(8000)
    drawn = plain(noise, swap=swap, radial=still).sample(
        true, person_scale(true, SIZE), np.zeros(true.shape[:2], int), SIZE, np.random.default_rng(0)
    )
    turned = np.linalg.norm(drawn[..., :2] - true[:, list(KEYPOINT_FLIP)], axis=-1) < 1e-3
    moved = np.linalg.norm(drawn[..., :2] - true, axis=-1) > 1e-3
    rate = (turned & moved).mean(0)
    paired = np.array([KEYPOINT_FLIP[k] != k for k in range(NUM_KEYPOINTS)])
    np.testing.assert_allclose(rate[SWAPS[group] & paired], 0.3, atol=0.03)
    assert (rate[~SWAPS[group]] == 0).all()


def test_bias_turns_and_grows_with_the_body(noise: DetectorNoise) -> None:
    bias = np.random.default_rng(0).normal(0, 0.1, noise.bias.shape)
    table = plain(noise, bias=bias, radial=np.zeros_like(noise.radial))
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    true = standing()[None]
    moved = 1.5 * true @ turn.T + (30, -10)
    state, rng = np.zeros((1, NUM_KEYPOINTS), int), np.random.default_rng(0)
    first = table.sample(true, np.array([400.0]), state, SIZE, rng)[..., :2]
    second = table.sample(moved, np.array([600.0]), state, SIZE, rng)[..., :2]
    assert np.abs(first - true).max() > 1
    np.testing.assert_allclose(second, 1.5 * first @ turn.T + (30, -10), atol=0.02)
    assert BASES.sum(-1) == pytest.approx(0), "the body's vectors do not know where the body is"


def test_hostile_input(noise: DetectorNoise) -> None:
    state, rng = np.zeros((2, NUM_KEYPOINTS), int), np.random.default_rng(0)
    point = np.full((2, NUM_KEYPOINTS, 2), 50.0)
    drawn = noise.sample(point, np.zeros(2), state, SIZE, rng)  # a person of no size
    assert np.isfinite(drawn).all()
    assert np.abs(drawn[..., :2] - 50).max() < 2 * noise.blur_px + 1e-3
    assert noise.sample(point[:0], np.zeros(0), state[:0], SIZE, rng).shape == (0, NUM_KEYPOINTS, 3)
    assert person_scale(np.array([[[np.nan, 0], [1e9, 5]]]), SIZE)[0] == 1280


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radial": np.zeros((2, 3))}, "radial has shape"),
        ({"radial": -np.ones((23, 4, len(RADII)))}, "radial must not be negative"),
        ({"confidence": np.full((23, 4, 5, 11), 1.5)}, "confidence must lie"),
    ],
)
def test_broken_tables(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DetectorNoise.load("blazepose"), **changes)  # type: ignore[arg-type]


def test_loading_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shipped tables are \['blazepose', 'tinypose'\]"):
        DetectorNoise.load("openpose")
    file = tmp_path / "x.json"
    file.write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="is no noise table"):
        DetectorNoise.load(file)


def test_normal_distribution_function() -> None:
    from statistics import NormalDist

    x = np.linspace(-4, 4, 81)
    np.testing.assert_allclose(normal_cdf(x), [NormalDist().cdf(v) for v in x], atol=3e-4)


def test_speed(noise: DetectorNoise) -> None:
    true = crowd(512)
    scale, state, rng = person_scale(true, SIZE), np.ones((512, NUM_KEYPOINTS), int), np.random.default_rng(0)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        noise.sample(true, scale, state, SIZE, rng)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02, "512 people are drawn in a few milliseconds"


def test_fit_recovers_a_table() -> None:
    """Observations drawn from a known table give that table back."""
    from hmr_prob_ros.training.data.noise_fit import compare, fit
    from hmr_prob_ros.training.data.noise_observe import Observations

    rng = np.random.default_rng(0)
    known = DetectorNoise.load("blazepose")
    known = replace(known, swap=np.array([[0.01, 0.02, 0.10]] * 3), blur_px=70.0)
    count = 3000
    body = standing() + rng.normal(0, 12, (count, NUM_KEYPOINTS, 2))
    size = rng.uniform(0.2, 1.0, (count, 1, 1))
    true = ((body - (320, 260)) * size + (320, 240)).astype(np.float32)
    state = rng.choice(4, (count, NUM_KEYPOINTS), p=[0.7, 0.15, 0.1, 0.05])
    drawn = known.sample(true, person_scale(true, SIZE), state, SIZE, rng, zero_outside=False)
    drawn[:5] = np.nan
    observed = Observations(true, state, np.tile(SIZE, (count, 1)), drawn)
    table = fit(observed, "again")
    assert "2995 of 3000" in table.fitted
    np.testing.assert_array_equal(table.missing, known.missing)
    given = ~known.missing
    near = slice(2, 9)  # radii 0.5 to 2: the core and shoulder of the law
    np.testing.assert_allclose(
        table.radial[given, VISIBLE, near], known.radial[given, VISIBLE, near], rtol=0.25, atol=4e-3
    )
    np.testing.assert_allclose(table.swap[0, 2], 0.10, atol=0.05)
    upper = np.triu_indices(int(given.sum()), 1)
    ours, theirs = (t.correlation[given][:, given][upper] for t in (table, known))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9
    assert 0.5 < table.dof / known.dof < 2
    assert abs(table.blur_px - known.blur_px) <= 20
    mean = [t.confidence[given, VISIBLE, 0].mean() for t in (table, known)]
    assert mean[0] == pytest.approx(mean[1], abs=0.03)
    text = compare(observed, table)
    assert len(text.splitlines()) == 1 + 12 - 1
    assert "left_wrist" in text
    with pytest.raises(ValueError, match="200 are the least"):
        fit(observed[np.arange(50)], "few")
