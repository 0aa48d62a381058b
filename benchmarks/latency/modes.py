"""(b) scikit-learn's k-means on the same samples against the quantisation in the graph."""

from __future__ import annotations

__all__ = ["compare_modes", "inertia"]

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Bench, graph_inputs
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from hmr_prob_ros.benchmark.measure import timed
from hmr_prob_ros.benchmark.work import kmeans_share
from hmr_prob_ros.engines import make_engine
from hmr_prob_ros.estimator import draw_latents
from hmr_prob_ros.quantize import quantize
from hmr_prob_ros.training.export import export_graph
from hmr_prob_ros.training.quantize import Quantizer

STARTS = 50


def inertia(points: np.ndarray, assignment: np.ndarray) -> float:
    """Sum of squared distances of points (N, P) to the means of the clusters they are assigned to, (N,)."""
    total = 0.0
    for cluster in np.unique(assignment):
        members = points[assignment == cluster].astype(np.float64)
        total += float(((members - members.mean(axis=0)) ** 2).sum())
    return total


def _quantizer(path: Path, modes: int) -> Path:
    module = Quantizer(modes)
    points = torch.randn(2, 4 * modes, 72)
    weights = torch.full((2, 4 * modes), 1 / (4 * modes))
    axes = {0: "B", 1: "N"}
    export_graph(
        module,
        {"points": points, "weights": weights},
        ("index", "weight", "choice"),
        {"points": axes, "weights": axes},
        path,
    )
    return path


def compare_modes(bench: Bench) -> dict[str, Any]:
    """For each N and n: times, and inertia relative to the best of 50 starts of scikit-learn, averaged over people.

    The partition of the graph is that of ``hmr_prob_ros.quantize``, which takes the same steps; ``same_modes`` is the
    share of people for whom both chose the same samples.
    """
    rows, options = [], bench.options
    engine = make_engine("onnxruntime", bench.bundle.model_path, threads=options.threads)
    cases = [(samples, n) for samples in options.sweep_samples for n in options.sweep_modes if n < samples]
    for samples, n in tqdm(cases, desc="modes"):
        few = bench.people[: max(2, min(options.people_of_modes, 20 * 100 // samples))]
        latents = draw_latents(max(samples, bench.bundle.num_modes), bench.bundle.latent_size)
        graph = make_engine("onnxruntime", _quantizer(bench.folder / f"modes_{n}.onnx", n), threads=options.threads)
        ratio: dict[str, list[float]] = {"graph": [], "sklearn_1": [], "sklearn_10": []}
        same: list[bool] = []
        for person in few:
            joints = engine.run(graph_inputs([person], latents), ["sample_joints"])["sample_joints"][0]
            points = (joints - joints[:, :1]).reshape(len(joints), -1)
            feeds = {"points": points[None], "weights": np.full((1, len(points)), 1 / len(points), np.float32)}
            ours = quantize(joints, n)
            same.append(bool(np.array_equal(ours.index, graph.run(feeds, ["index"])["index"][0])))
            with threadpool_limits(options.threads or None):
                best = KMeans(n, n_init=STARTS, random_state=0).fit(points).inertia_
                for starts in (1, 10):
                    found = KMeans(n, n_init=starts, random_state=1).fit(points).inertia_
                    ratio[f"sklearn_{starts}"].append(found / best)
            ratio["graph"].append(inertia(points, ours.assignment) / best)
        rounds = max(5, options.rounds // 3)
        with threadpool_limits(options.threads or None):
            ms = {
                "graph": timed(lambda g=graph, f=feeds: g.run(f), rounds, 5),
                "numpy": timed(lambda j=joints, k=n: quantize(j, k), rounds, 5),
                **{
                    f"sklearn_{s}": timed(
                        lambda p=points, k=n, s=s: KMeans(k, n_init=s, random_state=1).fit(p), rounds, 5
                    )
                    for s in (1, 10)
                },
            }
        rows.append(
            {
                "samples": samples,
                "modes": n,
                "people": len(few),
                "ms": {name: round(float(np.median(values)), 3) for name, values in ms.items()},
                "inertia": {name: round(float(np.mean(values)), 4) for name, values in ratio.items()},
                "same_modes": round(float(np.mean(same)), 3),
            }
        )
    share = kmeans_share(
        bench.bundle, bench.person, bench.camera, options.sweep_samples, options.threads or 2, options.rounds
    )
    return {"rows": rows, "share": share}
