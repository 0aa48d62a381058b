"""Which latents cover best: scrambled Sobol points through the Gaussian quantile, antithetic pairs, plain random."""

from __future__ import annotations

__all__ = ["KINDS", "compare_latents", "sobol"]

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Bench, graph_inputs
from scipy.special import ndtri
from scipy.stats import qmc
from tqdm import tqdm

from hmr_prob_ros.engines import make_engine
from hmr_prob_ros.estimator import draw_latents
from hmr_prob_ros.metrics import mpjpe, pa_mpjpe

COUNTS = (5, 10, 25, 100)


def sobol(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size) float32, the first row zero, the others scrambled Sobol points through the Gaussian quantile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the counts are no powers of two
        points = qmc.Sobol(size, scramble=True, seed=seed).random(max(count - 1, 1))[: count - 1]
    edge = 1e-7
    return np.concatenate((np.zeros((1, size)), ndtri(points.clip(edge, 1 - edge)))).astype(np.float32)


def _random(count: int, size: int, seed: int) -> np.ndarray:
    latents = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    latents[0] = 0
    return latents


KINDS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "antithetic": draw_latents,
    "sobol": sobol,
    "random": _random,
}


def compare_latents(bench: Bench) -> dict[str, Any]:
    """Best-of-N errors in mm of N latents of each kind, the mean over people and seeds, and their standard error.

    ``pa_mpjpe`` and ``mpjpe`` are against the true bodies of the set. ``posterior_mpjpe`` is against bodies that were
    drawn from the posterior itself, which tells the same without motion capture, however good the model is.
    """
    engine = make_engine("onnxruntime", bench.bundle.model_path, threads=bench.options.threads)
    size, modes = bench.bundle.latent_size, bench.bundle.num_modes
    people = bench.people[: bench.options.examples]
    truth = None if bench.data is None else bench.data.joints[: len(people)]
    few = people[: bench.options.people_of_latents]
    # Few people: each gets many bodies to be found, so that the figures of both parts are about equally sure.
    drawn = _random(max(bench.options.drawn, modes) + 1, size, 12345)
    targets = [engine.run(graph_inputs([p], drawn), ["sample_joints"])["sample_joints"][0, 1:] for p in few]
    rows = []
    cases = [(kind, count) for count in COUNTS for kind in KINDS]
    for kind, count in tqdm(cases, desc="latents"):
        values: dict[str, list[float]] = {"pa_mpjpe": [], "mpjpe": [], "posterior_mpjpe": []}
        for seed in range(bench.options.seeds):
            latents = KINDS[kind](count, size, seed)
            if count < modes:  # the graph wants more; they are not looked at
                latents = np.concatenate((latents, np.zeros((modes - count, size), np.float32)))
            error: dict[str, list[float]] = {name: [] for name in values}
            for start in range(0, len(people), 16):
                part = slice(start, start + 16)
                samples = engine.run(graph_inputs(people[part], latents), ["sample_joints"])["sample_joints"][:, :count]
                if truth is not None:
                    error["pa_mpjpe"] += list(pa_mpjpe(samples, truth[part, None]).min(1))
                    error["mpjpe"] += list(mpjpe(samples, truth[part, None]).min(1))
            for person, target in zip(few, targets, strict=True):
                samples = engine.run(graph_inputs([person], latents), ["sample_joints"])["sample_joints"][0, :count]
                error["posterior_mpjpe"] += list(mpjpe(samples[None], target[:, None]).min(1))
            for name, found in error.items():
                values[name] += [1e3 * float(np.mean(found))] if found else []
        rows.append(
            {
                "latents": kind,
                "samples": count,
                **{k: round(float(np.mean(v)), 3) if v else None for k, v in values.items()},
                "standard_error": {
                    k: round(float(np.std(v, ddof=1) / np.sqrt(len(v))), 3) if len(v) > 1 else None
                    for k, v in values.items()
                },
            }
        )
    return {"seeds": bench.options.seeds, "people": len(people), "set": truth is not None, "rows": rows}
