"""What goes wrong during a soak, one after another, and what must come of it."""

from __future__ import annotations

__all__ = ["FAULTS", "Check", "Fault", "recovered"]

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from session import Soak


class Check(NamedTuple):
    """One expected outcome of a fault."""

    expected: str
    found: str
    passed: bool


class Fault(NamedTuple):
    """A fault: ``run(soak, seconds, usual)`` makes it happen for so long, and tells what was seen.

    ``length`` is how much longer than others it takes. ``usual`` is the summary of the run before any fault, with the
    status of the node as ``level`` and its ``parameters``.
    """

    name: str
    length: float
    run: Callable[[Soak, float, dict[str, Any]], list[Check]]


@contextmanager
def _measured(soak: Soak) -> Iterator[dict[str, Any]]:
    """The summary of the block, once it has ended."""
    found: dict[str, Any] = {}
    begin = time.time_ns()
    yield found
    end = time.time_ns()
    soak.wait(0.5)
    found.update(soak.log().summary(begin, end))


def _share(found: dict[str, Any], least: float) -> Check:
    """Whether so large a part of the frames was answered."""
    share = found["answered"] / max(found["frames"], 1)
    return Check(f"at least {least:.0%} of the frames are answered", f"{share:.1%}", share >= least)


def _bounded(found: dict[str, Any], most: float) -> Check:
    return Check(f"p50 below {most:.0f} ms", f"{found['p50_ms']:.1f} ms", bool(found["p50_ms"] < most))


def recovered(soak: Soak, usual: dict[str, Any], seconds: float = 30.0) -> Check:
    """Whether the node works as before: its status is no worse, and a second's frames are answered as usual."""
    begin = time.monotonic()

    def well() -> bool:
        now = time.time_ns()
        latency = soak.log().latency(now - 1.2e9, now - 0.2e9)
        # Where the machine is too slow for the camera, a part was dropped before, too.
        enough = 0.8 * usual["answered"] / usual["frames"] * len(latency)
        return soak.last.level <= usual["level"] and 0 < enough <= np.count_nonzero(~np.isnan(latency))

    passed = soak.until(well, seconds)
    text = f"after {time.monotonic() - begin:.1f} s" if passed else f"not yet: {soak.last.message}"
    return Check(f"works as before within {seconds:g} s", text, passed)


def _set_parameters(soak: Soak, seconds: float, usual: dict[str, Any]) -> list[Check]:
    """Other values ten times a second, every tenth set an impossible one."""
    random = np.random.default_rng(int(time.time()))

    def draw() -> dict[str, Any]:
        return {
            "samples": int(random.integers(25, 101)),
            "modes": int(random.integers(3, 11)),
            "max_people": int(random.integers(1, 9)),
            "min_score": float(random.uniform(0.1, 0.3)),
            "max_rate": float(random.choice((0.0, 0.0, 20.0))),
            "identity_memory": float(random.uniform(1, 5)),
            "publish_uncertainty": bool(random.integers(2)),
            "publish_markers": bool(random.integers(2)),
            "publish_overlay": bool(random.integers(2)),
        }

    calls, wrong = 0, []
    with _measured(soak) as found:
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            impossible = calls % 10 == 9
            reason = soak.set_parameters({"samples": 5, "modes": 50} if impossible else draw())
            if reason is None or bool(reason) != impossible:
                wrong.append(reason)
            calls += 1
            soak.wait(max(0.0, calls / 10 - elapsed))
    back = soak.set_parameters(usual["parameters"])
    status = soak.status()
    same = all(status.values[name] == str(usual["parameters"][name]) for name in ("samples", "modes"))
    return [
        Check("ten sets a second are answered", f"{calls} in {seconds:g} s", calls >= 8 * seconds),
        Check(
            "possible ones are taken, impossible ones refused", f"{len(wrong)} were not {wrong[:3] or ''}", not wrong
        ),
        Check("the values of before are taken again", f"no: {back}" if back != "" else "yes", back == "" and same),
        _share(found, 0.4),
    ]


def _stop_camera(soak: Soak, seconds: float, usual: dict[str, Any]) -> list[Check]:
    soak.tell("pause")
    begin = time.monotonic()
    told = soak.until(lambda: "no frame on" in soak.last.message, seconds + 3)
    text = soak.last.message
    soak.wait(seconds - (time.monotonic() - begin))
    answers = len(soak.log().answers)
    soak.tell("play")
    begin = time.monotonic()
    again = soak.until(lambda: len(soak.log().answers) > answers, 5)
    took = time.monotonic() - begin
    return [
        Check("diagnostics warn that no frame comes", text, told),
        Check("the first answer within a second of its return", f"{took:.2f} s", again and took < 1),
    ]


