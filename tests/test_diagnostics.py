# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""How bad the node says it is doing, and how often it says so."""

from __future__ import annotations

import logging
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_processes import FRAME, Client, Process, bundle_arguments, photograph
from std_msgs.msg import Header

from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.ros.complaints import Complaints, hand_on_logs, listening
from hmr_prob_ros.ros.diagnostics import Condition, diagnostics_msg, judge, status_name
from hmr_prob_ros.ros.parameters import PARAMETERS, Settings
from hmr_prob_ros.ros.statistics import CAUSES, STATUS_NAME, Gaps, Ledger, Second, Statistics

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SETTINGS = Settings(**{p.name: p.default for p in PARAMETERS})
ACTIVE = Condition("active", focal_length="known", inputs=("/image",), publishers=1)


def second(latency: float = 30.0, seconds: float = 1.0, error: str = "", **new: int) -> Second:
    """A second with 30 frames in and out, or what is given; latency in ms."""
    counts = {"received": 30, "processed": 30, "dropped": 0, "repeated": 0, "failed": 0, "problems": 0, "missed": 0}
    counts |= {f"dropped_{cause}": 0 for cause in CAUSES} | new
    return Second(seconds, counts, counts, 2, error, 0.1, np.full(100, latency), {"detect": 6.0})


@pytest.mark.parametrize(
    ("of", "condition", "settings", "level", "words"),
    [
        (second(), ACTIVE, {}, OK, "2 people"),
        (second(), Condition("inactive"), {}, OK, "inactive"),
        (second(received=0), Condition("inactive"), {}, OK, "inactive"),
        (second(), Condition("unconfigured", error="no such bundle"), {}, ERROR, "no such bundle"),
        (second(), replace(ACTIVE, hung="the engine gave no answer"), {}, ERROR, "the engine gave no answer"),
        (second(failed=3, error="the engine broke"), ACTIVE, {}, ERROR, "3 of 30 frames failed: the engine broke"),
        (second(problems=1, error="person 0 dropped"), ACTIVE, {}, ERROR, "person 0 dropped"),
        (second(received=0), ACTIVE, {}, WARN, "no frame on /image for 0 s, look at the camera"),
        (second(received=0), replace(ACTIVE, publishers=0), {}, WARN, "nobody publishes there"),
        (second(processed=0), ACTIVE, {}, WARN, "none was finished"),
        (second(processed=0, dropped=30, dropped_stale=30), ACTIVE, {}, WARN, "older than max_age"),
        (second(processed=9), ACTIVE, {}, OK, "2 people"),
        (second(processed=9), ACTIVE, {"warn_rate": 9.5}, WARN, "9.0 frames a second are below warn_rate (9.5)"),
        (second(processed=19, seconds=2.0), ACTIVE, {"warn_rate": 9.6}, WARN, "9.5 frames a second"),
        (second(dropped=16, dropped_before_infer=16), ACTIVE, {}, WARN, "16 of 30 frames dropped: lower the camera's"),
        (second(dropped=16, dropped_before_infer=16), ACTIVE, {"warn_drops": 0.6}, OK, "2 people"),
        (second(dropped=29, dropped_period=29, processed=1), ACTIVE, {}, OK, "2 people"),
        (second(missed=29), ACTIVE, {}, OK, "2 people"),
        (second(missed=31), ACTIVE, {}, WARN, "31 of 61 frames were lost on the way: start camera and node with the"),
        (second(600.0), ACTIVE, {}, WARN, "takes 0.60 s from its stamp (warn_latency is 0.5)"),
        (second(600.0), ACTIVE, {"warn_latency": 0.7}, OK, "2 people"),
        (second(600.0), ACTIVE, {"warn_latency": 0.0}, OK, "2 people"),
        (second(-5000.0), ACTIVE, {}, WARN, "stamps lie in the future: check the camera's clock"),
        (second(), replace(ACTIVE, focal_length="guessed"), {}, WARN, "publish camera info or set camera_fov"),
        (second(), replace(ACTIVE, focal_length="field of view"), {}, OK, "2 people"),
        (second(), replace(ACTIVE, calibration="K holds NaN", focal_length="guessed"), {}, WARN, "K holds NaN"),
        (second(), replace(ACTIVE, twins=1), {}, WARN, "2 nodes have this name"),
    ],
)
def test_level_and_what_to_do(of: Second, condition: Condition, settings: Any, level: bytes, words: str) -> None:
    found, text = judge(of, condition, replace(SETTINGS, **settings))
    assert (found, words in text) == (level, True), (found, text)


def test_the_worst_is_told_with_all_that_is_as_bad() -> None:
    condition = replace(ACTIVE, focal_length="guessed", twins=2)
    level, text = judge(second(received=0), condition, SETTINGS)
    assert level == WARN
    assert text.count(";") == 2
    assert judge(second(failed=1, error="broken"), condition, SETTINGS) == (ERROR, "1 of 30 frames failed: broken")


def test_message() -> None:
    condition = replace(ACTIVE, about={"engine": "onnxruntime", "frame_id": "front"})
    header = Header(frame_id="x")
    msg = diagnostics_msg("/human_estimator", header, second(seconds=2.0), condition, SETTINGS)
    assert msg.header == header
    (status,) = msg.status
    values = {v.key: v.value for v in status.values}
    assert (status.name, status.hardware_id, status.level) == (STATUS_NAME, "front", OK)
    assert values["rate_in_hz"] == values["rate_out_hz"] == "15.0"
    assert values["latency_p50_ms"] == values["latency_p99_ms"] == "30.00"
    assert values["stage_detect_ms"] == "6.000"
    assert values["focal_length"] == "known"
    assert values["calibration"] == "valid"
    assert {f"frames_dropped_{cause}" for cause in CAUSES} < set(values)
    assert status_name("/rear/human_estimator") != status.name


