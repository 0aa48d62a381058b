# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""The node held in its states by a manager in another process, its parameters, several of it, and how it ends."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_processes import Client, Process, bundle_arguments, photograph
from sensor_msgs.msg import Image

from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.images import rgb_to_image

MANAGED = ["--ros-args", "-p", "autostart:=false"]


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


def node(client: Client, folder: Path, *arguments: str) -> Process:
    return Process(folder, client.context.get_domain_id(), *(arguments or ["--ros-args"]), *bundle_arguments())


def test_a_manager_takes_the_node_through_its_states(client: Client, tmp_path: Path) -> None:
    process = node(client, tmp_path, *MANAGED)
    try:
        assert client.state() == "unconfigured"
        status, values = client.diagnosis()
        assert (status.level, values["state"]) == (DiagnosticStatus.OK, "unconfigured")
        assert not client.change_state("activate")  # not from here
        bare = process.memory
        assert client.change_state("configure")
        assert client.state() == "inactive"
        assert client.spin_until(lambda: client.node.count_publishers("/human/hypotheses"))
        assert client.image.get_subscription_count() == client.info.get_subscription_count() == 0
        for _ in range(2):
            assert client.change_state("activate")
            client.wait_for_node()
            assert len(client.answer(client.send(photograph())).people) == 1
            assert process.memory < 600e6
            loaded = process.memory
            assert client.change_state("deactivate")
            assert client.state() == "inactive"
            assert client.spin_until(lambda: client.image.get_subscription_count() == 0)
        answers, cpu, start = len(client.got["hypotheses"]), process.cpu_seconds, time.monotonic()
        while time.monotonic() < start + 2:
            client.send(photograph())
            client.spin_until(lambda: False, 0.03)
        assert (process.cpu_seconds - cpu) / (time.monotonic() - start) < 0.02
        assert len(client.got["hypotheses"]) == answers
        assert client.change_state("cleanup")
        assert client.state() == "unconfigured"
        assert client.spin_until(lambda: client.node.count_publishers("/human/hypotheses") == 0)
        assert process.memory - bare < 0.7 * (loaded - bare), (bare, loaded, process.memory)
        assert client.change_state("configure")
        assert client.change_state("shutdown")
        assert client.state() == "finalized"
        assert process.end(signal.SIGTERM) == 0
        assert "Traceback" not in process.text
    finally:
        process.end(signal.SIGKILL)


def test_a_failure_in_configure_is_told_and_tried_again(client: Client, tmp_path: Path) -> None:
    process = node(client, tmp_path, *MANAGED, "-p", "detector:=strange")
    try:
        for _ in range(2):
            assert not client.change_state("configure")
            assert client.state() == "unconfigured"
        assert process.text.count("configure failed: unknown detector 'strange': choose one of blazepose") == 2
        status, _ = client.diagnosis(lambda s: s.level == DiagnosticStatus.ERROR)
        assert "unknown detector 'strange'" in status.message
        assert client.set_parameters({"detector": "blazepose"}) == [""]
        assert client.change_state("configure")
        assert client.diagnosis(lambda s: s.level == DiagnosticStatus.OK)[1]["state"] == "inactive"
        (reason,) = client.set_parameters({"detector": "rtmlib"})
        assert "only while the node is unconfigured: clean up" in reason
        (reason,) = client.set_parameters({"autostart": True})
        assert "read-only" in reason
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)


def test_parameters_change_together_or_not_at_all(client: Client, tmp_path: Path) -> None:
    process = node(client, tmp_path)
    try:
        client.wait_for_node()
        assert len(client.answer(client.send(photograph())).people[0].hypotheses) == 10
        (reason,) = client.set_parameters({"samples": 5, "max_rate": 3.0}, at_once=True)
        assert "lower modes or raise samples" in reason
        (reason,) = client.set_parameters({"modes": 3, "samples": 2.5}, at_once=True)
        assert "type" in reason
        assert len(client.answer(client.send(photograph())).people[0].hypotheses) == 10
        assert client.set_parameters({"samples": 5, "modes": 3}, at_once=True) == [""]
        assert len(client.answer(client.send(photograph())).people[0].hypotheses) == 3
        values = client.diagnosis(lambda s: any(v.key == "samples" and v.value == "5" for v in s.values))[1]
        assert values["modes"] == "3"
        assert client.set_parameters({"samples": 100, "modes": 10}) == ["", ""]
        (person,) = client.answer(client.send(photograph())).people
        assert len(person.hypotheses) == 10
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)


