"""The demo end to end: three real processes, and what they leave."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("mcap", reason="needs the extra [demo]: pip install mcap av")

from diagnostic_msgs.msg import DiagnosticArray
from ros_processes import Process, bundle_arguments, photograph
from sensor_msgs.msg import CameraInfo, Image

from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.bag import BagError, BagWriter, message_definition, read_bag
from hmr_prob_ros.ros.demo import format_summary, run_demo
from hmr_prob_ros.ros.fastdds import remove_broken_segments
from hmr_prob_ros.ros.processes import private_environment

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "frames_in",
    "frames_out",
    "people",
    "hypotheses_per_person",
    "latency_ms",
    "stages_ms",
    "detector",
    "engine",
    "bundle",
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "person.png"
    cv2.imwrite(str(path), cv2.cvtColor(photograph(), cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture(scope="module")
def bundle() -> str | None:
    bundle_arguments()
    return os.environ.get("HMR_PROB_TEST_BUNDLE")


@pytest.fixture(scope="module")
def run(picture: Path, bundle: str | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")
    pytest.importorskip("av", reason="needs the extra [demo]: pip install av")
    # Two inputs of different size, the second a folder of two pictures: a person, then nobody.
    folder = tmp_path_factory.mktemp("folder")
    cv2.imwrite(str(folder / "1.png"), np.full((300, 400, 3), 90, np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.full((300, 400, 3), 95, np.uint8))
    out = tmp_path_factory.mktemp("out")
    assert run_demo([picture, folder], out, rate=15, still_seconds=2, bundle=bundle, quiet=True) == 0
    return out


def test_summary(run: Path) -> None:
    summary = json.loads((run / "demo.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["frames_in"] == 32
    assert 16 <= summary["frames_out"] <= 32
    assert summary["people"] == 1
    assert summary["hypotheses_per_person"] == 10
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert {"detect", "infer", "publish"} <= summary["stages_ms"].keys()
    assert (summary["detector"], summary["samples"]) == ("blazepose", 100)
    table = format_summary(summary)
    assert "32 / " in table
    assert "p99" in table


def test_bag_is_read_by_rosbags(run: Path) -> None:
    """Another library reads the bag, with our own messages, from the definitions inside it."""
    highlevel = pytest.importorskip("rosbags.highlevel", reason="needs rosbags: pip install rosbags")
    types, images, answers = Counter(), {}, {}
    with highlevel.AnyReader([run / "demo.mcap"]) as reader:
        for connection, _, raw in reader.messages():
            types[connection.topic, connection.msgtype] += 1
            message = reader.deserialize(raw, connection.msgtype)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if connection.topic == "/camera/image_raw":
                images[stamp] = message
            elif connection.topic == "/human/hypotheses":
                answers[stamp] = message
    assert types["/camera/image_raw", "sensor_msgs/msg/Image"] == 32
    assert types["/camera/camera_info", "sensor_msgs/msg/CameraInfo"] == 32
    assert types["/human/hypotheses", "hmr_prob_ros/msg/HumanHypothesesArray"] >= 16
    assert answers.keys() <= images.keys()
    first = images[min(images)]
    np.testing.assert_array_equal(np.asarray(first.data).reshape(512, 512, 3), photograph())
    seen = [a for a in answers.values() if a.people]
    person = seen[-1].people[0]
    assert len(person.hypotheses) == 10
    assert np.sum([h.weight for h in person.hypotheses]) == pytest.approx(1, abs=1e-4)
    assert person.uncertainty.covariance.shape == (216,)
    assert seen[-1].header.frame_id == first.header.frame_id == "camera_optical_frame"
    # Nobody in the second input.
    assert list(answers[max(answers)].people) == []
    ours = {
        r.message.header.stamp.sec * 10**9 + r.message.header.stamp.nanosec: r.message
        for r in read_bag(run / "demo.mcap", {"/human/hypotheses": HumanHypothesesArray})
    }
    assert ours.keys() == answers.keys()
    stamp = max(s for s in answers if answers[s].people)
    np.testing.assert_array_equal(
        ours[stamp].people[0].hypotheses[3].joints, answers[stamp].people[0].hypotheses[3].joints
    )


def test_video_plays_everywhere(run: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(run / "demo.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(stream)]
        seconds = float(video.duration) / 1e6
    assert len(frames) == 32
    assert seconds == pytest.approx(32 / 15, abs=0.7)
    assert frames[0].std() > 10


def test_input_that_cannot_be_opened(
    tmp_path: Path, picture: Path, bundle: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypmp42 and nothing more")
    assert run_demo(broken, tmp_path / "out", bundle=bundle) == 2
    text = capfd.readouterr().err
    assert "broken.mp4" in text
    assert "Traceback" not in text
    assert list((tmp_path / "out").iterdir()) == []


def test_interrupted_demo_keeps_what_was_recorded(tmp_path: Path, picture: Path, bundle: str | None) -> None:
    code = "import sys; from hmr_prob_ros.ros.demo import run_demo; sys.exit(run_demo(*sys.argv[1:3], still_seconds=90"
    code += f", rate=10, video=False, bundle={bundle!r}))"
    demo = subprocess.Popen([sys.executable, "-c", code, str(picture), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        bag = tmp_path / "demo.mcap"
        while not (bag.is_file() and bag.stat().st_size > 1 << 20) and time.monotonic() < end:
            time.sleep(0.1)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        demo.kill()
        demo.communicate()
    summary = json.loads((tmp_path / "demo.json").read_text())
    assert 0 < summary["frames_in"] < 500
    assert len(list(read_bag(bag, {"/camera/image_raw": Image}))) == summary["frames_in"]


def test_node_that_fails_ends_the_demo(tmp_path: Path, picture: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_demo(picture, tmp_path, bundle=tmp_path / "none", still_seconds=60, quiet=True) == 2
    text = capfd.readouterr().err
    assert "estimator_node ended with exit code 2" in text
    assert "no bundle at" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere.mp4"], "nowhere.mp4"),
        (["--rate=-1", "PICTURE"], "--rate"),
        (["--camera", "/no.yaml", "PICTURE"], "/no.yaml"),
    ],
)
def test_player_says_what_is_wrong(tmp_path: Path, picture: Path, arguments: list[str], words: str) -> None:
    arguments = [str(picture) if a == "PICTURE" else a for a in arguments]
    process = Process(tmp_path, 99, *arguments, module="camera_player")
    assert process.process.wait(30) == 2
    assert words in process.text
    assert "Traceback" not in process.text


def test_player_takes_the_camera_beside_its_input(tmp_path: Path, picture: Path) -> None:
    """The recorder stores what the player publishes: a clip's own camera_info yaml, scaled with the pictures."""
    clip = tmp_path / "clip.png"
    clip.write_bytes(picture.read_bytes())
    clip.with_suffix(".yaml").write_text(
        "image_width: 512\nimage_height: 512\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [700, 0, 250, 0, 710, 260, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    domain = random.SystemRandom().randint(30, 101)
    recorder = Process(tmp_path, domain, f"--out={tmp_path}", "--name=x", "--no-video", "--idle=1", module="recorder")
    player = Process(
        tmp_path, domain, str(clip), "--max-size=256", "--still-seconds=0.5", "--rate=10", module="camera_player"
    )
    try:
        assert player.process.wait(30) == 0, player.text
        assert recorder.process.wait(30) == 1, recorder.text  # no hypotheses came
        assert "nothing on /human/hypotheses" in recorder.text
    finally:
        recorder.end()
        player.end()
    recorded = list(read_bag(tmp_path / "x.mcap", {"/camera/camera_info": CameraInfo, "/camera/image_raw": Image}))
    infos = [r.message for r in recorded if r.topic == "/camera/camera_info"]
    images = [r.message for r in recorded if r.topic == "/camera/image_raw"]
    assert len(images) == 5
    assert (images[0].width, infos[0].width) == (256, 256)
    np.testing.assert_allclose(infos[0].k, [350, 0, 125, 0, 355, 130, 0, 0, 1])


def test_definitions_hold_every_nested_type() -> None:
    text = message_definition(HumanHypothesesArray)
    for name in (
        "std_msgs/Header",
        "builtin_interfaces/Time",
        "hmr_prob_ros/HumanHypotheses",
        "hmr_prob_ros/BodyHypothesis",
    ):
        assert text.count(f"MSG: {name}\n") == 1
    assert "float32[216] covariance" in text
    assert "byte level" in message_definition(DiagnosticArray)


def test_bag_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="choose another"):
        BagWriter(tmp_path / "file" / "x.mcap", {"/camera/image_raw": Image})
    with pytest.raises(BagError, match="record it again"):
        list(read_bag(tmp_path / "none.mcap", {}))
    with pytest.raises(BagError, match="record it again"):
        list(read_bag(tmp_path / "file", {"/camera/image_raw": Image}))


def test_demo_has_a_domain_and_a_profile_of_its_own() -> None:
    environment = private_environment({"ROS_DOMAIN_ID": "0"})
    assert 30 <= int(environment["ROS_DOMAIN_ID"]) <= 101
    assert Path(environment["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
    mine = private_environment({"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"})
    assert mine["FASTDDS_DEFAULT_PROFILES_FILE"] == "/mine.xml"


def test_unfinished_shared_memory_is_removed(tmp_path: Path) -> None:
    """Empty segments whose maker is gone hang every later process; locks, finished and new segments must stay."""
    for name, text in (("fastdds_port7000", ""), ("fastdds_a1_el", ""), ("fastdds_a1", "data"), ("other", "")):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "fastdds_port7001").write_text("")  # being made right now
    assert remove_broken_segments(tmp_path) == ["fastdds_port7000"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fastdds_a1", "fastdds_a1_el", "fastdds_port7001", "other"]
