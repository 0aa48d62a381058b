"""benchmarks/soak: that its figures and verdicts are right, and that it runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

SCRIPT = ROOT / "benchmarks" / "soak" / "run.py"
BEGIN = 10**18
PERIOD = 33_333_333


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of benchmarks/soak, which is no package."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield importlib.import_module("figures")
    del sys.modules["figures"]


def written(folder: Path, seconds: int, slower: float = 0.0, grown: float = 0.0, back: bool = False) -> None:
    """The files of a run at 30 Hz: latency 20 ms + ``slower`` and memory 200 MB + ``grown`` by its end; every tenth
    frame has no answer. ``back``: stamps of the middle third lie five seconds back."""
    sent = BEGIN + PERIOD * np.arange(30 * seconds)
    share = np.arange(len(sent)) / len(sent)
    stamps = sent - np.where(back & (share > 1 / 3) & (share < 2 / 3), 5 * 10**9, 0)
    np.stack((stamps, sent), 1).astype(np.int64).tofile(folder / "sent.i64")
    answers = np.stack((stamps, sent + (1e6 * (20 + slower * share)).astype(np.int64), np.full(len(sent), 5000)), 1)
    answers[np.arange(len(sent)) % 10 != 3].astype(np.int64).tofile(folder / "answers.i64")
    second = np.arange(seconds)
    usage = np.stack((BEGIN + 1e9 * second, 0.5 * second, 1e6 * (200 + grown * second / seconds)), 1)
    usage.tofile(folder / "usage.f64")


def counts(received: int, processed: int, **more: int) -> dict[str, int]:
    names = ("dropped_before_detect", "dropped_before_infer", "dropped_period", "dropped_late", "dropped_stale")
    others = dict.fromkeys((*names, "dropped_inactive", "failed", "repeated", "missed"), 0)
    return {"received": received, "processed": processed, **others, **more}


BEFORE = (100, 90, counts(95, 90, dropped_before_detect=5))
AFTER = (1100, 1040, counts(1087, 1040, dropped_before_detect=35, failed=12, missed=8))


def test_latency_is_by_the_time_of_sending(figures: Any, tmp_path: Path) -> None:
    written(tmp_path, 90, back=True)
    log = figures.Log.read(tmp_path)
    found = log.summary(BEGIN, BEGIN + 90e9)
    assert (found["frames"], found["answered"]) == (2700, 2430)
    assert (found["p50_ms"], found["p99_ms"]) == (20, 20)
    assert found["memory_mb"] == 200
    assert found["cpu_load"] == pytest.approx(0.5)
    with (tmp_path / "sent.i64").open("ab") as file:  # a record that is being written
        file.write(b"12345")
    assert len(figures.Log.read(tmp_path).sent) == 2700
    rows = figures.minutes(log, BEGIN, BEGIN + 90e9)
    assert [row["frames"] for row in rows] == [1801, 899]  # of which the first of the second minute was early


@pytest.mark.parametrize(
    ("sent", "answered", "received", "place"),
    [(0, 0, 0, None), (1, 0, 0, "before"), (1, 0, 1, "inside"), (0, -1, 0, "behind")],
)
def test_every_frame_is_accounted_for(figures: Any, sent: int, answered: int, received: int, place: str | None) -> None:
    node = {**AFTER[2], "received": AFTER[2]["received"] + received}
    frames = figures.balance(BEFORE, (AFTER[0] + sent, AFTER[1] + answered, node))
    assert (frames["sent"], frames["answered"]) == (1000 + sent, 950 + answered)
    assert (frames["dropped_before_detect"], frames["failed"], frames["missed"]) == (30, 12, 8)
    assert frames["unexplained"] == (0 if place is None else 1)
    for name in ("before", "inside", "behind"):
        assert frames[f"lost_{name}"] == (name == place)


@pytest.mark.parametrize(
    ("slower", "grown", "missed"),
    [
        (0.0, 0.0, None),
        (3.0, 3.0, None),
        (0.0, 8.0, "memory flat"),
        (0.0, -8.0, "memory flat"),
        (8.0, 0.0, "p99"),
        (0.0, 410.0, "memory flat"),
    ],
)
def test_verdicts(figures: Any, tmp_path: Path, slower: float, grown: float, missed: str | None) -> None:
    written(tmp_path, 3600, slower, grown)
    log = figures.Log.read(tmp_path)
    frames = {"sent": 10, "unexplained": 0}
    goals = figures.steady_goals(log, BEGIN, BEGIN + 3600e9, frames)
    wrong = [goal.what for goal in goals if not goal.passed]
    assert [name.startswith(missed or "") for name in wrong[:1]] == ([True] if missed else [])
    assert (len(wrong) > 1) == (grown > 400)  # above 600 MB, too
    frames["unexplained"] = 1
    goals = figures.steady_goals(log, BEGIN, BEGIN + 3600e9, frames)
    assert not next(goal for goal in goals if "without a cause" in goal.what).passed


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--clip", str(tmp_path / "no.mp4"))
    assert done.returncode == 2
    assert "there is no video" in done.stderr
    (tmp_path / "soak.json").write_text("{}")
    done = run(tmp_path)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr


@pytest.mark.slow
def test_a_short_soak_with_faults(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the default detector: pip install ai-edge-litert")
    times = ["--minutes", "3.2", "--faults", "--fault-seconds", "4", "--idle-seconds", "10"]
    done = run(tmp_path, *times)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["finished"]
    goals = {goal["what"]: goal for goal in result["goals"]}
    assert done.returncode == (0 if all(goal["passed"] for goal in goals.values()) else 1)
    assert [line.split()[0] for line in done.stdout.splitlines()[-len(goals) :]] == [
        "PASS" if goal["passed"] else "FAIL" for goal in goals.values()
    ]
    for name in ("no frame lost without a cause", "memory while active", "activated again", "SIGINT ends the node"):
        assert goals[name]["passed"], goals[name]
    frames = result["frames"]
    assert frames["sent"] > 30 * 60 * 2
    assert frames["answered"] > 0.3 * frames["sent"]
    assert len(result["faults"]) >= 1
    assert [row["minute"] for row in result["rows"]] == [1, 2, 3, 4]
    assert "## Faults" in (tmp_path / "soak.md").read_text()
