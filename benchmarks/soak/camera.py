"""The camera of the soak: a clip without end, commands on standard input, and a note of every frame that is sent.

    python camera.py CLIP --log FILE

Commands, one a line: ``play``, ``pause``, ``once`` (one frame), ``back SECONDS`` (stamps lie so far back), ``focal
FACTOR`` and ``info nan`` or ``info good`` (what the camera info says). FILE gets two int64 a frame: its stamp, and the
time at which it was sent, in ns. The end of the input ends the camera.
"""

from __future__ import annotations

__all__ = ["SoakCamera", "main"]

import argparse
import contextlib
import dataclasses
import itertools
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import ExternalShutdownException
from rclpy.time import Time as ClockTime

from hmr_prob_ros.camera import Camera
from hmr_prob_ros.ros.camera_player import CameraPlayer
from hmr_prob_ros.sources import FrameSource, open_source


class SoakCamera(CameraPlayer):
    """Plays when it is told to, and breaks as it is told to.

    Args:
        log: gets a record for each frame.
        optics: the camera that its infos tell of.
    """

    def __init__(self, log: BinaryIO, optics: Camera) -> None:
        super().__init__()
        self._log, self._optics = log, optics
        self._left: int | None = 0  # frames that may be played, None: all
        self._back = 0
        self._focal, self._nan = 1.0, False

    def obey(self, line: str) -> None:
        """Carry out one command; for any thread."""
        word, *values = line.split()
        if word in ("play", "pause", "once"):
            self._left = {"play": None, "pause": 0, "once": 1}[word]
        elif word == "back":
            self._back = round(float(values[0]) * 1e9)
        elif word == "focal":
            self._focal = float(values[0])
        elif word == "info":
            self._nan = values[0] == "nan"
        else:
            raise ValueError(f"the camera knows no command {line!r}")

    def pictures(self, source: FrameSource) -> Iterator[np.ndarray]:
        """The pictures of a clip again and again, none while it pauses."""
        for frame in itertools.chain.from_iterable(itertools.repeat(source)):
            while self._left == 0:
                self._check()
                time.sleep(0.02)
            if self._left is not None:
                self._left -= 1
            yield frame.image

    def load(self, image: np.ndarray) -> None:
        optics = self._optics
        self.camera = dataclasses.replace(optics, fx=self._focal * optics.fx, fy=self._focal * optics.fy)
        super().load(image)
        if self._nan:
            self._info.k = np.full(9, np.nan)

    def stamp(self) -> Time:
        now = self.get_clock().now().nanoseconds
        self._log.write(struct.pack("<qq", now - self._back, now))
        return ClockTime(nanoseconds=now - self._back).to_msg()


def _optics(clip: Path, size: tuple[int, int], chosen: Path | None) -> Camera:
    """The camera asked for, else that beside the clip, else one of 60 degrees that says that it is known."""
    beside = clip.with_suffix(".yaml")
    if chosen is not None or beside.is_file():
        return Camera.from_yaml(chosen or beside).scaled(*size)
    return Camera.from_fov(*size, 60.0)


def main() -> int:
    """Play until the input ends or a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("clip", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--camera", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")  # the cores are for the node
    with open_source(str(options.clip), max_size=640) as source, options.log.open("wb", buffering=0) as log:
        rclpy.init()
        camera = SoakCamera(log, _optics(options.clip, source.size, options.camera))

        def listen() -> None:
            # Not sys.stdin: its lock, held by this thread, would break the interpreter's end.
            with open(0, "rb", buffering=0, closefd=False) as commands:
                for line in commands:
                    camera.obey(line.decode())
            rclpy.try_shutdown()

        threading.Thread(target=listen, daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
            camera.play(camera.pictures(source), options.rate, live=False)
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
