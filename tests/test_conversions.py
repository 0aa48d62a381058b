"""Pictures, camera infos and hypotheses to ROS messages and back."""

from __future__ import annotations

import array
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from hmr_prob_ros.camera import Camera
from hmr_prob_ros.hypotheses import HypothesisError, HypothesisSet, Person2D
from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.conversions import (
    hypotheses_from_msg,
    hypotheses_to_msg,
    people_from_msg,
    people_to_msg,
    stamp_to_nanoseconds,
    uncertainty_to_msg,
)
from hmr_prob_ros.ros.images import (
    CameraInfoError,
    ImageError,
    camera_from_info,
    camera_to_info,
    compressed_to_rgb,
    image_to_rgb,
    rgb_to_image,
)
from hmr_prob_ros.skeleton import JOINT_NAMES

RNG = np.random.default_rng(7)
HEADER = Header(stamp=Time(sec=12, nanosec=345), frame_id="left_optical")


def message(encoding: str, rows: np.ndarray, width: int, padding: int = 0, big: bool = False) -> Image:
    """An image message from its bytes (H, row bytes), each row followed by ``padding`` bytes."""
    rows = np.ascontiguousarray(rows).view(np.uint8).reshape(rows.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    msg = Image(height=rows.shape[0], width=width, encoding=encoding, step=padded.shape[1], is_bigendian=int(big))
    msg.data = array.array("B", padded.tobytes())
    return msg


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x + 40, 3 * y + 30, x + y], -1).clip(0, 255).astype(np.uint8)


