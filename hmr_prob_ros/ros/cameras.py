"""Which camera took a frame: the camera info with its stamp, else the newest one, else a guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..camera import Camera, CameraError
from .conversions import stamp_to_nanoseconds
from .images import CameraInfoError, camera_from_info

__all__ = ["CameraInfos"]

_KEPT = 16  # camera infos kept to find the one with the image's stamp


class CameraInfos:
    """Remembers the latest ``sensor_msgs/CameraInfo``; one thread adds them, another one asks.

    Args:
        topic: where they come from, for texts.
        complain: gets the text of an info that cannot be used; the camera is guessed then.
        warn: gets the text of the first guess, once.
    """

    def __init__(self, topic: str, complain: Callable[[str], None], warn: Callable[[str], object]) -> None:
        self._topic, self._complain, self._warn = topic, complain, warn
        self._infos: dict[int, Any] = {}
        self._newest: Any = None
        self._cache: tuple[Any, tuple[int, int], Camera] | None = None
        self._warned = False

    def add(self, info: Any) -> None:
        """A camera info came."""
        self._newest = info
        self._infos[stamp_to_nanoseconds(info.header.stamp)] = info
        while len(self._infos) > _KEPT:
            self._infos.pop(next(iter(self._infos)))

    def camera(self, stamp: int, width: int, height: int, fov: float = 0.0) -> Camera:
        """The camera of the frame with this stamp in ns and this size; 0, 0: the size that the camera info tells.

        Without a usable info it has the horizontal field of view ``fov`` in degrees; 0 guesses the focal length.

        Raises:
            CameraInfoError: neither the picture nor a camera info tells the size.
        """
        info = self._infos.get(stamp) or self._newest
        if info is not None:
            cached = self._cache
            if cached is not None and cached[1] == (width, height) and _same_optics(cached[0], info):
                return cached[2]
            try:
                camera = camera_from_info(info, width, height)
                self._cache = (info, (width, height), camera)
                return camera
            except (CameraInfoError, CameraError) as error:
                self._complain(str(error))
            width, height = width or info.width, height or info.height
        if not width or not height:
            raise CameraInfoError(
                f"keypoints came but no camera info on {self._topic}: "
                "without it neither the focal length nor the image size is known"
            )
        if fov > 0:
            return Camera.from_fov(width, height, fov)
        guess = Camera.guess(width, height)
        if not self._warned:
            self._warned = True
            self._warn(
                f"no usable camera info on {self._topic}: "
                f"the focal length is guessed as {guess.fx:.0f} px, so distances are rough; "
                "publish camera info or set the parameter camera_fov"
            )
        return guess


def _same_optics(a: Any, b: Any) -> bool:
    """Whether two camera infos differ in their stamp only."""
    if a is b:
        return True
    return (
        (a.width, a.height, a.binning_x, a.binning_y, a.distortion_model)
        == (b.width, b.height, b.binning_x, b.binning_y, b.distortion_model)
        and a.roi == b.roi
        and np.array_equal(a.k, b.k)
        and np.array_equal(a.d, b.d)
    )
