"""Camera player, estimator node and listener as processes on ROS 2, and what the node costs while they run."""

from __future__ import annotations

__all__ = ["Run", "drop_from_cache", "run_processes", "usage_of"]

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import RATE, Skipped
from tqdm import tqdm

from hmr_prob_ros.benchmark.measure import percentiles

SETTLE = 2.0
"""Seconds after the first answer that count as start."""

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass
class Run:
    """What one run of the processes gave; times in ns since the epoch."""

    started: int
    published: np.ndarray
    answers: np.ndarray
    """(A, 3): stamp, reception, bytes."""
    people: list[int]
    status: dict[str, str]
    usage: np.ndarray
    """(S, 3): time, CPU seconds so far, resident bytes of the node."""
    files: list[str] = field(default_factory=list)
    """Files that the node had mapped."""

    @property
    def start_seconds(self) -> float:
        """From the start of the node's process to its first answer in the other process."""
        return float((self.answers[0, 1] - self.started) * 1e-9)

    def _steady(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answers, published stamps and usage once the node has settled; frames still under way at the end left out."""
        begin = self.answers[0, 1] + SETTLE * 1e9
        answers = self.answers[self.answers[:, 0] >= begin]
        end = answers[-1, 0] if len(answers) else begin
        published = self.published[(self.published >= begin) & (self.published <= end)]
        return answers, published, self.usage[self.usage[:, 0] >= begin]

    def summary(self) -> dict[str, Any]:
        """Latency, rate, drops, CPU load and memory of the settled node.

        Raises:
            Skipped: it was not settled before the run ended.
        """
        answers, published, usage = self._steady()
        if len(answers) < 2 or len(usage) < 2:
            raise Skipped("the run was too short: no answers came after the node had settled")
        latency = 1e-6 * (answers[:, 1] - answers[:, 0])
        missing = len(np.setdiff1d(published, answers[:, 0]))
        status = self.status
        return {
            "latency_ms": percentiles(latency),
            "frames": len(published),
            "dropped": missing,
            "rate_hz": round((len(answers) - 1) / (1e-9 * (answers[-1, 0] - answers[0, 0])), 2),
            "people": round(float(np.mean(self.people)), 2) if self.people else 0.0,
            "cpu_load": round(float((usage[-1, 1] - usage[0, 1]) / (1e-9 * (usage[-1, 0] - usage[0, 0]))), 3),
            "memory_mb": round(float(usage[-1, 2]) / 1e6, 1),
            "start_s": round(self.start_seconds, 3),
            "message_bytes": int(answers[:, 2].max()),
            "stages_ms": {
                name[len("stage_") : -len("_ms")]: float(value)
                for name, value in status.items()
                if name.startswith("stage_")
            },
            "engine": status.get("engine", ""),
            "detector": status.get("detector", ""),
        }

    def minutes(self) -> dict[str, Any]:
        """Minute by minute: latency, memory, drops; and what they grow by a minute."""
        answers, published, usage = self._steady()
        begin = answers[0, 0]
        rows = []
        for minute in range(int((answers[-1, 0] - begin) / 60e9) + 1):
            low, high = begin + minute * 60e9, begin + (minute + 1) * 60e9
            part = answers[(answers[:, 0] >= low) & (answers[:, 0] < high)]
            sent = published[(published >= low) & (published < high)]
            memory = usage[(usage[:, 0] >= low) & (usage[:, 0] < high)]
            if len(part) < 2 or not len(memory):
                continue
            latency = percentiles(1e-6 * (part[:, 1] - part[:, 0]))
            rows.append(
                {
                    "minute": minute + 1,
                    **{k: latency[k] for k in ("p50", "p99")},
                    "memory_mb": round(float(memory[:, 2].mean()) / 1e6, 2),
                    "frames": len(sent),
                    "dropped": len(np.setdiff1d(sent, part[:, 0])),
                }
            )
        whole = [row for row in rows if row["frames"] > 0.9 * 60 * RATE]

        def slope(name: str) -> float | None:
            if len(whole) < 2:
                return None
            return round(float(np.polyfit([r["minute"] for r in whole], [r[name] for r in whole], 1)[0]), 4)

        return {
            "rows": rows,
            "growth_per_minute": {name: slope(name) for name in ("p50", "p99", "memory_mb")},
            "dropped": sum(row["dropped"] for row in rows),
        }


def usage_of(pid: int) -> tuple[int, float, float] | None:
    """Time in ns since the epoch, CPU seconds so far and resident bytes of a process; None once it has ended."""
    try:
        # The name may hold spaces; what follows it does not.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None
    return time.time_ns(), (int(stat[11]) + int(stat[12])) / _TICKS, float(resident)


def drop_from_cache(files: Sequence[str]) -> None:
    """Ask the system to forget the contents of files, as they would be after a boot; what others use stays."""
    for name in files:
        try:
            handle = os.open(name, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        except (OSError, AttributeError):
            return
        finally:
            os.close(handle)


def _mapped(pid: int) -> list[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split(maxsplit=5)[5] for line in lines if line.count("/") and len(line.split(maxsplit=5)) > 5})


def run_processes(
    clip: Path, parameters: Mapping[str, Any], seconds: float, environment: Mapping[str, str] | None = None
) -> Run:
    """Play a clip without end at 30 Hz, start the node, listen until ``seconds`` after its first answer.

    The camera is there before the node. ``environment``: variables that the node gets besides.

    Raises:
        Skipped: ROS 2 is not installed.
        ProcessError: a process failed; the text holds the end of its log.
    """
    try:
        import rclpy  # noqa: F401

        from hmr_prob_ros.msg import HumanHypothesesArray  # noqa: F401
    except ImportError as error:
        raise Skipped(f"ROS 2 is not installed here ({error})") from error
    from hmr_prob_ros.ros.fastdds import remove_broken_segments
    from hmr_prob_ros.ros.processes import ChildProcess, ProcessError, child_processes, private_environment

    shared = private_environment()
    remove_broken_segments()
    node_arguments = ["--ros-args", *(part for k, v in parameters.items() for part in ("-p", f"{k}:={v}"))]
    player = [str(clip), "--loop", f"--rate={RATE}", "--wait=0", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="hmr_prob_latency_") as folder, child_processes() as children:
        logs = Path(folder)
        shared["ROS_LOG_DIR"] = folder
        heard = logs / "heard.json"
        with open(logs / "listener.log", "wb") as log:
            command = [sys.executable, str(Path(__file__).with_name("listener.py")), f"--out={heard}"]
            listener = subprocess.Popen(command, env=shared, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            children.append(ChildProcess("camera_player", player, shared, logs / "player.log", show=False))
            time.sleep(3)  # decoding, discovery: the camera is on when the node comes
            started = time.time_ns()
            node = ChildProcess(
                "estimator_node", node_arguments, {**shared, **(environment or {})}, logs / "node.log", show=False
            )
            children.append(node)
            ready = _wait_for_answer(node, children, listener, logs)
            usage, files = [], _mapped(node.process.pid)
            with tqdm(total=round(seconds), desc="listening", unit="s", leave=False) as bar:
                while time.time() < ready + seconds:
                    _check(children, listener, logs)
                    usage.append(usage_of(node.process.pid))
                    time.sleep(min(1.0, max(seconds / 10, 0.05)))
                    bar.n = min(round(time.time() - ready), bar.total)
                    bar.refresh()
            listener.terminate()
            if listener.wait(60):
                raise ProcessError((logs / "listener.log").read_text(errors="replace")[-2000:])
            found = json.loads(heard.read_text())
        finally:
            if listener.poll() is None:
                listener.kill()
                listener.wait()
    answers = np.array(found["answers"], dtype=np.int64).reshape(-1, 3)
    answers = answers[answers[:, 1] > started]
    if not len(answers):
        raise Skipped("the node gave no answer: see its log with `hmr-prob demo`")
    known = np.array([row for row in usage if row is not None], dtype=np.float64).reshape(-1, 3)
    published = np.array(found["published"], dtype=np.int64)
    return Run(started, published, answers, found["people"], found["status"], known, files)


def _check(children: Sequence[Any], listener: subprocess.Popen[bytes], logs: Path) -> None:
    from hmr_prob_ros.ros.processes import ProcessError

    for child in children:
        if not child.running():
            raise child.fail(child.process.returncode)
    if listener.poll() is not None:
        raise ProcessError(f"the listener ended:\n{(logs / 'listener.log').read_text(errors='replace')[-2000:]}")


def _wait_for_answer(
    node: Any, children: Sequence[Any], listener: subprocess.Popen[bytes], logs: Path, seconds: float = 180
) -> float:
    """Time at which the node said that it was ready; its first answer comes within the next frames."""
    end, said = time.time() + seconds, False
    check: Callable[[], None] = lambda: _check(children, listener, logs)  # noqa: E731
    while not said and time.time() < end:
        check()
        said = b"ready:" in node.log.read_bytes()
        time.sleep(0.05)
    if not said:
        raise Skipped(f"the node was not ready within {seconds:g} s")
    return time.time()
