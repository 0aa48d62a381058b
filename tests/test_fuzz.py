"""Random images, camera infos, keypoints and parameters: nothing crashes, and what is published is sound."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

import cv2
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from ros_processes import photograph
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from hmr_prob_ros import Estimator
from hmr_prob_ros.msg import HumanHypothesesArray, HumanUncertaintyArray, PoseKeypoints, PoseKeypointsArray
from hmr_prob_ros.ros.cameras import CameraInfos
from hmr_prob_ros.ros.conversions import plain_cdr_trouble
from hmr_prob_ros.ros.frames import Arrival, FrameWorker, Outputs, Setup
from hmr_prob_ros.ros.images import ENCODINGS
from hmr_prob_ros.ros.loading import with_samples
from hmr_prob_ros.ros.parameters import PARAMETERS, ParameterError, Settings, changed
from hmr_prob_ros.ros.statistics import Statistics

DEFAULTS = {p.name: p.default for p in PARAMETERS}
NUMBERS = (0.0, -1.0, 1e-30, 1e30, np.nan, np.inf, 1e9, -1e9, 0.5)


class Published:
    """A publisher that keeps its messages for the test."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def publish(self, message: bytes) -> None:
        self.messages.append(message)

    def get_subscription_count(self) -> int:
        return 0


