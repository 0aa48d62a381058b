"""Where frames come from: a video, a picture, a folder of pictures, a camera or a stream.

Every source is an iterator of :class:`Frame`; the ``hmr-prob estimate`` command and the camera player both read one.
"""

from __future__ import annotations

__all__ = ["Frame", "FrameSource", "SourceError", "open_source"]

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np

logger = logging.getLogger(__name__)

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Endings of the files that count as pictures in a folder."""

DEFAULT_FPS = 30.0
"""Rate of a folder of pictures, and of a video that does not tell its own."""

MAX_FPS = 1000.0
"""Some containers give their time base (90,000) as a frame rate: a rate above this is not believed."""


class SourceError(ValueError):
    """The input cannot be read; the text says what it is and how to mend it."""


class Frame(NamedTuple):
    """One picture: its number from 0, its time in seconds from the first one, and ``image`` (H, W, 3) uint8 RGB."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    stamp: float
    image: np.ndarray


def shrink(image: np.ndarray, max_size: int | None) -> np.ndarray:
    """``image`` with its longer side at most ``max_size`` pixels; never enlarged."""
    height, width = image.shape[:2]
    if max_size is None or max(height, width) <= max_size:
        return image
    scale = max_size / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort key that puts ``frame_9.png`` before ``frame_10.png``."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", path.name) if part]


class FrameSource:
    """An open source of frames; made by :func:`open_source`.

    Attributes:
        name: what was opened, for messages.
        kind: ``"picture"``, ``"folder"``, ``"video"`` or ``"camera"`` (endless).
        fps: frames a second.
        count: number of frames where it is known beforehand, else None (of a video, what its header claims).
        size: (width, height) in pixels of the first frame as it is given out.

    It is a context manager and may be iterated once for cameras, any number of times for everything else.
    """

    def __init__(
        self, name: str, kind: str, fps: float, count: int | None, max_size: int | None, first: np.ndarray
    ) -> None:
        self.name = name
        self.kind = kind
        self.fps = fps
        self.count = count
        self.max_size = max_size
        height, width = shrink(first, max_size).shape[:2]
        self.size = (width, height)

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Give the device or file back; more than once does no harm."""

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _frame(self, index: int, stamp: float, bgr: np.ndarray) -> Frame:
        return Frame(index, stamp, cv2.cvtColor(shrink(bgr, self.max_size), cv2.COLOR_BGR2RGB))


def _read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR; grey, 16-bit and transparent pictures are converted, EXIF turns are applied."""
    # imdecode and not imread: imread fails on non-ASCII paths on some platforms and says nothing about why.
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SourceError(f"cannot read the picture {path}: {error.strerror}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise SourceError(
            f"{path} is not a picture that OpenCV can decode (empty, truncated or of another format): convert it to png"
        )
    return image


class _Pictures(FrameSource):
    def __init__(self, name: str, kind: str, paths: list[Path], fps: float, max_size: int | None) -> None:
        self.paths = paths
        self._first: np.ndarray | None = _read_picture(paths[0])
        super().__init__(name, kind, fps, len(paths), max_size, self._first)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            kept, self._first = self._first, None
            yield self._frame(index, index / self.fps, _read_picture(path) if index or kept is None else kept)


