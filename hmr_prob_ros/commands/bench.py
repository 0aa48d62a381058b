"""``hmr-prob bench``: what every stage and every setting of the posterior costs on this machine."""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from ..arguments import positive_number
from ..benchmark import accuracy as accuracy_of
from ..benchmark import measure, posterior, stages, work
from ..benchmark.table import format_result
from ..bundle import Bundle
from ..camera import Camera
from ..detectors import PoseDetector, make_detector
from ..engines import make_engine, usual_threads
from ..estimator import Estimator
from . import CommandError, add_estimator_arguments, check_modes, positive, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", nargs="?", help="video or picture with a person (default: the photograph that scikit-image carries)"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="OUT.JSON", help="write the figures; without a file, to stdout"
    )
    parser.add_argument("--frames", type=positive, default=100, help="frames and calls that are timed (default: 100)")
    parser.add_argument(
        "--line-seconds", type=positive_number, default=10.0, help="but no line takes longer than this (default: 10)"
    )
    parser.add_argument(
        "--size", default="640x480", metavar="WxH", help="frames are resized to it (default: %(default)s)"
    )
    parser.add_argument(
        "--set", type=Path, metavar="SET.npz", help="people with known bodies: prints the error beside each time"
    )
    parser.add_argument("--set-examples", type=positive, default=300, help="of the set, at most (default: 300)")
    sweeps = parser.add_argument_group("what is varied round the settings below")
    for name, kind, default, text in (
        ("--people", positive, [1, 2, 4], "people per call"),
        ("--sweep-samples", positive, [25, 100, 1024, 4096], "samples N"),
        ("--sweep-modes", positive, [5, 10, 25], "modes n"),
        ("--sweep-threads", positive, [1, 2], "threads of the engine"),
        ("--engines", str, [], "engines; those that cannot run here are named"),
        ("--detectors", str, [], "detectors, each for the whole line"),
    ):
        shown = " ".join(map(str, default)) or ("all that can run" if name == "--engines" else "that of --detector")
        sweeps.add_argument(name, type=kind, nargs="+", default=default, help=f"{text} (default: {shown})")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    add_estimator_arguments(parser)


def _detector(name: str, texts: list[str]) -> PoseDetector:
    """A detector with its options; ``rtmlib.pose=FILE`` is meant for rtmlib alone."""
    options: dict[str, Any] = {}
    for text in texts:
        option, found, value = text.partition("=")
        if not found or not option:
            raise CommandError(f"--detector-option {text!r} is not NAME=VALUE")
        owner, dot, rest = option.partition(".")
        if dot and owner != name:
            continue
        try:
            options[rest if dot else option] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CommandError(f"--detector-option {text!r}: {value!r} is not YAML") from error
    return make_detector(name, **options)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(v) for v in text.lower().split("x"))
        if min(width, height) < 32:
            raise ValueError
    except ValueError:
        raise CommandError(f"--size {text!r} is not WxH with sides of at least 32 pixels, like 640x480") from None
    return width, height


def run(arguments: argparse.Namespace) -> int:
    check_modes(arguments)
    size = _size(arguments.size)
    about = measure.machine()  # before anything here is load
    warning = measure.load_warning(about)
    progress = not arguments.quiet
    if warning and progress:
        print(f"WARNING: {warning}", file=sys.stderr)
    engines, missing = posterior.available_engines(arguments.engines)
    data = accuracy_of.load_examples(arguments.set, arguments.set_examples)
    bundle = Bundle.load(arguments.bundle)
    threads = arguments.threads or usual_threads(arguments.samples) or min(measure.cores(), 2)
    frames = stages.read_frames(arguments.input, size, arguments.frames)
    camera = Camera.guess(*size)
    engine = make_engine(arguments.engine, bundle.model_path, threads=threads, precision=arguments.precision)
    people, lines = [], []
    for name in arguments.detectors or [arguments.detector]:
        with Estimator(
            bundle,
            _detector(name, arguments.detector_option),
            engine,
            samples=arguments.samples,
            modes=arguments.modes,
            seed=arguments.seed,
        ) as estimator:
            people.append(stages.find_person(estimator, frames, camera))
            estimator.reset()
            lines.append(stages.stages(estimator, frames, camera, arguments.frames, progress))
    base = posterior.Line(1, arguments.samples, arguments.modes, threads, arguments.engine, arguments.precision)
    plan = posterior.plan(
        base, arguments.people, arguments.sweep_samples, arguments.sweep_modes, arguments.sweep_threads, engines
    )
    known = accuracy_of.Accuracy(data)
    rounds, seconds = arguments.frames, arguments.line_seconds
    rows, failed = posterior.measure(plan, bundle, people[0], camera, known, rounds, seconds, arguments.seed, progress)
    few, samples = min(rounds, 30), sorted({*arguments.sweep_samples, arguments.samples})
    result = {
        "machine": about,
        "warning": warning,
        "when": time.strftime("%Y-%m-%d"),
        "bundle": bundle.name,
        "samples": arguments.samples,
        "modes": arguments.modes,
        "threads": threads,
        "image": list(size),
        "input": arguments.input or "astronaut",
        "frames": arguments.frames,
        "detectors": lines,
        "posterior": rows,
        "accuracy": None if data is None else {"set": arguments.set.name, "examples": len(data)},
        "engines_missing": {**missing, **failed},
        "kmeans": work.kmeans_share(bundle, people[0], camera, samples, threads, rounds),
        "peak": work.peak(bundle, people[0], camera, samples, sorted({*arguments.sweep_threads}), few),
        **measure.Meter().summary(),
    }
    if progress:
        print(format_result(result), file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json is not None:
        write_json(result, arguments.json)
    return 0
