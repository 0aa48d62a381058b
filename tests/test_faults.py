# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""What may break round the node and inside of it, between real processes: it costs frames and is told, no more."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_processes import CAMERA, Client, Process, bundle_arguments, photograph
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.conversions import hypotheses_from_msg
from hmr_prob_ros.ros.images import camera_to_info, rgb_to_image

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
LIMIT = 2.0


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that tells the node's detector and engine to fail."""
    return tmp_path_factory.mktemp("fault") / "fault"


def faulty_node(folder: Path, client: Client, fault: Path, limit: float) -> Process:
    """The stamps of the tests are of their own making, so latencies say nothing."""
    parameters = ["-p", f"time_limit:={limit}", "-p", "warn_latency:=0.0", *bundle_arguments()]
    return Process(
        folder,
        client.context.get_domain_id(),
        "--ros-args",
        *parameters,
        script=Path(__file__).with_name("faulty_node.py"),
        variables={"HMR_PROB_FAULT": str(fault)},
    )


@pytest.fixture(scope="module")
def node(client: Client, fault: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = faulty_node(tmp_path_factory.mktemp("node"), client, fault, LIMIT)
    try:
        client.wait_for_node()
        yield process
        assert process.end(signal.SIGTERM) == 0, process.text
        assert "Traceback" not in process.text
    finally:
        process.end(signal.SIGKILL)


@pytest.fixture(autouse=True)
def goes_on(request: pytest.FixtureRequest, client: Client, fault: Path) -> Iterator[None]:
    """After each test the node answers as if nothing had been."""
    if "another_client" in request.fixturenames:
        yield
        return
    request.getfixturevalue("node")
    yield
    fault.unlink(missing_ok=True)
    assert person(client)


def person(client: Client, timeout: float = 20) -> Any:
    """Hypotheses for a photograph with the info of its camera; what is published is finite and sums to one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        header = client.header()
        client.send_info(header)
        client.send(photograph(), header)
        if client.spin_until(lambda h=header: client.answers(h), 1.0):
            (found,) = hypotheses_from_msg(client.answers(header)[0])  # checks itself
            assert found.weights.sum() == pytest.approx(1, abs=1e-4)
            assert (np.linalg.eigvalsh(found.covariance) > 0).all()
            return found
    raise AssertionError("no answer any more")


def keep_sending(client: Client, done: Callable[[], Any], timeout: float = 20) -> bool:
    """Send the photograph twenty times a second until ``done``."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        client.send(photograph())
        if client.spin_until(done, 0.05):
            return True
    return False


def told(client: Client, words: str, timeout: float = 20) -> Any:
    """A status at ERROR with these words comes while frames go on."""
    client.got["diagnostics"].clear()

    def found() -> list[Any]:
        statuses = [s for m in client.got["diagnostics"] for s in m.status]
        return [s for s in statuses if s.level == ERROR and words in s.message]

    assert keep_sending(client, found, timeout), [s.message for m in client.got["diagnostics"] for s in m.status]
    return found()[0]


def count(client: Client, name: str) -> int:
    return int(client.diagnosis()[1][f"frames_{name}"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("detector:raise", "the detector's library broke"),
        pytest.param("detector:nan", "keypoints", marks=pytest.mark.slow),
        pytest.param("engine:raise", "the engine broke", marks=pytest.mark.slow),
        ("engine:nan", "not finite"),
    ],
)
def test_a_part_that_fails_always(client: Client, node: Process, fault: Path, kind: str, words: str) -> None:
    lines = len(node.text.splitlines())
    fault.write_text(kind)
    told(client, words)
    keep_sending(client, lambda: False, 0.5)
    said = [line for line in node.text.splitlines()[lines:] if words in line]
    assert len(said) == 1  # of some thirty frames in less than five seconds
    answers = len(client.got["hypotheses"])
    header = client.send(photograph())
    client.spin_until(lambda: client.answers(header), 0.5)
    people = [p for m in client.got["hypotheses"][answers:] for p in m.people]
    assert people == []


@pytest.mark.slow
def test_an_engine_that_fails_once_costs_one_frame(client: Client, fault: Path) -> None:
    client.spin_until(lambda: False, 1.1)
    before = count(client, "failed")
    fault.write_text("engine:raise once")
    lost = client.send(photograph())
    client.spin_until(lambda: not fault.exists(), 5)
    assert len(client.answer(client.send(photograph())).people) == 1
    assert client.answers(lost) == []
    client.spin_until(lambda: False, 1.1)
    assert count(client, "failed") == before + 1


@pytest.mark.parametrize("part", [pytest.param("detector", marks=pytest.mark.slow), "engine"])
def test_a_part_that_hangs_is_replaced(client: Client, node: Process, fault: Path, part: str) -> None:
    fault.write_text(f"{part}:hang once")
    status = told(client, f"the {part} gave no answer within 2 s and is being loaded anew")
    values = {v.key: v.value for v in status.values}
    assert values["state"] == "active"
    assert int(values["frames_failed"]) > 0
    before = len(client.got["hypotheses"])
    assert keep_sending(client, lambda: len(client.got["hypotheses"]) > before)
    assert "works again" in node.text
    client.spin_until(lambda: False, 1.1)
    values = client.diagnosis(lambda s: s.level != ERROR)[1]
    count = {k: int(v) for k, v in values.items() if k.startswith("frames_")}
    settled = [count[f"frames_{name}"] for name in ("processed", "dropped", "failed", "repeated")]
    assert count["frames_received"] == sum(settled)


def test_camera_stops_and_returns(client: Client) -> None:
    client.spin_until(lambda: False, 1.1)
    status, values = client.diagnosis(lambda s: s.level == WARN)
    assert "no frame on /camera/image_raw" in status.message
    assert "look at the camera" in status.message
    assert float(values["rate_in_hz"]) == 0
    before = len(client.got["diagnostics"])
    assert person(client)
    assert client.diagnosis(lambda s: s.level == OK, since=before)


def picture(name: str, header: Header) -> Any:
    """A picture message with something unusual about it."""
    image = photograph()[:1, :1] if name == "1x1" else photograph()
    msg = rgb_to_image(image, Image(header=header))
    rows = np.frombuffer(msg.data, np.uint8).reshape(len(image), -1)
    if name == "odd stride":
        msg.data, msg.step = np.pad(rows, ((0, 0), (0, 7))).tobytes(), rows.shape[1] + 7
    elif name == "bigendian rgb16":
        msg.data, msg.step = (image.astype(">u2") << 8).tobytes(), 2 * rows.shape[1]
        msg.encoding, msg.is_bigendian = "rgb16", 1
    elif name == "step below width":
        msg.step = 100
    elif name == "absurd size":
        msg.width, msg.height, msg.step = 2**31, 2**31, 2**31
    elif name == "empty":
        msg.data = b""
    elif name == "depth":
        msg.encoding = "16UC1"
    return msg


@pytest.mark.parametrize("name", ["odd stride", "bigendian rgb16"])
def test_unusual_pictures_are_read(client: Client, name: str) -> None:
    msg = picture(name, client.header())
    client.image.publish(msg)
    assert len(client.answer(msg.header).people) == 1


def test_an_8k_picture(client: Client) -> None:
    """Compressed: its hundred raw megabytes do not come through best-effort UDP."""
    image = cv2.resize(cv2.cvtColor(photograph(), cv2.COLOR_RGB2BGR), (7680, 4320))
    header = client.header()
    client.compressed.publish(
        CompressedImage(header=header, format="jpeg", data=cv2.imencode(".jpg", image)[1].tobytes())
    )
    assert len(client.answer(header).people) == 1


def test_a_picture_of_one_pixel_shows_nobody(client: Client) -> None:
    msg = picture("1x1", client.header())
    client.image.publish(msg)
    assert list(client.answer(msg.header).people) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step below width", "step is 100 bytes"),
        ("absurd size", "step is 2147483648"),
        pytest.param("empty", "is empty (0 bytes)", marks=pytest.mark.slow),
        pytest.param("depth", "a depth picture", marks=pytest.mark.slow),
    ],
)
def test_broken_pictures_are_told(client: Client, name: str, words: str) -> None:
    client.got["diagnostics"].clear()
    msg = picture(name, client.header())
    client.image.publish(msg)
    client.diagnosis(lambda s: s.level == ERROR and words in s.message)
    assert client.answers(msg.header) == []