class _Video(FrameSource):
    def __init__(self, target: str, max_size: int | None, fps: float | None) -> None:
        self.target = target
        self.capture: cv2.VideoCapture | None = cv2.VideoCapture(target)
        if not self.capture.isOpened():
            raise SourceError(
                f"the video {target} cannot be opened: it is truncated, empty or of a codec that OpenCV does not have; "
                f"try `ffmpeg -i {target} -c:v libx264 -pix_fmt yuv420p mended.mp4`"
            )
        ok, first = self.capture.read()
        if not ok:
            raise SourceError(
                f"the video {target} holds no frame that can be decoded: check it with `ffprobe {target}`"
            )
        told = float(self.capture.get(cv2.CAP_PROP_FPS))
        rate = fps or (told if 0 < told <= MAX_FPS else DEFAULT_FPS)
        frames = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(target, "video", rate, frames if frames > 0 else None, max_size, first)
        self._first: np.ndarray | None = first

    def __iter__(self) -> Iterator[Frame]:
        bgr, self._first = self._first, None
        if bgr is None:  # a second pass opens the file again: seeking is inexact with some codecs
            self.close()
            self.capture = cv2.VideoCapture(self.target)
            bgr = self.capture.read()[1]
        index, start, stamp = 0, 0.0, 0.0
        while bgr is not None and self.capture is not None:
            # The container's own time, where it tells one that goes forward (variable frame rates).
            told = float(self.capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
            if index == 0:
                start = told
            else:
                stamp = told - start if told - start > stamp else stamp + 1 / self.fps
            yield self._frame(index, stamp, bgr)
            index += 1
            ok, bgr = self.capture.read() if self.capture is not None else (False, None)
            if not ok:
                break
        if self.count is not None and index < 0.9 * self.count:
            logger.warning("%s ended after %d of %d frames: it is truncated or damaged", self.name, index, self.count)

    def close(self) -> None:
        if self.capture is not None:
            self.capture.release()
            self.capture = None


class _Camera(FrameSource):
    def __init__(self, target: str, max_size: int | None, fps: float | None) -> None:
        device = re.fullmatch(r"/dev/video(\d+)", target)
        self.capture: cv2.VideoCapture | None = cv2.VideoCapture(int(device.group(1)) if device else target)
        if not self.capture.isOpened():
            raise SourceError(
                f"the camera {target} cannot be opened: is it plugged in, used by another program, or closed to "
                "this user (`sudo usermod -aG video $USER`)? `v4l2-ctl --list-devices` lists what is there"
            )
        if fps:
            self.capture.set(cv2.CAP_PROP_FPS, fps)
        self.capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not an old one
        ok, first = self.capture.read()
        if not ok:
            raise SourceError(f"the camera {target} gives no picture: unplug it and plug it in again")
        told = float(self.capture.get(cv2.CAP_PROP_FPS))
        super().__init__(target, "camera", fps or (told if 0 < told <= MAX_FPS else DEFAULT_FPS), None, max_size, first)

    def __iter__(self) -> Iterator[Frame]:
        start, index, failures = time.monotonic(), 0, 0
        while self.capture is not None:
            ok, bgr = self.capture.read()
            stamp = time.monotonic() - start
            if not ok:
                failures += 1
                if failures >= 30:
                    raise SourceError(
                        f"the camera {self.name} stopped giving pictures after {index} frames: is it still plugged in?"
                    )
                time.sleep(0.03)
                continue
            failures = 0
            yield self._frame(index, stamp, bgr)
            index += 1

    def close(self) -> None:
        if self.capture is not None:
            self.capture.release()
            self.capture = None


def open_source(target: str | Path, max_size: int | None = None, fps: float | None = None) -> FrameSource:
    """Open a video file, a picture, a folder of pictures, ``/dev/videoN`` or a stream's address.

    Args:
        target: path, device or address (``rtsp://``, ``http://``).
        max_size: longest side of the frames in pixels; larger ones are shrunk, smaller ones left alone.
        fps: rate of a folder of pictures or a camera (for a video: used only where it has no times of its own).

    Returns:
        A source whose first frame was already read, so that a broken input fails here and not later.

    Raises:
        SourceError: there is no such input, it cannot be decoded, or it holds no frame.
    """
    name = str(target)
    if max_size is not None and max_size < 16:
        raise SourceError(f"max_size is {max_size} pixels: it must be at least 16")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise SourceError(f"fps is {fps}: it must lie between 0 and {MAX_FPS:g}")
    if re.fullmatch(r"/dev/video\d+", name) or "://" in name:
        if name.startswith("/dev/") and not Path(name).exists():
            there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
            raise SourceError(f"there is no camera {name}; cameras of this machine: {there}")
        return _Camera(name, max_size, fps)
    path = Path(name)
    if path.is_dir():
        paths = sorted(
            (p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")), key=_natural
        )
        if not paths:
            raise SourceError(f"the folder {path} holds no pictures ({', '.join(sorted(PICTURES))})")
        return _Pictures(name, "folder", paths, fps or DEFAULT_FPS, max_size)
    if not path.is_file():
        raise SourceError(f"there is no input {name}: give a video, a picture, a folder of pictures or /dev/video0")
    if path.stat().st_size == 0:
        raise SourceError(f"{name} is empty (0 bytes): copy it again")
    if path.suffix.lower() in PICTURES:
        return _Pictures(name, "picture", [path], fps or DEFAULT_FPS, max_size)
    return _Video(name, max_size, fps)
