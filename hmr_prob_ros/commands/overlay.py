"""Where the overlays of ``hmr-prob estimate`` go: a video, one picture, or a folder of pictures."""

from __future__ import annotations

__all__ = ["OverlayWriter"]

from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from ..camera import Camera
from ..drawing import compose, draw_overlay, draw_side_view
from ..hypotheses import HypothesisSet
from ..sources import PICTURES, Frame, FrameSource
from ..video import VideoWriter
from . import CommandError

_VIDEOS = (".mp4", ".mkv", ".mov", ".avi")


class OverlayWriter:
    """Draws frames and writes them to ``target``; what it is follows from its ending.

    Raises:
        CommandError: the target cannot be written, or is one picture for a source of many.
    """

    def __init__(self, target: str, source: FrameSource) -> None:
        self.path = Path(target)
        self.video: VideoWriter | None = None
        self.picture = self.path.suffix.lower() in PICTURES
        if self.picture and source.kind != "picture":
            raise CommandError(
                f"--overlay {target} is one picture, but the input has many frames: give a .mp4 file or a folder"
            )
        self.is_video = self.path.suffix.lower() in _VIDEOS
        self.rate = source.fps
        try:
            (self.path.parent if self.picture or self.is_video else self.path).mkdir(parents=True, exist_ok=True)
            if self.is_video:
                self.path.write_bytes(b"")  # a path that cannot be written must not cost a whole run
        except OSError as error:
            raise CommandError(f"cannot write {target}: {error.strerror}") from error

    def write(self, frame: Frame, people: list[HypothesisSet], camera: Camera) -> None:
        """Draw one frame, with the side view beside it."""
        height = frame.image.shape[0]
        side = draw_side_view(people, (max(240, round(0.8 * height)), height))
        image = compose(draw_overlay(frame.image, people, camera), side, frame=frame.index, people=len(people))
        if not self.is_video:
            self._picture(self.path if self.picture else self.path / f"{frame.index:06d}.jpg", image)
            return
        if self.video is None:
            self.video = VideoWriter(self.path, (image.shape[1], image.shape[0]), self.rate)
        self.video.write(image, frame.stamp)

    @staticmethod
    def _picture(path: Path, image: np.ndarray) -> None:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if not done:
            raise CommandError(f"OpenCV cannot write pictures that end in {path.suffix}: use .png")
        try:
            path.write_bytes(data.tobytes())
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.video is not None:
            self.video.close()
