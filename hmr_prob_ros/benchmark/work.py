"""How much of what the machine can do the posterior reaches, and what choosing the modes takes of it."""

from __future__ import annotations

__all__ = ["LARGE", "kmeans_share", "peak", "sample_layers"]

import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..camera import Camera, condition
from ..engines import CPU, EngineError, make_engine
from ..engines.profile import Product, matmul_rate, products, without_modes
from ..estimator import draw_latents
from ..hypotheses import Person2D
from .measure import timed

LARGE = (2048, 1024, 1024)
"""Rows, inner and columns of a product that is large enough to reach the peak."""

_NARROW = 16
"""A layer of a network is at least so wide; kinematics has narrower products."""


def _inputs(bundle: Bundle, person: Person2D, camera: Camera, samples: int) -> dict[str, np.ndarray]:
    given = condition(person.keypoints, camera)
    if given is None:
        raise ValueError("too little of the person is seen to work on")
    latents = draw_latents(samples, bundle.latent_size)
    return {"keypoints": given[0][None], "box": given[1][None], "latents": latents[None]}


def sample_layers(found: Sequence[Product], samples: int, modes: int = 0) -> list[Product]:
    """The products that are layers of the flow: one row for each of B N samples, and constant weights.

    Where the modes are learned they go through the flow too, and there is a row for each of them but the first. In
    kinematics the samples are columns, and in k-means both factors differ from person to person.
    """
    rows = {samples, samples + modes - 1}
    return [p for p in found if p.rows in rows and not p.second and min(_widths(p)) >= _NARROW]


def _widths(product: Product) -> tuple[int, int]:
    """Numbers that go into a row of the result, and numbers of a row."""
    return product.operations // (2 * math.prod(product.output)), product.output[-1]


def peak(
    bundle: Bundle, person: Person2D, camera: Camera, samples: Sequence[int], threads: Sequence[int], rounds: int = 30
) -> list[dict[str, Any]]:
    """For each N and number of threads: the operations of the flow's layers, and the share of the measured peak.

    The peak is the fastest of four float32 products in ONNX Runtime on the same threads: a large one, and those of
    the flow's commonest layer with 100, 4096 and N rows. ``fraction`` is operations / (median time of the whole
    posterior x peak): everything that is no product of the flow counts against it. ``fraction_in_layers`` takes the
    time of those products alone, from the runtime's profile.
    """
    rows = []
    for count in threads:
        rates: dict[str, float] = {}
        engine = make_engine(CPU, bundle.model_path, threads=count)
        for n in samples:
            inputs = _inputs(bundle, person, camera, n)
            layers = sample_layers(products(bundle.model_path, inputs, count, rounds), n, bundle.num_modes)
            if not layers:
                continue
            operations = sum(layer.operations for layer in layers)
            (inner, columns), _ = Counter(map(_widths, layers)).most_common(1)[0]
            sizes = [LARGE, *((r, inner, columns) for r in (100, 4096, n))]
            for size in sizes:
                name = "x".join(map(str, size))
                if name not in rates:
                    rates[name] = matmul_rate(*size, threads=count)
            best = max(rates.values())
            whole = 1e-3 * float(np.median(timed(lambda e=engine, i=inputs: e.run(i), rounds)))  # type: ignore[misc]
            inside = sum(layer.seconds for layer in layers)
            rows.append(
                {
                    "samples": n,
                    "threads": count,
                    "layers": len(layers),
                    "flow_operations": operations,
                    "posterior_ms": round(1e3 * whole, 3),
                    "flow_layers_ms": round(1e3 * inside, 3),
                    "peak_gflops": round(1e-9 * best, 1),
                    "same_size_gflops": round(1e-9 * rates[f"{n}x{inner}x{columns}"], 1),
                    "products_gflops": {name: round(1e-9 * rate, 1) for name, rate in rates.items()},
                    "fraction": round(operations / (whole * best), 4),
                    "fraction_in_layers": round(operations / (max(inside, 1e-9) * best), 4),
                }
            )
    return rows


def kmeans_share(
    bundle: Bundle, person: Person2D, camera: Camera, samples: Sequence[int], threads: int, rounds: int = 100
) -> list[dict[str, Any]] | str:
    """What choosing the modes takes: the posterior as it is against a graph without modes, call by call in turns.

    The difference of the medians, and not a profile by node: a profile adds a microsecond or two to each node, and
    k-means is made of some hundred tiny ones. A sentence where the package onnx, which cuts the graph, is missing.
    """
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "without_modes.onnx"
            path.write_bytes(without_modes(bundle.model_path))
            whole = make_engine(CPU, bundle.model_path, threads=threads)
            cut = make_engine(CPU, path, threads=threads)
            for n in samples:
                inputs = _inputs(bundle, person, camera, n)
                took: tuple[list[float], list[float]] = ([], [])
                end = time.perf_counter() + 20
                for turn in range(rounds + 3):
                    for engine, list_ in zip((whole, cut), took, strict=True):
                        start = time.perf_counter()
                        engine.run(inputs)
                        if turn >= 3:
                            list_.append(1e3 * (time.perf_counter() - start))
                    if turn >= 5 and time.perf_counter() > end:
                        break
                medians = [float(np.median(values)) for values in took]
                rows.append(
                    {
                        "samples": n,
                        "modes": bundle.num_modes,
                        "threads": threads,
                        "whole_ms": round(medians[0], 3),
                        "without_modes_ms": round(medians[1], 3),
                        "share": round(1 - medians[1] / medians[0], 4),
                    }
                )
    except EngineError as error:
        return f"not measured: {error}"
    return rows
