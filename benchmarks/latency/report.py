"""Writes ``latency.json``, ``latency.md`` and the plots of all sections that are there.

python benchmarks/latency/report.py OUT
"""

from __future__ import annotations

__all__ = ["write"]

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plots
from tables import table, text

from hmr_prob_ros.arguments import write_json
from hmr_prob_ros.benchmark.accuracy import NOT_MEASURED
from hmr_prob_ros.benchmark.measure import load_warning

_QUANTILES = ("p50", "p90", "p99")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _errors(known: dict[str, Any] | None) -> list[Any]:
    return [None if known is None else known[name] for name in ("best_of_25", "best_mode", "mode")]


_ERRORS = ["best of 25, mm", "best mode, mm", "mode, mm"]


def _accuracy_line(rows: Iterable[dict[str, Any]]) -> str:
    measured = [row["accuracy"] for row in rows if row.get("accuracy")]
    if not measured:
        return f"PA-MPJPE {NOT_MEASURED}."
    return f"Errors are PA-MPJPE on {measured[0]['examples']} examples of the set."


def _stages(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in result["rows"]:
        lines += [
            f"{row['detector']}, {row['engine']}: {row['frames_per_second']:g} frames/s, posterior "
            f"{row['posterior_share']:.1%} of the whole, CPU load {row['cpu_load']:g} cores, memory "
            f"{row['memory_mb']['resident']:.0f} MB (at most {row['memory_mb']['peak']:.0f}).",
            "",
            *table(["stage, ms", *_QUANTILES], ([k, *(v[q] for q in _QUANTILES)] for k, v in row["stages_ms"].items())),
            "",
        ]
    return lines + [f"{name}: left out, {why}" for name, why in result["missing"].items()]


def _growth(result: dict[str, Any]) -> list[str]:
    rows = result["rows"]
    names = ("people", "samples", "modes", "threads")
    head = ["engine", *names, *(f"{q}, ms" for q in _QUANTILES), "CPU load", "memory, MB", *_ERRORS]
    body = (
        [
            f"{row['engine']} {row['precision']}",
            *(row[name] for name in names),
            *(row["ms"][q] for q in _QUANTILES),
            row["cpu_load"],
            row["memory_mb"]["resident"],
            *_errors(row["accuracy"]),
        ]
        for row in rows
    )
    missing = [f"- {name} is left out: {why}" for name, why in result["missing"].items()]
    return [_accuracy_line(rows), "", *table(head, body), "", *missing]


def _peak(result: dict[str, Any]) -> list[str]:
    head = ["N", "threads", "GFLOP", "peak, GFLOP/s", "a layer of this size", "of the whole posterior", "in the layers"]
    return [
        "Operations of the flow's layers over time x the fastest float32 product measured in the same run.",
        "",
        *table(
            head,
            (
                [
                    row["samples"],
                    row["threads"],
                    1e-9 * row["flow_operations"],
                    row["peak_gflops"],
                    row["same_size_gflops"],
                    _percent(row["fraction"]),
                    _percent(row["fraction_in_layers"]),
                ]
                for row in result["rows"]
            ),
        ),
    ]


def _sampler(result: dict[str, Any]) -> list[str]:
    head = [
        "N",
        "threads",
        "plain sampler, ms",
        "our flow, ms",
        "faster",
        "most at the peak",
        "plain posterior, ms",
        "our graph, ms",
        "faster",
        "plain sampler / our whole graph",
        "pose differs",
        "plain sampler off float64",
        "ours off float64",
        "log-density differs",
        "equal within 1e-5",
        "joints of the posterior differ, m",
    ]
    body = (
        [
            row["samples"],
            row["threads"],
            row["ms"]["plain_flow"],
            row["ms"]["graph_flow"],
            row["faster_flow"],
            row["most"],
            row["ms"]["plain_posterior"],
            row["ms"]["graph_posterior"],
            row["faster_posterior"],
            row["plain_flow_over_whole_graph"],
            row["difference"]["pose"],
            row["difference"]["plain_rounding"],
            row["difference"]["graph_rounding"],
            row["difference"]["log_density"],
            row["equal"],
            row["difference"]["posterior_joints"],
        ]
        for row in result["rows"]
    )
    return [
        f"Width {result['width']}, {result['couplings']} couplings, weights: {result['weights']}. The plain posterior "
        "is eager torch without modes; our graph makes modes and moments besides. *Most at the peak*: the factor if "
        "our layers ran at the measured peak of float32 products and all else took no time.",
        "",
        *table(head, body),
    ]


def _modes(result: dict[str, Any]) -> list[str]:
    kinds = ("graph", "numpy", "sklearn_1", "sklearn_10")
    head = ["N", "n", "graph, ms", "numpy, ms", "scikit-learn, ms", "10 starts, ms", "inertia, graph", "scikit-learn"]
    body = (
        [
            row["samples"],
            row["modes"],
            *(row["ms"][kind] for kind in kinds),
            *(row["inertia"][kind] for kind in ("graph", "sklearn_1", "sklearn_10")),
            _percent(row["same_modes"]),
        ]
        for row in result["rows"]
    )
    lines = [
        "Inertia is relative to the best of 50 starts of scikit-learn.",
        "",
        *table([*head, "10 starts", "graph = numpy"], body),
        "",
    ]
    if isinstance(result["share"], str):
        return [*lines, f"Share of the modes in the posterior: {result['share']}."]
    share = (
        [row["samples"], row["whole_ms"], row["without_modes_ms"], _percent(row["share"])] for row in result["share"]
    )
    return [*lines, *table(["N", "whole graph, ms", "without modes, ms", "share of the modes"], share)]


def _latents(result: dict[str, Any]) -> list[str]:
    names = ("pa_mpjpe", "mpjpe", "posterior_mpjpe")

    def cell(row: dict[str, Any], name: str) -> str:
        value, error = row[name], row["standard_error"][name]
        return "–" if value is None else f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")

    head = ["latents", "N", "PA-MPJPE, mm", "MPJPE, mm", "MPJPE to bodies of the posterior, mm"]
    body = ([row["latents"], row["samples"], *(cell(row, name) for name in names)] for row in result["rows"])
    about = f"Best of N, {result['people']} people, {result['seeds']} seeds (± standard error over them)."
    return [about, *([] if result["set"] else [f"Against true bodies {NOT_MEASURED}."]), "", *table(head, body)]


def _variants(result: dict[str, Any]) -> list[str]:
    done = [row for row in result["rows"] if "skipped" not in row]
    counts = list(done[0]["ms"]) if done else []
    head = ["variant", *(f"N {n}, ms" for n in counts), "bodies differ, mm", "at most, mm", *_ERRORS]
    body = (
        [
            row["variant"],
            *row["ms"].values(),
            *(row["difference_mm"] or {"mean": None, "largest": None}).values(),
            *_errors(row["accuracy"]),
        ]
        for row in done
    )
    skipped = [f"- {row['variant']}: {row['skipped']}" for row in result["rows"] if "skipped" in row]
    return [_accuracy_line(done), "", *table(head, body), "", *skipped]


def _line(run: dict[str, Any]) -> list[Any]:
    return [
        *(run["latency_ms"][q] for q in _QUANTILES),
        run["rate_hz"],
        f"{run['dropped']} of {run['frames']}",
        run["cpu_load"],
        run["memory_mb"],
    ]


_RUN = [*(f"{q}, ms" for q in _QUANTILES), "rate, Hz", "dropped", "CPU load", "memory, MB"]


def _processes(result: dict[str, Any]) -> list[str]:
    runs, start = result["runs"], result["start_s"]
    return [
        f"Stamp of the image in the camera's process to reception of the hypotheses in another one, {result['clip']}.",
        "",
        *table(
            ["detector", "pipeline", "people", *_RUN],
            ([r["detector"], r["pipeline"], r["people"], *_line(r)] for r in runs),
        ),
        "",
        f"Start of the node to the first hypotheses: cold {start['cold']:.2f} s, warm {start['warm']:.2f} s.",
    ]


def _four(result: dict[str, Any]) -> list[str]:
    inside, run = result["in_process"], result["processes"]
    lines = [
        f"In this process {inside['frames_per_second']:g} frames/s with {inside['people']:g} people a frame; the "
        f"posterior takes {inside['posterior_share']:.1%}.",
        "",
    ]
    if "skipped" in run:
        return [*lines, f"Across processes: {run['skipped']}."]
    return [*lines, *table(["across processes, people", *_RUN], [[run["people"], *_line(run)]])]


def _sustained(result: dict[str, Any]) -> list[str]:
    growth = result["growth_per_minute"]
    names = ("minute", "p50", "p99", "memory_mb", "frames", "dropped")
    return [
        f"{result['minutes']:g} minutes at 30 Hz: {result['rate_hz']:g} answers a second, {result['dropped']} dropped. "
        f"Growth a minute: p50 {text(growth['p50'])} ms, p99 {text(growth['p99'])} ms, memory "
        f"{text(growth['memory_mb'])} MB.",
        "",
        *table(
            ["minute", "p50, ms", "p99, ms", "memory, MB", "frames", "dropped"],
            ([row[name] for name in names] for row in result["rows"]),
        ),
    ]


_TITLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "stages": ("The whole line in one process", _stages),
    "growth": ("The posterior over its settings", _growth),
    "peak": ("Share of the matrix-product peak", _peak),
    "sampler": ("Against the plain nflows sampler", _sampler),
    "modes": ("Against scikit-learn's k-means", _modes),
    "latents": ("Latents", _latents),
    "variants": ("Precision, optimisation, binding, width", _variants),
    "processes": ("Image message in to hypotheses message out", _processes),
    "four": ("Four people, rtmlib", _four),
    "sustained": ("The sustained run", _sustained),
}


