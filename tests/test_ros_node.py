# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""The estimator node as a process of its own, spoken to over real ROS 2 with the compiled messages."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.qos import qos_profile_sensor_data
from ros_processes import CAMERA, FRAME, Client, Process, bundle_arguments, photograph
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from hmr_prob_ros.engines import unavailable
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.ros.conversions import hypotheses_from_msg, people_to_msg
from hmr_prob_ros.ros.images import camera_to_info, image_to_rgb, rgb_to_image
from hmr_prob_ros.ros.parameters import PARAMETERS
from hmr_prob_ros.ros.statistics import STATUS_NAME


@pytest.fixture(scope="module")
def domain() -> int:
    """A ROS domain of this module's own, so that nothing else on the network talks in."""
    return random.SystemRandom().randint(30, 101)


@pytest.fixture(scope="module")
def client(domain: int) -> Iterator[Client]:
    client = Client(domain)
    yield client
    client.close()


@pytest.fixture(scope="module")
def node(domain: int, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")
    process = Process(tmp_path_factory.mktemp("node"), domain, "--ros-args", *bundle_arguments())
    try:
        process.wait_for("ready")
        connected = client.spin_until(
            lambda: (
                client.image.get_subscription_count()
                and client.info.get_subscription_count()
                and client.compressed.get_subscription_count()
                and client.node.count_publishers("/human/hypotheses")
            )
        )
        assert connected, "the node was not discovered"
        client.spin_until(lambda: False, 0.5)  # discovery of the other direction
        yield process
    finally:
        process.end()


@pytest.fixture
def alive(node: Process) -> Iterator[Process]:
    """The node, which must also live after the test."""
    yield node
    assert node.process.poll() is None, node.text


def test_image_before_any_camera_info(alive: Process, client: Client) -> None:
    answer = client.answer(client.send(photograph()))
    assert len(answer.people) == 1
    assert not answer.camera_known
    assert "focal length is guessed" in alive.text
    client.answer(client.send(photograph()))
    assert alive.text.count("focal length is guessed") == 1


def test_image_to_hypotheses(alive: Process, client: Client) -> None:
    header = client.header()
    client.send_info(header)
    client.spin_until(lambda: False, 0.2)
    client.send(photograph(), header)
    answer = client.answer(header)
    assert answer.header == header
    assert answer.camera_known
    assert answer.bundle
    assert re.fullmatch("[0-9a-f]{64}", answer.body_hash)
    (person,) = hypotheses_from_msg(answer)
    assert len(person) == 10
    assert person.weights.sum() == pytest.approx(1, abs=1e-4)
    assert (np.diff(person.weights) <= 1e-6).all()
    assert (person.mean[:, 2] > 0).all()
    assert person.score > 0.3
    # The photograph ends at the hips: the legs are less certain than the face.
    assert person.visibility[15] > 0.8 > person.visibility[7]
    assert (np.linalg.eigvalsh(person.covariance) > -1e-6).all()
    uncertainty = client.answer(header, "uncertainty")
    assert uncertainty.header == header
    np.testing.assert_array_equal(uncertainty.people[0].joints.mean, answer.people[0].uncertainty.mean)


def test_compressed_image(alive: Process, client: Client) -> None:
    header = client.header()
    data = cv2.imencode(".jpg", cv2.cvtColor(photograph(), cv2.COLOR_RGB2BGR))[1].tobytes()
    client.compressed.publish(CompressedImage(header=header, format="jpeg", data=data))
    assert len(client.answer(header).people) == 1


def test_raw_and_compressed_of_one_frame_are_one_frame(alive: Process, client: Client) -> None:
    header = client.header()
    data = cv2.imencode(".jpg", cv2.cvtColor(photograph(), cv2.COLOR_RGB2BGR))[1].tobytes()
    client.send(photograph(), header)
    client.compressed.publish(CompressedImage(header=header, format="jpeg", data=data))
    client.answer(header)
    client.answer(client.send(photograph()))
    assert len(client.answers(header)) == 1


def test_nobody_gives_an_empty_message(alive: Process, client: Client) -> None:
    header = client.send(np.full((480, 640, 3), 90, np.uint8))
    assert list(client.answer(header).people) == []
    assert list(client.answer(header, "uncertainty").people) == []


def broken(name: str, header: Header) -> Any:
    if name == "truncated jpeg":
        data = cv2.imencode(".jpg", photograph())[1].tobytes()
        return CompressedImage(header=header, format="jpeg", data=data[: len(data) // 2])
    if name == "no jpeg":
        return CompressedImage(header=header, format="jpeg", data=b"not a picture")
    msg = rgb_to_image(photograph(), Image(header=header))
    if name == "encoding":
        msg.encoding = "strange9"
    elif name == "empty":
        msg.data, msg.width, msg.height = b"", 0, 0
    elif name == "short":
        msg.height = 1000
    return msg


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoding", "strange9"),
        ("empty", "is empty"),
        ("short", "cut short"),
        ("truncated jpeg", "was cut short"),
        ("no jpeg", "neither JPEG nor PNG"),
    ],
)
def test_bad_image_is_told_and_survived(alive: Process, client: Client, name: str, words: str) -> None:
    header = client.header()
    msg = broken(name, header)
    (client.compressed if isinstance(msg, CompressedImage) else client.image).publish(msg)
    alive.wait_for(words, 10)
    assert "Traceback" not in alive.text
    good = client.send(photograph())
    assert len(client.answer(good).people) == 1
    assert client.answers(header) == []


@pytest.mark.parametrize(("field", "words"), [("k", "uncalibrated"), ("fx", "must be above zero"), ("nan", "NaN")])
def test_bad_camera_info_is_told_and_survived(alive: Process, client: Client, field: str, words: str) -> None:
    header = client.header()
    msg = camera_to_info(CAMERA, CameraInfo(header=header))
    k = {"k": np.zeros(9), "fx": np.array([0.0, 0, 256, 0, 600, 256, 0, 0, 1]), "nan": np.full(9, np.nan)}[field]
    msg.k = k
    client.info.publish(msg)
    client.spin_until(lambda: False, 0.2)
    client.send(photograph(), header)
    answer = client.answer(header)
    assert not answer.camera_known
    assert len(answer.people) == 1
    alive.wait_for(words, 5)
    again = client.header()
    client.send_info(again)
    client.spin_until(lambda: False, 0.2)
    assert client.answer(client.send(photograph(), again)).camera_known


def test_stamp_may_jump_back(alive: Process, client: Client) -> None:
    before = client.seconds
    client.seconds = 1000
    answer = client.answer(client.send(photograph()))
    assert len(answer.people) == 1
    alive.wait_for("went back", 5)
    client.seconds = before


def test_markers_and_overlay_for_who_looks(alive: Process, client: Client) -> None:
    subscriptions = [
        client.listen(MarkerArray, "/human/markers", "markers"),
        client.listen(Image, "/human/overlay", "overlay", qos_profile_sensor_data),
    ]
    end = time.monotonic() + 15
    while not (client.got["markers"] and client.got["overlay"]) and time.monotonic() < end:
        header = client.send(photograph())
        client.answer(header)
        client.spin_until(lambda: False, 0.2)
    for subscription in subscriptions:
        client.node.destroy_subscription(subscription)
    markers = client.got["markers"][-1].markers
    assert {m.header.frame_id for m in markers} == {FRAME}
    assert len([m for m in markers if m.type == markers[0].LINE_LIST]) == 10
    overlay = client.got["overlay"][-1]
    assert overlay.header.frame_id == FRAME
    assert image_to_rgb(overlay).shape == (512, 512, 3)
    assert (image_to_rgb(overlay) != photograph()).any()


def test_diagnostics(alive: Process, client: Client) -> None:
    client.got["diagnostics"].clear()
    client.answer(client.send(photograph()))
    assert client.spin_until(lambda: client.got["diagnostics"], 5)
    status = client.got["diagnostics"][-1].status[0]
    values = {v.key: v.value for v in status.values}
    assert status.name == STATUS_NAME
    assert values["detector"] == "blazepose"
    assert "onnxruntime" in values["engine"]
    for name in (
        "latency_p50_ms",
        "latency_p99_ms",
        "stage_detect_ms",
        "stage_infer_ms",
        "frames_dropped",
        "rate_out_hz",
    ):
        assert float(values[name]) >= 0, name


def call(client: Client, kind: type, service: str, request: Any) -> Any:
    caller = client.node.create_client(kind, f"/human_estimator/{service}")
    assert client.spin_until(caller.service_is_ready, 10)
    future = caller.call_async(request)
    assert client.spin_until(future.done, 10)
    client.node.destroy_client(caller)
    return future.result()


def test_parameters_are_described_and_bounded(alive: Process, client: Client) -> None:
    names = [p.name for p in PARAMETERS]
    answer = call(client, DescribeParameters, "describe_parameters", DescribeParameters.Request(names=names))
    assert len(answer.descriptors) == len(PARAMETERS)
    for parameter, descriptor in zip(PARAMETERS, answer.descriptors, strict=True):
        assert descriptor.description == parameter.description
        bounds = [*descriptor.integer_range, *descriptor.floating_point_range]
        assert [(b.from_value, b.to_value) for b in bounds] == (
            [] if parameter.low is None else [(parameter.low, parameter.high)]
        )

    def set_double(name: str, value: float) -> bool:
        msg = ParameterMsg(name=name, value=ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value))
        return (
            call(client, SetParameters, "set_parameters", SetParameters.Request(parameters=[msg])).results[0].successful
        )

    assert not set_double("max_rate", 5000.0)
    assert not set_double("max_rate", float("nan"))
    assert set_double("min_score", 1.0)
    assert list(client.answer(client.send(photograph())).people) == []
    assert set_double("min_score", 0.2)
    assert len(client.answer(client.send(photograph())).people) == 1


