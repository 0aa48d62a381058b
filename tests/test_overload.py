# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""Too many frames, too little CPU, subscribers that do not read: the newest frame wins and nothing piles up."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

from rclpy.serialization import serialize_message
from ros_processes import FRAME, Client, Process, photograph, running_node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.cdr import peek_stamp
from hmr_prob_ros.ros.images import rgb_to_image
from hmr_prob_ros.ros.statistics import CAUSES


class Camera:
    """Publishes a picture at a rate and measures the seconds from its stamp to the arrival of the hypotheses."""

    def __init__(self, client: Client) -> None:
        self.client = client
        image = cv2.resize(photograph(), (640, 480))
        self.data = bytearray(serialize_message(rgb_to_image(image, Image(header=Header(frame_id=FRAME)))))
        self.latency: list[float] = []
        client.node.create_subscription(HumanHypothesesArray, "/human/hypotheses", self.answer, 10, raw=True)

    def answer(self, data: bytes) -> None:
        stamp = peek_stamp(data)
        self.latency.append(time.time() - stamp.sec - stamp.nanosec * 1e-9)

    def play(self, rate: float, seconds: float) -> tuple[int, np.ndarray]:
        """Number of frames sent, and the latencies of the answers."""
        self.latency.clear()
        sent, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            if sent <= elapsed * rate:
                now = time.time_ns()
                struct.pack_into("<iI", self.data, 4, now // 10**9, now % 10**9)
                self.client.image.publish(bytes(self.data))
                sent += 1
            self.client.executor.spin_once(timeout_sec=max(0.0, sent / rate - elapsed))
        self.client.spin_until(lambda: False, 0.5)
        return sent, np.array(self.latency)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


@pytest.fixture(scope="module")
def node(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_node(client, tmp_path_factory.mktemp("node")) as process:
        yield process


@pytest.fixture(scope="module")
def camera(client: Client, node: Process) -> Camera:
    camera = Camera(client)
    client.spin_until(lambda: False, 0.5)
    camera.play(30, 1.0)  # the first frames find their memory
    return camera


def accounted(client: Client) -> dict[str, int]:
    """The counts of frames, which add up."""
    client.spin_until(lambda: False, 1.1)
    values = client.diagnosis()[1]
    count = {k.removeprefix("frames_"): int(v) for k, v in values.items() if k.startswith("frames_")}
    assert count["dropped"] == sum(count[f"dropped_{cause}"] for cause in CAUSES)
    assert count["received"] == count["processed"] + count["dropped"] + count["failed"] + count["repeated"]
    return count


def test_three_hundred_frames_a_second(client: Client, node: Process, camera: Camera) -> None:
    before, memory = accounted(client), node.memory
    sent, latency = camera.play(300, 2.5)
    after = accounted(client)
    new = {name: after[name] - before[name] for name in after}
    assert 0 <= sent - new["received"] - new["missed"] <= 5  # the last ones may be lost and nobody knows
    assert new["dropped"] > 0
    assert new["failed"] == 0
    assert len(latency) == new["processed"]
    early, late = np.array_split(latency, 2)
    assert np.median(late) < 0.25
    assert np.median(late) < 2 * np.median(early) + 0.02  # it does not grow
    assert latency.max() < 1.5
    assert node.memory - memory < 50e6
    _, latency = camera.play(15, 1.0)
    assert np.median(latency) < 0.15  # nothing is left of it


SLEEPER = """
import sys, rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from visualization_msgs.msg import MarkerArray
from hmr_prob_ros.msg import HumanHypothesesArray
rclpy.init()
node = rclpy.create_node("sleeper")
qos = QoSProfile(depth=5)
for kind, topic in ((HumanHypothesesArray, "hypotheses"), (MarkerArray, "markers")):
    node.create_subscription(kind, f"/human/{topic}", lambda msg: print("got", flush=True), qos)
rclpy.spin(node)
"""


@pytest.mark.slow
def test_a_subscriber_that_stands_still(client: Client, node: Process, camera: Camera, tmp_path: Path) -> None:
    """It is stopped in the middle of reliable topics; the others get theirs as before."""
    environment = dict(os.environ, ROS_DOMAIN_ID=str(client.context.get_domain_id()), ROS_LOG_DIR=str(tmp_path))
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER], env=environment, stdout=subprocess.PIPE)
    try:
        assert client.spin_until(lambda: client.node.count_subscribers("/human/markers"))
        camera.play(15, 0.7)
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == b"got\n"
        sleeper.send_signal(signal.SIGSTOP)
        camera.play(15, 0.3)
        memory = node.memory
        sent, latency = camera.play(15, 3.0)
        assert len(latency) > 0.8 * sent
        assert np.median(latency) < 0.15
        assert node.memory - memory < 50e6
    finally:
        sleeper.send_signal(signal.SIGCONT)
        sleeper.terminate()
        sleeper.wait(10)
    accounted(client)


@pytest.mark.slow
def test_a_cpu_that_is_taken(client: Client, node: Process, camera: Camera) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        _, latency = camera.play(30, 2.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    early, late = np.array_split(latency, 2)
    assert len(late) > 10
    assert np.median(late) < 0.5
    assert np.median(late) < 3 * np.median(early) + 0.05
    assert accounted(client)["failed"] == 0


@pytest.mark.slow
def test_a_rate_limit_is_no_overload(client: Client, node: Process, camera: Camera) -> None:
    before = accounted(client)
    assert client.set_parameters({"max_rate": 5.0}) == [""]
    sent, latency = camera.play(25, 2.0)
    after = accounted(client)
    assert client.set_parameters({"max_rate": 0.0}) == [""]
    assert 5 <= len(latency) <= 13
    assert after["dropped_period"] - before["dropped_period"] > 0.5 * sent
    assert np.median(latency) < 0.15
