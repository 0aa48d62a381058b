"""Plots of the sections that have something to see."""

from __future__ import annotations

__all__ = ["draw"]

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


def _plain_ticks(axis: Any, ticks: Iterable[float] | None = None) -> None:
    """10 and not 10^1 along a logarithmic axis."""
    if ticks is not None:
        axis.set_ticks(sorted(set(ticks)))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _save(out: Path, name: str) -> str:
    plt.tight_layout()
    plt.savefig(out / name, dpi=120)
    plt.close()
    return name


def _growth(result: dict[str, Any], out: Path) -> list[str]:
    rows = result["rows"]
    first = rows[0]
    rows = [row for row in rows if all(row[k] == first[k] for k in ("modes", "threads", "engine", "precision"))]
    names = []
    for along, other, label in (("people", "samples", "people"), ("samples", "people", "samples N")):
        plt.figure(figsize=(6, 4))
        for value in sorted({row[other] for row in rows}):
            line = sorted((row[along], row["ms"]["p50"], row["ms"]["p99"]) for row in rows if row[other] == value)
            x, middle, slow = zip(*line, strict=True)
            (curve,) = plt.plot(x, middle, marker="o", label=f"{value} {other}")
            plt.plot(x, slow, linestyle=":", color=curve.get_color())
        plt.xlabel(label)
        plt.ylabel("posterior, ms (p50; dotted: p99)")
        plt.yscale("log")
        _plain_ticks(plt.gca().yaxis)
        if along == "samples":
            plt.xscale("log")
        _plain_ticks(plt.gca().xaxis, (row[along] for row in rows))
        plt.grid(alpha=0.3, which="both")
        plt.legend()
        names.append(_save(out, f"cost_over_{along}.png"))
    return names


def _sustained(result: dict[str, Any], out: Path) -> list[str]:
    rows = result["rows"]
    if not rows:
        return []
    minutes = [row["minute"] for row in rows]
    figure, left = plt.subplots(figsize=(7, 4))
    for name in ("p50", "p99"):
        left.plot(minutes, [row[name] for row in rows], marker="o", label=f"{name} of the latency")
    left.set_xlabel("minute")
    left.set_ylabel("image in to hypotheses out, ms")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(
        minutes,
        [row["memory_mb"] for row in rows],
        color="gray",
        marker=".",
        linestyle="--",
        label="memory of the node",
    )
    right.set_ylabel("resident memory, MB")
    right.set_ylim(0, 1.3 * max(row["memory_mb"] for row in rows))
    left.grid(alpha=0.3)
    figure.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(out / "sustained.png", dpi=120)
    plt.close(figure)
    return ["sustained.png"]


def _sampler(result: dict[str, Any], out: Path) -> list[str]:
    plt.figure(figsize=(6, 4))
    threads = max(row["threads"] for row in result["rows"])
    rows = sorted((row["samples"], row["ms"]) for row in result["rows"] if row["threads"] == threads)
    for name, label in (
        ("plain_posterior", "plain nflows sampler and eager bodies"),
        ("plain_flow", "plain nflows sampler alone"),
        ("graph_posterior", "our whole graph"),
        ("graph_flow", "our flow alone"),
    ):
        plt.plot([n for n, _ in rows], [ms[name] for _, ms in rows], marker="o", label=label)
    plt.xscale("log")
    plt.yscale("log")
    _plain_ticks(plt.gca().xaxis, (n for n, _ in rows))
    _plain_ticks(plt.gca().yaxis)
    plt.xlabel("samples N")
    plt.ylabel(f"ms, {threads} thread{'s' * (threads > 1)}")
    plt.grid(alpha=0.3, which="both")
    plt.legend()
    return [_save(out, "plain_sampler.png")]


def _latents(result: dict[str, Any], out: Path) -> list[str]:
    name = "pa_mpjpe" if result["set"] else "posterior_mpjpe"
    plt.figure(figsize=(6, 4))
    for kind in dict.fromkeys(row["latents"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["latents"] == kind]
        errors = [row["standard_error"][name] or 0.0 for row in rows]
        plt.errorbar([r["samples"] for r in rows], [r[name] for r in rows], errors, marker="o", capsize=3, label=kind)
    plt.xscale("log")
    _plain_ticks(plt.gca().xaxis, (row["samples"] for row in result["rows"]))
    plt.xlabel("samples N")
    plt.ylabel(
        "best of N, " + ("PA-MPJPE to the truth, mm" if result["set"] else "MPJPE to bodies of the posterior, mm")
    )
    plt.grid(alpha=0.3, which="both")
    plt.legend()
    return [_save(out, "latents.png")]


_DRAWN = {"growth": _growth, "sustained": _sustained, "sampler": _sampler, "latents": _latents}


def draw(name: str, result: dict[str, Any], out: Path) -> list[str]:
    """Draw what a section has to show into a folder; the names of the pictures."""
    return _DRAWN[name](result, out) if name in _DRAWN else []
