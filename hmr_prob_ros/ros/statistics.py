"""What the estimator node costs: rates, latencies and stages of the last seconds, as ``diagnostic_msgs``."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

__all__ = ["STATUS_NAME", "Statistics"]

STATUS_NAME = "hmr_prob_ros: estimator"
"""Name of the status in ``/diagnostics``."""


class Statistics:
    """Counts frames and keeps the times of the latest ones; used from the threads of both stages and the executor.

    Args:
        window: number of frames that the percentiles look back on.
    """

    def __init__(self, window: int = 150) -> None:
        self._lock = threading.Lock()
        self._latency: deque[float] = deque(maxlen=window)
        self._stages: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))
        self._counts = dict.fromkeys(
            ("received", "processed", "dropped", "dropped_before_detect", "dropped_before_infer", "failed"), 0
        )
        self._reported = dict(self._counts)
        self._people = 0
        self._error = ""

    def count(self, what: str) -> None:
        """Add one to ``received`` or ``dropped`` (came late)."""
        with self._lock:
            self._counts[what] += 1

    def drop(self, stage: str) -> None:
        """A newer frame took the place of one that waited for ``detect`` or ``infer``."""
        with self._lock:
            self._counts["dropped"] += 1
            self._counts[f"dropped_before_{stage}"] += 1

    def fail(self, text: str) -> None:
        """One frame could not be used."""
        with self._lock:
            self._counts["failed"] += 1
            self._error = text

    def frame(self, latency_ms: float, stages_ms: Mapping[str, float], people: int) -> None:
        """One frame was published, ``latency_ms`` after its stamp."""
        with self._lock:
            self._counts["processed"] += 1
            self._people = people
            self._latency.append(latency_ms)
            for name, value in stages_ms.items():
                self._stages[name].append(value)

    def message(self, header: Header, seconds: float, about: Mapping[str, str]) -> DiagnosticArray:
        """The state of the last ``seconds`` since the message before; ``about`` adds fixed texts."""
        with self._lock:
            new = {k: self._counts[k] - self._reported[k] for k in self._counts}
            self._reported = dict(self._counts)
            total, people, error = dict(self._counts), self._people, self._error
            latency = np.array(self._latency) if self._latency else None
            stages = {name: float(np.median(values)) for name, values in self._stages.items()}
        if new["failed"]:
            level, text = DiagnosticStatus.ERROR, error
        elif new["received"] == 0:
            level, text = DiagnosticStatus.WARN, "no image in the last second: check the topic and the camera"
        elif new["processed"] == 0:
            level, text = DiagnosticStatus.WARN, "images come in but none was finished in the last second"
        else:
            level, text = DiagnosticStatus.OK, f"{people} people"
        values = {
            **about,
            "rate_in_hz": f"{new['received'] / seconds:.1f}",
            "rate_out_hz": f"{new['processed'] / seconds:.1f}",
            **{f"frames_{k}": str(v) for k, v in total.items()},
        }
        if latency is not None:
            p50, p99 = np.percentile(latency, (50, 99))
            values["latency_p50_ms"], values["latency_p99_ms"] = f"{p50:.2f}", f"{p99:.2f}"
        values.update({f"stage_{name}_ms": f"{value:.3f}" for name, value in stages.items()})
        status = DiagnosticStatus(
            level=level,
            name=STATUS_NAME,
            message=text,
            hardware_id=about.get("frame_id", ""),
            values=[KeyValue(key=k, value=v) for k, v in values.items()],
        )
        return DiagnosticArray(header=header, status=[status])