def person(seed: int = 0, modes: int = 3, identity: int = 4) -> HypothesisSet:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(24, 3, 3))
    weights = np.sort(rng.dirichlet(np.ones(modes)))[::-1]
    return HypothesisSet(
        id=identity,
        box=np.array([1, 2, 30, 40]),
        score=0.75,
        keypoints=rng.uniform(0, 1, (23, 3)),
        weights=weights,
        log_density=rng.normal(size=modes) * 100,
        rotations=rng.normal(size=(modes, 24, 3, 3)),
        betas=rng.normal(size=(modes, 10)),
        translation=rng.normal(size=(modes, 3)),
        joints=rng.normal(size=(modes, 24, 3)),
        keypoints3d=rng.normal(size=(modes, 23, 3)),
        mean=rng.normal(size=(24, 3)),
        covariance=factor @ factor.transpose(0, 2, 1),
        visibility=rng.uniform(0, 1, 24),
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pack", "width"),
    [
        ("rgb8", lambda p: p, 3),
        ("bgr8", lambda p: p[..., ::-1], 3),
        ("8UC3", lambda p: p[..., ::-1], 3),
        ("rgba8", lambda p: np.dstack([p, np.full(p.shape[:2], 7, np.uint8)]), 4),
        ("bgra8", lambda p: np.dstack([p[..., ::-1], np.full(p.shape[:2], 7, np.uint8)]), 4),
        ("8UC4", lambda p: np.dstack([p[..., ::-1], np.full(p.shape[:2], 7, np.uint8)]), 4),
    ],
)
def test_colour_encodings(encoding: str, pack, width: int, padding: int) -> None:
    expected = picture()
    rows = np.ascontiguousarray(pack(expected)).reshape(6, 8 * width)
    np.testing.assert_array_equal(image_to_rgb(message(encoding, rows, 8, padding)), expected)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey(encoding: str) -> None:
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(image_to_rgb(message(encoding, grey, 7, 2)), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("big", [False, True])
def test_sixteen_bits_keep_the_high_byte(big: bool) -> None:
    grey = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    rows = grey.astype(">u2" if big else "<u2")
    result = image_to_rgb(message("mono16", rows, 7, 3, big))
    np.testing.assert_array_equal(result, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, -1))
    colour = RNG.integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    rows = colour.astype(">u2" if big else "<u2").reshape(4, 18)
    np.testing.assert_array_equal(image_to_rgb(message("rgb16", rows, 6, 0, big)), (colour // 256).astype(np.uint8))
    np.testing.assert_array_equal(
        image_to_rgb(message("bgr16", rows, 6, 0, big))[..., ::-1], (colour // 256).astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_yuv422(encoding: str, order: str) -> None:
    """Against ITU-R BT.601's own formula (studio range), pixel by pixel."""
    rng = np.random.default_rng(1)
    y = rng.integers(16, 236, (4, 6)).astype(float)
    u, v = rng.integers(100, 156, (2, 4, 3)).astype(float)
    slots = {"u": u, "y": y[:, ::2], "v": v, "Y": y[:, 1::2]}
    names = ["u", "y", "v", "Y"] if order == "uyvy" else ["y", "u", "Y", "v"]
    rows = np.stack([slots[n] for n in names], -1).astype(np.uint8).reshape(4, 12)
    cb, cr = np.repeat(u, 2, 1) - 128, np.repeat(v, 2, 1) - 128
    luma = 1.164383 * (y - 16)
    expected = np.stack([luma + 1.596027 * cr, luma - 0.391762 * cb - 0.812968 * cr, luma + 2.017232 * cb], -1).clip(
        0, 255
    )
    np.testing.assert_allclose(image_to_rgb(message(encoding, rows, 6, 4)), expected, atol=1.5)


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"])
def test_bayer(encoding: str) -> None:
    colour = {"r": 200, "g": 120, "b": 30}
    tile = np.array([colour[c] for c in encoding[6:10]], np.uint8).reshape(2, 2)
    result = image_to_rgb(message(encoding, np.tile(tile, (4, 4)), 8))
    np.testing.assert_array_equal(result[2:-2, 2:-2], np.broadcast_to([200, 120, 30], (4, 4, 3)))


@given(height=st.integers(1, 12), width=st.integers(1, 12), padding=st.integers(0, 9), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_any_size_and_padding(height: int, width: int, padding: int, seed: int) -> None:
    expected = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = expected[..., ::-1].reshape(height, -1)
    np.testing.assert_array_equal(image_to_rgb(message("bgr8", rows, width, padding)), expected)


def test_last_row_may_lack_its_padding_and_step_may_be_unset() -> None:
    expected = picture()
    msg = message("rgb8", expected.reshape(6, -1), 8, 4)
    msg.data = msg.data[:-4]
    np.testing.assert_array_equal(image_to_rgb(msg), expected)
    msg = message("rgb8", expected.reshape(6, -1), 8)
    msg.step = 0
    np.testing.assert_array_equal(image_to_rgb(msg), expected)


def test_rgb8_is_not_copied() -> None:
    msg = rgb_to_image(picture(), Image())
    assert np.shares_memory(image_to_rgb(msg), np.frombuffer(msg.data, np.uint8))


def change(msg: Image, **fields: object) -> Image:
    for name, value in fields.items():
        setattr(msg, name, value)
    return msg


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoding": "xyz7"}, ["xyz7", "8x6", "publish one of"]),
        ({"encoding": "32FC1"}, ["depth"]),
        ({"encoding": ""}, ["''"]),
        ({"data": array.array("B")}, ["empty", "rgb8"]),
        ({"width": 0}, ["empty"]),
        ({"step": 20}, ["step is 20", "24"]),
        ({"height": 60}, ["144 bytes", "1440"]),
    ],
)
def test_bad_image(fields: dict[str, object], words: list[str]) -> None:
    msg = change(rgb_to_image(picture(), Image()), **fields)
    with pytest.raises(ImageError) as error:
        image_to_rgb(msg)
    for word in words:
        assert word in str(error.value)


def test_odd_yuv() -> None:
    with pytest.raises(ImageError, match="even width"):
        image_to_rgb(message("yuv422", np.zeros((2, 10), np.uint8), 5))


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 12)])
def test_compressed(suffix: str, tolerance: int) -> None:
    expected = smooth_picture()
    data = cv2.imencode(suffix, expected[..., ::-1])[1]
    result = compressed_to_rgb(CompressedImage(format=suffix[1:], data=data.tobytes()))
    assert int(np.abs(result.astype(int) - expected).max()) <= tolerance


