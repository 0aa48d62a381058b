# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""ROS' own security (SROS 2): no program runs without the keys it was told to use, and the example policy fits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

from conftest import ROOT
from rclpy.serialization import serialize_message
from ros_processes import Client, Process, bundle_arguments, photograph, running_node
from std_msgs.msg import String

from hmr_prob_ros.ros.bag_folder import BagFolder
from hmr_prob_ros.ros.bag_storage import Topic

POLICY = ROOT / "config" / "sros2_policy.xml"
ENCLAVE_FILES = (
    "identity_ca.cert.pem", "permissions_ca.cert.pem", "cert.pem", "key.pem", "governance.p7s", "permissions.p7s",
)  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


@pytest.fixture(scope="module")
def node(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_node(client, tmp_path_factory.mktemp("node")) as process:
        yield process


@pytest.mark.parametrize(
    ("keystore", "words"),
    [
        ("", "ROS_SECURITY_KEYSTORE names no keystore"),
        ("empty", "ros2 security create_enclave"),
        ("full", "built without security"),
    ],
)
def test_security_that_cannot_be_had_ends_the_node_with_one_line(tmp_path: Path, keystore: str, words: str) -> None:
    """Enforced, a node without keys may not run; nor may it with the Fast DDS of PyPI, which knows no keys."""
    variables = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce", "ROS_SECURITY_KEYSTORE": ""}
    arguments = ["--ros-args"]
    if keystore:
        variables["ROS_SECURITY_KEYSTORE"] = str(tmp_path / "keystore")
        (tmp_path / "keystore" / "enclaves").mkdir(parents=True)
        arguments += ["--enclave", "/human_estimator"]
    if keystore == "full":
        if shutil.which("ros2"):
            pytest.skip("a ROS installation may know keys, and files without content are none")
        folder = tmp_path / "keystore" / "enclaves" / "human_estimator"
        folder.mkdir()
        for name in ENCLAVE_FILES:
            (folder / name).write_text("")
    process = Process(tmp_path, random.SystemRandom().randint(30, 101), *arguments, variables=variables)
    try:
        assert process.process.wait(20) == 2, process.text
    finally:
        process.end(signal.SIGKILL)
    lines = [line for line in process.text.splitlines() if not line.startswith("[INFO]")]
    assert len(lines) == 1 or keystore == "full"  # rclpy adds a warning of its own there
    line = lines[-1]
    assert line.startswith("hmr-prob-node: ")
    assert "Traceback" not in process.text
    assert words in line
    assert "docs/security.md" in line


@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [
        ("ros.camera_player", ["photograph.png"], 2),
        ("ros.recorder", ["--out", "run"], 1),
        ("cli", ["record", "bag"], 2),
        ("cli", ["replay", "text"], 2),
        ("cli", ["view", "--save", "run.rrd"], 2),
    ],
)
def test_security_that_cannot_be_had_ends_every_program(
    tmp_path: Path, program: str, arguments: list[str], code: int
) -> None:
    pytest.importorskip("rerun", reason="needs the viewer: pip install rerun-sdk")
    cv2.imwrite(str(tmp_path / "photograph.png"), photograph())
    bag = BagFolder(tmp_path / "text")
    bag.add_topic(Topic("/text", "std_msgs/msg/String", "string data\n"))
    bag.write("/text", serialize_message(String(data="a")), 1, 1)
    bag.close()
    environment = dict(os.environ, ROS_SECURITY_ENABLE="true", ROS_SECURITY_STRATEGY="Enforce", PYTHONPATH=str(ROOT))
    environment |= {"ROS_SECURITY_KEYSTORE": "", "ROS_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", f"hmr_prob_ros.{program}", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hmr-prob")]
    assert "ROS_SECURITY_KEYSTORE names no keystore" in line
    assert "Traceback" not in done.stderr


def granted(kind: str, right: str, enclave: str = "/human_estimator") -> set[str]:
    """Full names that the policy grants an enclave: ``topics`` to publish or subscribe, ``services`` to reply."""
    names = set()
    for profile in ElementTree.parse(POLICY).iterfind(f"enclaves/enclave[@path='{enclave}']/profiles/profile"):
        space = profile.attrib["ns"].rstrip("/")
        for element in profile.iterfind(f"{kind}[@{right}='ALLOW']/*"):
            name = str(element.text)
            if name.startswith("~"):
                name = f"{space}/{profile.attrib['node']}{name[1:]}"
            names.add(name if name.startswith("/") else f"{space}/{name}")
    return names


def test_the_policy_grants_what_the_node_uses_and_nothing_else(client: Client, node: Process) -> None:
    ask = client.node
    asked: list[tuple[str, str, Callable[[str, str], list[tuple[str, Any]]], set[str]]] = [
        ("topics", "publish", ask.get_publisher_names_and_types_by_node, {
            "/human/mesh", "/human/detections", "/human/joint_states", "/humans/bodies/*", "/tf"}),
        ("topics", "subscribe", ask.get_subscriber_names_and_types_by_node, {"/human/keypoints2d", "/clock"}),
        ("services", "reply", ask.get_service_names_and_types_by_node, set()),
    ]  # fmt: skip
    for kind, right, names_of, optional in asked:
        used = {name for name, _ in names_of("human_estimator", "/")}
        used = {"/humans/bodies/*" if name.startswith("/humans/bodies/") else name for name in used}
        allowed = granted(kind, right)
        assert used <= allowed, (kind, right)
        assert allowed - used <= optional, (kind, right)
    assert not granted("services", "request", "/planner")  # it cannot change the node


PLANNER = """
import sys, rclpy
from hmr_prob_ros.msg import HumanHypothesesArray
rclpy.init(args=sys.argv)
node = rclpy.create_node("planner")
node.create_subscription(HumanHypothesesArray, "/human/hypotheses", lambda msg: print("heard", flush=True), 10)
rclpy.spin(node)
"""


@pytest.mark.slow
def test_camera_node_and_planner_with_keys(tmp_path: Path) -> None:
    """A keystore with three enclaves of the example policy; somebody without keys hears nothing."""
    ros2 = shutil.which("ros2")
    if ros2 is None or subprocess.run([ros2, "security", "--help"], capture_output=True).returncode:
        pytest.skip("needs SROS 2, which PyPI does not have: apt install ros-<distribution>-sros2")
    domain = random.SystemRandom().randint(30, 101)
    keystore = tmp_path / "keystore"
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}  # permissions are for this domain only
    calls = [["create_keystore", str(keystore)]]
    for enclave in ("/human_estimator", "/camera_player", "/planner"):
        calls += [
            ["create_enclave", str(keystore), enclave],
            ["create_permission", str(keystore), enclave, str(POLICY)],
        ]
    for call in calls:
        done = subprocess.run([ros2, "security", *call], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    keys = {
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(keystore),
    }
    (tmp_path / "planner.py").write_text(PLANNER)
    clip = ROOT / "hmr_prob_ros" / "assets" / "demo_clip.mp4"
    planner = ["--ros-args", "--enclave", "/planner"]
    processes = [
        Process(tmp_path, domain, *planner, script=tmp_path / "planner.py", variables=keys),
        Process(tmp_path, domain, script=tmp_path / "planner.py"),  # without keys
        Process(tmp_path, domain, "--ros-args", "--enclave", "/human_estimator", *bundle_arguments(), variables=keys),
    ]
    try:
        processes[2].wait_for("ready:")
        arguments = [str(clip), "--loop", "--quiet", "--ros-args", "--enclave", "/camera_player"]
        processes.append(Process(tmp_path, domain, *arguments, module="camera_player", variables=keys))
        processes[0].wait_for("heard", 30)
        time.sleep(1)
        assert "heard" not in processes[1].text
        assert processes[2].end() == 0
    finally:
        for process in processes:
            process.end(signal.SIGTERM)
