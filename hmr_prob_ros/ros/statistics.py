"""What the estimator node costs and loses: rates, latencies, stages and drops of the last seconds."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["CAUSES", "STATUS_NAME", "Gaps", "Ledger", "Second", "Statistics"]

STATUS_NAME = "hmr_prob_ros: estimator"
"""Name of the status in ``/diagnostics`` of the node with the default name."""

CAUSES = ("before_detect", "before_infer", "period", "late", "stale", "inactive")
"""Why a frame was dropped: a newer one took its place before detection or before inference, it came sooner than
``max_rate`` allows, its stamp lies before that of an earlier one, it was too old, or nothing was there to work on it.
"""


@dataclass
class Second:
    """What happened since the report before."""

    seconds: float
    new: dict[str, int]
    """Frames: ``received`` = ``processed`` + ``dropped`` + ``repeated`` + ``failed`` + those that are being worked on;
    ``dropped_CAUSE`` for each of :data:`CAUSES`; ``missed``: sent, but lost before the node had them; ``problems``:
    complaints about frames that were published."""
    total: dict[str, int]
    """The same since the start."""
    people: int
    error: str
    """Why the last frame failed, or the last problem."""
    silent: float
    """Seconds since the last frame came."""
    latency_ms: np.ndarray
    """(F,) of the latest frames, from the image's stamp to the published hypotheses."""
    stages_ms: dict[str, float] = field(default_factory=dict)
    """Medians of the latest frames."""


class Statistics:
    """Counts frames and keeps the times of the latest ones; used from the threads of both stages and the executor.

    Args:
        window: number of frames that the percentiles look back on.
    """

    def __init__(self, window: int = 300) -> None:
        self._lock = threading.Lock()
        self._latency: deque[float] = deque(maxlen=window)
        self._stages: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))
        names = ("received", "processed", "dropped", *(f"dropped_{c}" for c in CAUSES))
        self._counts = dict.fromkeys((*names, "missed", "repeated", "failed", "problems"), 0)
        self._reported = dict(self._counts)
        self._reported_at = self._received_at = time.monotonic()
        self._people = 0
        self._error = ""

    def receive(self) -> None:
        """A frame came."""
        with self._lock:
            self._counts["received"] += 1
            self._received_at = time.monotonic()

    def miss(self, count: int) -> None:
        """So many frames were sent and did not come."""
        with self._lock:
            self._counts["missed"] += count

    def repeat(self) -> None:
        """It had come before: the compressed twin of a raw frame, or the other way round."""
        with self._lock:
            self._counts["repeated"] += 1

    def drop(self, cause: str, count: int = 1) -> None:
        """Frames were dropped for one of :data:`CAUSES`."""
        with self._lock:
            self._counts["dropped"] += count
            self._counts[f"dropped_{cause}"] += count

    def fail(self, text: str) -> None:
        """One frame could not be used."""
        with self._lock:
            self._counts["failed"] += 1
            self._error = text

    def problem(self, text: str) -> None:
        """Something in a frame went wrong that was published all the same."""
        with self._lock:
            self._counts["problems"] += 1
            self._error = text

    def frame(self, latency_ms: float, stages_ms: Mapping[str, float], people: int) -> None:
        """One frame was published, ``latency_ms`` after its stamp."""
        with self._lock:
            self._counts["processed"] += 1
            self._people = people
            self._latency.append(latency_ms)
            for name, value in stages_ms.items():
                self._stages[name].append(value)

    def forget_times(self) -> None:
        """The clock has jumped: earlier latencies say nothing about later ones."""
        with self._lock:
            self._latency.clear()

    def forget(self) -> None:
        """The node begins anew: nothing of before counts as of the last second; the sums of frames go on."""
        with self._lock:
            self._latency.clear()
            self._stages.clear()
            self._reported = dict(self._counts)
            self._reported_at = self._received_at = time.monotonic()
            self._people, self._error = 0, ""

    def second(self) -> Second:
        """What happened since the call before."""
        with self._lock:
            now = time.monotonic()
            second = Second(
                seconds=max(now - self._reported_at, 1e-3),
                new={k: self._counts[k] - self._reported[k] for k in self._counts},
                total=dict(self._counts),
                people=self._people,
                error=self._error,
                silent=now - self._received_at,
                latency_ms=np.array(self._latency),
            )
            stages = {name: np.array(values) for name, values in self._stages.items()}
            self._reported, self._reported_at = dict(self._counts), now
        second.stages_ms = {name: float(np.median(values)) for name, values in stages.items()}
        return second


class Ledger:
    """What became of the frames of one worker; once it is closed, whatever still happens to them is not entered."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._lock = threading.Lock()
        self._open = 0
        self._closed = False

    def receive(self) -> None:
        """A frame came."""
        with self._lock:
            if not self._closed:
                self._open += 1
                self._statistics.receive()

    def settle(self, enter: Callable[..., None], *values: Any) -> None:
        """That became of one of them: ``enter(*values)`` is a method of the statistics."""
        with self._lock:
            if not self._closed:
                self._open -= 1
                enter(*values)

    def close(self) -> int:
        """The number of frames of which nothing became so far; 0 where it was closed before."""
        with self._lock:
            left, self._open, self._closed = self._open, 0, True
            return left


class Gaps:
    """Tells how many messages of each publisher were lost, by the numbers that it gives them.

    Best effort loses what does not fit the transport, and what comes while the executor is busy is replaced.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}

    def before(self, info: Mapping[str, Any]) -> int:
        """Messages lost between this one, by rclpy's message info, and the one before of its publisher."""
        number, publisher = info.get("publication_sequence_number"), info.get("publisher_gid")
        if number is None or publisher is None:  # older than Jazzy, or a middleware that does not count
            return 0
        key = bytes(publisher["data"])
        last = self._last.get(key)
        if last is None and len(self._last) >= 64:
            self._last.clear()
        self._last[key] = number
        return 0 if last is None else max(0, number - last - 1)
