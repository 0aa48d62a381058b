"""(d) Image message in to hypotheses message out, other process to other process; start; and the sustained run."""

from __future__ import annotations

__all__ = ["measure_processes", "parameters", "sustained"]

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import Bench, Skipped
from tqdm import tqdm

from launch import Run, drop_from_cache, run_processes


def parameters(bench: Bench, **more: Any) -> dict[str, Any]:
    """Parameters of the node as the options of the run ask for; those of ``--node`` come last."""
    options = bench.options
    values = {
        "detector": options.detector,
        "detector_options": json.dumps(json.dumps(options.detector_options)),
        "engine": options.engine,
        "precision": options.precision,
        "engine_threads": options.threads,
        "samples": options.samples,
        "modes": options.modes,
        "bundle": bench.bundle.path.resolve() if options.bundle or options.checkpoint else "",
        **more,
        **options.node,
    }
    return {key: value for key, value in values.items() if value not in ("", None)}


def _drop(bench: Bench, run: Run) -> None:
    """Forget what the node reads at its start: libraries and the packages that they are of, this package, models."""
    import hmr_prob_ros

    packages = {Path(hmr_prob_ros.__file__).parent}
    for name in run.files:
        parts = Path(name).parts
        if "site-packages" in parts:
            packages.add(Path(*parts[: parts.index("site-packages") + 2]))
    files = [*run.files, *(str(p) for package in packages for p in package.rglob("*") if p.is_file())]
    files += [str(v) for v in bench.options.detector_options.values() if isinstance(v, str) and Path(v).is_file()]
    files += [str(p) for p in bench.bundle.path.glob("*")]
    drop_from_cache(files)


def measure_processes(bench: Bench) -> dict[str, Any]:
    """Short runs: with and without the two-stage pipeline, and the start with a cold and a warm cache.

    Cold: the node's files were dropped from the page cache and the user's cache folder is empty (engines are built
    anew). Warm: the same start again.
    """
    options = bench.options
    clip = bench.clip("clip", bench.frames)
    seconds = options.seconds
    result: dict[str, Any] = {"clip": options.clip.name, "rate_hz": 30, "seconds": seconds, "runs": []}
    first: Run | None = None
    variants: list[dict[str, Any]] = [{"pipeline": "true"}, {"pipeline": "false"}]
    for variant in tqdm(variants, desc="processes"):
        run = run_processes(clip, parameters(bench, **variant), seconds)
        first = first or run
        result["runs"].append({**variant, **options.node, **run.summary()})
    assert first is not None
    with tempfile.TemporaryDirectory(dir=bench.folder) as empty:
        _drop(bench, first)
        cold = run_processes(clip, parameters(bench), 1.0, {"XDG_CACHE_HOME": empty})
    warm = [run_processes(clip, parameters(bench), 1.0).start_seconds for _ in range(options.starts)]
    result["start_s"] = {
        "cold": round(cold.start_seconds, 3),
        "warm": round(statistics.median(warm), 3),
        "warm_all": [round(value, 3) for value in warm],
    }
    return result


def sustained(bench: Bench) -> dict[str, Any]:
    """``--minutes`` at 30 Hz: does latency or memory grow?"""
    if bench.options.minutes <= 0:
        raise Skipped("--minutes is 0")
    run = run_processes(bench.clip("clip", bench.frames), parameters(bench), 60 * bench.options.minutes + 3)
    return {"minutes": bench.options.minutes, **run.summary(), **run.minutes()}
