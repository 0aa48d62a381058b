"""``hmr-prob estimate``: a video, picture, folder or camera in, one line of JSON a frame out, and an overlay."""

from __future__ import annotations

__all__ = ["add_arguments", "frame_record", "run"]

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ..camera import Camera
from ..hypotheses import HypothesisSet
from ..skeleton import JOINT_NAMES
from . import CommandError, add_estimator_arguments, check_modes, make_estimator, positive

MICRO, PIXEL = 6, 2  # digits: micrometres and hundredths of pixels say more than any detector knows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="video file, picture, folder of pictures, /dev/videoN or a stream's address")
    parser.add_argument(
        "--camera", type=Path, metavar="YAML", help="camera_info yaml; without it the focal length is guessed"
    )
    parser.add_argument(
        "--all-samples", action="store_true", help="also write the joints and keypoints of every sample"
    )
    parser.add_argument(
        "--json", metavar="OUT.JSONL", help="one JSON line a frame; - for stdout (the default without --overlay)"
    )
    parser.add_argument("--overlay", metavar="OUT", help="video (.mp4), picture, or folder of pictures to draw into")
    parser.add_argument("--max-size", type=positive, metavar="PX", help="shrink frames whose longer side is larger")
    parser.add_argument("--max-frames", type=positive, metavar="COUNT", help="stop after so many frames")
    parser.add_argument(
        "--still", action="store_true", help="frames are unrelated pictures: forget the people after each"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    add_estimator_arguments(parser)


def frame_record(index: int, stamp: float, people: list[HypothesisSet]) -> dict[str, Any]:
    """One frame as it is written: metres in the optical frame, pixels in the image, seconds from the first frame."""
    return {"frame": index, "stamp": round(stamp, MICRO), "people": [_person_record(person) for person in people]}


def _person_record(person: HypothesisSet) -> dict[str, Any]:
    record = {
        "id": person.id,
        "score": _rounded(person.score, 4),
        "box": _rounded(person.box, PIXEL),
        "keypoints": _rounded(person.keypoints, 3),
        "joint_names": list(JOINT_NAMES),
        "weights": _rounded(person.weights, MICRO),
        "log_density": _rounded(person.log_density, 3),
        "joints": _rounded(person.joints, MICRO),
        "keypoints3d": _rounded(person.keypoints3d, MICRO),
        "mean": _rounded(person.mean, MICRO),
        "covariance": _rounded(person.covariance, 9),
        "spread": _rounded(person.spread, MICRO),
        "visibility": _rounded(person.visibility, 4),
        "rotations": _rounded(person.rotations, MICRO),
        "betas": _rounded(person.betas, 4),
        "translation": _rounded(person.translation, MICRO),
    }
    if person.samples is not None and person.samples_keypoints3d is not None:
        record["samples"] = _rounded(person.samples, MICRO)
        record["samples_keypoints3d"] = _rounded(person.samples_keypoints3d, MICRO)
    return record


def _rounded(values: Any, digits: int) -> Any:
    # float64 first: a rounded float32 would print as 0.30000001192.
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()


def _camera(path: Path | None, size: tuple[int, int]) -> Camera:
    """The camera for frames of ``size`` (width, height), scaled from the yaml's size when the shape is the same."""
    if path is None:
        return Camera.guess(*size)
    camera = Camera.from_yaml(path)
    if abs(camera.width * size[1] - camera.height * size[0]) > max(size):
        raise CommandError(
            f"{path} is for {camera.width}x{camera.height} images, but the frames have {size[0]}x{size[1]}, "
            "another shape: give the camera file of this camera and resolution"
        )
    return camera if (camera.width, camera.height) == size else camera.scaled(*size)


def _open_json(path: str, stack: ExitStack) -> TextIO:
    if path == "-":
        return sys.stdout
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(open(path, "w", encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def run(arguments: argparse.Namespace) -> int:
    from ..sources import open_source

    check_modes(arguments)
    if arguments.json is None and arguments.overlay is None:
        arguments.json = "-"
    with ExitStack() as stack:
        source = stack.enter_context(open_source(arguments.input, max_size=arguments.max_size))
        camera = _camera(arguments.camera, source.size)
        estimator = stack.enter_context(make_estimator(arguments, keep_samples=arguments.all_samples))
        lines = _open_json(arguments.json, stack) if arguments.json is not None else None
        overlay = None
        if arguments.overlay is not None:
            from .overlay import OverlayWriter

            overlay = stack.enter_context(OverlayWriter(arguments.overlay, source))
        total = source.count
        if arguments.max_frames is not None:
            total = min(arguments.max_frames, total) if total else arguments.max_frames
        frames, found, latency = 0, 0, []
        bar = stack.enter_context(tqdm(total=total, unit="frame", desc="estimate", disable=arguments.quiet))
        try:
            for frame in source:
                height, width = frame.image.shape[:2]
                if (width, height) != (camera.width, camera.height):  # a folder of pictures of several sizes
                    camera = _camera(arguments.camera, (width, height))
                if arguments.still:
                    estimator.reset()
                people = estimator(frame.image, camera, stamp=frame.stamp)
                frames, found = frames + 1, found + len(people)
                latency.append(estimator.timings["total"])
                if lines is not None:
                    lines.write(json.dumps(frame_record(frame.index, frame.stamp, people)) + "\n")
                if overlay is not None:
                    overlay.write(frame, people, camera)
                bar.update()
                if arguments.max_frames is not None and frames >= arguments.max_frames:
                    break
        except KeyboardInterrupt:  # how an endless camera is ended: what was written stays whole
            pass
    if not arguments.quiet and latency:
        guessed = "; focal length guessed, distances are rough: give --camera" if camera.guessed else ""
        print(
            f"{frames} frames, {found} people, {np.median(latency):.1f} ms a frame (p50), "
            f"{np.quantile(latency, 0.99):.1f} ms (p99){guessed}",
            file=sys.stderr,
        )
    return 0