def bomb() -> bytes:
    """A PNG of two kilobytes that says it has 30,000 x 30,000 pixels."""
    data = bytearray(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: cv2.imencode(".jpg", photograph())[1].tobytes()[:9000], "was cut short"),
        (bomb, "900 million pixels"),
        (lambda: b"GIF89a" + bytes(100), "neither JPEG nor PNG"),
        (lambda: b"", "and 0 bytes is empty"),
    ],
    ids=["truncated", "bomb", "gif", "empty"],
)
def test_broken_compressed_pictures_are_told(
    client: Client, node: Process, data: Callable[[], bytes], words: str
) -> None:
    client.compressed.publish(CompressedImage(header=client.header(), format="jpeg", data=data()))
    node.wait_for(words, 10)


@pytest.mark.parametrize(
    "name", ["zero", *(pytest.param(name, marks=pytest.mark.slow) for name in ("NaN", "other size", "strange"))]
)
def test_camera_info_that_cannot_be_used(client: Client, name: str) -> None:
    header = client.header()
    info = camera_to_info(CAMERA, CameraInfo(header=header))
    if name == "zero":
        info.k = np.zeros(9)
    elif name == "NaN":
        info.k = np.full(9, np.nan)
    elif name == "other size":
        info.width, info.height = 512, 300
    else:
        info.distortion_model, info.d = "strange", [0.1]
    client.info.publish(info)
    client.spin_until(lambda: False, 0.2)
    client.send(photograph(), header)
    answer = client.answer(header)
    assert not answer.camera_known
    assert len(answer.people) == 1
    status, values = client.diagnosis(lambda s: s.level == WARN)
    assert values["focal_length"] == "guessed"
    assert "camera info" in values["calibration"]
    assert values["calibration"] in status.message


