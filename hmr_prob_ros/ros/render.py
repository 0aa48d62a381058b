"""Draws a recorded run as a video: the overlay, and the people from the side and from above."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from tqdm import tqdm

from hmr_prob_ros.msg import HumanHypothesesArray

from ..camera import Camera, CameraError
from ..drawing import compose, draw_overlay, draw_side_view
from ..hypotheses import HypothesisSet
from ..video import VideoWriter, fit
from .bag import read_bag
from .conversions import hypotheses_from_msg, stamp_to_nanoseconds
from .images import CameraInfoError, ImageError, camera_from_info, image_to_rgb

__all__ = ["render_run"]


def _frames(bag: Path, image_topic: str, info_topic: str) -> Iterator[tuple[int, np.ndarray, Camera]]:
    """Stamp in ns, picture and camera of each recorded image that can be read."""
    info: CameraInfo | None = None
    for recorded in read_bag(bag, {image_topic: Image, info_topic: CameraInfo}):
        if isinstance(recorded.message, CameraInfo):
            info = recorded.message
            continue
        try:
            image = image_to_rgb(recorded.message)
        except ImageError:
            continue
        height, width = image.shape[:2]
        try:
            camera = camera_from_info(info, width, height) if info is not None else Camera.guess(width, height)
        except (CameraError, CameraInfoError):
            camera = Camera.guess(width, height)
        yield stamp_to_nanoseconds(recorded.message.header.stamp), image, camera


def render_run(
    bag: str | Path,
    path: str | Path,
    topics: tuple[str, str, str],
    latency_ms: Mapping[int, float],
    sizes: Mapping[tuple[int, int], int],
    fps: float,
    progress: bool = True,
) -> int:
    """Draw a recorded run; returns the number of frames.

    Args:
        bag: mcap file of the run.
        path: mp4 file to write.
        topics: image, camera info and hypotheses topics.
        latency_ms: stamp in ns -> latency, shown in the picture.
        sizes: (width, height) of the pictures -> number of them; the video gets the commonest one.
        fps: frames a second of the video.
        progress: show a bar.

    Raises:
        BagError, VideoError: a file cannot be read or written.
    """
    bag = Path(bag)
    image_topic, info_topic, hypotheses_topic = topics
    answers: dict[int, list[HypothesisSet]] = {
        stamp_to_nanoseconds(r.message.header.stamp): hypotheses_from_msg(r.message)
        for r in read_bag(bag, {hypotheses_topic: HumanHypothesesArray})
    }
    size = max(sizes, key=lambda s: sizes[s])
    # One scale for the whole run: a side view that zooms from frame to frame cannot be read.
    depths = [float(np.quantile(p.joints[0][:, 2], 0.9)) for people in answers.values() for p in people]
    depth = float(min(max(4, math.ceil(np.quantile(depths, 0.95) + 0.6)), 30)) if depths else None
    count, first = 0, 0
    people: list[HypothesisSet] = []
    writer: VideoWriter | None = None
    bar = tqdm(total=sum(sizes.values()), desc="drawing", unit="frame", disable=not progress, file=sys.stdout)
    try:
        for stamp, image, camera in _frames(bag, image_topic, info_topic):
            people = answers.get(stamp, people)  # a dropped frame keeps what was known
            overlay = fit(draw_overlay(image, people, camera), size)
            side = draw_side_view(people, size=(round(size[1] * 5 / 6), size[1]), depth=depth)
            frame = compose(overlay, side, frame=count, people=len(people), latency_ms=latency_ms.get(stamp))
            if writer is None:
                writer, first = VideoWriter(path, (frame.shape[1], frame.shape[0]), fps), stamp
            writer.write(frame, (stamp - first) * 1e-9)
            count += 1
            bar.update()
    finally:
        bar.close()
        if writer is not None:
            writer.close()
    return count