@pytest.mark.parametrize(
    ("suffix", "cut", "words"),
    [(".jpg", 0.5, "cut short"), (".png", 0.4, "PNG"), (".jpg", 0.0, "empty"), (".webp", -1, "neither")],
)
def test_broken_compressed(suffix: str, cut: float, words: str) -> None:
    data = b"no picture at all" if cut < 0 else cv2.imencode(suffix, picture(96, 96))[1].tobytes()
    data = data if cut < 0 else data[: int(len(data) * cut)]
    with pytest.raises(ImageError, match=words):
        compressed_to_rgb(CompressedImage(format="x", data=data))


def test_image_round_trip_is_fast() -> None:
    image = picture(480, 640)
    start = time.perf_counter()
    for _ in range(10):
        msg = rgb_to_image(image, Image())
    assert (time.perf_counter() - start) / 10 < 0.01  # a numpy array given to the field would take 40 ms
    back = deserialize_message(serialize_message(msg), Image)
    np.testing.assert_array_equal(image_to_rgb(back), image)


CAMERA = Camera(640, 480, 500.0, 510.0, 315.0, 245.0, (0.1, -0.02, 0.001, 0.002, 0.0), "plumb_bob")


@pytest.mark.parametrize(
    "camera",
    [
        CAMERA,
        Camera(640, 480, 500.0, 500.0, 320.0, 240.0),
        Camera(640, 480, 300.0, 300.0, 320.0, 240.0, (0.1, 0.02, -0.003, 0.001), "equidistant"),
        Camera(
            640, 480, 300.0, 300.0, 320.0, 240.0, (0.1, 0.02, 0.0, 0.0, 0.01, 0.2, 0.03, 0.01), "rational_polynomial"
        ),
    ],
)
def test_camera_round_trip(camera: Camera) -> None:
    info = deserialize_message(serialize_message(camera_to_info(camera, CameraInfo())), CameraInfo)
    back = camera_from_info(info, 640, 480)
    assert (back.width, back.height, back.fx, back.fy, back.cx, back.cy) == (
        640,
        480,
        camera.fx,
        camera.fy,
        camera.cx,
        camera.cy,
    )
    assert back.distortion == camera.distortion
    assert not back.guessed


def test_camera_of_binned_cropped_and_resized_picture() -> None:
    """A point in front of the camera falls on the same spot of the scene, whatever the driver did to the picture."""
    info = camera_to_info(Camera(640, 480, 500.0, 500.0, 320.0, 240.0), CameraInfo())
    full = camera_from_info(info, 640, 480)
    point = np.array([0.3, -0.2, 2.0])
    info.roi = RegionOfInterest(x_offset=100, y_offset=40, width=400, height=300)
    cropped = camera_from_info(info, 400, 300)
    np.testing.assert_allclose(cropped.project(point), full.project(point) - [100, 40], atol=1e-3)
    info.roi, info.binning_x, info.binning_y = RegionOfInterest(), 2, 2
    np.testing.assert_allclose(camera_from_info(info, 320, 240).project(point), full.project(point) / 2, atol=1e-3)
    info.binning_x = info.binning_y = 0
    resized = camera_from_info(info, 320, 240)
    assert (resized.width, resized.height) == (320, 240)
    np.testing.assert_allclose(resized.project(point), full.project(point) / 2, atol=0.6)


@pytest.mark.parametrize(
    ("change_info", "words"),
    [
        (lambda i: setattr(i, "k", np.zeros(9)), "uncalibrated"),
        (lambda i: setattr(i, "k", np.array([0.0, 0, 320, 0, 500, 240, 0, 0, 1])), "fx=0"),
        (lambda i: setattr(i, "k", np.full(9, np.nan)), "NaN"),
        (lambda i: setattr(i, "d", [np.nan] * 5), "NaN"),
        (lambda i: (setattr(i, "d", [0.1] * 5), setattr(i, "distortion_model", "strange")), "strange"),
        (lambda i: setattr(i, "height", 200), "640x200"),
    ],
)
def test_bad_camera_info(change_info, words: str) -> None:
    info = camera_to_info(CAMERA, CameraInfo())
    change_info(info)
    with pytest.raises(CameraInfoError, match=words):
        camera_from_info(info, 640, 480)


