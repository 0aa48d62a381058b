"""The posterior in this process over people, samples, modes, threads and engines, and (c) the share of the peak."""

from __future__ import annotations

__all__ = ["measure_growth", "measure_peak", "measure_stages"]

from typing import Any

from common import Bench
from tqdm import tqdm

from hmr_prob_ros.benchmark.accuracy import Accuracy
from hmr_prob_ros.benchmark.posterior import Line, available_engines, measure, plan
from hmr_prob_ros.benchmark.stages import stages
from hmr_prob_ros.benchmark.work import peak
from hmr_prob_ros.detectors import DetectorError, make_detector


def measure_growth(bench: Bench) -> dict[str, Any]:
    """Rows as of ``hmr_prob_ros.benchmark.posterior.measure``, and the engines that cannot run here."""
    options = bench.options
    engines, missing = available_engines([])
    base = Line(1, options.samples, options.modes, options.threads or 2, options.engine, options.precision)
    lines = plan(base, options.people, options.sweep_samples, options.sweep_modes, options.sweep_threads, engines)
    known = Accuracy(bench.data)
    rows, failed = measure(lines, bench.bundle, bench.person, bench.camera, known, options.rounds, 10.0)
    return {"rows": rows, "missing": {**missing, **failed}}


def measure_peak(bench: Bench) -> dict[str, Any]:
    """Operations of the flow's layers and the share of the measured peak they reach, for each N and thread."""
    options = bench.options
    rounds = min(options.rounds, 30)
    found = peak(bench.bundle, bench.person, bench.camera, options.sweep_samples, options.sweep_threads, rounds)
    return {"rows": found}


def measure_stages(bench: Bench) -> dict[str, Any]:
    """The whole line in this process, stage by stage, for each detector of ``--detectors``."""
    options, rows, missing = bench.options, [], {}
    for name in tqdm(options.detectors or [options.detector], desc="detectors"):
        chosen = options.rtmlib if name == "rtmlib" else {}
        chosen = options.detector_options if name == options.detector else chosen
        try:
            detector = make_detector(name, **chosen)
        except DetectorError as error:
            missing[name] = str(error)
            continue
        with bench.estimator(detector) as estimator:
            rows.append(stages(estimator, bench.frames, bench.camera, options.rounds, progress=False))
    return {"rows": rows, "missing": missing}