def test_sigint_ends_the_node_without_a_word(node: Process) -> None:
    assert node.end(signal.SIGINT) == 0, node.text
    assert "Traceback" not in node.text


def test_keypoints_of_another_node(domain: int, client: Client, tmp_path: Path) -> None:
    # An engine that may be missing: the node says so in one line and goes on with the CPU.
    options = ["detector:=topic", "modes:=5", "engine:=onnxruntime-cuda", "precision:=fp16"]
    parameters = [word for option in options for word in ("-p", option)]
    process = Process(tmp_path, domain, "--ros-args", *bundle_arguments(), *parameters)
    try:
        process.wait_for("ready")
        if unavailable("onnxruntime-cuda"):
            assert process.text.count("onnxruntime on the CPU (fp32) takes its place") == 1
        assert client.spin_until(client.keypoints.get_subscription_count)
        assert client.spin_until(lambda: client.info.get_subscription_count() == 1)
        client.spin_until(lambda: False, 0.5)
        points = np.random.default_rng(0).uniform(100, 400, (23, 3)).astype(np.float32)
        points[:, 2] = 0.9
        person = Person2D(np.array([100, 100, 400, 400]), 0.8, points, 42)
        client.keypoints.publish(people_to_msg([person], client.header()))
        process.wait_for("no camera info", 10)
        header = client.header()
        client.send_info(header)
        client.spin_until(lambda: False, 0.2)
        client.keypoints.publish(people_to_msg([person], header))
        answer = client.answer(header)
        assert [p.id for p in answer.people] == [42]
        assert len(answer.people[0].hypotheses) == 5
        np.testing.assert_array_equal(answer.people[0].keypoints, points.ravel())
        empty = client.header()
        client.keypoints.publish(people_to_msg([], empty))
        assert list(client.answer(empty).people) == []
        assert process.end(signal.SIGTERM) == 0
        assert "Traceback" not in process.text
    finally:
        process.end(signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "bundle:=/nowhere/bundle"], "/nowhere/bundle"),
        (["-p", "samples:=5", "-p", "modes:=10"], "lower modes or raise samples"),
        (["-p", "samples:=0"], "samples must be int between 1 and 4096"),
        (["-p", "detector:=strange"], "strange"),
        (["-p", "engine:=steam"], "unknown engine 'steam': choose one of onnxruntime,"),
        (["-p", "precision:=fp4"], "unknown precision 'fp4': choose one of fp32, tf32, fp16"),
        (["-p", "transport:=pigeon"], "auto, raw or compressed"),
        (["-p", "image_topic:='a topic'"], "Invalid topic name"),
        (["-p", "max_rate:=10"], "float (10.0, not 10)"),
    ],
)
def test_node_that_cannot_start_says_why(domain: int, tmp_path: Path, arguments: list[str], words: str) -> None:
    process = Process(tmp_path, domain, "--ros-args", *arguments)
    assert process.process.wait(30) == 2, process.text
    assert words in process.text
    assert "Traceback" not in process.text
