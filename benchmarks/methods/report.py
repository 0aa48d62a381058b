"""The table of the bench, from the ``result.json`` of its jobs: markdown, csv and plots of error over n.

python benchmarks/methods/report.py runs/methods
"""

from __future__ import annotations

__all__ = ["read", "write"]

import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COUNTS = (1, 5, 10, 25, 100)
TESTS = ("clean", "ambiguous")
METRICS = {"mpjpe": "MPJPE", "pa_mpjpe": "PA-MPJPE"}
Result = dict[str, Any]


def read(out: Path) -> dict[str, list[Result]]:
    """Results of all finished jobs by row, in the order of the table."""
    from rows import ROWS

    found: dict[str, list[Result]] = {}
    for row in ROWS:
        files = sorted((out / "jobs").glob(f"{row.name}-[0-9]*/result.json"))
        if files:
            found[row.name] = [json.loads(file.read_text()) for file in files]
    return found


def _at(result: Result, *path: str) -> float:
    value: Any = result
    for key in path:
        value = value.get(key, math.nan) if isinstance(value, dict) else math.nan
    return math.nan if value is None or isinstance(value, dict) else float(value)


def figure(results: Sequence[Result], *path: str, digits: int = 1) -> str:
    """Mean and deviation over seeds, empty where a method has no such figure."""
    values = [v for v in (_at(result, *path) for result in results) if math.isfinite(v)]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)] + [""]


Column = tuple[str, Callable[[Sequence[Result]], str]]


def _errors(kind: str, test: str, metric: str) -> list[Column]:
    return [(f"{n}", lambda results, n=n: figure(results, test, kind, str(n), metric)) for n in COUNTS]


def _columns(*columns: tuple[str, tuple[str, ...], int]) -> list[Column]:
    return [
        (title, lambda results, path=path, digits=digits: figure(results, *path, digits=digits))
        for title, path, digits in columns
    ]


def _rows(
    found: dict[str, list[Result]], names: Sequence[str], columns: Sequence[Column], errors: bool = False
) -> list[str]:
    """A line for each row; of ``errors`` the lowest of each column is bold."""
    lines = [[found[n][0]["title"], *(value(found[n]) for _, value in columns)] for n in names if n in found]
    for column in range(1, len(columns) + 1) if errors else ():
        means = {i: float(line[column].split()[0]) for i, line in enumerate(lines) if line[column]}
        for i in (i for i, mean in means.items() if mean == min(means.values())):
            lines[i][column] = f"**{lines[i][column]}**"
    return _table(["", *(title for title, _ in columns)], lines) if lines else []


def _group(found: dict[str, list[Result]], *groups: str) -> list[str]:
    return [name for name, results in found.items() if results[0]["group"] in groups]


def markdown(found: dict[str, list[Result]], settings: dict[str, Any], times: dict[str, float]) -> str:
    """All tables, of results by row, the bench's settings and the milliseconds of rows."""
    methods = _group(found, "methods")
    text = ["# Methods on one bench", ""]
    text += [
        f"{settings['examples']:,} synthetic views of motion capture, {settings['steps']:,} steps of each method, "
        f"{settings['test']:,} examples of test takes; mean ± deviation of {settings['seeds']} seeds. Errors in mm.",
        "",
    ]
    for test in TESTS:
        for metric, title in METRICS.items():
            text += [
                f"## {title}, {test} test takes: best of n (draws; heads: the n heaviest; ours: learned modes first)",
                "",
            ]
            text += _rows(found, methods, _errors("min_of", test, metric), errors=True)
        text += [f"## PA-MPJPE, {test} test takes: n quantised modes", ""]
        text += _rows(found, methods, _errors("quantised", test, "pa_mpjpe"), errors=True)
    text += ["## Uncertainty, place and cost", ""]
    text += ["Ambiguous test takes unless said otherwise; spread and distances in mm.", ""]
    text += _rows(
        found,
        methods,
        _columns(
            ("spread visible", ("ambiguous", "spread", "visible"), 0),
            ("invisible", ("ambiguous", "spread", "invisible"), 0),
            ("90 % region holds", ("ambiguous", "coverage", "90%", "all"), 2),
            ("pelvis off, single answer, clean", ("clean", "absolute", "mode", "pelvis"), 0),
            ("ambiguous", ("ambiguous", "absolute", "mode", "pelvis"), 0),
            ("mean, clean", ("clean", "absolute", "mean", "pelvis"), 0),
            ("ambiguous", ("ambiguous", "absolute", "mean", "pelvis"), 0),
            ("nll clean", ("clean", "nll"), 1),
            ("nll ambiguous", ("ambiguous", "nll"), 1),
        )
        + [("ms an image, all samples", lambda r: f"{times[r[0]['row']]:.1f}" if r[0]["row"] in times else "")]
        + [("training, CPU s", lambda r: figure(r, "cpu_seconds", digits=0))]
        + [("parameters, M", lambda r: f"{r[0]['parameters'] / 1e6:.1f}")],
    )
    text += ["# What the papers say, on this bench", ""]
    text += _orderings(found)
    return "\n".join(text)


