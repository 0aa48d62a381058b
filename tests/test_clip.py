"""The bundled clip: its files belong together, its detector sees what the truth says, and planted feet stay put."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import hmr_prob_ros
from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.skeleton import BONES, JOINT_NAMES, KEYPOINT_NAMES

CLIP = Path(hmr_prob_ros.__file__).parent / "assets" / "demo_clip.mp4"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    video = cv2.VideoCapture(str(CLIP))
    assert video.isOpened(), f"{CLIP} cannot be opened"
    kept = []
    while True:
        more, image = video.read()
        if not more:
            return np.stack(kept)
        kept.append(image[..., ::-1])


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    with np.load(CLIP.with_name("demo_clip_truth.npz")) as data:
        return {name: data[name] for name in data.files}


def test_files_are_small_and_belong_together(frames: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    camera = Camera.from_yaml(CLIP.with_suffix(".yaml"))
    count = len(frames)
    assert 9 <= count / float(truth["fps"]) <= 11
    assert frames.shape[1:] == (camera.height, camera.width, 3)
    assert truth["joints"].shape == (count, 24, 3)
    assert truth["keypoints3d"].shape == (count, 23, 3)
    assert truth["state"].shape == (count, 23)
    assert CLIP.stat().st_size < 1_500_000
    assert CLIP.with_name("demo_clip_truth.npz").stat().st_size < 300_000


def test_truth_is_one_body_that_hides_its_legs_for_a_while(truth: dict[str, np.ndarray]) -> None:
    joints = truth["joints"].astype(np.float32)
    lengths = np.stack([np.linalg.norm(joints[:, a] - joints[:, b], axis=1) for a, b in BONES])
    assert lengths.std(axis=1).max() < 2e-3  # float16 at 4 m
    knees = truth["state"][:, [KEYPOINT_NAMES.index("left_knee"), KEYPOINT_NAMES.index("right_knee")]]
    hidden = (knees == 2).all(axis=1).mean()
    assert 0.25 < hidden < 0.75
    assert (joints[:, JOINT_NAMES.index("head"), 1] < joints[:, JOINT_NAMES.index("left_foot"), 1]).all()
    assert set(truth["splits"].tolist()) == {"test"}  # the model has not seen these takes


def test_detector_finds_the_person_where_the_truth_is(frames: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed: pip install 'hmr_prob_ros[mediapipe]'")
    from hmr_prob_ros.detectors import make_detector

    pixels = Camera.from_yaml(CLIP.with_suffix(".yaml")).project(truth["keypoints3d"].astype(np.float32))
    detector = make_detector("mediapipe")
    errors = []
    picked = range(0, len(frames), 6)
    for t in picked:
        people = detector.detect(np.ascontiguousarray(frames[t]))
        if people:
            found = people[0].keypoints
            sure = (truth["state"][t] == 0) & (found[:, 2] > 0.5)
            errors.append(np.median(np.linalg.norm(found[sure, :2] - pixels[t, sure], axis=1)))
    detector.close()
    assert len(errors) >= 0.95 * len(picked)
    assert np.median(errors) < 6.0


def test_planted_feet_stay_and_the_pelvis_swings_over_them() -> None:
    """Legs that tilt over flat feet: the pelvis moves as an inverted pendulum, in closed form."""
    from hmr_prob_ros.training.data.rotations import axis_angle_to_matrix
    from hmr_prob_ros.training.make_clip import plant

    body, betas = Body.load(), np.zeros(10, np.float32)
    angle = 0.25 * np.sin(np.linspace(0, np.pi, 12))
    pose = np.zeros((12, 24, 3))
    for side in ("left", "right"):
        pose[:, JOINT_NAMES.index(f"{side}_hip"), 0] = angle
        pose[:, JOINT_NAMES.index(f"{side}_ankle"), 0] = -angle
    rotations = axis_angle_to_matrix(pose)
    walk, slip = plant(body, rotations, betas, np.array([1.0, -2.0]), 0)
    rest = np.asarray(body.rest_joints(betas), dtype=np.float64)
    leg = rest[JOINT_NAMES.index("left_ankle")] - rest[JOINT_NAMES.index("left_hip")]
    swung = np.stack([axis_angle_to_matrix(np.array([a, 0.0, 0.0])) @ leg for a in angle])
    np.testing.assert_allclose(walk.offset[:, 2] - walk.offset[0, 2], leg[2] - swung[:, 2], atol=3e-3)
    np.testing.assert_allclose(walk.offset[:, 1] - walk.offset[0, 1], leg[1] - swung[:, 1], atol=3e-3)
    np.testing.assert_allclose(walk.offset[0, [0, 2]] + rest[0, [0, 2]], [1.0, -2.0], atol=1e-6)
    assert slip < 0.01
    assert np.abs(np.diff(walk.offset[:, 2])).max() > 0.01


def test_a_missing_recording_is_named() -> None:
    from hmr_prob_ros.training.data.mocap import Mocap
    from hmr_prob_ros.training.make_clip import Part, join

    zero = np.zeros(3, np.uint8)
    mocap = Mocap(np.zeros((3, 24, 3), np.float32), np.zeros((3, 3)), zero, ["a"], zero, ["a"], zero, ["a"], zero, 30.0)
    with pytest.raises(ValueError, match="no recording 'walk'"):
        join(mocap, [Part("walk", 0, 3)], ((0, 0.0), (9, 0.0)))
    with pytest.raises(ValueError, match="ends at frame 3"):
        join(mocap, [Part("a", 0, 9)], ((0, 0.0), (9, 0.0)))
