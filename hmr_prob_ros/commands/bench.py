"""``hmr-prob bench``: milliseconds of every stage on this machine."""

from __future__ import annotations

__all__ = ["add_arguments", "machine", "percentiles", "run"]

import argparse
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..camera import Camera
from ..estimator import Estimator
from ..hypotheses import Person2D
from . import CommandError, add_estimator_arguments, check_modes, make_estimator, positive, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", nargs="?", help="video or picture with a person (default: the photograph that scikit-image carries)"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="OUT.JSON", help="write the figures; without a file, to stdout"
    )
    parser.add_argument("--frames", type=positive, default=100, help="frames that are timed (default: %(default)s)")
    parser.add_argument(
        "--people", type=positive, nargs="+", default=[1, 2, 4], help="people per posterior call (default: 1 2 4)"
    )
    parser.add_argument(
        "--size", default="640x480", metavar="WxH", help="frames are resized to it (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    add_estimator_arguments(parser)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "model\t")):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {}
    for name in (
        "hmr_prob_ros",
        "numpy",
        "opencv-python",
        "opencv-contrib-python",
        "opencv-python-headless",
        "onnxruntime",
        "mediapipe",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p50, p90, p99 and mean, rounded to microseconds."""
    values = np.asarray(milliseconds)
    quantiles = {f"p{q}": round(float(np.quantile(values, q / 100)), 3) for q in (50, 90, 99)}
    return {**quantiles, "mean": round(float(values.mean()), 3)}


def _frames(target: str | None, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """At most ``count`` frames fitted into ``size`` with black borders."""
    from importlib.util import find_spec
    from itertools import islice

    import cv2

    from ..sources import open_source

    if target is None:
        found = find_spec("skimage")
        if found is None or found.origin is None:
            raise CommandError(
                "bench needs a picture with a person: give a video or picture, or `pip install scikit-image`"
            )
        target = str(Path(found.origin).parent / "data" / "astronaut.png")
    with open_source(target) as source:
        images = [frame.image for frame in islice(source, min(count, 300))]
    frames = []
    for image in images:
        height, width = image.shape[:2]
        scale = min(size[0] / width, size[1] / height)
        small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        canvas = np.zeros((size[1], size[0], 3), np.uint8)
        top, left = (size[1] - small.shape[0]) // 2, (size[0] - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        frames.append(canvas)
    return frames


def _posterior(
    estimator: Estimator, person: Person2D, camera: Camera, people: list[int], rounds: int
) -> dict[str, Any]:
    result = {}
    for count in people:
        times = []
        for _ in range(rounds + 3):
            estimator.infer([person] * count, camera)
            times.append(sum(estimator.timings.values()))
        result[str(count)] = percentiles(times[3:])
    return result


def run(arguments: argparse.Namespace) -> int:
    check_modes(arguments)
    try:
        width, height = (int(v) for v in arguments.size.lower().split("x"))
        if min(width, height) < 32:
            raise ValueError
    except ValueError:
        raise CommandError(
            f"--size {arguments.size!r} is not WxH with sides of at least 32 pixels, like 640x480"
        ) from None
    frames = _frames(arguments.input, (width, height), arguments.frames)
    camera = Camera.guess(width, height)
    stages: dict[str, list[float]] = {}
    found = 0
    with make_estimator(arguments) as estimator:
        for frame in (frames * 5)[:5]:  # the first calls load and allocate
            estimator(frame, camera)
        for index in tqdm(range(arguments.frames), desc="bench", unit="frame", disable=arguments.quiet):
            found += len(estimator(frames[index % len(frames)], camera))
            for stage, value in estimator.timings.items():
                stages.setdefault(stage, []).append(value)
        people = (
            next((people for frame in frames if (people := estimator.detector.detect(frame))), None)
            if estimator.detector
            else None
        )
        if not people or not found:
            raise CommandError(
                "no person was found in the frames, so nothing can be timed: give a picture with a person"
            )
        result = {
            "machine": machine(),
            "when": time.strftime("%Y-%m-%d"),
            "detector": estimator.detector.name if estimator.detector else "",
            "engine": estimator.engine.name,
            "bundle": estimator.bundle.name,
            "samples": estimator.samples,
            "modes": estimator.modes,
            "image": [width, height],
            "frames": arguments.frames,
            "people": round(found / arguments.frames, 3),
            "stages_ms": {stage: percentiles(values) for stage, values in stages.items()},
            "posterior_ms": _posterior(estimator, people[0], camera, arguments.people, min(arguments.frames, 100)),
        }
    if not arguments.quiet:
        print(_table(result), file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json is not None:
        write_json(result, arguments.json)
    return 0


def _table(result: dict[str, Any]) -> str:
    info = result["machine"]
    lines = [
        f"{info['cpu']}, {info['cores']} cores; {result['image'][0]}x{result['image'][1]}, {result['detector']}, "
        f"{result['engine']}, bundle {result['bundle']}, {result['samples']} samples, {result['modes']} modes",
        f"{'ms':14}{'p50':>9}{'p90':>9}{'p99':>9}{'mean':>9}",
    ]
    rows = list(result["stages_ms"].items()) + [
        (f"posterior x{n}", value) for n, value in result["posterior_ms"].items()
    ]
    return "\n".join(
        lines + [f"{name:14}" + "".join(f"{v[k]:9.2f}" for k in ("p50", "p90", "p99", "mean")) for name, v in rows]
    )
