"""The machine, and what a piece of work costs on it: time, CPU load, memory."""

from __future__ import annotations

__all__ = ["Meter", "cores", "load_warning", "machine", "memory_mb", "percentiles", "timed"]

import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

BUSY = 0.3
"""Cores that other programs may keep busy before times are not worth much."""

_PACKAGES = (
    "hmr_prob_ros",
    "numpy",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-contrib-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-cu12",
    "mediapipe",
    "ai-edge-litert",
    "rtmlib",
    "ros-rclpy",
)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(packages: Sequence[str] = _PACKAGES) -> dict[str, Any]:
    """What the figures are measured on: CPU, cores, memory, governor, cores busy in this half second, and versions."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    total = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(int(total[1]) / 2**20, 1) if total else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "busy_cores": _busy_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpu() -> str:
    text = _read("/proc/cpuinfo")
    for key in ("model name", "Model"):  # "Model" is the board, on ARM
        if found := re.search(rf"^{key}\s*: *(.+)$", text, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def _busy_cores(seconds: float = 0.5) -> float | None:
    """Cores that other programs keep busy; None where the kernel does not tell.

    Not the load average: it still holds what this program did a minute ago.
    """
    before, own = _read("/proc/stat").split("\n", 1)[0].split(), time.process_time()
    start = time.perf_counter()
    time.sleep(seconds)
    after = _read("/proc/stat").split("\n", 1)[0].split()
    if len(after) < 6 or len(before) < 6:
        return None
    passed = [int(b) - int(a) for a, b in zip(before[1:9], after[1:9], strict=True)]
    busy = sum(passed) - passed[3] - passed[4]  # all but idle and waiting for a disk
    ticks = os.sysconf("SC_CLK_TCK") * (time.perf_counter() - start)
    return round(max(busy / ticks - (time.process_time() - own) / seconds, 0.0), 2)


def load_warning(about: dict[str, Any]) -> str:
    """One line where the machine of :func:`machine` had other work at the start, else ""."""
    busy = about["busy_cores"]
    if busy is None or busy <= BUSY:
        return ""
    return (
        f"the machine is busy ({busy:g} of {about['cores']} cores with other programs): these times are too long, "
        "measure again when it is idle"
    )


def percentiles(milliseconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """p50, p90, p99 and mean, rounded to microseconds."""
    values = np.asarray(milliseconds, dtype=np.float64)
    quantiles = {f"p{q}": round(float(np.quantile(values, q / 100)), 3) for q in (50, 90, 99)}
    return {**quantiles, "mean": round(float(values.mean()), 3)}


def timed(
    call: Callable[[], Any], rounds: int, seconds: float = float("inf"), warm_up: int = 3, least: int = 3
) -> list[float]:
    """Milliseconds of ``rounds`` calls after ``warm_up`` ones; fewer, but ``least``, in over ``seconds``."""
    for _ in range(warm_up):
        call()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < rounds and (len(took) < least or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - start))
    return took


def memory_mb() -> dict[str, float]:
    """Memory of this process in MB: what is resident now, and the most it ever was."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pages = _read("/proc/self/statm").split()
    now = int(pages[1]) * resource.getpagesize() if len(pages) > 1 else peak
    return {"resident": round(now / 1e6, 1), "peak": round(max(peak, now) / 1e6, 1)}


class Meter:
    """CPU seconds and memory of this process, all its threads, while the block ran.

    Attributes:
        load: cores that were busy on average; 2.0 are two whole cores.
        wall: seconds.

    >>> with Meter() as meter:
    ...     total = sum(range(10))
    >>> meter.load >= 0
    True
    """

    load = 0.0
    wall = 0.0

    def __enter__(self) -> Meter:
        self._cpu, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall = time.perf_counter() - self._start
        self.load = (time.process_time() - self._cpu) / max(self.wall, 1e-9)

    def summary(self) -> dict[str, Any]:
        """``cpu_load`` and ``memory_mb``, see :func:`memory_mb`."""
        return {"cpu_load": round(self.load, 2), "memory_mb": memory_mb()}
