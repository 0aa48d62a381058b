# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""What comes from outside decides nothing that it should not: sizes, names, files."""

from __future__ import annotations

import random
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")

from rclpy.serialization import serialize_message
from ros_processes import CAMERA, Client, Process, bundle_arguments, photograph, running_node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.msg import PoseKeypoints, PoseKeypointsArray
from hmr_prob_ros.ros.images import camera_to_info, rgb_to_image


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


@pytest.fixture(scope="module")
def node(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_node(client, tmp_path_factory.mktemp("node")) as process:
        yield process


# sizes ----------------------------------------------------------------------------------------------------------------


def with_length(message: Any, length: int, at: int = -4) -> bytes:
    """A serialised message in which one empty sequence, the last one by default, says that it has so many elements."""
    data = bytearray(serialize_message(message))
    place = len(data) + at if at < 0 else at
    assert struct.unpack_from("<I", data, place) == (0,)
    struct.pack_into("<I", data, place, length)
    return bytes(data)


def info_with_length(header: Header, length: int) -> bytes:
    """A camera info whose distortion coefficients D are said to be so many."""
    message = camera_to_info(CAMERA, CameraInfo(header=header))
    message.distortion_model, message.d = "plumb_bob", []
    model = serialize_message(message).index(b"plumb_bob\0") + len("plumb_bob\0")
    return with_length(message, length, model + -(model - 4) % 4)


def peak(process: Process) -> int:
    """Most resident bytes since :func:`forget_peak`."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def forget_peak(process: Process) -> int:
    try:
        Path(f"/proc/{process.process.pid}/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the kernel does not count anew: {error}")
    return peak(process)


def test_messages_of_absurd_sizes_are_refused_at_no_cost(client: Client, node: Process) -> None:
    """A few hundred bytes that claim gigabytes, on every topic that the node reads."""
    header = client.header()
    huge = rgb_to_image(photograph()[:8, :8], Image(header=header))
    messages: list[tuple[Any, bytes]] = []
    for length in (2**32 - 1, 2**31, 2**31 - 1, 10**9, 10**6):
        messages += [
            (client.image, with_length(Image(header=header), length)),
            (client.compressed, with_length(CompressedImage(header=header, format="jpeg"), length)),
            (client.info, info_with_length(header, length)),
        ]
    for width, height, step in (
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
        (2**31, 2, 0),
        (2**16, 2**16, 0),
        (1, 2**32 - 1, 1),
        (2**30 + 1, 4, 12),  # 3 x width overflows 32 bits
    ):
        huge.width, huge.height, huge.step = width, height, step
        messages.append((client.image, serialize_message(huge)))
    for length in (2**32 - 1, 10**6):  # of strings: frame_id stands behind 4 bytes of encapsulation and the stamp
        data = bytearray(serialize_message(huge))
        struct.pack_into("<I", data, 12, length)
        messages.append((client.image, bytes(data)))
    before = forget_peak(node)
    for publisher, data in messages:
        publisher.publish(data)
        client.spin_until(lambda: False, 0.05)
    client.spin_until(lambda: False, 0.3)
    assert peak(node) - before < 30e6
    assert len(client.answer(client.send(photograph())).people) == 1


def test_keypoints_of_absurdly_many_people_are_refused(client: Client, tmp_path: Path) -> None:
    """In keypoint mode: sixteen bytes that claim billions of people, and a megabyte that claims a million."""
    domain = random.SystemRandom().randint(30, 101)
    other = Client(domain)
    process = Process(tmp_path, domain, "--ros-args", "-p", "detector:=topic", *bundle_arguments())
    try:
        process.wait_for("ready:")
        assert other.spin_until(lambda: other.keypoints.get_subscription_count())
        other.spin_until(lambda: False, 0.5)

        def answered() -> bool:
            header = other.header()
            other.send_info(header)
            points = np.concatenate([np.random.default_rng(0).uniform(150, 350, (23, 2)), np.ones((23, 1))], 1)
            person = PoseKeypoints(id=-1, score=0.9, keypoints=points.astype(np.float32).reshape(-1))
            other.spin_until(lambda: False, 0.1)
            other.keypoints.publish(PoseKeypointsArray(header=header, people=[person]))
            return len(other.answer(header).people) == 1

        assert answered()
        before = forget_peak(process)
        empty = PoseKeypointsArray(header=other.header())
        for length, padding in ((2**32 - 1, 0), (10**9, 0), (10**6, 0), (10**6, 10**6)):
            other.keypoints.publish(with_length(empty, length) + bytes(padding))
            other.spin_until(lambda: False, 0.2)
        crowd = PoseKeypointsArray(header=other.header(), people=[PoseKeypoints(score=0.9)] * 1000)
        other.keypoints.publish(crowd)
        process.wait_for("keypoints of 1000 people: send at most 256", 10)
        assert peak(process) - before < 30e6
        assert answered()
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)
        other.close()


# names ----------------------------------------------------------------------------------------------------------------

HOSTILE = (
    "../../../../etc/passwd",
    "/dev/null",
    "%s%s%n%x%d{0.__class__}{}{self.context}",
    "$(touch /tmp/x); `id`",
    "__class__",
    "os.system",
    "\x1b[31m\r\n[ERROR] [1.0] [root]: forged",
)


def test_strings_of_messages_are_only_strings(client: Client, node: Process) -> None:
    """Frames, encodings and distortion models are handed on or refused as they are, and logged in quotes."""
    for text in HOSTILE:
        header = client.header()
        header.frame_id = text
        client.send_info(client.header())  # of another frame: a warning names both
        client.spin_until(lambda: False, 0.05)
        client.send(photograph(), header)
        answer = client.answer(header)
        assert answer.header.frame_id == text
        assert len(answer.people) == 1

        strange = camera_to_info(CAMERA, CameraInfo(header=client.header()))
        strange.distortion_model, strange.d = text, [0.1] * 5
        client.info.publish(strange)
        client.spin_until(lambda: False, 0.05)
        client.send(photograph(), strange.header)
        assert not client.answer(strange.header).camera_known

        image = rgb_to_image(photograph(), Image(header=client.header()))
        image.encoding = text
        client.image.publish(image)
        client.compressed.publish(CompressedImage(header=client.header(), format=text, data=b"GIF89a"))
        client.spin_until(lambda: False, 0.1)
        assert client.answers(image.header) == []
    client.spin_until(lambda: False, 0.5)
    assert "'%s%s%n%x%d{0.__class__}{}{self.context}'" in node.text
    assert not [line for line in node.text.splitlines() if line.startswith("[ERROR] [1.0] [root]: forged")]
    assert "\x1b[31m\r" not in node.text


def test_long_strings_are_cut_in_texts_and_refused_as_frames(client: Client, node: Process) -> None:
    client.got["diagnostics"].clear()
    lines = len(node.text.splitlines())
    long = "x" * 1_000_000
    headers: list[Header] = []

    def header() -> Header:
        headers.append(client.header())
        headers[-1].frame_id = long
        return headers[-1]

    def until(words: str, publish: Callable[[], object]) -> None:
        """Again and again: such large messages come with best effort."""
        end = time.monotonic() + 20
        while words not in node.text:
            assert time.monotonic() < end, f"{words!r} is not in {node.text[-3000:]}"
            publish()
            client.spin_until(lambda: False, 0.3)

    image = rgb_to_image(photograph(), Image(header=client.header()))
    image.encoding = long
    client.image.publish(image)
    until("(1000000 characters) is longer than 256", lambda: client.send(photograph(), header()))
    until("frame_id has 1000000 characters", lambda: client.send_info(header()))
    client.compressed.publish(CompressedImage(header=client.header(), format=long, data=b"GIF89a"))
    assert client.spin_until(lambda: len(client.got["diagnostics"]) > 2)
    assert not any(client.answers(one) for one in headers)
    assert max(len(line) for line in node.text.splitlines()[lines:]) < 1000
    assert max(len(serialize_message(message)) for message in client.got["diagnostics"]) < 10_000
    assert len(client.answer(client.send(photograph())).people) == 1


# files and options ----------------------------------------------------------------------------------------------------


def run_node(folder: Path, *arguments: str) -> Process:
    """The node, which ends by itself."""
    process = Process(folder, random.SystemRandom().randint(30, 101), "--ros-args", *arguments)
    try:
        process.process.wait(30)
    finally:
        process.end(signal.SIGKILL)
    return process


def test_a_bundle_that_was_changed_after_hashing_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(Bundle.load().path, folder)
    model = bytearray((folder / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "model.onnx").write_bytes(model)
    process = run_node(tmp_path, "-p", f"bundle:={folder}")
    assert process.process.returncode == 2
    assert "model.onnx" in process.text
    assert "was changed" in process.text
    assert "Traceback" not in process.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("!!python/object/apply:os.system ['touch {mark}']", "not YAML"),
        ("min_detection: !!python/object/new:subprocess.Popen [[touch, {mark}]]", "not YAML"),
        ("{{a: &a [1, 1], b: &b [*a, *a], min_detection: [*b, *b]}}", "anchor"),
        ("__class__: x", "its options are"),
    ],
)
def test_detector_options_cannot_make_objects(tmp_path: Path, options: str, words: str) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / "node.yaml"
    text = options.format(mark=mark).replace("'", "''")
    file.write_text(f"human_estimator:\n  ros__parameters:\n    detector_options: '{text}'\n")
    process = run_node(tmp_path, "--params-file", str(file))
    assert process.process.returncode == 2
    assert words in process.text
    assert "Traceback" not in process.text
    assert not mark.exists()


def test_a_type_name_imports_packages_of_messages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of types come out of bags and from other nodes."""
    bag = pytest.importorskip("hmr_prob_ros.ros.bag", reason="needs the extra [demo]: pip install mcap")
    mark = tmp_path / "ran"
    (tmp_path / "not_messages").mkdir()
    (tmp_path / "not_messages" / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("not_messages/msg/X", "os/path/join", "not_messages/X", "../x/msg/X", "hmr_prob_ros/cli/main", "/"):
        with pytest.raises(ImportError, match="not installed"):
            bag.message_class(name)
    assert not mark.exists()
    assert "not_messages" not in sys.modules
    assert bag.message_class("sensor_msgs/msg/Image") is Image
