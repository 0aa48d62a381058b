"""(e) Four people at once with the rtmlib detector: the rate, and the posterior's share."""

from __future__ import annotations

__all__ = ["four_people"]

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import cv2
import numpy as np
from common import SIZE, Bench, Skipped
from processes import parameters

from hmr_prob_ros.benchmark.stages import stages
from hmr_prob_ros.detectors import DetectorError, make_detector
from launch import run_processes


def mosaic(frames: Sequence[np.ndarray], boxes: np.ndarray) -> list[np.ndarray]:
    """Frames with four people in them: each shows four moments of the clip, two by two, every second one mirrored.

    What surrounds the person, who is in ``boxes`` (N, 4), is cut away first, so that people stay large.
    """
    width, height = SIZE[0] // 2, SIZE[1] // 2
    left, top, right, bottom = _around(boxes)
    small = [cv2.resize(f[top:bottom, left:right], (width, height), interpolation=cv2.INTER_AREA) for f in frames]
    count, quarter = len(small), max(len(small) // 4, 1)

    def tile(index: int, place: int) -> np.ndarray:
        image = small[(index + place * quarter) % count]
        return image[:, ::-1] if place % 2 else image

    return [np.vstack([np.hstack([tile(i, 0), tile(i, 1)]), np.hstack([tile(i, 2), tile(i, 3)])]) for i in range(count)]


def _around(boxes: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest part of a picture with its aspect that holds all boxes, a little wider."""
    size = np.array(SIZE)
    low, high = boxes[:, :2].min(axis=0).clip(0, size), boxes[:, 2:].max(axis=0).clip(0, size)
    part = size * min(1.1 * float(((high - low) / size).max()), 1.0)
    start = np.clip((low + high - part) / 2, 0, size - part)
    left, top, right, bottom = np.rint(np.concatenate([start, start + part])).astype(int).tolist()
    return left, top, right, bottom


def four_people(bench: Bench) -> dict[str, Any]:
    """In this process, and where ROS 2 is installed across processes."""
    options = bench.options
    if not options.rtmlib:
        raise Skipped("no weights: give --rtmlib detector=YOLOX.onnx pose=TINYPOSE.onnx")
    with closing(make_detector(options.detector, **options.detector_options)) as seeing:
        boxes = [person.box for frame in bench.frames for person in seeing.detect(frame)[:1]]
    if not boxes:
        raise Skipped(f"{options.detector} sees nobody in the clip")
    frames = mosaic(bench.frames, np.array(boxes))
    try:
        detector = make_detector("rtmlib", **options.rtmlib)
    except DetectorError as error:
        raise Skipped(str(error)) from error
    with bench.estimator(detector) as estimator:
        result: dict[str, Any] = {"in_process": stages(estimator, frames, bench.camera, options.rounds)}
    chosen = {"detector": "rtmlib", "detector_options": _quoted(options.rtmlib)}
    try:
        run = run_processes(bench.clip("four", frames), parameters(bench, **chosen), options.seconds)
        result["processes"] = run.summary()
    except Skipped as error:
        result["processes"] = {"skipped": str(error)}
    return result


def _quoted(values: dict[str, Any]) -> str:
    """A parameter that holds YAML is a string in YAML."""
    import json

    return json.dumps(json.dumps(values))
