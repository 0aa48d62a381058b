"""``hmr-prob build-engine``: build a bundle's TensorRT engines before the node needs them, and measure their errors."""

from __future__ import annotations

__all__ = ["add_arguments", "example_inputs", "run"]

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import Bundle, update_card
from ..engines import CPU, PRECISIONS, make_engine, unavailable
from . import CommandError, positive

if TYPE_CHECKING:
    from ..engines.tensorrt import TensorRtEngine

PEOPLE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle (default: the shipped one)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, nargs="+", default=["fp32"], help="one or more (default: fp32)"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of engines (default: ~/.cache/hmr_prob_ros)")
    parser.add_argument("--force", action="store_true", help="build even if there is a fitting engine")
    parser.add_argument("--max-people", type=positive, metavar="B", help="people in one call (default: 8)")
    parser.add_argument(
        "--max-samples", type=positive, metavar="N", help="samples per person (default: 4096); fewer need less memory"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare the outputs with ONNX Runtime's, and write the errors into the bundle's card",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def example_inputs(bundle: Bundle, people: int = PEOPLE, samples: int = 100) -> dict[str, np.ndarray]:
    """Inputs of the graph for people who stand in front of a camera, each turned and moved differently."""
    from ..body import Body
    from ..camera import Camera, condition
    from ..estimator import draw_latents

    body, camera = Body.load(), Camera.guess(640, 480)
    keypoints, boxes = [], []
    for index in range(people):
        turn = 2 * np.pi * index / people + 0.3
        cosine, sine = np.cos(turn), np.sin(turn)
        rotations = np.tile(np.eye(3), (1, 24, 1, 1))
        # The body's y is up, the camera's is down.
        rotations[0, 0] = np.diag([1.0, -1.0, -1.0]) @ [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]
        place = np.array([[0.3 * index - 0.5, 0.2, 3.0 + 0.5 * index]])
        points = body.keypoints(rotations, np.zeros((1, 10)), place)[0]
        seen = np.concatenate([camera.project(points), np.full((23, 1), 0.9)], axis=1).astype(np.float32)
        given = condition(seen, camera)
        if given is None:
            raise RuntimeError("a person who stands in full view gave no crop")
        keypoints.append(given[0])
        boxes.append(given[1])
    latents = draw_latents(samples, bundle.latent_size)
    return {
        "keypoints": np.stack(keypoints).astype(np.float32),
        "box": np.stack(boxes).astype(np.float32),
        "latents": np.repeat(latents[None], people, axis=0),
    }


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.load(arguments.bundle)
    if reason := unavailable("tensorrt"):
        raise CommandError(f"no engine can be built here: {reason}")
    for precision in arguments.precision:
        engine = _build(bundle, precision, arguments)
        if arguments.compare:
            _compare(bundle, engine)
    return 0


def _build(bundle: Bundle, precision: str, arguments: argparse.Namespace) -> TensorRtEngine:
    from ..engines.tensorrt import TensorRtEngine
    from ..engines.tensorrt_build import Limits

    given = {"persons": arguments.max_people, "samples": arguments.max_samples}
    given = {name: value for name, value in given.items() if value is not None}
    if "samples" in given:
        given["typical"] = min(Limits.typical, given["samples"])
    engine = TensorRtEngine(
        bundle.model_path,
        precision,
        arguments.cache,
        limits=Limits(**given) if given else None,
        force=arguments.force,
        progress=not arguments.quiet,
    )
    built = engine.built
    if built.path is None:
        raise CommandError(f"the engine was built in {built.seconds:.0f} s but could not be stored: choose --cache DIR")
    what = f"built in {built.seconds:.0f} s" if built.reason else "up to date"
    print(f"{built.path}: {what}, {built.size / 2**20:.1f} MiB, {engine.name}")
    return engine


def _compare(bundle: Bundle, engine: TensorRtEngine) -> None:
    from ..engines.compare import differences, worst

    inputs = example_inputs(bundle)
    expected = make_engine(CPU, bundle.model_path).run(inputs)
    try:
        errors = differences(expected, engine.run(inputs))
    except ValueError as error:
        raise CommandError(f"{engine.name} is of no use: {error}") from error
    name, figure = worst(errors)
    print(f"{engine.name} against ONNX Runtime: 99 % of {name} within {figure:.2g}", file=sys.stderr)
    print(f"{'':22}{'median':>10}{'p99':>10}{'max':>10}", file=sys.stderr)
    for output, row in errors.items():
        cells = "".join(f"{value:10.2g}" for value in row.values())
        print(f"{output:22}{cells}" + ("  (share of people)" if "same" in row else ""), file=sys.stderr)
    card: dict[str, Any] = Bundle.load(bundle.path).card
    update_card(bundle.path, engine_errors={**card.get("engine_errors", {}), engine.name: errors})
