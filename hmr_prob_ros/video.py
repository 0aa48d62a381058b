"""Writes RGB frames to a video: H.264 through PyAV where it is installed, else MPEG-4 through OpenCV."""

from __future__ import annotations

__all__ = ["VideoError", "VideoWriter", "fit", "require_h264"]

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

_TIME_BASE = Fraction(1, 90_000)  # as in MPEG: whole numbers for 24, 25, 30 and 60 Hz


class VideoError(RuntimeError):
    """The video cannot be written; the text names the file and the mend."""


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` scaled into (width, height) with a black border where the shape differs."""
    width, height = size
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    canvas = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[y : y + inner[1], x : x + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    return canvas


def require_h264() -> None:
    """For whoever does not want the MPEG-4 that OpenCV writes.

    Raises:
        VideoError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise VideoError("writing H.264 needs PyAV: pip install 'hmr_prob_ros[demo]'") from error


class VideoWriter:
    """A video whose frames have times of their own; frames of another size are fitted in with a border.

    PyAV's H.264 plays everywhere. OpenCV's wheels can only write MPEG-4 part 2, which players but not browsers show,
    and with it every frame lasts ``1 / rate``.

    Args:
        path: file to write, ``.mp4`` or another container's ending.
        size: width and height in pixels; made even, as yuv420p needs it.
        rate: frames a second.
        crf, preset: of x264: quality (lower is better) and how long it may look for a smaller file.

    Raises:
        VideoError: the file cannot be written.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int], rate: float = 30.0, *, crf: int = 21, preset: str = "veryfast"
    ) -> None:
        self.path = Path(path)
        self.size = (max(2, size[0] - size[0] % 2), max(2, size[1] - size[1] % 2))
        self._stream: Any = None
        self._last = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        except OSError as error:
            raise VideoError(f"cannot write the video {self.path}: {error.strerror}; choose another folder") from error
        try:
            import av
        except ImportError:
            self._sink: Any = self._opencv(rate)
            return
        try:
            self._sink = av.open(str(self.path), "w")
            self._stream = self._sink.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        except (ValueError, OSError, av.error.FFmpegError):  # FFmpeg without x264, or an ending that it does not know
            self._stream = None
            self._sink = self._opencv(rate)
            return
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE
        self._stream.options = {"preset": preset, "crf": str(crf)}

    def _opencv(self, rate: float) -> cv2.VideoWriter:
        sink = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), rate, self.size)
        if not sink.isOpened():
            raise VideoError(f"cannot write the video {self.path}: use the ending .mp4, or `pip install av`")
        return sink

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Add an (H, W, 3) uint8 RGB frame shown from ``seconds`` on; times must grow."""
        image = fit(image, self.size)
        if self._stream is None:
            self._sink.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            return
        import av

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._last = max(self._last + 1, round(seconds / _TIME_BASE))
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._sink.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds; more than once does no harm."""
        if self._sink is None:
            return
        if self._stream is None:
            self._sink.release()
        else:
            self._sink.mux(self._stream.encode(None))
            self._sink.close()
        self._sink = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