def write(out: Path, about: dict[str, Any] | None = None, order: Iterable[str] = tuple(_TITLES)) -> None:
    """Write the files of a folder from its sections.

    Args:
        out: the folder of the bench.
        about: the machine; None keeps what ``latency.json`` says.
        order: of the sections.
    """
    if about is None:
        about = json.loads((out / "latency.json").read_text())["machine"]
    sections = {}
    for name in order:
        path = out / "sections" / f"{name}.json"
        if path.is_file():
            sections[name] = json.loads(path.read_text())
    write_json({"machine": about, "sections": sections}, out / "latency.json")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Latency",
        "",
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb'] or '?'} GB, governor "
        f"{about['governor'] or 'not readable'}; {about['system']}; Python {about['python']}, {versions}.",
    ]
    for name, section in sections.items():
        title, lines_of = _TITLES[name]
        lines += ["", f"## {title}", ""]
        if warning := load_warning({**about, "busy_cores": section["busy_cores"]}):
            lines += [f"WARNING: {warning}", ""]
        if "skipped" in section:
            lines.append(f"Not measured: {section['skipped']}")
            continue
        lines += lines_of(section["result"])
        lines += [f"\n![{name}]({picture})" for picture in plots.draw(name, section["result"], out)]
    (out / "latency.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
