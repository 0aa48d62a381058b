"""Writes ``soak.json``, ``soak.md`` and ``soak.png`` of a run.

python benchmarks/soak/paper.py OUT
"""

from __future__ import annotations

__all__ = ["goal_lines", "write"]

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "latency"))

from figures import ACCOUNTED, Goal
from tables import table

from hmr_prob_ros.arguments import write_json
from hmr_prob_ros.benchmark.measure import load_warning

_COLUMNS = ("frames", "answered", "p50_ms", "p99_ms", "memory_mb", "cpu_load")
_HEAD = ("frames", "answered", "p50, ms", "p99, ms", "memory, MB", "CPU load")


def goal_lines(goals: Sequence[Goal]) -> list[str]:
    """One line for each goal."""
    return [f"{'PASS' if goal.passed else 'FAIL'}  {goal.what} ({goal.limit}): {goal.found}" for goal in goals]


def _frames(frames: dict[str, Any]) -> list[str]:
    named = [(name.replace("_", " "), frames[name]) for name in ACCOUNTED if frames[name]]
    rows = [("sent", frames["sent"]), ("answered", frames["answered"]), *named, ("unexplained", frames["unexplained"])]
    lines = table(["frames", "number"], rows)
    if frames["unexplained"]:
        where = ", ".join(f"{frames[f'lost_{place}']} {place}" for place in ("before", "inside", "behind"))
        lines += ["", f"Unexplained ones, as seen from the node: {where}."]
    return lines


def _faults(rows: Sequence[dict[str, Any]], begin: int) -> list[str]:
    def cells(row: dict[str, Any]) -> list[Any]:
        told = "; ".join(f"{'' if c['passed'] else 'FAIL '}{c['expected']}: {c['found']}" for c in row["checks"])
        return [row["fault"], f"{(row['begin'] - begin) / 60e9:.1f}", told.replace("|", "/")]

    return table(["fault", "minute", "expected: found"], map(cells, rows))


def _plot(result: dict[str, Any], path: Path) -> bool:
    """Latency and memory over minutes, faults shaded; False without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    rows, begin = result["rows"], result["span_ns"][0]
    if not rows:
        return False
    middle = [row["minute"] - 0.5 for row in rows]
    figure, left = plt.subplots(figsize=(8, 4))
    for fault in result["faults"]:
        left.axvspan((fault["begin"] - begin) / 60e9, (fault["end"] - begin) / 60e9, color="tab:red", alpha=0.12, lw=0)
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99")):
        left.plot(middle, [row[name] for row in rows], marker=".", label=f"{label} of the latency")
    left.set_xlabel("minute" + (" (shaded: faults)" if result["faults"] else ""))
    left.set_ylabel("image in to hypotheses out, ms")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(middle, [row["memory_mb"] for row in rows], color="gray", linestyle="--", label="memory of the node")
    right.set_ylabel("resident memory, MB")
    right.set_ylim(0, 1.2 * max(row["memory_mb"] for row in rows))
    left.grid(alpha=0.3)
    figure.legend(loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def write(out: Path, result: dict[str, Any], plot: bool = True) -> None:
    """Write the files of a run from what it found; without the plot, which takes a second of a core, at no cost.

    Raises:
        CommandError: they cannot be written.
    """
    write_json(result, out / "soak.json")
    about, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Soak",
        "",
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb'] or '?'} GB; {about['system']}; "
        f"Python {about['python']}, {versions}.",
        "",
        f"{settings['minutes']:g} minutes of {Path(settings['clip']).name} at {settings['rate']:g} Hz"
        f"{', with faults' if settings['faults'] else ''}.",
    ]
    if warning := load_warning(about):
        lines += ["", f"WARNING: {warning}"]
    if not result["finished"]:
        lines += ["", "Not finished."]
    if result["goals"]:
        lines += ["", *(f"- {line}" for line in goal_lines([Goal(**goal) for goal in result["goals"]]))]
    spans = [("all", result["whole"])]
    if result["finished"]:
        spans = [("first part", result["first"]), ("last part", result["last"]), *spans]
    lines += ["", *table(["", *_HEAD], ([name, *(span[c] for c in _COLUMNS)] for name, span in spans))]
    if "frames" in result:
        lines += ["", *_frames(result["frames"])]
    if result["faults"]:
        lines += ["", "## Faults", "", *_faults(result["faults"], result["span_ns"][0])]
    lines += ["", "## Minutes", ""]
    lines += table(["minute", *_HEAD], ([row["minute"], *(row[c] for c in _COLUMNS)] for row in result["rows"]))
    if plot and _plot(result, out / "soak.png"):
        lines += ["", "![latency and memory by minute](soak.png)"]
    (out / "soak.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), json.loads((Path(sys.argv[1]) / "soak.json").read_text()))
