"""(a) The plain ``nflows`` sampler, its condition repeated for each sample, against the package's graph."""

from __future__ import annotations

__all__ = ["FlowGraph", "compare_sampler"]

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Bench, Skipped, graph_inputs
from plain import PlainSampler
from torch import Tensor, nn
from tqdm import tqdm

from hmr_prob_ros.benchmark.measure import timed
from hmr_prob_ros.benchmark.work import LARGE
from hmr_prob_ros.engines import make_engine
from hmr_prob_ros.engines.profile import matmul_rate
from hmr_prob_ros.estimator import draw_latents
from hmr_prob_ros.training.export import export_graph
from hmr_prob_ros.training.flow import AffineCoupling
from hmr_prob_ros.training.flow_columns import sample_columns
from hmr_prob_ros.training.models import FlowPosterior

LIMIT = 1e-5
"""Largest difference of poses (6D numbers), and of log-densities relative to their size, that counts as equal."""


class FlowGraph(nn.Module):
    """The flow alone: latents (B, N, 144), condition (B, C) -> poses (B, N, 144), log-densities (B, N)."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, latents: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        pose, log_density = sample_columns(self.flow, latents.permute(2, 0, 1), code)  # as in the exported graph
        return pose.permute(1, 2, 0), log_density

    def write(self, path: Path, width: int) -> Path:
        """Export for conditions of a width."""
        size = self.flow.size
        dynamic = {"latents": {0: "B", 1: "N"}, "code": {0: "B"}}
        example = {"latents": torch.randn(2, 7, size), "code": torch.randn(2, width)}
        export_graph(self, example, ("pose", "log_density"), dynamic, path)
        return path


class Posterior(nn.Module):
    """The whole posterior in eager torch as the papers' code does it: encoder, plain sampler, heads, bodies."""

    def __init__(self, model: FlowPosterior, flow: nn.Module) -> None:
        super().__init__()
        self.model, self.flow = model, flow

    def forward(self, keypoints: Tensor, box: Tensor, latents: Tensor) -> dict[str, Tensor]:
        ours, self.model.flow = self.model.flow, self.flow
        try:
            return FlowPosterior.forward(self.model, keypoints, box, latents)
        finally:
            self.model.flow = ours


def _difference(given: np.ndarray, expected: np.ndarray, relative: bool = False) -> float:
    gap = np.abs(given - expected)
    return float((gap / np.maximum(np.abs(expected), 1) if relative else gap).max())


@torch.no_grad()
def compare_sampler(bench: Bench) -> dict[str, Any]:
    """Times for each N and number of threads, with the differences of the results.

    ``flow``: the sampler alone, latents and condition to poses and log-densities, on both sides. ``posterior``: eager
    encoder, plain sampler, heads and kinematics against the whole graph, which makes modes and moments besides.
    ``plain_rounding`` and ``graph_rounding``: how far the poses of either are from the same flow's in float64.
    ``most``: the factor for the flow if its layers ran at the measured peak of float32 products and all else took no
    time: with these widths and equal results nothing can be faster on the same cores.
    """
    model = bench.model
    try:
        plain = PlainSampler(model.flow)
    except TypeError as error:
        raise Skipped(str(error)) from error
    path = FlowGraph(model.flow).write(bench.folder / "flow.onnx", model.config.condition)
    person = graph_inputs(bench.people[:1], np.zeros((1, 1), np.float32))
    keypoints, box = torch.from_numpy(person["keypoints"]), torch.from_numpy(person["box"])
    code = model.condition(keypoints, box).code
    whole = Posterior(model, plain)
    exact = copy.deepcopy(model.flow).double()
    rows, before = [], torch.get_num_threads()
    peaks = {count: matmul_rate(*LARGE, threads=count) for count in bench.options.sweep_threads}
    couplings = [layer for layer in model.flow.modules() if isinstance(layer, AffineCoupling)]
    operations = sum(2 * layer.weight.numel() for c in couplings for layer in (c.first, c.second, c.last))
    cases = [(count, n) for count in bench.options.sweep_threads for n in bench.options.sweep_samples]
    try:
        for count, n in tqdm(cases, desc="sampler"):
            torch.set_num_threads(count)
            flow_engine = make_engine("onnxruntime", path, threads=count)
            engine = make_engine("onnxruntime", bench.exported.model_path, threads=count)
            drawn = draw_latents(max(n, bench.exported.num_modes), model.latent_size)[None]
            latents = torch.from_numpy(drawn[..., : model.flow.size].copy())
            feeds = {"latents": latents.numpy(), "code": code.numpy()}
            inputs = {**person, "latents": drawn}
            everything = torch.from_numpy(drawn)

            pose, density = plain.sample(latents, code)
            ours = flow_engine.run(feeds)
            truth = exact.sample(latents.double(), code.double())[0].numpy()
            eager, graph = whole(keypoints, box, everything), engine.run(inputs)
            names = ("joints", "rotations", "log_density")
            difference = {
                "pose": _difference(ours["pose"], pose.numpy()),
                "plain_rounding": _difference(pose.numpy(), truth),
                "graph_rounding": _difference(ours["pose"], truth),
                "log_density": _difference(ours["log_density"], density.numpy(), relative=True),
                **{
                    f"posterior_{name}": _difference(
                        graph[f"sample_{name}"], eager[f"sample_{name}"].numpy(), name == "log_density"
                    )
                    for name in names
                },
            }
            work = {
                "plain_flow": lambda x=latents: plain.sample(x, code),
                "graph_flow": lambda e=flow_engine, f=feeds: e.run(f),
                "plain_posterior": lambda x=everything: whole(keypoints, box, x),
                "graph_posterior": lambda e=engine, f=inputs: e.run(f),
            }
            ms = {name: float(np.median(timed(call, bench.options.rounds, 15))) for name, call in work.items()}
            rows.append(
                {
                    "samples": n,
                    "threads": count,
                    "ms": {name: round(value, 3) for name, value in ms.items()},
                    "faster_flow": round(ms["plain_flow"] / ms["graph_flow"], 2),
                    "faster_posterior": round(ms["plain_posterior"] / ms["graph_posterior"], 2),
                    "most": round(1e-3 * ms["plain_flow"] * peaks[count] / (n * operations), 2),
                    "plain_flow_over_whole_graph": round(ms["plain_flow"] / ms["graph_posterior"], 2),
                    "difference": {name: float(f"{value:.2g}") for name, value in difference.items()},
                    "equal": bool(difference["pose"] <= LIMIT and difference["log_density"] <= LIMIT),
                }
            )
            tqdm.write(
                f"N {n}, {count} threads: pose differs by {difference['pose']:.1e}, log-density by "
                f"{difference['log_density']:.1e} (relative): {'equal' if rows[-1]['equal'] else 'NOT equal'} within "
                f"{LIMIT:.0e}"
            )
    finally:
        torch.set_num_threads(before)
    weights = str(bench.options.checkpoint.name) if bench.options.checkpoint else "random"
    return {"width": model.config.hidden, "couplings": model.config.couplings, "weights": weights, "rows": rows}