def _orderings(found: dict[str, list[Result]]) -> list[str]:
    text = []
    if "multi_head" in found:
        text += [
            "## Quantised modes: weights of the pose prior against equal weights (PA-MPJPE, n modes of 25 heads)",
            "",
        ]
        lines = []
        for test in TESTS:
            for kind, title in (
                ("quantised", "prior"),
                ("quantised_uniform", "equal"),
                ("quantised_kept", "prior, head 0 kept"),
                ("quantised_uniform_kept", "equal, head 0 kept"),
            ):
                cells = [figure(found["multi_head"], test, kind, str(n), "pa_mpjpe") for n in (1, 5, 10)]
                lines.append([f"{test}, {title}", *cells])
        text += _table(["", "1", "5", "10"], lines)
    pairs = {
        "Reprojection of all heads": (("multi_head", "no_reprojection"), _POSE),
        "Affine against additive couplings, box and confidences": (
            ("joint", "additive", "no_box", "no_confidence"),
            _POSE,
        ),
        "MMD and mask loss (test takes, synthetic)": (("rendered", "mmd", "mask", "mmd_mask"), _POSE),
        "MMD and mask loss (rendered test takes)": (("rendered", "mmd", "mask", "mmd_mask"), _PICTURE),
        "What else was tried for ours": (("joint", "joint_rendered", "joint_mmd"), _POSE),
        "Samples of the posterior against baselines": (("joint", "joint_draws", "random", "gaussian"), _POSE),
        "2D lifting: 17 joints of Human3.6M": (("lifting", "joint_h36m"), _POSE),
    }
    for title, (names, columns) in pairs.items():
        lines = _rows(found, names, _columns(*columns))
        if lines:
            text += [f"## {title}", "", *lines]
    return text


_POSE = (
    ("mode clean", ("clean", "mode", "pa_mpjpe"), 1),
    ("ambiguous", ("ambiguous", "mode", "pa_mpjpe"), 1),
    ("best of 25 ambiguous", ("ambiguous", "min_of", "25", "pa_mpjpe"), 1),
    ("best of 100", ("ambiguous", "min_of", "100", "pa_mpjpe"), 1),
    ("spread visible", ("ambiguous", "spread", "visible"), 0),
    ("invisible", ("ambiguous", "spread", "invisible"), 0),
    ("pelvis off clean", ("clean", "absolute", "mode", "pelvis"), 0),
    ("ambiguous", ("ambiguous", "absolute", "mode", "pelvis"), 0),
    ("2DKP px", ("ambiguous", "keypoints2d", "samples"), 1),
    ("nll", ("ambiguous", "nll"), 1),
)
_PICTURE = (
    ("mode", ("rendered", "mode", "pa_mpjpe"), 1),
    ("best of 100", ("rendered", "min_of", "100", "pa_mpjpe"), 1),
    ("spread visible", ("rendered", "spread", "visible"), 0),
    ("invisible", ("rendered", "spread", "invisible"), 0),
    ("PercIn", ("rendered", "mask", "perc_in"), 3),
    ("MinDist px", ("rendered", "mask", "min_dist"), 2),
    ("2DKP px", ("rendered", "keypoints2d", "samples"), 1),
    ("nll", ("rendered", "nll"), 1),
)


def _csv(found: dict[str, list[Result]], path: Path) -> None:
    """Every figure of every job in one line: row, seed, figure, value."""

    def leaves(value: Any, name: str) -> list[tuple[str, float]]:
        if isinstance(value, dict):
            return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{name}.{key}" if name else key)]
        return [(name, float(value))] if isinstance(value, (int, float)) and not isinstance(value, bool) else []

    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "seed", "figure", "value"])
        for name, results in found.items():
            for result in results:
                for leaf, value in leaves({k: v for k, v in result.items() if k not in ("row", "seed")}, ""):
                    writer.writerow([name, result["seed"], leaf, f"{value:.6g}"])


def _plots(found: dict[str, list[Result]], out: Path) -> None:
    """Error over n, as figure 4 of Kolotouros et al. 2021: one picture for each test set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for test in TESTS:
        figures, axes = plt.subplots(1, 2, figsize=(11, 5.2), constrained_layout=True)
        for axis, (metric, title) in zip(axes, METRICS.items()):
            for name in _group(found, "methods"):
                values = {n: [_at(r, test, "min_of", str(n), metric) for r in found[name]] for n in COUNTS}
                values = {n: [v for v in of if math.isfinite(v)] for n, of in values.items()}
                ns = [n for n, of in values.items() if of]
                means = [statistics.mean(values[n]) for n in ns]
                deviations = [statistics.stdev(values[n]) if len(values[n]) > 1 else 0.0 for n in ns]
                style = {"linewidth": 2.5, "color": "black"} if name == "joint" else {"linewidth": 1.2}
                axis.errorbar(ns, means, deviations, marker="o", capsize=3, label=found[name][0]["title"], **style)
            axis.set_xscale("log")
            axis.set_xticks(COUNTS, [str(n) for n in COUNTS])
            axis.minorticks_off()
            axis.set_xlabel("n")
            axis.set_ylabel(f"{title} of the best of n, mm")
            axis.grid(alpha=0.3)
        figures.suptitle(f"{test} test takes")
        figures.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        figures.savefig(out / f"error_over_n_{test}.png", dpi=110)
        plt.close(figures)


def write(out: Path) -> None:
    """``table.md``, ``table.csv`` and ``error_over_n_*.png`` in the folder of the bench."""
    found = read(out)
    if not found:
        raise SystemExit(f"{out} holds no finished job: run benchmarks/methods/run.py first")
    settings = json.loads((out / "bench.json").read_text())
    times = json.loads((out / "times.json").read_text()) if (out / "times.json").is_file() else {}
    (out / "table.md").write_text(markdown(found, settings, times))
    _csv(found, out / "table.csv")
    _plots(found, out)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    write(Path(sys.argv[1]))
