# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""Recorder and player between real processes: what is recorded, killed, played and recorded again, read by others."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("mcap", reason="needs the extra [demo]: pip install mcap")
highlevel = pytest.importorskip("rosbags.highlevel", reason="needs rosbags: pip install rosbags")

from bag_processes import STRING, World, both_storages, picture, read, text
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from mcap.reader import make_reader
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rosbags.interfaces import Qos
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Empty, String

from hmr_prob_ros.cli import main
from hmr_prob_ros.ros.bag import BagError, message_class
from hmr_prob_ros.ros.bag_folder import BagFolder
from hmr_prob_ros.ros.bag_reader import BagReader, mend
from hmr_prob_ros.ros.bag_recorder import RecordOptions
from hmr_prob_ros.ros.player import BagPlayer

RENAMED = f"/renamed{random.SystemRandom().getrandbits(40):x}"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.mark.parametrize("storage", ["mcap", pytest.param("sqlite3", marks=pytest.mark.slow)])
def test_record_replay_record_gives_equal_bytes(world: World, tmp_path: Path, storage: str) -> None:
    node = world.node
    pictures, states, nothing, said = (world.at(n) for n in ("image_raw", "diagnostics", "empty", "latched"))
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    image = node.create_publisher(Image, pictures, qos_profile_sensor_data)
    diagnostics = node.create_publisher(DiagnosticArray, states, QoSProfile(depth=5))
    empty = node.create_publisher(Empty, nothing, QoSProfile(depth=5))
    node.create_publisher(String, said, latched).publish(String(data="said before anybody listened"))
    chosen = ["--topics", pictures, states, nothing[1:], said, "--storage", storage]
    recorder = world.run(tmp_path, "record", str(tmp_path / "one"), *chosen)
    for publisher in (image, diagnostics, empty):
        world.wait(publisher)
    sent = []
    for number in range(30):
        sent.append(picture(number))
        image.publish(sent[-1])
        diagnostics.publish(
            DiagnosticArray(
                status=[DiagnosticStatus(name=f"é{number}", values=[KeyValue(key="k", value="v" * number)])]
            )
        )
        empty.publish(Empty())
        time.sleep(0.02)
    time.sleep(0.2)
    assert recorder.end(signal.SIGTERM) == 0, recorder.text
    assert "Traceback" not in recorder.text
    first, about = read(tmp_path / "one")
    # Serialising leaves whatever was in memory between the fields, so two times the same message are different bytes.
    assert [deserialize_message(d, Image) for _, d in first[pictures]] == sent
    assert {t: len(m) for t, m in first.items()} == {
        pictures: 30, states: 30, nothing: 30, said: 1,
    }  # fmt: skip
    assert about[pictures].msgtype == "sensor_msgs/msg/Image"
    offered = {t: c.ext.offered_qos_profiles[0] for t, c in about.items()}
    assert isinstance(offered[said], Qos)
    assert (offered[pictures].reliability.name, offered[states].reliability.name) == (
        "BEST_EFFORT",
        "RELIABLE",
    )
    assert (offered[said].durability.name, offered[nothing].durability.name) == ("TRANSIENT_LOCAL", "VOLATILE")

    for publisher in list(node.publishers):
        if publisher.topic_name in first:
            node.destroy_publisher(publisher)
    recorder = world.run(tmp_path, "record", str(tmp_path / "two"), *chosen)
    recorder.wait_for("recording to")
    player = world.run(tmp_path, "replay", str(tmp_path / "one"), "--rate=0.5", "--wait=20")
    assert player.process.wait(30) == 0, player.text
    assert "91 messages" in player.text
    assert recorder.end() == 0, recorder.text
    second, again = read(tmp_path / "two")
    assert {t: [d for _, d in m] for t, m in second.items()} == {t: [d for _, d in m] for t, m in first.items()}
    for topic, connection in again.items():
        now = connection.ext.offered_qos_profiles[0]
        assert (now.reliability, now.durability) == (offered[topic].reliability, offered[topic].durability)
    # Half as fast: between the first and the last picture twice the time went by.
    spans = [m[pictures][-1][0] - m[pictures][0][0] for m in (first, second)]
    assert spans[1] / spans[0] == pytest.approx(2, rel=0.1)


