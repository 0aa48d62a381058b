"""The estimator on the shipped bundle: laws of its output, real pictures, and what it does with bad input.

``HMR_PROB_TEST_BUNDLE`` names another bundle to test.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from people_helpers import CAMERA, standing

from hmr_prob_ros import Bundle, Camera, Estimator, Person2D
from hmr_prob_ros.body import Body
from hmr_prob_ros.bundle import BundleError
from hmr_prob_ros.engines import DeviceError, Engine
from hmr_prob_ros.engines.onnxruntime import default_threads
from hmr_prob_ros.estimator import draw_latents
from hmr_prob_ros.skeleton import JOINT_KEYPOINTS, JOINT_NAMES


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(os.environ.get("HMR_PROB_TEST_BUNDLE"))


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


@pytest.fixture(scope="module")
def estimator(bundle: Bundle) -> Estimator:
    return Estimator(bundle, detector=None, keep_samples=True, threads=1)


@pytest.fixture(scope="module")
def full(bundle: Bundle) -> Iterator[Estimator]:
    pytest.importorskip("ai_edge_litert")
    with Estimator(bundle) as made:
        yield made


def test_latents_are_zero_first_antithetic_and_of_unit_variance() -> None:
    latents = draw_latents(101, 144, seed=3)
    assert latents.shape == (101, 144)
    assert latents.dtype == np.float32
    assert not latents[0].any()
    assert np.array_equal(latents[1::2], -latents[2::2])
    assert np.allclose(latents[1:].var(axis=0), 1, atol=1e-5)
    assert np.array_equal(latents, draw_latents(101, 144, seed=3))
    assert not np.array_equal(latents, draw_latents(101, 144, seed=4))
    assert draw_latents(100, 8).shape == (100, 8)
    assert not draw_latents(1, 8).any()
    with pytest.raises(ValueError, match="at least one"):
        draw_latents(0, 8)


def test_moments_and_modes_are_those_of_the_samples(estimator: Estimator, body: Body) -> None:
    (found,) = estimator.infer([standing(body)], CAMERA)
    assert found.samples is not None
    assert found.samples.shape == (100, 24, 3)
    assert found.joints.shape == (10, 24, 3)
    assert np.allclose(found.mean, found.samples.mean(axis=0), atol=1e-4)
    expected = np.stack([np.cov(found.samples[:, j].T, bias=True) for j in range(24)])
    assert np.allclose(found.covariance, expected, rtol=0.03, atol=1e-5)
    assert (np.diff(found.weights) <= 1e-6).all()
    assert found.weights.sum() == pytest.approx(1, abs=1e-4)
    # The single answer is a mode; the others were learned and are none of the draws.
    distance = np.abs(found.joints[:, None] - found.samples[None]).max(axis=(2, 3))
    assert sorted(distance.argmin(axis=1)[distance.min(axis=1) < 1e-5]) == [0]
    assert found.id == 4


def test_more_modes_are_the_learned_ones_and_modes_of_the_draws(estimator: Estimator, body: Body) -> None:
    more = Estimator(estimator.bundle, detector=None, engine=estimator.engine, modes=24, keep_samples=True)
    (learned,), (found,) = estimator.infer([standing(body)], CAMERA), more.infer([standing(body)], CAMERA)
    assert found.samples is not None
    own, drawn = (
        np.abs(found.joints[:, None] - bodies[None]).max(axis=(2, 3)) for bodies in (learned.joints, found.samples[1:])
    )
    assert len(set(own.argmin(axis=1)[own.min(axis=1) < 1e-5])) == 10
    assert len(set(drawn.argmin(axis=1)[drawn.min(axis=1) < 1e-5])) == 14
    again = body.joints(found.rotations, found.betas, found.translation)
    assert np.allclose(again, found.joints, atol=2e-4)
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert (found.weights > 0).all()
    assert (np.diff(found.weights) <= 0).all()


def test_a_bundle_without_learned_modes_chooses_other_numbers_of_the_samples(
    bundle: Bundle, estimator: Estimator, body: Body
) -> None:
    other = Bundle(bundle.path, {**bundle.card, "nested_modes": False})
    few = Estimator(other, detector=None, engine=estimator.engine, modes=6, keep_samples=True)
    (found,) = few.infer([standing(body)], CAMERA)
    assert found.samples is not None
    distance = np.abs(found.joints[:, None] - found.samples[None]).max(axis=(2, 3))
    assert distance.shape == (6, 100)
    assert (distance.min(axis=1) < 1e-5).all()
    assert len(set(distance.argmin(axis=1))) == 6


@pytest.mark.parametrize("modes", [1, 5, 9])
def test_fewer_modes_are_the_first_of_the_learned_ones(estimator: Estimator, body: Body, modes: int) -> None:
    bundle, person = estimator.bundle, [standing(body)]
    assert bundle.nested_modes
    few = Estimator(bundle, detector=None, engine=estimator.engine, modes=modes)
    (all_modes,), (found,) = estimator.infer(person, CAMERA), few.infer(person, CAMERA)
    # They are among those of the graph, the single answer with them, and fewer are among more.
    distance = np.abs(found.joints[:, None] - all_modes.joints[None]).max(axis=(2, 3))
    assert (distance.min(axis=1) < 1e-5).all()
    assert len(set(distance.argmin(axis=1))) == modes
    (more,) = Estimator(bundle, detector=None, engine=estimator.engine, modes=modes + 1).infer(person, CAMERA)
    assert (np.abs(found.joints[:, None] - more.joints[None]).max(axis=(2, 3)).min(axis=1) < 1e-5).all()
    # Each weighs what draws are nearest to it.
    assert all_modes.samples is not None
    rooted, draws = (x - x[:, :1] for x in (found.joints, all_modes.samples))
    assert (np.abs(rooted - draws[0]).max(axis=(1, 2)).min()) < 1e-5
    nearest = np.linalg.norm((rooted[:, None] - draws[None, 1:]).reshape(modes, 99, -1), axis=-1).argmin(axis=0)
    expected = (np.bincount(nearest, minlength=modes) + 1) / (99 + modes)
    assert np.allclose(found.weights, expected, atol=1e-6)
    assert (np.diff(found.weights) <= 0).all()


def test_few_samples_take_one_thread(bundle: Bundle) -> None:
    engines = [Estimator(bundle, detector=None, samples=samples).engine for samples in (100, 1024)]
    given = Estimator(bundle, detector=None, threads=2).engine
    assert [getattr(engine, "threads", None) for engine in (*engines, given)] == [1, default_threads(), 2]


def test_modes_are_bodies(estimator: Estimator, body: Body) -> None:
    (found,) = estimator.infer([standing(body)], CAMERA)
    again = body.joints(found.rotations, found.betas, found.translation)
    assert np.allclose(again, found.joints, atol=2e-4)
    assert np.allclose(body.keypoints(found.rotations, found.betas, found.translation), found.keypoints3d, atol=5e-4)
    gram = np.swapaxes(found.rotations, -1, -2) @ found.rotations
    assert np.allclose(gram, np.eye(3), atol=1e-4)
    assert np.allclose(np.linalg.det(found.rotations), 1, atol=1e-4)


def test_the_same_person_gives_the_same_answer(estimator: Estimator, bundle: Bundle, body: Body) -> None:
    first, again = (estimator.infer([standing(body)], CAMERA)[0] for _ in range(2))
    assert np.array_equal(first.joints, again.joints)
    other = Estimator(bundle, detector=None, seed=1, threads=1).infer([standing(body)], CAMERA)[0]
    assert not np.allclose(first.covariance, other.covariance)


def test_people_do_not_influence_each_other(estimator: Estimator, body: Body) -> None:
    people = [standing(body, x=-0.6), standing(body, x=0.7, hidden=range(11, 23))]
    together = estimator.infer(people, CAMERA)
    for one, person in zip(together, people, strict=True):
        (alone,) = estimator.infer([person], CAMERA)
        assert np.allclose(one.mean, alone.mean, atol=1e-3)
        assert np.allclose(one.covariance, alone.covariance, atol=1e-3)


def test_resolution_does_not_matter(estimator: Estimator, body: Body) -> None:
    double = CAMERA.scaled(1280, 960)
    (small,), (large,) = (estimator.infer([standing(body, camera)], camera) for camera in (CAMERA, double))
    assert np.allclose(small.mean, large.mean, atol=2e-3)


def test_visibility_is_the_best_keypoint_inside_the_picture(estimator: Estimator, body: Body) -> None:
    person = standing(body, hidden=[13, 15, 17, 18])  # left knee, ankle, toes
    points = person.keypoints.copy()
    points[10, 0] = 700.0  # the right wrist is guessed outside the picture
    (found,) = estimator.infer([Person2D(person.box, 0.9, points)], CAMERA)
    for name in ("left_knee", "left_ankle", "left_foot", "right_wrist", "right_hand"):
        assert found.visibility[JOINT_NAMES.index(name)] == 0, name
    for name in ("pelvis", "head", "right_knee", "left_wrist"):
        assert found.visibility[JOINT_NAMES.index(name)] == pytest.approx(0.95), name
    assert len(JOINT_KEYPOINTS) == len(found.visibility)


@pytest.mark.parametrize(("samples", "modes"), [(100, 5), (40, 25), (6, 3), (1, 1)])
def test_other_numbers_of_samples_and_modes(bundle: Bundle, body: Body, samples: int, modes: int) -> None:
    small = Estimator(bundle, detector=None, samples=samples, modes=modes, keep_samples=True, threads=1)
    (found,) = small.infer([standing(body)], CAMERA)
    assert len(found) == modes
    assert found.samples is not None
    assert found.samples.shape == (samples, 24, 3)
    assert np.allclose(found.mean, found.samples.mean(axis=0), atol=1e-4)
    centred = found.samples - found.mean
    scatter = np.einsum("nji,njk->jik", centred, centred) / max(samples - 1, 1)  # unbiased, as in the graph
    assert np.allclose(found.covariance, scatter, rtol=1e-3, atol=1e-5)
    assert found.weights.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("samples", "modes"), [(5, 10), (0, 1), (10, 0)])
def test_impossible_numbers_are_refused(bundle: Bundle, samples: int, modes: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        Estimator(bundle, detector=None, samples=samples, modes=modes)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((48, 64, 3), np.float32), "dtype float32"),
        (np.zeros((48, 64), np.uint8), "COLOR_GRAY2RGB"),
        (np.zeros((48, 64, 4), np.uint8), "must be"),
        (np.zeros((0, 64, 3), np.uint8), "empty"),
        ([[1, 2], [3, 4]], "a list"),
    ],
)
def test_frames_that_are_no_pictures_are_refused(full: Estimator, frame: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        full(frame)


def test_camera_of_another_size_is_refused(full: Estimator) -> None:
    with pytest.raises(ValueError, match=r"camera\.scaled\(64, 48\)"):
        full(np.zeros((48, 64, 3), np.uint8), CAMERA)


def test_estimator_without_detector_says_so(estimator: Estimator) -> None:
    with pytest.raises(ValueError, match="no detector"):
        estimator(np.zeros((48, 64, 3), np.uint8))


def test_people_of_whom_nothing_is_seen_are_left_out(estimator: Estimator, body: Body) -> None:
    ghost = Person2D(np.zeros(4), 0.9, np.zeros((23, 3)))
    assert estimator.infer([ghost], CAMERA) == []
    assert estimator.infer([], CAMERA) == []
    assert len(estimator.infer([ghost, standing(body)], CAMERA)) == 1


class Faulty:
    """An engine that spoils the numbers of the first person."""

    name = "faulty"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        result = self.engine.run(inputs, outputs)
        result["covariance"][0, 3] = np.nan
        return result


def test_numbers_that_are_not_finite_are_never_passed_on(
    estimator: Estimator, bundle: Bundle, body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Estimator(bundle, detector=None, engine=Faulty(estimator.engine))
    with caplog.at_level(logging.ERROR):
        found = faulty.infer([standing(body).with_id(1), standing(body).with_id(2)], CAMERA)
    assert [person.id for person in found] == [2]
    assert "person 1 dropped" in caplog.text
    assert "covariance" in caplog.text


class Moody(Faulty):
    """A device that fails at the calls of these numbers, and wants to be warmed up."""

    def __init__(self, engine: Engine, at: set[int]) -> None:
        super().__init__(engine)
        self.at, self.shapes, self.warm = at, [], []

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self.shapes.append(inputs["latents"].shape)
        if len(self.shapes) - 1 in self.at:
            raise DeviceError("the GPU has not enough memory")
        return self.engine.run(inputs, outputs)

    def warm_up(self, calls: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None = None) -> None:
        self.warm = [({name: value.shape for name, value in call.items()}, outputs) for call in calls]
        for call in calls:
            self.run(call, outputs)


def test_a_slow_engine_is_prepared_for_the_shapes_of_frames(estimator: Estimator, bundle: Bundle, body: Body) -> None:
    engine = Moody(estimator.engine, {10})
    moody = Estimator(bundle, detector=None, engine=engine)
    assert [shapes["keypoints"] for shapes, _ in engine.warm] == [(count, 23, 3) for count in range(1, 9)]
    prepared = {(tuple(shapes.items()), tuple(wanted)) for shapes, wanted in engine.warm}
    calls: list[Any] = []
    run = engine.run
    engine.run = lambda inputs, outputs=None: calls.append((inputs, outputs)) or run(inputs, outputs)  # type: ignore
    assert len(moody.infer([standing(body), standing(body)], CAMERA)) == 2
    ((inputs, outputs),) = calls
    assert (tuple((name, value.shape) for name, value in inputs.items()), tuple(outputs)) in prepared
    # A frame that the device fails at is an error, the next one is as ever.
    with pytest.raises(DeviceError, match="not enough memory"):
        moody.infer([standing(body)], CAMERA)
    assert len(moody.infer([standing(body)], CAMERA)) == 1


def test_a_failing_device_is_not_blamed_on_the_bundle(estimator: Estimator, bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match="not enough memory"):
        Estimator(bundle, detector=None, engine=Moody(estimator.engine, {0}))


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=str(tmp_path)):
        Estimator(tmp_path, detector=None)


def test_nobody_in_the_picture(full: Estimator) -> None:
    assert full(np.full((240, 320, 3), 127, np.uint8)) == []
    assert set(full.timings) >= {"detect", "track", "condition", "infer", "assemble", "total"}


def test_a_real_photograph(full: Estimator, test_data: Path) -> None:
    """The astronaut: legs out of the picture, so that they must spread wider than what is seen."""
    image = cv2.cvtColor(cv2.imread(str(test_data / "real" / "astronaut.png")), cv2.COLOR_BGR2RGB)
    full.reset()
    (found,) = full(image)
    assert found.id == 0
    assert all(value >= 0 for value in full.timings.values())
    camera = Camera.guess(512, 512)
    seen = found.keypoints[:, 2] > 0.8
    seen[17:] = False
    error = np.linalg.norm(camera.project(found.keypoints3d)[:, seen] - found.keypoints[seen, :2], axis=-1)
    assert float(found.weights @ np.median(error, axis=1)) < 40
    assert (found.mean[:, 2] > 0.2).all()
    joint = JOINT_NAMES.index
    ankles = found.spread[[joint("left_ankle"), joint("right_ankle")]]
    shoulders = found.spread[[joint("left_shoulder"), joint("right_shoulder")]]
    assert ankles.min() > 1.5 * shoulders.max()
    assert found.visibility[joint("left_ankle")] < 0.3 < found.visibility[joint("left_shoulder")]


def test_runtime_needs_no_torch_and_no_rclpy() -> None:
    code = (
        "import sys, hmr_prob_ros.estimator, hmr_prob_ros.cli, hmr_prob_ros.evaluate\n"
        "from hmr_prob_ros import Estimator\n"
        "print([m for m in ('torch', 'rclpy', 'scipy', 'mediapipe', 'ai_edge_litert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
