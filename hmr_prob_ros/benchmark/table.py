"""The figures of ``hmr-prob bench`` as text for a terminal."""

from __future__ import annotations

__all__ = ["format_result"]

from typing import Any

from .accuracy import NOT_MEASURED

_QUANTILES = ("p50", "p90", "p99", "mean")


def format_result(result: dict[str, Any]) -> str:
    """All tables of a result of ``hmr-prob bench``."""
    about = result["machine"]
    width, height = result["image"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb'] or '?'} GB, governor "
        f"{about['governor'] or 'not readable'}, other programs on {about['busy_cores']} cores",
        f"{width}x{height}, bundle {result['bundle']}, {result['samples']} samples, {result['modes']} modes, "
        f"{result['threads']} threads",
    ]
    if result["warning"]:
        lines.append(f"WARNING: {result['warning']}")
    for entry in result["detectors"]:
        lines += ["", *_stages(entry)]
    lines += ["", *_posterior(result["posterior"], result["accuracy"])]
    if result["engines_missing"]:
        lines += ["", *(f"{name} is left out: {reason}" for name, reason in result["engines_missing"].items())]
    lines += ["", *_kmeans(result["kmeans"]), "", *_peak(result["peak"])]
    return "\n".join(lines)


def _times(values: dict[str, float]) -> str:
    return "".join(f"{values[k]:9.2f}" for k in _QUANTILES)


def _cost(row: dict[str, Any]) -> str:
    return f"{row['cpu_load']:8.2f}{row['memory_mb']['resident']:9.0f}"


def _stages(entry: dict[str, Any]) -> list[str]:
    memory = entry["memory_mb"]
    lines = [
        f"whole line, {entry['detector']}, {entry['engine']}: {entry['people']:g} people a frame, "
        f"{entry['frames_per_second']:g} frames/s, posterior {entry['posterior_share']:.1%}",
        f"CPU load {entry['cpu_load']:.2f} cores, memory {memory['resident']:.0f} MB, at most {memory['peak']:.0f} MB",
        f"{'ms':14}" + "".join(f"{name:>9}" for name in _QUANTILES),
    ]
    lines += [f"{name:14}{_times(values)}" for name, values in entry["stages_ms"].items()]
    if "message" not in entry["stages_ms"]:
        lines.append("message        not measured: ROS 2 is not installed here")
    return lines


def _posterior(rows: list[dict[str, Any]], accuracy: dict[str, Any] | None) -> list[str]:
    head = f"{'people':>6}{'N':>6}{'n':>4}{'thr':>4}  {'engine':28}"
    head += "".join(f"{name:>9}" for name in _QUANTILES) + f"{'load':>8}{'MB':>9}"
    lines = ["posterior (condition, infer, assemble), ms"]
    if accuracy is None:
        lines[0] += f"; PA-MPJPE {NOT_MEASURED}"
    else:
        lines[0] += f"; PA-MPJPE in mm on {accuracy['examples']} examples of {accuracy['set']}"
        head += f"{'best of 25':>12}{'best mode':>11}{'mode':>8}"
    lines.append(head)
    for row in rows:
        text = f"{row['people']:6}{row['samples']:6}{row['modes']:4}{row['threads']:4}  "
        text += f"{row['engine'] + ' ' + row['precision']:28}{_times(row['ms'])}{_cost(row)}"
        if (known := row["accuracy"]) is not None:
            text += "".join(
                f"{known[name]:{width}.1f}" if known[name] is not None else f"{'-':>{width}}"
                for name, width in (("best_of_25", 12), ("best_mode", 11), ("mode", 8))
            )
            text += f"  ({known['failed']} without an answer)" if known.get("failed") else ""
        lines.append(text)
    return lines


def _kmeans(rows: list[dict[str, Any]] | str) -> list[str]:
    if isinstance(rows, str):
        return [f"share of the modes in the posterior: {rows}"]
    lines = ["share of the modes in the posterior: whole graph against one without modes, in turns"]
    return lines + [
        f"  N {row['samples']:5}, n {row['modes']}: {row['whole_ms']:.2f} ms, without {row['without_modes_ms']:.2f} "
        f"ms: {row['share']:.1%}"
        for row in rows
    ]


def _peak(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["share of the measured float32 matrix-product peak (operations of the flow's layers)"]
    return lines + [
        f"  N {row['samples']:5}, {row['threads']} threads: {1e-9 * row['flow_operations']:.3f} GFLOP, peak "
        f"{row['peak_gflops']:.0f} GFLOP/s (layer of this size {row['same_size_gflops']:.0f}): whole posterior "
        f"{row['fraction']:.1%}, inside the layers {row['fraction_in_layers']:.1%}"
        for row in rows
    ]