def test_statistics_add_up_and_begin_anew() -> None:
    statistics = Statistics(window=10)

    def work() -> None:
        for number in range(500):
            statistics.receive()
            if number % 5 == 0:
                statistics.drop(CAUSES[number // 5 % len(CAUSES)])
            elif number % 5 == 1:
                statistics.fail("broken")
            elif number % 5 == 2:
                statistics.repeat()
            else:
                statistics.frame(float(number), {"detect": 1.0}, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = statistics.second()
    assert first.new == first.total
    assert first.new["received"] == 2000
    assert first.new["dropped"] == sum(first.new[f"dropped_{cause}"] for cause in CAUSES) == 400
    assert first.new["received"] == sum(first.new[k] for k in ("processed", "dropped", "failed", "repeated"))
    assert len(first.latency_ms) == 10
    statistics.receive()
    statistics.forget_times()
    then = statistics.second()
    assert then.new["received"] == 1
    assert then.total["received"] == 2001
    assert len(then.latency_ms) == 0
    statistics.fail("of before")
    statistics.forget()
    assert not any(statistics.second().new.values())
    assert statistics.second().total["failed"] == 401


def test_a_ledger_that_is_closed_tells_what_is_open() -> None:
    statistics = Statistics()
    ledger = Ledger(statistics)
    for _ in range(5):
        ledger.receive()
    ledger.settle(statistics.drop, "late")
    ledger.settle(statistics.frame, 1.0, {}, 1)
    assert ledger.close() == 3
    ledger.settle(statistics.fail, "too late")
    ledger.receive()
    assert ledger.close() == 0
    total = statistics.second().total
    assert (total["received"], total["processed"], total["dropped"], total["failed"]) == (5, 1, 1, 0)


def test_gaps_are_counted_for_each_publisher() -> None:
    def info(publisher: int, number: int | None) -> dict[str, Any]:
        return {"publication_sequence_number": number, "publisher_gid": {"data": bytes([publisher])}}

    gaps = Gaps()
    came = [(1, 7), (2, 100), (1, 8), (1, 11), (2, 103), (1, 12), (1, 3), (1, 4), (1, None), (1, 6)]
    assert [gaps.before(info(*one)) for one in came] == [0, 0, 0, 2, 2, 0, 0, 0, 0, 1]
    assert gaps.before({"source_timestamp": 1}) == 0  # Humble
    for publisher in range(3, 200):
        gaps.before(info(publisher, 1))
    assert len(gaps._last) <= 64


def test_complaints_are_throttled() -> None:
    said: list[str] = []
    complain = Complaints(said.append, pause=0.2, most=3)
    for number in range(1000):
        complain(f"frame {number} of {number / 7} seconds is broken")
    assert said == ["frame 0 of 0.0 seconds is broken"]
    for letter in "abcdef":
        complain(f"encoding {letter}")
    assert said[1:] == ["encoding a", "encoding b"]
    threading.Event().wait(0.25)
    complain("frame 5 of 3.1 seconds is broken")
    assert said[3:] == ["frame 5 of 3.1 seconds is broken (and 999 more like it)"]
    complain("encoding g")
    assert said[4:] == ["encoding g"]


def test_logs_of_other_rooms_go_to_the_thread_that_listens(capsys: pytest.CaptureFixture[str]) -> None:
    hand_on_logs()
    hand_on_logs()
    logger = logging.getLogger("hmr_prob_ros.estimator")
    heard: list[tuple[int, str]] = []
    other: list[tuple[int, str]] = []
    with listening(lambda level, text: heard.append((level, text))):
        logger.error("person %d dropped", 3)
        logger.debug("nothing")
        thread = threading.Thread(target=lambda: logger.warning("elsewhere"))
        thread.start()
        thread.join()
        with listening(lambda level, text: other.append((level, text))):
            logger.warning("inside")
        logger.warning("again")
    assert heard == [(logging.ERROR, "person 3 dropped"), (logging.WARNING, "again")]
    assert other == [(logging.WARNING, "inside")]


def test_the_node_tells_what_it_runs_and_takes_thresholds(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")
    client = Client(random.SystemRandom().randint(30, 101))
    process = Process(
        tmp_path, client.context.get_domain_id(), "--ros-args", "-p", "warn_latency:=0.0", *bundle_arguments()
    )
    try:
        client.wait_for_node()
        header = client.header()
        client.send_info(header)
        client.diagnosis()  # so that a frame comes and is finished within the next second
        before = len(client.got["diagnostics"])
        client.answer(client.send(photograph(), header))
        values = client.diagnosis(lambda s: s.level == OK and "1 person" in s.message, since=before)[1]
        bundle = Bundle.load()
        assert (values["state"], values["detector"], values["frame_id"]) == ("active", "blazepose", FRAME)
        assert (values["focal_length"], values["calibration"]) == ("known", "valid")
        assert "onnxruntime" in values["engine"]
        assert len(values["body_hash"]) == len(bundle.body_hash)
        assert client.set_parameters({"warn_rate": 1000.0}) == [""]
        client.diagnosis()
        before = len(client.got["diagnostics"])
        client.answer(client.send(photograph()))
        client.diagnosis(lambda s: s.level == WARN and "below warn_rate (1000)" in s.message, since=before)
        seconds = [m.header.stamp.sec + 1e-9 * m.header.stamp.nanosec for m in client.got["diagnostics"]]
        assert np.median(np.diff(seconds)) == pytest.approx(1, abs=0.2)
        assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)
        client.close()