@both_storages
def test_killed_while_writing(world: World, tmp_path: Path, storage: str) -> None:
    """A SIGKILL at a random moment leaves everything but the last second, in order and without a hole."""
    out, topic = tmp_path / "bag", world.at("text")
    publisher = world.node.create_publisher(String, topic, QoSProfile(depth=1000))
    recorder = world.run(tmp_path, "record", str(out), "--topics", topic, "--storage", storage)
    world.wait(publisher)
    rng, sent = random.Random(), 0
    end = time.monotonic() + 2 + rng.random()
    while time.monotonic() < end:
        publisher.publish(String(data=f"{sent:06d}" + "x" * rng.randrange(20_000)))
        sent += 1
        time.sleep(0.002)
    recorder.process.kill()
    recorder.process.wait()
    for file in out.glob("*.db3"):
        mend(file)
    messages, _ = read(out)
    numbers = [int(d[8:14]) for _, d in messages[topic]]
    assert numbers == list(range(len(numbers)))
    rate = sent / 2.5
    assert len(numbers) > sent - 1.2 * rate, f"{len(numbers)} of {sent} are left"
    assert [m.data for m in BagReader(out).messages()] == [d for _, d in messages[topic]]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_end_record_and_replay(world: World, tmp_path: Path, number: int) -> None:
    """Twice, too: the bag is completed and has its index, and the player ends in the middle of a loop."""
    out = tmp_path / "bag"
    publisher = world.node.create_publisher(String, world.at("text"), QoSProfile(depth=10))
    recorder = world.run(tmp_path, "record", str(out), "--topics", world.at("text"))
    world.wait(publisher)
    for index in range(20):
        publisher.publish(String(data=str(index)))
        time.sleep(0.02)
    time.sleep(0.1)
    recorder.process.send_signal(number)
    time.sleep(0.02)
    assert recorder.end(number) == 0, recorder.text
    assert "Traceback" not in recorder.text
    with next(out.glob("*.mcap")).open("rb") as stream:
        assert make_reader(stream).get_summary().statistics.message_count == 20
    player = world.run(tmp_path, "replay", str(out), "--loop", "--clock")
    heard = threading.Event()
    subscription = world.node.create_subscription(Clock, "/clock", lambda m: heard.set(), 10)
    assert heard.wait(20), player.text
    assert player.end(number) == 0, player.text
    assert "Traceback" not in player.text
    world.node.destroy_subscription(subscription)


def test_type_that_is_not_installed(world: World, tmp_path: Path) -> None:
    """The bytes are recorded and played again, with the definition that the publisher's node tells."""
    topic, again = world.at("diagnostics"), world.at("again")
    blocked = tmp_path / "path" / "diagnostic_msgs"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed')")
    publisher = world.node.create_publisher(DiagnosticArray, topic, QoSProfile(depth=10))
    recorder = world.run(tmp_path, "record", str(tmp_path / "bag"), "--topics", topic, path=blocked.parent)
    world.wait(publisher)
    sent = [
        DiagnosticArray(status=[DiagnosticStatus(level=b"\2", name=f"n{i}", values=[KeyValue(key="a", value="b")])])
        for i in range(5)
    ]
    for message in sent:
        publisher.publish(message)
    end = time.monotonic() + 40

    def described() -> bool:
        with contextlib.suppress(BagError, KeyError):  # nothing is written before the answer came
            return bool(BagReader(tmp_path / "bag").topics[topic].definition)
        return False

    while not described():
        assert time.monotonic() < end, recorder.text
        time.sleep(0.1)
    assert recorder.end() == 0, recorder.text
    assert "pip install ros-diagnostic-msgs" in recorder.text
    messages, about = read(tmp_path / "bag")  # rosbags checks the definition against the type's hash
    assert [deserialize_message(d, DiagnosticArray) for _, d in messages[topic]] == sent
    digest = world.node.get_publishers_info_by_topic(topic)[0].topic_type_hash
    assert about[topic].digest == str(digest)
    heard: list[DiagnosticArray] = []
    world.node.create_subscription(DiagnosticArray, again, heard.append, 10)
    player = world.run(
        tmp_path, "replay", str(tmp_path / "bag"), "--remap", f"{topic}:={again}", "--wait=20", path=blocked.parent
    )
    assert player.process.wait(30) == 0, player.text
    time.sleep(0.2)
    assert heard == sent