def test_hypotheses_round_trip() -> None:
    people = [person(1), person(2, modes=10, identity=9)]
    msg = hypotheses_to_msg(people, HEADER, camera_known=False, bundle="b", body_hash="h")
    back_msg = deserialize_message(serialize_message(msg), HumanHypothesesArray)
    assert back_msg.header == HEADER
    assert (back_msg.camera_known, back_msg.bundle, back_msg.body_hash) == (False, "b", "h")
    assert list(back_msg.people[0].uncertainty.names) == list(JOINT_NAMES)
    for one, back in zip(people, hypotheses_from_msg(back_msg), strict=True):
        assert (back.id, round(back.score, 6)) == (one.id, one.score)
        for name in ("box", "keypoints", "weights", "log_density", "rotations", "betas", "translation"):
            np.testing.assert_array_equal(getattr(back, name), getattr(one, name), err_msg=name)
        for name in ("joints", "keypoints3d", "mean", "covariance", "visibility"):
            np.testing.assert_array_equal(getattr(back, name), getattr(one, name), err_msg=name)
    np.testing.assert_allclose(back_msg.people[1].uncertainty.spread, people[1].spread)


def test_modes_are_published_heaviest_first() -> None:
    one = person(3)
    mixed = HypothesisSet(**{**vars(one), "weights": one.weights[::-1].copy()})
    weights = [h.weight for h in hypotheses_to_msg([mixed], HEADER).people[0].hypotheses]
    assert weights == sorted(weights, reverse=True)
    np.testing.assert_array_equal(
        hypotheses_to_msg([mixed], HEADER).people[0].hypotheses[0].joints, one.joints[2].ravel()
    )


def test_uncertainty_holds_the_same_numbers() -> None:
    one = person(5)
    msg = uncertainty_to_msg([one], HEADER)
    joints = msg.people[0].joints
    np.testing.assert_array_equal(np.asarray(joints.covariance).reshape(24, 3, 3), one.covariance)
    np.testing.assert_allclose(np.asarray(joints.spread) ** 2, np.einsum("jii->j", one.covariance), rtol=1e-5)
    assert msg.people[0].id == 4


def test_nobody_is_an_empty_message() -> None:
    assert hypotheses_from_msg(hypotheses_to_msg([], HEADER)) == []
    assert list(uncertainty_to_msg([], HEADER).people) == []


def test_person_without_hypotheses_is_refused() -> None:
    msg = hypotheses_to_msg([person()], HEADER)
    msg.people[0].hypotheses = []
    with pytest.raises(HypothesisError):
        hypotheses_from_msg(msg)


def test_keypoints_round_trip_and_box_from_keypoints() -> None:
    keypoints = np.zeros((23, 3), np.float32)
    keypoints[5:9] = [[10, 20, 0.9], [30, 25, 0.8], [12, 60, 0.5], [33, 61, 1.0]]
    one = Person2D(np.array([1, 2, 3, 4]), 0.5, keypoints, 3)
    (back,) = people_from_msg(people_to_msg([one], HEADER))
    np.testing.assert_array_equal(back.keypoints, keypoints)
    np.testing.assert_array_equal(back.box, one.box)
    assert back.id == 3
    (back,) = people_from_msg(people_to_msg([Person2D(np.zeros(4), 0.5, keypoints)], HEADER))
    np.testing.assert_array_equal(back.box, [10, 20, 33, 61])


def test_stamp() -> None:
    assert stamp_to_nanoseconds(Time(sec=1_700_000_000, nanosec=999_999_999)) == 1_700_000_000_999_999_999


def test_ten_modes_are_converted_within_a_few_milliseconds() -> None:
    people = [person(1, modes=10)]
    start = time.perf_counter()
    for _ in range(20):
        hypotheses_to_msg(people, HEADER)
    assert (time.perf_counter() - start) / 20 < 0.01
