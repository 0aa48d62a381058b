# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""What ``hmr-prob view`` shows: read back from rerun's own file and served to a browser; and other viewers' files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
rerun = pytest.importorskip("rerun", reason="needs the extra [view]: pip install rerun-sdk")

from builtin_interfaces.msg import Time
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String
from test_bags import World
from test_outputs import person_of

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.cli import main
from hmr_prob_ros.hypotheses import HypothesisSet
from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.bag import BagWriter
from hmr_prob_ros.ros.conversions import hypotheses_to_msg
from hmr_prob_ros.ros.images import camera_to_info, rgb_to_image
from hmr_prob_ros.skeleton import BONES

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {"/human/markers", "/human/mesh", "/human/overlay", "/diagnostics"}
CAMERA = {"/camera/image_raw", "/camera/camera_info"}
TOPICS = {"/camera/image_raw": Image, "/camera/camera_info": CameraInfo, "/human/hypotheses": HumanHypothesesArray}


@pytest.fixture(scope="module")
def people(body: Body) -> list[HypothesisSet]:
    return [person_of(body, 0), person_of(body, 1, id=9)]


@pytest.fixture(scope="module")
def bag(people: list[HypothesisSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames: two people, one, nobody."""
    path = tmp_path_factory.mktemp("bag") / "x.mcap"
    writer = BagWriter(path, TOPICS)
    for frame in range(3):
        header = Header(stamp=Time(sec=100 + frame), frame_id="camera_optical_frame")
        image = rgb_to_image(np.full((48, 64, 3), 80 * frame, np.uint8), Image(header=header))
        info = camera_to_info(Camera(64, 48, 50.0, 51.0, 30.0, 20.0), CameraInfo(header=header))
        array = hypotheses_to_msg(people[: 2 - frame], header, camera_known=True)
        for topic, message in zip(TOPICS, (image, info, array), strict=True):
            writer.add(topic, serialize_message(message), frame + 1, frame + 1)
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(bag: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What rerun's viewer gets."""
    file = tmp_path_factory.mktemp("shown") / "x.rrd"
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main(["view", str(bag), "--save", str(file)]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return file


@pytest.fixture(scope="module")
def shown(file: Path) -> dict[str, list[Any]]:
    """The recording as a table, one row for each time."""
    dataframe = pytest.importorskip("rerun.dataframe", reason="needs rerun-sdk below 0.24")
    rows = dataframe.load_recording(file).view(index="stamp", contents="/**").select().read_all()
    rows = rows.drop([name for name in rows.column_names if name.startswith("log_")])
    return rows.set_column(rows.column_names.index("stamp"), "stamp", rows["stamp"].cast("int64")).to_pydict()


def printed(file: Path) -> str:
    """A recording as rerun's own program prints it."""
    command = [sys.executable, "-m", "rerun", "rrd", "print", str(file)]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def column(shown: dict[str, list[Any]], entity: str, what: str) -> list[Any]:
    (name,) = [n for n in shown if n.startswith(f"/{entity}:") and n.endswith(what)]
    return [value for value in shown[name] if value is not None]


def test_skeletons_are_the_modes(shown: Any, people: list[HypothesisSet]) -> None:
    strips = column(shown, "world/person_4/modes", "LineStrip3D")
    assert len(strips) == 2  # frames in which the person is seen
    one = people[0]
    lines = np.array(strips[0]).reshape(len(one), len(BONES), 2, 3)
    order = np.argsort(one.weights, kind="stable")
    for drawn, mode in zip(lines, order, strict=True):
        for (a, b), (parent, child) in zip(drawn, BONES, strict=True):
            np.testing.assert_allclose(a, one.joints[mode, parent], atol=1e-6)
            np.testing.assert_allclose(b, one.joints[mode, child], atol=1e-6)
    radii = np.array(column(shown, "world/person_4/modes", "Radius")[0]).reshape(len(one), -1)[:, 0]
    assert (np.diff(radii) > 0).all()


def test_ellipsoids_are_the_covariances(shown: Any, people: list[HypothesisSet]) -> None:
    sizes = np.array(column(shown, "world/person_9/uncertainty", "HalfSize3D")[0])
    centres = np.array(column(shown, "world/person_9/uncertainty", "PoseTranslation3D")[0])
    np.testing.assert_allclose(centres, people[1].mean, atol=1e-6)
    chi2 = pytest.importorskip("scipy.stats").chi2.ppf(0.95, 3)
    wanted = np.sqrt(chi2 * np.maximum(np.linalg.eigvalsh(people[1].covariance.astype(np.float64)), 0))
    np.testing.assert_allclose(sizes, np.maximum(wanted, 1e-3), rtol=1e-3)


def test_people_who_are_gone_are_cleared(file: Path) -> None:
    """By rerun's own program: queries of its library leave such marks out."""
    cleared = re.findall(r" - /(\S+) - columns: \[ClearIsRecursive", printed(file))
    names = [f"world/{part}{name}" for name in ("person_4", "person_9") for part in ("", "camera/image/")]
    assert sorted(cleared) == sorted(names)


def test_camera_and_images(shown: Any) -> None:
    assert len(column(shown, "world/camera/image", "Blob")) == 3
    matrix = np.array(column(shown, "world/camera", "PinholeProjection")[0]).reshape(3, 3).T  # rerun's is column-major
    # The image of a bag may come before the first camera info; what is shown at last is the camera's own.
    last = np.array(column(shown, "world/camera", "PinholeProjection")[-1]).reshape(3, 3).T
    np.testing.assert_allclose(last, [[50, 0, 30], [0, 51, 20], [0, 0, 1]])
    assert matrix[2].tolist() == [0, 0, 1]
    assert sorted({t for t in shown["stamp"] if t is not None}) == [100 * 10**9, 101 * 10**9, 102 * 10**9]


def test_topics_of_a_running_system(body: Body, tmp_path: Path) -> None:
    """What is published while it runs, until Ctrl-C."""
    world = World()
    try:
        qos = QoSProfile(depth=5)
        people, pictures = world.at("hypotheses"), world.at("image_raw")
        publisher = world.node.create_publisher(HumanHypothesesArray, people, qos)
        image = world.node.create_publisher(Image, pictures, qos)
        names = [f"--hypotheses-topic={people}", f"--image-topic={pictures}"]
        command = world.run(tmp_path, "view", "--save", str(tmp_path / "x.rrd"), *names)
        world.wait(publisher)
        world.wait(image)
        for second in range(5):
            header = Header(stamp=Time(sec=second + 1))
            image.publish(rgb_to_image(np.zeros((48, 64, 3), np.uint8), Image(header=header)))
            publisher.publish(hypotheses_to_msg([person_of(body)], header, camera_known=False))
            time.sleep(0.1)
        time.sleep(0.3)
        assert command.end() == 0, command.text
        assert "10 messages shown" in command.text
    finally:
        world.close()
    rows = printed(tmp_path / "x.rrd")
    assert "/world/person_4/modes" in rows
    assert "/world/camera/image" in rows


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_page_for_a_browser(bag: Path, tmp_path: Path, number: int) -> None:
    """A machine without a display: the page and rerun's web viewer come from this process alone."""
    port, data = _free_port(), _free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["PYTHONPATH"] = str(ROOT)
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "hmr_prob_ros.cli", "view", str(bag), f"--web-port={port}", f"--data-port={data}"],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 30
        while "messages of" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.05)
        (url,) = re.findall(r"open (\S+) in a browser", log.read_text())
        assert f":{port}/" in url
        assert f"rerun%2Bhttp%3A%2F%2Flocalhost%3A{data}%2Fproxy" in url
        page = urllib.request.urlopen(url, timeout=10).read().decode()
        assert "<html" in page
        wasm = urllib.request.urlopen(f"http://localhost:{port}/re_viewer_bg.wasm", timeout=10)
        assert wasm.read(4) == b"\0asm"
        with socket.create_connection(("localhost", data), timeout=10):
            pass
        process.send_signal(number)
        assert process.wait(20) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_errors_name_the_mend(tmp_path: Path, bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.mcap"
    writer = BagWriter(other, {"/text": String})
    writer.add("/text", serialize_message(String(data="x")), 1, 1)
    writer.close()
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for arguments, words in (
            ([str(tmp_path / "none.mcap")], "none.mcap"),
            ([str(other), "--save", str(tmp_path / "x.rrd")], "--hypotheses-topic"),
            ([str(bag), "--save", "/proc/none/x.rrd"], "/proc/none/x.rrd"),
        ):
            assert main(["view", *arguments]) == 2
            assert words in capsys.readouterr().err
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_foxglove_layout_shows_what_is_published() -> None:
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text())

    def panels(part: Any) -> list[str]:
        return [part] if isinstance(part, str) else [*panels(part["first"]), *panels(part["second"])]

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])
    topics = set(re.findall(r'"(/[a-z_/]+)"', json.dumps(layout)))
    assert topics <= PUBLISHED | CAMERA
    assert {"/human/markers", "/human/mesh", "/human/overlay"} <= topics


def test_rviz_shows_what_is_published() -> None:
    view = yaml.safe_load((ROOT / "rviz" / "human.rviz").read_text())
    shown = {d["Topic"]["Value"]: d["Class"] for d in view["Visualization Manager"]["Displays"] if "Topic" in d}
    assert shown.keys() <= PUBLISHED
    assert shown["/human/mesh"].endswith("/Marker")
    assert shown["/human/markers"].endswith("/MarkerArray")