def _change_camera_info(soak: Soak, seconds: float, usual: dict[str, Any]) -> list[Check]:
    def distance() -> float:
        begin = time.time_ns()
        soak.wait(seconds / 3)
        people = soak.log().people
        return float(np.nanmedian(people[people[:, 0] >= begin, 2])) if len(people) else float("nan")

    with _measured(soak) as found:
        near = distance()
        soak.tell("focal 2")
        soak.wait(0.5)
        far = distance()
        soak.tell("info nan")
        guessed = soak.until(lambda: soak.last.values.get("focal_length") == "guessed", 4)
        text = soak.last.values.get("calibration", "")
        soak.wait(seconds / 3)
    soak.tell("focal 1")
    soak.tell("info good")
    known = soak.until(lambda: soak.last.values.get("calibration") == "valid", 4)
    return [
        Check("with twice the focal length people are about twice as far", f"{near:.2f} to {far:.2f} m",
              1.5 < far / near < 2.7),
        Check("with NaN in it the focal length is guessed, and diagnostics say why", text, guessed and "NaN" in text),
        Check("the good one counts again", soak.last.values.get("calibration", ""), known),
        _share(found, 0.8 * usual["answered"] / usual["frames"]),
    ]  # fmt: skip


def _turn_time_back(soak: Soak, seconds: float, usual: dict[str, Any]) -> list[Check]:
    def told_so_far() -> int:
        return len(re.findall(r"the image stamp went back by \d\.\d s: a new run begins", soak.node_log()))

    before = told_so_far()
    with _measured(soak) as found:
        soak.tell("back 5")
        soak.wait(seconds)
    soak.tell("back 0")
    told = told_so_far() - before
    return [
        Check("the log says once that a new run begins", f"{told} times", told == 1),
        _share(found, 0.8 * usual["answered"] / usual["frames"]),
        _bounded(found, 2 * usual["p50_ms"] + 20),
    ]


_SLOW = """
import time, rclpy
from rclpy.qos import QoSProfile
from hmr_prob_ros.msg import HumanHypothesesArray, HumanUncertaintyArray
rclpy.init()
node = rclpy.create_node("slow_subscriber")
for kind, topic in ((HumanHypothesesArray, "hypotheses"), (HumanUncertaintyArray, "uncertainty")):
    node.create_subscription(kind, f"/human/{topic}", lambda msg: time.sleep(1), QoSProfile(depth=5))
rclpy.spin(node)
"""


def _subscribe_slowly(soak: Soak, seconds: float, usual: dict[str, Any]) -> list[Check]:
    """Somebody who reads reliable topics once a second."""
    now = time.time_ns()
    memory = soak.log().memory(now - 3e9, now)
    process = subprocess.Popen([sys.executable, "-c", _SLOW], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        soak.wait(3)  # its start takes the CPU
        with _measured(soak) as found:
            soak.wait(seconds)
        now = time.time_ns()
        grown = soak.log().memory(now - 3e9, now) - memory
    finally:
        process.terminate()  # a killed one may leave shared memory that others wait for
        process.wait(20)
    return [
        _share(found, 0.8 * usual["answered"] / usual["frames"]),
        _bounded(found, 2 * usual["p50_ms"] + 20),
        Check("memory grows by less than 20 MB", f"{grown:+.1f} MB", grown < 20),
    ]


def _take_cpu(soak: Soak, seconds: float, usual: dict[str, Any]) -> list[Check]:
    """As many other processes as there are cores, which never rest."""
    count = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        with _measured(soak) as early:
            soak.wait(seconds / 2)
        with _measured(soak) as late:
            soak.wait(seconds / 2)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    rate = late["answered"] / (seconds / 2)
    most = 3 * early["p50_ms"] + 50
    return [
        Check("at least three answers a second", f"{rate:.1f}", rate >= 3),
        _bounded(late, 500),
        Check("latency does not grow", f"{early['p50_ms']:.1f} to {late['p50_ms']:.1f} ms", late["p50_ms"] < most),
    ]


FAULTS: tuple[Fault, ...] = (
    Fault("parameters change ten times a second", 3.0, _set_parameters),
    Fault("the camera stops and returns", 1.0, _stop_camera),
    Fault("the camera info changes", 1.0, _change_camera_info),
    Fault("time jumps back", 1.0, _turn_time_back),
    Fault("a slow subscriber", 1.0, _subscribe_slowly),
    Fault("other processes take the CPU", 1.0, _take_cpu),
)
"""In the order in which they happen, again and again; lengths in spans of ``--fault-seconds``."""
