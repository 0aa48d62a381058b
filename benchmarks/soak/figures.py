"""What the files of a soak say: latency, memory and load by minute, and what became of every frame."""

from __future__ import annotations

__all__ = ["ACCOUNTED", "Goal", "Log", "balance", "edge_seconds", "minutes", "steady_goals"]

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hmr_prob_ros.ros.statistics import CAUSES

ACCOUNTED = (*(f"dropped_{cause}" for cause in CAUSES), "failed", "repeated", "missed")
"""What diagnostics tell of frames that were not answered; ``missed`` are those that were lost on the way."""

MEMORY_GROWTH = 0.02
P99_GROWTH = 0.20
MEMORY_MB = 600.0
IDLE_LOAD = 0.02


class Goal(NamedTuple):
    """One thing that the soak must show."""

    what: str
    limit: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Log:
    """What was written so far; times in ns.

    Attributes:
        sent: (F, 2) int64, stamp and time of sending of each frame.
        answers: (A, 3) int64, stamp, time of reception and bytes of the hypotheses.
        people: (P, 3) time of reception, people, and metres to the nearest, of some answers.
        usage: (S, 3) time, CPU seconds so far and resident bytes of the node.
    """

    sent: np.ndarray
    answers: np.ndarray
    people: np.ndarray
    usage: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Log:
        """Of a folder of a run; a record that is being written is left out."""

        def read(name: str, kind: type, columns: int) -> np.ndarray:
            path = folder / name
            data = path.read_bytes() if path.is_file() else b""
            return np.frombuffer(data[: len(data) - len(data) % (8 * columns)], kind).reshape(-1, columns)

        return cls(
            read("sent.i64", np.int64, 2),
            read("answers.i64", np.int64, 3),
            read("people.f64", np.float64, 3),
            read("usage.f64", np.float64, 3),
        )

    @cached_property
    def latencies(self) -> np.ndarray:
        """(F,) milliseconds from the sending of each frame to its answer; NaN for those without one.

        By the time of sending and not by the stamp, which may lie back.
        """
        order = np.argsort(self.answers[:, 0], kind="stable")
        stamps = self.answers[order, 0]
        place = np.searchsorted(stamps, self.sent[:, 0])
        found = np.full(len(self.sent), np.nan)
        known = place < len(stamps)
        known[known] = stamps[place[known]] == self.sent[known, 0]
        found[known] = 1e-6 * (self.answers[order[place[known]], 1] - self.sent[known, 1])
        return found

    def latency(self, begin: float, end: float) -> np.ndarray:
        """:attr:`latencies` of the frames sent from ``begin`` to ``end``."""
        return self.latencies[(self.sent[:, 1] >= begin) & (self.sent[:, 1] < end)]

    def memory(self, begin: float, end: float) -> float:
        """Mean resident MB."""
        part = self.usage[(self.usage[:, 0] >= begin) & (self.usage[:, 0] < end), 2]
        return float(part.mean()) / 1e6 if len(part) else float("nan")

    def load(self, begin: float, end: float) -> float:
        """Cores that the node kept busy."""
        part = self.usage[(self.usage[:, 0] >= begin) & (self.usage[:, 0] < end)]
        if len(part) < 2:
            return float("nan")
        return float((part[-1, 1] - part[0, 1]) / (1e-9 * (part[-1, 0] - part[0, 0])))

    def summary(self, begin: float, end: float) -> dict[str, Any]:
        """Of a span: frames sent, those that were answered, latency, memory and load."""
        latency = self.latency(begin, end)
        heard = latency[~np.isnan(latency)]
        p50, p99 = np.percentile(heard, (50, 99)) if len(heard) else (np.nan, np.nan)
        return {
            "frames": len(latency),
            "answered": len(heard),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "memory_mb": round(self.memory(begin, end), 2),
            "cpu_load": round(self.load(begin, end), 3),
        }


def edge_seconds(seconds: float) -> float:
    """How much of a run's beginning and end is compared: ten minutes, of a short run a third."""
    return min(600.0, seconds / 3)


def minutes(log: Log, begin: float, end: float) -> list[dict[str, Any]]:
    """:meth:`Log.summary` of every minute; what is left at the end is one of its own from ten seconds on."""
    rows = []
    while end - begin >= 10e9:
        rows.append({"minute": len(rows) + 1, **log.summary(begin, min(begin + 60e9, end))})
        begin += 60e9
    return rows


def balance(before: tuple[int, int, dict[str, int]], after: tuple[int, int, dict[str, int]]) -> dict[str, Any]:
    """What became of the frames between two moments at which nothing was under way.

    Each moment: frames sent, answers heard, and the counts of the node's diagnostics.
    """
    sent, answered = after[0] - before[0], after[1] - before[1]
    new = {name: after[2][name] - before[2][name] for name in after[2]}
    accounted = {name: new[name] for name in ACCOUNTED}
    return {
        "sent": sent,
        "answered": answered,
        **accounted,
        "unexplained": sent - answered - sum(accounted.values()),
        # Where, if any are: before the node, in it, behind it.
        "lost_before": sent - new["received"] - new["missed"],
        "lost_inside": new["received"] - new["processed"] - sum(accounted.values()) + new["missed"],
        "lost_behind": new["processed"] - answered,
    }


def steady_goals(log: Log, begin: float, end: float, frames: dict[str, Any]) -> list[Goal]:
    """What the hour must show, from the files and the balance of its frames."""
    edge = 1e9 * edge_seconds(1e-9 * (end - begin))
    width = min(edge, 60e9)
    early, late = log.memory(begin + edge - width, begin + edge), log.memory(end - width, end)
    first, last = log.summary(begin, begin + edge), log.summary(end - edge, end)
    most = 1e-6 * float(log.usage[:, 2].max(initial=0))
    name = f"{edge / 60e9:.3g} minutes"
    grown, slower = late / early - 1, last["p99_ms"] / first["p99_ms"] - 1
    return [
        Goal(
            f"memory flat from the end of the first {name} to the end",
            f"within {MEMORY_GROWTH:.0%}",
            f"{early:.1f} to {late:.1f} MB ({grown:+.2%})",
            bool(abs(grown) <= MEMORY_GROWTH),
        ),
        Goal(
            f"p99 of the last {name} near that of the first",
            f"at most {P99_GROWTH:.0%} above",
            f"{first['p99_ms']:.1f} to {last['p99_ms']:.1f} ms ({slower:+.1%})",
            bool(slower <= P99_GROWTH),
        ),
        Goal(
            "no frame lost without a cause",
            "0",
            f"{frames['unexplained']} of {frames['sent']} sent",
            frames["unexplained"] == 0,
        ),
        Goal("memory while active", f"below {MEMORY_MB:.0f} MB", f"at most {most:.1f} MB", 0 < most < MEMORY_MB),
    ]
