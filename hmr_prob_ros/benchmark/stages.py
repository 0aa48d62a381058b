"""The whole line in this process: frame in, bytes of the message out, stage by stage."""

from __future__ import annotations

__all__ = ["find_person", "fit", "message_writer", "read_frames", "stages"]

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..arguments import CommandError
from ..camera import Camera
from ..camera import condition as condition_of
from ..estimator import Estimator
from ..hypotheses import HypothesisSet, Person2D
from ..sources import open_source
from .measure import Meter, percentiles

_MOST_FRAMES = 300  # kept in memory; they are played again and again


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) fitted into (width, height) with black borders."""
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = (size[1] - small.shape[0]) // 2, (size[0] - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def read_frames(target: str | None, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """At most ``count`` frames of a video or picture, each (height, width, 3) RGB; None: scikit-image's astronaut.

    Raises:
        CommandError: no input is given and scikit-image is not installed.
        SourceError: the input cannot be read.
    """
    if target is None:
        found = find_spec("skimage")
        if found is None or found.origin is None:
            raise CommandError(
                "bench needs a picture with a person: give a video or picture, or `pip install scikit-image`"
            )
        target = str(Path(found.origin).parent / "data" / "astronaut.png")
    with open_source(target) as source:
        return [fit(frame.image, size) for frame in islice(source, min(count, _MOST_FRAMES))]


def find_person(estimator: Estimator, frames: Sequence[np.ndarray], camera: Camera) -> Person2D:
    """The first person who is seen well enough to be worked on.

    Raises:
        CommandError: there is nobody in the frames.
    """
    if estimator.detector is not None:
        for frame in frames:
            for person in estimator.detector.detect(frame):
                if condition_of(person.keypoints, camera) is not None:
                    return person
    raise CommandError("no person was found in the frames, so nothing can be timed: give a picture with a person")


def message_writer(bundle: str, body_hash: str) -> Callable[[list[HypothesisSet]], bytes] | None:
    """What turns the people of a frame into the bytes of a message; None where ROS is not installed."""
    try:
        from ..ros.cdr import FrameHeader, Stamp, serialize_people
    except ImportError:
        return None

    def write(people: list[HypothesisSet]) -> bytes:
        nanoseconds = time.time_ns()
        header = FrameHeader(Stamp(nanoseconds // 10**9, nanoseconds % 10**9), "camera_optical_frame")
        return serialize_people(people, header, bundle=bundle, body_hash=body_hash).hypotheses

    return write


def stages(
    estimator: Estimator, frames: Sequence[np.ndarray], camera: Camera, count: int, progress: bool = True
) -> dict[str, Any]:
    """``count`` frames through an estimator with a detector, after five that load and allocate.

    Returns:
        ``detector``, ``engine``, ``people`` a frame, ``stages_ms`` (percentiles of detect, track, condition, infer,
        assemble, message where ROS is installed, total), ``posterior_share`` (condition, infer and assemble of the
        total), ``cpu_load``, ``memory_mb``, and ``message_bytes``.
    """
    if estimator.detector is None:
        raise ValueError("stages are measured with a detector")
    write = message_writer(estimator.bundle.name, estimator.bundle.body_hash)
    for frame in (list(frames) * 5)[:5]:
        people = estimator(frame, camera)
        if write is not None:
            write(people)
    took: dict[str, list[float]] = {}
    found, size = 0, 0
    name = estimator.detector.name
    with Meter() as meter:
        for index in tqdm(range(count), desc=f"frames, {name}", unit="frame", disable=not progress):
            people = estimator(frames[index % len(frames)], camera)
            found += len(people)
            row = dict(estimator.timings)
            if write is not None:
                start = time.perf_counter()
                size = max(size, len(write(people)))
                row["message"] = 1e3 * (time.perf_counter() - start)
                row["total"] += row["message"]
            row["total"] = row.pop("total")  # last
            for stage, value in row.items():
                took.setdefault(stage, []).append(value)
    posterior = sum(float(np.sum(took[stage])) for stage in ("condition", "infer", "assemble"))
    return {
        "detector": name,
        "engine": estimator.engine.name,
        "people": round(found / count, 3),
        "stages_ms": {stage: percentiles(values) for stage, values in took.items()},
        "posterior_share": round(posterior / max(float(np.sum(took["total"])), 1e-9), 4),
        "frames_per_second": round(1e3 / max(float(np.mean(took["total"])), 1e-9), 1),
        **meter.summary(),
        **({"message_bytes": size} if write is not None else {}),
    }
