# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""The node with several people, and with outputs in the messages of other packages: between real processes."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

from people_helpers import standing
from rclpy.qos import QoSProfile
from ros_processes import CAMERA, Client, Process, bundle_arguments, photograph
from sensor_msgs.msg import JointState
from visualization_msgs.msg import Marker

from hmr_prob_ros.body import Body
from hmr_prob_ros.ros.conversions import people_to_msg


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


@pytest.fixture
def run(client: Client, tmp_path: Path) -> Iterator[type]:
    """Starts nodes, which end with the test."""
    children: list[Process] = []

    def start(*parameters: str) -> Process:
        arguments = [word for parameter in parameters for word in ("-p", parameter)]
        domain = client.context.get_domain_id()
        children.append(Process(tmp_path, domain, "--ros-args", *arguments, *bundle_arguments()))
        return children[-1]

    yield start
    for child in children:
        child.end(signal.SIGTERM)


def test_the_nearest_are_kept(client: Client, run, body: Body) -> None:
    run("detector:=topic", "max_people:=2")
    assert client.spin_until(lambda: client.keypoints.get_subscription_count() and client.info.get_subscription_count())
    assert client.spin_until(lambda: client.node.count_publishers("/human/hypotheses"))
    client.spin_until(lambda: False, 0.5)
    # The surest one is the farthest one.
    places = ((-1.0, 7.0, 0.95), (0.0, 3.0, 0.5), (1.2, 4.5, 0.6))
    people = [replace(standing(body, CAMERA, x, z), score=score, id=-1) for x, z, score in places]

    def ids() -> list[int]:
        header = client.header()
        client.send_info(header)
        client.spin_until(lambda: False, 0.1)
        client.keypoints.publish(people_to_msg(people, header))
        return [person.id for person in client.answer(header).people]

    first = ids()
    assert len(first) == 2
    depths = [person.hypotheses[0].joints[2] for person in client.got["hypotheses"][-1].people]
    assert depths[0] < depths[1] < 6
    assert client.set_parameters({"max_people": 1}) == [""]
    assert ids() == first[:1]
    assert client.set_parameters({"max_people": 8}) == [""]
    assert ids()[:2] == first  # who was left out did not lose their identity
    assert len(set(ids())) == 3


def test_outputs_appear_with_their_packages(client: Client, run) -> None:
    joints: list[JointState] = []
    meshes: list[Marker] = []
    client.node.create_subscription(JointState, "/human/joint_states", joints.append, QoSProfile(depth=10))
    client.node.create_subscription(Marker, "/human/mesh", meshes.append, QoSProfile(depth=20))
    process = run("outputs:=auto", "mesh_rate:=30.0")
    client.wait_for_node()
    assert client.spin_until(lambda: client.node.count_publishers("/human/mesh"))
    header = client.send(photograph())
    (person,) = client.answer(header).people
    assert client.spin_until(lambda: joints and meshes)
    assert joints[0].header == meshes[0].header == header
    assert len(joints[0].name) == len(joints[0].position) == 69
    assert meshes[0].type == Marker.TRIANGLE_LIST
    # The mesh is that of the heaviest body: its joints lie inside of it.
    corners = np.array([(p.x, p.y, p.z) for p in meshes[0].points])
    for joint in np.reshape(person.hypotheses[0].joints, (24, 3)):
        assert np.linalg.norm(corners - joint, axis=1).min() < 0.15
    # vision_msgs is not on PyPI; auto says nothing of what is not there.
    assert "is not installed" not in process.text


def test_an_output_that_cannot_be_had_is_told(client: Client, run) -> None:
    pytest.importorskip("rclpy")
    try:
        import hri_msgs  # noqa: F401
    except ImportError:
        process = run("outputs:=joint_states hri")
        client.wait_for_node()
        process.wait_for("output hri is off, hri_msgs is not installed")
        assert client.node.count_publishers("/human/joint_states") == 1
        assert client.node.count_publishers("/human/mesh") == 0
    else:
        pytest.skip("hri_msgs is installed here")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (["detector:=mediapipe", "detect_every:=3"], "detect_every and detect_seconds are for blazepose and rtmlib"),
        (["outputs:=mesh,strange"], "outputs names strange: set it to auto, or to some of detections"),
    ],
)
def test_settings_that_do_not_go_together(run, parameters: list[str], text: str) -> None:
    process = run(*parameters)
    assert process.process.wait(30) == 2
    assert text in process.text
    assert "Traceback" not in process.text
