# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""Stamps, clocks, old frames, and which camera info belongs to an image, while all of it changes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from ros_processes import FRAME, Client, Process, bundle_arguments, photograph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from hmr_prob_ros.camera import Camera
from hmr_prob_ros.ros.cameras import CameraInfos
from hmr_prob_ros.ros.images import CameraInfoError, camera_to_info


def stamped(seconds: float, frame: str = FRAME) -> Header:
    return Header(stamp=Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9)), frame_id=frame)


def camera(focal: float, width: int = 512, height: int = 512) -> Camera:
    return Camera(width, height, focal, focal, width / 2, height / 2)


# which info, without a node -------------------------------------------------------------------------------------------


class Infos:
    """A :class:`CameraInfos` and what it told."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.warnings: list[str] = []
        self.infos = CameraInfos("/camera_info", self.complaints.append, self.warnings.append)

    def add(self, seconds: float, focal: float, frame: str = FRAME, width: int = 512, height: int = 512) -> None:
        self.infos.add(camera_to_info(camera(focal, width, height), CameraInfo(header=stamped(seconds, frame))))

    def focal(self, seconds: float, frame: str = FRAME, width: int = 512, height: int = 512) -> float:
        return self.infos.camera(round(seconds * 1e9), frame, width, height).fx


def test_info_with_the_stamp_counts_then_the_newest_of_the_size() -> None:
    infos = Infos()
    infos.add(1.0, 600)
    infos.add(2.0, 700)
    assert infos.focal(1.0) == 600
    assert infos.focal(2.0) == infos.focal(2.5) == 700
    infos.add(3.0, 350, width=256, height=256)
    assert infos.focal(3.5) == 700
    assert infos.focal(3.5, width=256, height=256) == 350
    assert infos.focal(3.5, width=128, height=128) == pytest.approx(175, rel=0.01)  # scaled
    assert infos.infos.focal_length == "known"
    assert infos.complaints == infos.warnings == []


def test_info_of_the_images_frame_counts() -> None:
    infos = Infos()
    infos.add(1.0, 600)
    infos.add(2.0, 900, "another_camera")
    assert infos.focal(2.0) == 600
    assert infos.focal(2.0, "another_camera") == 900
    assert infos.warnings == []
    assert infos.focal(2.0, "third_camera") == 900  # a driver that is careless about frames
    assert infos.focal(2.1, "third_camera") == 900
    (warning,) = infos.warnings
    assert "'another_camera'" in warning
    assert "set camera_info_topic" in warning


def test_only_the_latest_infos_are_kept() -> None:
    infos = Infos()
    for number in range(1000):
        infos.add(number, 600 + number)
    assert len(infos.infos._infos) <= 16
    assert infos.focal(2000) == 1599
    assert infos.focal(998) == 1598


def test_without_an_info_the_view_is_given_or_guessed() -> None:
    infos = Infos()
    assert infos.infos.camera(0, FRAME, 640, 480, fov=90.0).fx == pytest.approx(320)
    assert infos.infos.focal_length == "field of view"
    assert infos.infos.camera(0, FRAME, 640, 480).guessed
    assert infos.infos.focal_length == "guessed"
    assert len(infos.warnings) == 1
    with pytest.raises(CameraInfoError, match="no camera info on /camera_info"):
        infos.infos.camera(0, FRAME, 0, 0)
    uncalibrated = Camera.guess(512, 512)
    infos.infos.add(camera_to_info(uncalibrated, CameraInfo(header=stamped(1.0))))
    assert infos.infos.camera(0, FRAME, 512, 512).guessed
    assert "uncalibrated" in infos.infos.trouble
    infos.add(2.0, 500)
    assert infos.focal(2.0) == 500
    assert infos.infos.trouble == ""


# the node -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Iterator[Client]:
    pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


def depth(client: Client, header: Header, image: np.ndarray) -> float:
    client.send(image, header)
    answer = client.answer(header)
    assert answer.camera_known
    return answer.people[0].uncertainty.mean[2]


@pytest.mark.slow
def test_intrinsics_and_resolution_change_while_running(client: Client, tmp_path: Path) -> None:
    """Seen with twice the focal length the same picture shows somebody about twice as far away."""
    process = Process(tmp_path, client.context.get_domain_id(), "--ros-args", *bundle_arguments())
    try:
        client.wait_for_node()

        def look(focal: float, size: int, info_size: int = 512, frame: str = FRAME) -> float:
            header = client.header()
            client.send_info(Header(stamp=header.stamp, frame_id=frame), camera(focal, info_size, info_size))
            client.spin_until(lambda: False, 0.2)
            return depth(client, header, cv2.resize(photograph(), (size, size)))

        near = look(600, 512)
        assert look(1200, 512) / near == pytest.approx(2, rel=0.2)
        assert look(600, 512) / near == pytest.approx(1, rel=0.1)
        assert look(600, 256) / near == pytest.approx(1, rel=0.2)  # the info is for the whole picture
        assert look(300, 256, 256) / near == pytest.approx(1, rel=0.2)
        assert look(600, 512) / near == pytest.approx(1, rel=0.1)
        assert look(1200, 512, frame="another_camera") / near == pytest.approx(1, rel=0.1)
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)


def test_sim_time_stale_frames_and_a_clock_that_goes_back(client: Client, tmp_path: Path) -> None:
    options = ["-p", "use_sim_time:=true", "-p", "max_age:=0.5", "-p", "warn_latency:=0.05"]
    process = Process(tmp_path, client.context.get_domain_id(), "--ros-args", *options, *bundle_arguments())
    clock = client.node.create_publisher(Clock, "/clock", 10)

    def set_clock(seconds: float) -> None:
        clock.publish(Clock(clock=stamped(seconds).stamp))
        client.spin_until(lambda: False, 0.2)

    try:
        client.wait_for_node()
        assert client.spin_until(clock.get_subscription_count)
        set_clock(100.0)
        before = len(client.got["diagnostics"])
        for stamp in (99.7, 99.9):
            assert client.answer(client.send(photograph(), stamped(stamp))).people[0].id == 0
        # The clock stands still, so that these are no measurements.
        status, values = client.diagnosis(
            lambda s: "from its stamp" in s.message and any(v.value == "2" for v in s.values if "processed" in v.key),
            since=before,
        )
        assert status.level == DiagnosticStatus.WARN
        assert float(values["latency_p50_ms"]) == pytest.approx(200)
        assert float(values["latency_p99_ms"]) == pytest.approx(300, abs=3)
        stale = client.send(photograph(), stamped(99.95 - 1))
        process.wait_for("a frame came 1.1 s after its stamp and was dropped (max_age is 0.5)", 10)
        assert client.answers(stale) == []
        disorder = client.send(photograph(), stamped(99.85))
        client.spin_until(lambda: False, 0.3)  # a newer one would take its place
        client.answer(client.send(photograph(), stamped(99.95)))
        assert client.answers(disorder) == []
        client.send(photograph(), stamped(99.95))
        status, values = client.diagnosis(
            lambda s: any(v.key == "frames_repeated" and v.value == "1" for v in s.values)
        )
        assert (values["frames_dropped_stale"], values["frames_dropped_late"]) == ("1", "1")
        assert values["frames_received"] == "6"
        assert values["frames_processed"] == "3"

        set_clock(50.0)  # the bag begins again
        process.wait_for("the clock jumped", 10)
        shifted = np.roll(photograph(), 200, axis=1)
        assert client.answer(client.send(shifted, stamped(49.9))).people[0].id == 0
        assert client.set_parameters({"max_age": 0.0}) == [""]
        assert client.answer(client.send(shifted, stamped(20.0))).people  # the stamps alone go back, too
        process.wait_for("the image stamp went back by 29.9 s", 10)
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("speed", [0.25, 8.0])
def test_a_bag_slower_and_faster_than_life(client: Client, tmp_path: Path, speed: float) -> None:
    """Thirty frames a second of the bag, and a clock that runs with it: none is stale, ages are in its seconds."""
    options = ["-p", "use_sim_time:=true", "-p", "max_age:=2.0", "-p", "warn_latency:=0.0"]
    process = Process(tmp_path, client.context.get_domain_id(), "--ros-args", *options, *bundle_arguments())
    clock = client.node.create_publisher(Clock, "/clock", 10)
    try:
        client.wait_for_node()
        assert client.spin_until(clock.get_subscription_count)
        sent, start = [], time.monotonic()
        while (elapsed := time.monotonic() - start) < 2.5:
            now = 1000 + speed * elapsed
            clock.publish(Clock(clock=stamped(now).stamp))
            sent.append(client.send(photograph(), stamped(now)))
            client.spin_until(lambda: False, 1 / 30 / speed)
        client.answer(sent[-1])
        values = client.diagnosis()[1]
        assert values["frames_dropped_stale"] == "0"
        assert 0 <= float(values["latency_p50_ms"]) < 1000 * speed
        assert len(client.got["hypotheses"]) > 0.2 * min(len(sent), 75)
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)