@pytest.mark.slow
def test_parameters_change_ten_times_a_second(client: Client, tmp_path: Path) -> None:
    process = node(client, tmp_path)
    try:
        client.wait_for_node()
        count, deadline = 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            count += 1
            modes = (10, 4)[count % 2]
            values = {"samples": 25 * modes, "modes": modes, "min_score": 0.01 * (count % 10)}
            assert client.set_parameters(values, at_once=True) == [""]
            header = client.send(photograph())
            answer = client.answer(header)
            assert len(answer.people[0].hypotheses) == modes
            assert sum(h.weight for h in answer.people[0].hypotheses) == pytest.approx(1, abs=1e-4)
            client.spin_until(lambda: False, 0.05)
        assert count > 10
        assert "[ERROR]" not in process.text
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)


def test_several_cameras_in_one_process(client: Client, tmp_path: Path) -> None:
    """One node for each of two namespaces, parameters from one file, one topic remapped."""
    file = tmp_path / "cameras.yaml"
    parameters = {
        "/front/human_estimator": {"ros__parameters": {"modes": 4, "image_topic": "image"}},
        "/rear/human_estimator": {"ros__parameters": {"modes": 7}},
    }
    file.write_text(yaml.safe_dump(parameters))
    remapped = ["-r", "/rear/camera/image_raw:=/elsewhere/image"]
    process = node(
        client, tmp_path, "--namespaces", "front", "rear", "--ros-args", "--params-file", str(file), *remapped
    )
    try:
        topics = {"front": "/front/image", "rear": "/elsewhere/image"}
        cameras = {name: client.node.create_publisher(Image, topic, 4) for name, topic in topics.items()}
        for name in topics:
            client.got[name] = []
            client.listen(HumanHypothesesArray, f"/{name}/human/hypotheses", name)
        assert client.spin_until(lambda: all(c.get_subscription_count() for c in cameras.values()), 30)
        client.spin_until(lambda: False, 0.5)
        headers = {name: client.header() for name in topics}
        for name, camera in cameras.items():
            camera.publish(rgb_to_image(photograph(), Image(header=headers[name])))
        modes = {name: len(client.answer(headers[name], name).people[0].hypotheses) for name in topics}
        assert modes == {"front": 4, "rear": 7}
        assert [len(client.got[name]) for name in topics] == [1, 1]
        client.diagnosis(lambda s: s.name.endswith("/front/human_estimator"))
        client.diagnosis(lambda s: s.name.endswith("/rear/human_estimator"))
        assert client.set_parameters({"modes": 5}, "/rear/human_estimator") == [""]
        assert client.state("/front/human_estimator") == "active"
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)


@pytest.mark.slow
def test_several_processes_and_two_of_one_name(client: Client, tmp_path: Path) -> None:
    processes = [
        node(client, tmp_path, "--ros-args", "-r", "__ns:=/left", "-r", "/left/camera/image_raw:=/camera/image_raw"),
        *(node(client, tmp_path, "--ros-args", "-p", "transport:=raw") for _ in range(2)),
    ]
    try:
        client.got["left"] = []
        client.listen(HumanHypothesesArray, "/left/human/hypotheses", "left")
        assert client.spin_until(lambda: client.image.get_subscription_count() == 3, 60)
        client.spin_until(lambda: False, 1.0)
        header = client.send(np.zeros((96, 96, 3), np.uint8))
        assert client.spin_until(lambda: len(client.answers(header)) == 2 and client.answers(header, "left"))
        status, _ = client.diagnosis(lambda s: "2 nodes have this name" in s.message)
        assert status.level == DiagnosticStatus.WARN
        assert "-r __node:=NAME" in status.message
        for process in processes:
            assert process.end(signal.SIGTERM) == 0
            assert "Traceback" not in process.text
    finally:
        for process in processes:
            process.end(signal.SIGKILL)


def ends_cleanly(folder: Path, domain: int, number: int, seconds: float) -> None:
    process = Process(folder, domain, "--ros-args", *bundle_arguments())
    # Before Python has come to the module it ends as every program does.
    assert wait_for_import(process), "the process ended"
    time.sleep(seconds)
    assert process.end(number) == 0, (seconds, process.text)
    assert "Traceback" not in process.text


def wait_for_import(process: Process) -> bool:
    """Until the process catches SIGTERM."""
    while process.process.poll() is None:
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_at_any_moment(tmp_path: Path, number: int) -> None:
    domain = random.SystemRandom().randint(30, 101)
    for seconds in (0.2, 0.7):
        ends_cleanly(tmp_path, domain, number, seconds)


@pytest.mark.slow
def test_a_signal_ends_the_node_at_sixty_moments(tmp_path: Path) -> None:
    domain = random.SystemRandom().randint(30, 101)
    for moment in range(60):
        ends_cleanly(tmp_path, domain, (signal.SIGINT, signal.SIGTERM)[moment % 2], 0.05 * moment)