def test_a_subscriber_that_joins_late(client: Client) -> None:
    late: list[Any] = []
    subscription = client.node.create_subscription(HumanHypothesesArray, "/human/hypotheses", late.append, 10)
    assert keep_sending(client, lambda: len(late) > 3)
    client.node.destroy_subscription(subscription)


@pytest.fixture
def another_client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


@pytest.mark.slow
def test_a_part_that_hangs_always(another_client: Client, tmp_path: Path) -> None:
    """Three are left to themselves, not more; a manager gets the node to work again, and a signal ends it."""
    client, fault = another_client, tmp_path / "fault"
    process = faulty_node(tmp_path, client, fault, 1.0)
    try:
        client.wait_for_node()
        assert keep_sending(client, lambda: client.got["hypotheses"])
        fault.write_text("detector:hang")
        status = told(client, "as 2 before it, which still hang: restart the node", 40)
        values = {v.key: v.value for v in status.values}
        threads = len(list(Path(f"/proc/{process.process.pid}/task").iterdir()))
        keep_sending(client, lambda: False, 3.0)
        assert len(list(Path(f"/proc/{process.process.pid}/task").iterdir())) == threads
        assert int(client.diagnosis()[1]["frames_dropped_inactive"]) > int(values["frames_dropped_inactive"])
        fault.unlink()
        assert client.change_state("deactivate")
        assert client.change_state("activate")
        answers = len(client.got["hypotheses"])
        assert keep_sending(client, lambda: len(client.got["hypotheses"]) > answers + 5)
        assert client.diagnosis(lambda s: s.level != ERROR)
        assert process.end(signal.SIGTERM) == 0
        assert "Traceback" not in process.text
    finally:
        process.end(signal.SIGKILL)
