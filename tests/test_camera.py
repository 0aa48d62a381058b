"""Cameras: rays and projection are inverse, OpenCV agrees, crops follow the person, bad numbers are named."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmr_prob_ros.camera import CROP_PADDING, MIN_CROP, Camera, CameraError, condition, crop_from_keypoints

CAMERAS = {
    "plain": Camera(640, 480, 500.0, 520.0, 310.0, 250.0),
    "plumb_bob": Camera(640, 480, 500.0, 520.0, 310.0, 250.0, (-0.2, 0.05, 0.001, -0.002, 0.0)),
    "rational": Camera(
        640, 480, 500.0, 520.0, 310.0, 250.0, (0.1, -0.05, 0.001, 0.001, 0.01, 0.2, 0.0, 0.0), "rational_polynomial"
    ),
    "fisheye": Camera(640, 480, 300.0, 300.0, 320.0, 240.0, (0.02, -0.01, 0.003, 0.0), "equidistant"),
}


def person(count: int = 23) -> np.ndarray:
    rng = np.random.default_rng(1)
    points = np.stack([rng.uniform(250, 390, 23), rng.uniform(80, 420, 23), np.full(23, 0.9)], axis=1)
    points[count:, 2] = 0.0
    return points.astype(np.float32)


@pytest.mark.parametrize("name", CAMERAS)
def test_rays_undo_the_projection(name: str) -> None:
    camera = CAMERAS[name]
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-0.6, 0.6, 50), rng.uniform(-0.5, 0.5, 50), np.ones(50)], axis=1) * rng.uniform(
        1, 8, (50, 1)
    )
    rays = camera.rays(camera.project(points))
    assert rays.shape == (50, 2)
    assert np.allclose(rays, points[:, :2] / points[:, 2:], atol=2e-4)
    stacked = camera.project(points.reshape(5, 10, 3))
    assert np.allclose(stacked.reshape(50, 2), camera.project(points))


@pytest.mark.parametrize("name", ["plain", "plumb_bob", "rational"])
def test_projection_agrees_with_opencv(name: str) -> None:
    camera = CAMERAS[name]
    points = np.random.default_rng(2).uniform(-1, 1, (20, 3)) + (0, 0, 4)
    expected, _ = cv2.projectPoints(
        points, np.zeros(3), np.zeros(3), camera.matrix, np.array(camera.distortion or (0.0,) * 5)
    )
    assert np.allclose(camera.project(points), expected[:, 0], atol=1e-2)


def test_fisheye_angle_law() -> None:
    camera = CAMERAS["fisheye"]
    angle = 0.6
    theta = angle * (1 + 0.02 * angle**2 - 0.01 * angle**4 + 0.003 * angle**6)
    pixel = camera.project(np.array([math.sin(angle), 0.0, math.cos(angle)]))
    assert np.allclose(pixel, (320 + 300 * theta, 240), atol=1e-2)


def test_guess_is_the_diagonal() -> None:
    camera = Camera.guess(640, 480)
    assert camera.fx == camera.fy == 800
    assert camera.guessed
    assert abs(2 * math.degrees(math.atan(400 / camera.fx)) - 53.13) < 0.01
    wide = Camera.from_fov(640, 480, 90.0)
    assert abs(wide.fx - 320) < 1e-9


def test_scaling_keeps_the_rays() -> None:
    camera = CAMERAS["plumb_bob"]
    half = camera.scaled(320, 240)
    pixels = np.array([[100.0, 50.0], [600.0, 400.0]])
    assert np.allclose(half.rays(pixels / 2), camera.rays(pixels), atol=1e-5)


def test_points_behind_the_camera_stay_finite() -> None:
    for camera in CAMERAS.values():
        assert np.isfinite(camera.project(np.array([[0.1, 0.2, -1.0], [0.0, 0.0, 0.0]]))).all()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((640, 480, 0.0, 500.0, 320.0, 240.0), "no focal length"),
        ((640, 480, 500.0, -1.0, 320.0, 240.0), "no focal length"),
        ((640, 480, math.nan, 500.0, 320.0, 240.0), "not finite"),
        ((0, 480, 500.0, 500.0, 320.0, 240.0), "not positive"),
    ],
)
def test_impossible_cameras_are_refused(numbers: tuple[float, ...], words: str) -> None:
    with pytest.raises(CameraError, match=words):
        Camera(*numbers)  # type: ignore[arg-type]
    with pytest.raises(CameraError, match="unknown distortion model"):
        Camera(640, 480, 500.0, 500.0, 320.0, 240.0, model="brown")


YAML = """\
image_width: 640
image_height: 480
camera_name: head
camera_matrix: {rows: 3, cols: 3, data: [500.0, 0.0, 310.0, 0.0, 520.0, 250.0, 0.0, 0.0, 1.0]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.2, 0.05, 0.001, -0.002, 0.0]}
"""


def test_yaml_of_camera_calibration(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(YAML)
    assert Camera.from_yaml(tmp_path / "camera.yaml") == CAMERAS["plumb_bob"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("just words", "not a camera_info yaml"),
        ("a: [", "not a camera_info yaml"),
        (YAML.replace("image_width: 640\n", ""), "image_width"),
        (YAML.replace("500.0", "0.0"), "no focal length"),
    ],
)
def test_broken_yaml_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "camera.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CameraError, match=words):
        Camera.from_yaml(path)


def test_crop_is_the_padded_square_round_sure_points() -> None:
    rays = np.zeros((23, 2), np.float32)
    confidence = np.zeros(23, np.float32)
    rays[:3] = [(0.1, 0.2), (0.3, 0.8), (5.0, 5.0)]
    confidence[:3] = (0.9, 0.31, 0.29)
    crop = crop_from_keypoints(rays, confidence)
    assert crop is not None
    assert np.allclose(crop, (0.2, 0.5, 0.6 * CROP_PADDING))
    assert crop_from_keypoints(rays, np.where(np.arange(23) == 0, 0.9, 0.0)) is None
    rays[1] = rays[0]
    point = crop_from_keypoints(rays, confidence)
    assert point is not None
    assert point.size == pytest.approx(MIN_CROP)


def test_condition_does_not_depend_on_the_resolution() -> None:
    camera, points = CAMERAS["plumb_bob"], person()
    whole, half = condition(points, camera), condition(points * np.float32([0.5, 0.5, 1]), camera.scaled(320, 240))
    assert whole is not None
    assert half is not None
    assert np.allclose(whole[0], half[0], atol=1e-3)
    assert np.allclose(whole[1], half[1], atol=1e-4)


def test_condition_hides_what_was_not_seen() -> None:
    camera, points = CAMERAS["plain"], person(20)
    points[0, :2] = (-20, 100)  # a guess outside the picture
    points[1, :2] = np.nan
    given = condition(points, camera)
    assert given is not None
    keypoints, box = given
    assert keypoints.shape == (23, 3)
    assert box.shape == (3,)
    assert keypoints.dtype == box.dtype == np.float32
    assert not keypoints[[0, 1, 20, 21, 22]].any()
    assert np.abs(keypoints[2:20, :2]).max() <= 1 / CROP_PADDING + 1e-5
    back = keypoints[5, :2] * box[2] / 2 + box[:2]
    assert np.allclose(back, camera.rays(points[5, :2]), atol=1e-6)
    points[1:, 2] = 0.0
    assert condition(points, camera) is None
