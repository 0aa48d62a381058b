"""Which camera took a frame: the camera info with its stamp, else the newest one that fits it, else a guess."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..camera import Camera, CameraError
from .conversions import stamp_to_nanoseconds
from .images import MOST_CHARACTERS, CameraInfoError, camera_from_info, shown

__all__ = ["CameraInfos"]

_MOST_COEFFICIENTS = 14  # OpenCV's fullest distortion model
_KEPT = 16  # camera infos kept to find the one of the image


class CameraInfos:
    """Remembers the latest ``sensor_msgs/CameraInfo``; one thread adds them, another one asks.

    Of those from the image's own frame, the one with its stamp counts, else the newest one of its size, else the
    newest one. Infos from other frames count only where none comes from the image's.

    Args:
        topic: where they come from, for texts.
        complain: gets the text of an info that cannot be used; the camera is guessed then.
        warn: gets the text of a guess, and of an info from another frame.
    """

    def __init__(self, topic: str, complain: Callable[[str], None], warn: Callable[[str], object]) -> None:
        self._topic, self._complain, self._warn = topic, complain, warn
        self._lock = threading.Lock()
        self._infos: dict[tuple[int, str], Any] = {}
        self._cache: tuple[Any, tuple[int, int], Camera] | None = None
        self._warned: set[str] = set()
        self.trouble = ""
        """What is wrong with the info of the latest frame."""
        self.focal_length = ""
        """Of the latest frame: ``known``, ``field of view`` or ``guessed``."""

    def add(self, info: Any) -> None:
        """A camera info came; one of absurd size is not kept."""
        if len(info.header.frame_id) > MOST_CHARACTERS or len(info.d) > _MOST_COEFFICIENTS:
            self._complain(
                f"camera info on {self._topic} was not used, its frame_id has {len(info.header.frame_id)} characters "
                f"and d {len(info.d)} coefficients: at most {MOST_CHARACTERS} and {_MOST_COEFFICIENTS} make sense"
            )
            return
        key = stamp_to_nanoseconds(info.header.stamp), info.header.frame_id
        with self._lock:
            self._infos.pop(key, None)
            self._infos[key] = info
            if len(self._infos) > _KEPT:
                del self._infos[next(iter(self._infos))]

    def camera(self, stamp: int, frame_id: str, width: int, height: int, fov: float = 0.0) -> Camera:
        """The camera of the frame with this stamp in ns, this frame and this size.

        Without a usable info it has the horizontal field of view ``fov`` in degrees; 0 guesses the focal length.

        Args:
            width, height: of the picture; 0, 0 for the size that the camera info tells.

        Raises:
            CameraInfoError: neither the picture nor a camera info tells the size.
        """
        info, trouble = self._find(stamp, frame_id, width, height), ""
        if info is not None:
            cached = self._cache
            try:
                if cached is not None and cached[1] == (width, height) and _same_optics(cached[0], info):
                    camera = cached[2]
                else:
                    camera = camera_from_info(info, width, height)
                    self._cache = (info, (width, height), camera)
            except (CameraInfoError, CameraError) as error:
                trouble = str(error)
                self._complain(trouble)
            else:
                self.trouble, self.focal_length = "", "known"
                if info.header.frame_id != frame_id:
                    self._say_once(
                        f"camera info on {self._topic} has the frame {shown(info.header.frame_id)}, the image "
                        f"{shown(frame_id)}: if they belong to two cameras, all distances are wrong; set "
                        "camera_info_topic"
                    )
                return camera
            width, height = width or info.width, height or info.height
        self.trouble, self.focal_length = trouble, ""
        if not width or not height:
            raise CameraInfoError(
                f"keypoints came but no camera info on {self._topic}: "
                "without it neither the focal length nor the image size is known"
            )
        if fov > 0:
            self.focal_length = "field of view"
            return Camera.from_fov(width, height, fov)
        self.focal_length = "guessed"
        guess = Camera.guess(width, height)
        self._say_once(
            f"no usable camera info on {self._topic}: "
            f"the focal length is guessed as {guess.fx:.0f} px, so distances are rough; "
            "publish camera info or set the parameter camera_fov",
            "guess",
        )
        return guess

    def _find(self, stamp: int, frame_id: str, width: int, height: int) -> Any:
        with self._lock:
            exact = self._infos.get((stamp, frame_id))
            if exact is not None:
                return exact
            infos = list(self._infos.values())
        if not infos:
            return None
        own = [info for info in infos if info.header.frame_id == frame_id] or infos
        for info in reversed(own):
            if (info.width, info.height) == (width, height):
                return info
        return own[-1]

    def _say_once(self, text: str, kind: str = "") -> None:
        if (kind or text) not in self._warned and len(self._warned) < 100:
            self._warned.add(kind or text)
            self._warn(text)


def _same_optics(a: Any, b: Any) -> bool:
    """Whether two camera infos differ in their header only."""
    if a is b:
        return True
    return (
        (a.width, a.height, a.binning_x, a.binning_y, a.distortion_model)
        == (b.width, b.height, b.binning_x, b.binning_y, b.distortion_model)
        and a.roi == b.roi
        and np.array_equal(a.k, b.k)
        and np.array_equal(a.d, b.d)
    )
