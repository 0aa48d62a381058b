"""``hmr-prob evaluate-model``: measure a checkpoint of any method on sets and shards."""

from __future__ import annotations

__all__ = ["format_table", "main"]

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hmr_prob_ros.arguments import natural, positive, write_json
from hmr_prob_ros.body import Body
from hmr_prob_ros.joint_sets import JOINT_SETS, JointSet
from hmr_prob_ros.setfile import PoseSet

from .body import TorchBody
from .data.examples import Examples
from .data.sets import examples_from_set
from .evaluate import COUNTS, EvaluationError, evaluate_model
from .models import load_checkpoint


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hmr-prob evaluate-model",
        description="Measure a trained checkpoint, of any method, on evaluation sets or shards.",
    )
    parser.add_argument("checkpoint", type=Path, help="model.pt of `hmr-prob train`")
    parser.add_argument("--set", type=Path, action="append", default=[], metavar="SET.NPZ", help="may be repeated")
    parser.add_argument(
        "--shards", type=Path, action="append", default=[], metavar="DIR", help="folder or file of `make-shards`"
    )
    parser.add_argument(
        "--counts", type=positive, nargs="+", default=list(COUNTS), metavar="n", help="(default: %(default)s)"
    )
    parser.add_argument("--joint-set", choices=JOINT_SETS, default="smpl", help="(default: %(default)s)")
    parser.add_argument("--joint-regressor", type=Path, metavar="FILE", help="17 x V, for a licensed SMPL as --body")
    parser.add_argument("--body", type=Path, metavar="FILE", help="body of the model (default: the shipped one)")
    parser.add_argument("--vertices", action="store_true", help="also per-vertex errors, which take minutes")
    parser.add_argument("--no-quantised", action="store_true", help="no modes: in half of the time")
    parser.add_argument("--keep-first", action="store_true", help="the single answer is always one of the modes")
    parser.add_argument("--visible-by", choices=("truth", "detector"), default="truth", help="(default: %(default)s)")
    parser.add_argument("--limit", type=positive, metavar="K", help="only the first K examples")
    parser.add_argument("--batch", type=positive, default=16, help="people at once (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0, help="of the latents (default: %(default)s)")
    parser.add_argument(
        "--threads", type=natural, default=0, help="of torch, 0 for its own choice (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="for example cuda (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT.JSON", help="write the figures; - for stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    return parser


def _load_examples(given: argparse.Namespace, body: Body, images: bool) -> Examples:
    """All that the arguments name."""
    parts = [examples_from_set(PoseSet.load(path), body.hash) for path in given.set]
    if given.shards:
        from .data.shards import read_examples

        parts.append(read_examples(given.shards, images=images, body=body.hash))
    if not parts:
        raise EvaluationError("nothing to evaluate on: give --set SET.NPZ or --shards DIR")
    examples = Examples.cat(parts)
    return examples if given.limit is None else examples[: given.limit]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0.

    Raises:
        EvaluationError, CheckpointError, BodyError, JointSetError, SetError, ShardError, CommandError: the text names
            the mend.
    """
    given = _parser().parse_args(arguments)
    body = Body.load(given.body)
    model, _ = load_checkpoint(given.checkpoint, TorchBody(body, mesh=given.vertices))
    chosen: str | JointSet = given.joint_set
    if given.joint_regressor is not None:
        chosen = JointSet.from_regressor(given.joint_regressor, body, given.joint_set)
    try:
        model = model.to(torch.device(given.device))
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
        raise EvaluationError(f"--device {given.device} cannot be used: {str(error).splitlines()[0]}") from error
    result = evaluate_model(
        model,
        _load_examples(given, body, images=bool(getattr(model.config, "image", ""))),
        given.counts,
        chosen,
        quantised=not given.no_quantised,
        keep_first=given.keep_first,
        vertices=given.vertices,
        visible_by=given.visible_by,
        batch=given.batch,
        seed=given.seed,
        threads=given.threads,
        progress=not given.quiet,
    )
    result["checkpoint"] = given.checkpoint.name
    result["data"] = [path.name for path in (*given.set, *given.shards)]
    if not given.quiet:
        print(format_table(result), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json is not None:
        write_json(result, given.json)
    return 0


def _cell(value: float, form: str) -> str:
    """A number, or a dash where there is none."""
    width = int(form.split(".")[0])
    return f"{value:{form}}" if math.isfinite(value) else f"{'-':>{width}}"


def format_table(result: dict[str, Any]) -> str:
    """The result of ``evaluate_model`` as text for a terminal."""
    heads = f"{result['heads']} heads" if result["heads"] else f"up to {result['samples']} samples"
    lines = [f"{result['model']}: {result['count']} examples, {heads}, {result['joint_set']} joints", ""]
    metrics = list(result["mode"])
    lines.append(f"{'mm':28}" + "".join(f"{name.upper().replace('_', '-'):>11}" for name in metrics))

    def row(name: str, values: dict[str, float]) -> None:
        if any(math.isfinite(value) for value in values.values()):
            lines.append(f"{name:28}" + "".join(_cell(values.get(m, math.nan), "11.1f") for m in metrics))

    row("single answer", result["mode"])
    row("mean", result["mean"])
    kinds = {"min_of": "samples", "quantised": "modes"} | (
        {"quantised_uniform": "equal modes"} if result["heads"] else {}
    )
    for kind, name in kinds.items():
        for n, values in result[kind].items():
            row(f"best of {n} {name}", values)

    lines += ["", f"{'':28}{'all':>11}{'visible':>11}{'invisible':>11}"]
    table = [("spread of samples mm", result["spread"], "11.1f")]
    table += [(f"in {k} ellipsoid", part, "11.3f") for k, part in result["coverage"].items()]
    table += [(f"  pelvis at the origin {k}", part, "11.3f") for k, part in result["coverage_relative"].items()]
    for name, part, form in table:
        lines.append(f"{name:28}" + "".join(_cell(part[k], form) for k in ("all", "visible", "invisible")))

    single, mean = result["absolute"]["mode"], result["absolute"]["mean"]
    pixels, mask = result["keypoints2d"], result["mask"]
    figures = [
        ("pelvis in the camera's frame mm, single / mean", single["pelvis"], mean["pelvis"], ".0f"),
        ("joints in the camera's frame mm, single / mean", single["joints"], mean["joints"], ".0f"),
        ("visible keypoints, pixels of 256, single / samples", pixels["mode"], pixels["samples"], ".2f"),
        ("hidden keypoints inside the mask, samples / truth", mask["perc_in"], mask["truth"], ".3f"),
    ]
    lines.append("")
    lines += [f"{n}: {a:{form}} / {b:{form}}" for n, a, b, form in figures if math.isfinite(a)]
    if math.isfinite(mask["min_dist"]):
        lines.append(f"their distance to it: {mask['min_dist']:.2f} pixels of 256")
    if math.isfinite(result["nll"]):
        lines.append(f"negative log-likelihood: {result['nll']:.2f} nats")
    if result["ms"]:
        times = ", ".join(f"{ms:.1f} ms with {n}" for n, ms in result["ms"].items())
        lines.append(f"one image on one thread: {times}")
    return "\n".join(lines)