class Fuzzer:
    """Things that a camera, a detector or a person may send, most of them broken."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.person = cv2.resize(photograph(), (256, 256))
        self.stamp = 0

    def number(self, usual: float) -> float:
        return float(self.rng.choice(NUMBERS)) if self.rng.random() < 0.2 else usual * float(self.rng.normal(1, 0.3))

    def header(self) -> Header:
        self.stamp += int(self.rng.integers(1, 10**8))
        stamp = Time(sec=self.stamp // 10**9, nanosec=self.stamp % 10**9)
        return Header(stamp=stamp, frame_id=str(self.rng.choice(["camera", "camera", "other", "", "ä" * 40])))

    def picture(self) -> np.ndarray:
        if self.rng.random() < 0.6:
            top, left = self.rng.integers(0, 100, 2)
            return np.ascontiguousarray(self.person[top : 256 - left // 2, left:])
        height, width = self.rng.integers(1, 200, 2)
        return self.rng.integers(0, 256, (height, width, 3)).astype(np.uint8)

    def image(self) -> bytes | CompressedImage:
        picture, header = self.picture(), self.header()
        if self.rng.random() < 0.2:
            data = bytearray(cv2.imencode(str(self.rng.choice([".jpg", ".png", ".bmp"])), picture)[1].tobytes())
            for _ in range(int(self.rng.integers(0, 4))):
                data[int(self.rng.integers(len(data)))] = int(self.rng.integers(256))
            if self.rng.random() < 0.2:
                del data[int(self.rng.integers(len(data))) :]
            return CompressedImage(header=header, format="jpeg", data=bytes(data))
        height, width = picture.shape[:2]
        msg = Image(header=header, height=height, width=width, step=3 * width, encoding="rgb8", data=picture.tobytes())
        for _ in range(int(self.rng.choice([0, 0, 1, 2]))):
            match self.rng.integers(5):
                case 0:
                    msg.encoding = str(self.rng.choice([*ENCODINGS, "32FC1", "", "RGB8", "\0"]))
                case 1:
                    msg.step = int(self.rng.choice([0, 1, 2**32 - 1, msg.step + 7, msg.step // 2, 3 * width]))
                case 2:
                    msg.width = int(self.rng.choice([0, 1, 2**32 - 1, width // 2, width * 2]))
                case 3:
                    msg.height = int(self.rng.choice([0, 1, 2**32 - 1, height // 2, height * 2]))
                case _:
                    msg.is_bigendian = 1
        data = serialize_message(msg)
        return data[: int(self.rng.integers(8, len(data)))] if self.rng.random() < 0.05 else data

    def keypoints(self) -> PoseKeypointsArray:
        array = PoseKeypointsArray(header=self.header())
        for _ in range(int(self.rng.integers(0, 4))):
            points = self.rng.uniform(-50, 300, (23, 3)).astype(np.float32)
            points[:, 2] = self.rng.uniform(-0.2, 1.2, 23)
            if self.rng.random() < 0.2:
                points[self.rng.integers(23), self.rng.integers(3)] = self.rng.choice(NUMBERS)
            msg = PoseKeypoints(id=int(self.rng.integers(-1, 3)), score=self.number(0.5))
            msg.keypoints = points.ravel()
            array.people.append(msg)
        return array

    def info(self) -> CameraInfo:
        info = CameraInfo(header=self.header())
        info.width, info.height = (int(self.rng.choice([256, 640, 0, 1, 2**32 - 1])) for _ in range(2))
        focal = self.number(300.0)
        info.k = [focal, 0.0, self.number(128), 0.0, focal, self.number(128), 0.0, 0.0, 1.0]
        if self.rng.random() < 0.5:
            info.d = [self.number(0.05) for _ in range(int(self.rng.integers(0, 15)))]
        info.distortion_model = str(
            self.rng.choice(["", "plumb_bob", "rational_polynomial", "equidistant", "thin_prism", "ä"])
        )
        if self.rng.random() < 0.1:
            sizes = {k: int(self.rng.choice([0, 1, 100, 2**32 - 1])) for k in ("x_offset", "y_offset")}
            sizes |= {k: int(self.rng.choice([0, 1, 100, 2**32 - 1])) for k in ("width", "height")}
            info.roi = RegionOfInterest(**sizes)
            info.binning_x = int(self.rng.choice([0, 1, 2, 2**32 - 1]))
        return info

    def parameters(self) -> dict[str, Any]:
        """Some of the parameters with values that ROS lets through or not."""
        values: dict[str, Any] = {}
        for parameter in self.rng.choice(np.array(PARAMETERS, object), int(self.rng.integers(1, 4))):
            kind = type(parameter.default)
            if self.rng.random() < 0.05:
                values[parameter.name] = None
            elif kind is bool:
                values[parameter.name] = bool(self.rng.integers(2))
            elif kind is int:
                values[parameter.name] = int(self.rng.integers(parameter.low, min(parameter.high, 60) + 1))
            elif kind is float:
                values[parameter.name] = float(self.rng.choice([parameter.low, parameter.high, 0.3, np.nan, np.inf]))
            else:
                values[parameter.name] = str(self.rng.choice(["", "raw", "auto", "{}", "[1]", "a b", "\0"]))
        return values


def check(message: bytes, uncertainty: HumanUncertaintyArray | None) -> int:
    """Number of people in a message, all of whose numbers are sound."""
    array = deserialize_message(message, HumanHypothesesArray)
    for person in array.people:
        for field in ("weight", "log_density", "joints", "keypoints3d", "rotations", "betas", "translation"):
            assert all(np.isfinite(getattr(h, field)).all() for h in person.hypotheses), field
        assert sum(h.weight for h in person.hypotheses) == pytest.approx(1, abs=1e-4)
        joints = person.uncertainty
        assert np.isfinite(joints.mean).all()
        covariance = np.asarray(joints.covariance, np.float64).reshape(24, 3, 3)
        np.testing.assert_allclose(covariance, covariance.transpose(0, 2, 1), atol=1e-6 * covariance.max())
        assert (np.linalg.eigvalsh(covariance) > 0).all()
        assert ((np.asarray(joints.visibility) >= 0) & (np.asarray(joints.visibility) <= 1)).all()
    if uncertainty is not None:
        assert len(uncertainty.people) == len(array.people)
    return len(array.people)


@pytest.fixture(scope="module")
def estimator() -> Iterator[Estimator]:
    if trouble := plain_cdr_trouble():
        pytest.skip(trouble)
    with Estimator(threads=1) as estimator:
        yield estimator


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_unsound_is_published(estimator: Estimator, count: int) -> None:
    fuzzer = Fuzzer(count)
    hypotheses, uncertainty = Published(), Published()
    complaints: list[str] = []
    statistics = Statistics()
    infos = CameraInfos("/info", complaints.append, complaints.append)
    setup = Setup(Settings(**DEFAULTS), estimator)
    worker = FrameWorker(
        setup,
        Outputs(hypotheses, uncertainty, Published(), Published()),
        infos,
        statistics,
        now=time.time_ns,
        complain=complaints.append,
        warn=complaints.append,
    )
    people = refused = 0
    for number in range(count):
        if number % 3 == 0:
            infos.add(fuzzer.info())
        if number % 5 == 0:
            try:
                settings = changed(Settings(**DEFAULTS), fuzzer.parameters(), configured=bool(number % 2))
            except ParameterError:
                refused += 1
            else:
                # Between frames nothing may wait, and nothing may be too old.
                settings = replace(settings, max_rate=0.0, max_age=0.0, samples=max(settings.samples, settings.modes))
                setup = Setup(settings, with_samples(estimator, settings))
                worker.setup = setup
        message = fuzzer.keypoints() if fuzzer.rng.random() < 0.3 else fuzzer.image()
        worker.put(Arrival(fuzzer.stamp, message))
        end = time.monotonic() + 20
        while not balanced(statistics):
            assert time.monotonic() < end, f"frame {number} neither came out nor failed"
            time.sleep(0.0002)
        for data in hypotheses.messages:
            other = [deserialize_message(m, HumanUncertaintyArray) for m in uncertainty.messages]
            people += check(data, other[0] if other else None)
        hypotheses.messages.clear()
        uncertainty.messages.clear()
        assert worker.alive
    assert worker.close(10)
    total = statistics.second().total
    assert total["processed"] + total["failed"] + total["repeated"] + total["dropped"] == count
    assert people > count / 6
    assert total["failed"] > count / 10
    assert refused > count / 50
    unexpected = {text for text in complaints if "Error" in text}  # a type's name: nobody thought of it
    assert not unexpected


def balanced(statistics: Statistics) -> bool:
    counts = statistics._counts
    return counts["received"] == sum(counts[k] for k in ("processed", "failed", "repeated", "dropped"))