@pytest.fixture
def seconds_of_text(tmp_path: Path) -> Path:
    """Two topics, a message each every tenth of a second, two seconds long, from the time 1000 s on."""
    bag = BagFolder(tmp_path / "text")
    bag.add_topic(STRING)
    bag.add_topic(STRING._replace(name="/other"))
    for step in range(20):
        for topic in ("/text", "/other"):
            bag.write(topic, text(f"{step}"), 1000 * 10**9 + step * 10**8, 0)
    bag.close()
    return bag.path


@pytest.fixture
def player(world: World, seconds_of_text: Path, request: pytest.FixtureRequest) -> Iterator[BagPlayer]:
    node = BagPlayer(BagReader(seconds_of_text), context=world.context, **getattr(request, "param", {}))
    yield node
    node.destroy_node()


@pytest.mark.parametrize("player", [{"topics": ["text"], "remap": {"/text": RENAMED}, "clock": 50.0}], indirect=True)
def test_player_rate_start_clock_and_names(world: World, player: BagPlayer) -> None:
    heard: list[tuple[float, str]] = []
    clock: list[tuple[float, float]] = []

    def tick(message: Clock) -> None:
        clock.append((time.monotonic(), message.clock.sec + message.clock.nanosec * 1e-9))

    world.node.create_subscription(String, RENAMED, lambda m: heard.append((time.monotonic(), m.data)), 100)
    world.node.create_subscription(Clock, "/clock", tick, 100)
    stop = threading.Event()
    assert list(player.outputs) == ["/text"]
    player.wait_for_subscribers(10, stop)
    count = player.play(stop, rate=2.0, start=0.55, seconds=1.0)
    player.finish()
    time.sleep(0.1)
    assert count == 10
    assert [d for _, d in heard] == [str(n) for n in range(6, 16)]
    assert heard[-1][0] - heard[0][0] == pytest.approx(0.9 / 2, abs=0.08)
    assert len(clock) > 15
    times = np.array(clock)
    assert (np.diff(times[:, 1]) >= 0).all()
    assert times[0, 1] == pytest.approx(1000.55, abs=0.05)
    assert np.polyfit(times[:, 0] - times[0, 0], times[:, 1], 1)[0] == pytest.approx(2, rel=0.1)


def test_replay_loops(world: World, seconds_of_text: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    topic = world.at("text")
    world.node.create_subscription(String, topic, lambda m: heard.append(m.data), 100)
    arguments = ["--loop", "--rate=20", "--topics", "/text", "--remap", f"/text:={topic}", "--wait=20"]
    process = world.run(tmp_path, "replay", str(seconds_of_text), *arguments)
    end = time.monotonic() + 30
    while len(heard) < 45 and time.monotonic() < end:
        time.sleep(0.02)
    assert process.end() == 0, process.text
    assert heard == [str(n) for n in itertools.islice(itertools.cycle(range(20)), len(heard))]


def test_errors_name_the_mend(tmp_path: Path, world: World, seconds_of_text: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty.mcap").write_text("")
    (tmp_path / "empty.db3").write_text("")
    (tmp_path / "none").mkdir()
    for path, words in (
        (tmp_path / "file.txt", "ends in .mcap or .db3"),
        (tmp_path / "no.mcap", "No such file"),
        (tmp_path / "empty.mcap", "cannot read"),
        (tmp_path / "empty.db3", "no table of topics"),
        (tmp_path / "none", "neither"),
    ):
        with pytest.raises(BagError, match=words):
            BagReader(path)
    with pytest.raises(BagError, match="not empty"):
        BagFolder(seconds_of_text)
    with pytest.raises(BagError, match="choose another"):
        BagFolder(tmp_path / "file.txt" / "bag")
    with pytest.raises(BagError, match="it has /other, /text"):
        BagPlayer(BagReader(seconds_of_text), ["/nothing"], context=world.context)
    with pytest.raises(ValueError, match="regular expression"):
        RecordOptions(tmp_path, regex="(")
    with pytest.raises(ImportError, match="pip install ros-no-msgs"):
        message_class("no_msgs/msg/Nothing")


def test_commands_end_with_one_line(tmp_path: Path, seconds_of_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for arguments, words in (
            (("replay", str(tmp_path / "nowhere.mcap")), "nowhere.mcap"),
            (("replay", str(seconds_of_text), "--start=9"), "1.9 s long"),
            (("record", str(seconds_of_text)), "not empty"),
            (("record", str(tmp_path / "x"), "--regex=("), "regular expression"),
        ):
            assert main(arguments) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert words in line
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
