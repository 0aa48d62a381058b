"""BlazePose through mediapipe 0.10.21, the last version whose wheel carries the models: one person, no download."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..hypotheses import Person2D
from . import DetectorError, check_image
from .keypoints import person_from_keypoints

__all__ = ["MediaPipeDetector", "Window", "quiet", "search_windows"]

_BLANK = np.zeros((64, 64, 3), dtype=np.uint8)
_quiet_lock = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep native code off standard error while the graph loads: its loggers take no setting from Python."""
    with _quiet_lock:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 2)
            os.close(sink)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class Window(NamedTuple):
    """A part of the picture in pixels."""

    x: int
    y: int
    width: int
    height: int

    def holds(self, points: np.ndarray, image_size: tuple[int, int], margin: float = 0.04) -> bool:
        """Whether points (k, 2) keep off the window's border, except where that is the picture's."""
        near = margin * self.width
        low, high = points.min(0), points.max(0)
        begins = (self.x == 0 or low[0] > self.x + near) and (self.y == 0 or low[1] > self.y + near)
        right, bottom = self.x + self.width, self.y + self.height
        ends = (right >= image_size[0] or high[0] < right - near) and (
            bottom >= image_size[1] or high[1] < bottom - near
        )
        return bool(begins and ends)


def search_windows(width: int, height: int) -> list[Window]:
    """Squares to look for small people in: three of the picture's shorter side, then nine of 0.6 of it, overlapping.

    Together they cover the picture; a very wide one gets more of them.
    """
    out = []
    for share in (1.0, 0.6):
        side = max(1, int(min(width, height) * share))
        columns, rows = (
            np.linspace(0, length - side, max(3, -(-length // side)) if length > side else 1).astype(int)
            for length in (width, height)
        )
        # The middle of the picture first.
        order = sorted(((int(x), int(y)) for x in columns for y in rows), key=lambda c: abs(2 * c[0] + side - width))
        out += [Window(x, y, side, side) for x, y in order]
    return [window for window in out if (window.width, window.height) != (width, height)]


class MediaPipeDetector:
    """One person with COCO's 17 points, heels and big toes (BlazePose's foot index); small toes have confidence 0.

    The confidence of a point is the network's visibility. (Its second number, presence, does not leave this version's
    graph.) BlazePose guesses points outside the picture, with low visibility.

    Args:
        min_detection: score from which a region counts as a person. At mediapipe's own 0.5 the foot of a table
            passes for one; 0.6 together with ``min_tracking`` 0.9 reported nothing in an empty room, and missed no
            person who stands in the picture (see ``docs/decisions.md``).
        min_tracking: presence from which the landmarks count as a person, in the first frame and in later ones.
        tracking: look for the person where the last frame had one (11 instead of 17 ms); off for unrelated pictures.
        smooth: low-pass the points over time. Off by default: the filter lags and hides how unsure the detector is.
        search: look at parts of the picture, too, while nobody is found. BlazePose sees the whole picture at 224
            pixels and misses people smaller than about a third of it; with the parts it found 83 instead of 43 % of
            rendered people 3 to 8 m away. Costs one more look (7 ms) a frame while nobody is there.

    Threads: mediapipe sets its own and offers no option for it in this version.
    """

    name = "mediapipe"
    max_people = 1

    def __init__(
        self,
        min_detection: float = 0.6,
        min_tracking: float = 0.9,
        tracking: bool = True,
        smooth: bool = False,
        search: bool = True,
    ) -> None:
        for option, value in (("min_detection", min_detection), ("min_tracking", min_tracking)):
            if not 0.0 <= value <= 1.0:
                raise DetectorError(f"{option} is {value}, but it is a probability: 0 to 1")
        with quiet():
            package = importlib.import_module("mediapipe")
            if not hasattr(package, "solutions"):
                raise DetectorError(
                    f"mediapipe {getattr(package, '__version__', '?')} no longer carries BlazePose: "
                    'pip install "mediapipe==0.10.21" "numpy<2"'
                )
            # Complexity 1, the full model, is the one in the wheel; the others would be downloaded at run time.
            common = {"static_image_mode": not tracking, "model_complexity": 1, "smooth_landmarks": smooth}
            # With nothing to pass, a blank picture runs both networks: their remarks, made once, are over with.
            anything = {"min_detection_confidence": 0.0, "min_tracking_confidence": 0.0}
            with package.solutions.pose.Pose(**anything, **common) as first:
                first.process(_BLANK)
            self._pose: Any = package.solutions.pose.Pose(
                min_detection_confidence=min_detection, min_tracking_confidence=min_tracking, **common
            )
            self._pose.process(_BLANK)  # loads the models now rather than at the first picture
        self.tracking, self.search = tracking, search
        self._window: Window | None = None
        self._turn = 0
        self._followed = False
        self._lock = threading.Lock()
        self._closed = False

    def detect(self, image: np.ndarray, stamp: float | None = None) -> list[Person2D]:
        """See :class:`PoseDetector`."""
        if not check_image(image):
            return []
        height, width = image.shape[:2]
        with self._lock:
            if self._closed:
                raise DetectorError("the mediapipe detector is closed: make a new one")
            points = self._find(np.asarray(image))
        return [] if points is None else [person_from_keypoints(points, (width, height))]

    def _find(self, image: np.ndarray) -> np.ndarray | None:
        """(33, 3) landmarks of the person in the whole picture or, if there is none, in a part of it."""
        height, width = image.shape[:2]
        whole = Window(0, 0, width, height)
        window = self._window
        if window is not None and window.x + window.width <= width and window.y + window.height <= height:
            points = self._look(image, window)
            if points is not None:
                return self._follow(image, window, points)
        self._window = None
        points = self._look(image, whole)
        if points is None and self._followed:  # where the person was there is nobody now: look everywhere
            points = self._look(image, whole)
        self._followed = points is not None and self.tracking
        if points is not None or not self.search:
            return points
        parts = search_windows(width, height)
        # One part a frame in a video; all of them where there is one picture only.
        for _ in range(1 if self.tracking else len(parts)):
            part = parts[self._turn % len(parts)]
            self._turn += 1
            points = self._look(image, part)
            if points is not None:
                self._window = part
                points = self._follow(image, part, points)
                break
        if not self.tracking:
            self._window, self._turn = None, 0
        return points

    def _follow(self, image: np.ndarray, window: Window, points: np.ndarray) -> np.ndarray:
        """Move the window along when the person comes near its border, or reaches over it."""
        height, width = image.shape[:2]
        # Points outside the picture cannot be seen; one that is only outside the window may be.
        body = points[((points[:, :2] >= 0) & (points[:, :2] < (width, height))).all(-1), :2]
        if len(body) == 0 or window.holds(body, (width, height)):
            return points
        low, high = body.min(0), body.max(0)
        side = int(max(window.width, 2.0 * (high - low).max()))
        if side >= min(width, height):
            moved = Window(0, 0, width, height)
        else:
            x, y = ((low + high) / 2 - side / 2).clip(0, (width - side, height - side)).astype(int)
            moved = Window(int(x), int(y), side, side)
        # The graph remembers where the person was in the old window: the first look loses that, the second finds anew.
        again = self._look(image, moved)
        again = self._look(image, moved) if again is None else again
        self._window = moved if again is not None else None
        return points if again is None else again

    def _look(self, image: np.ndarray, window: Window) -> np.ndarray | None:
        part = image[window.y : window.y + window.height, window.x : window.x + window.width]
        landmarks = self._pose.process(np.ascontiguousarray(part)).pose_landmarks
        if landmarks is None:
            return None
        points = np.array([(p.x, p.y, p.visibility) for p in landmarks.landmark], dtype=np.float32)
        points[:, :2] = points[:, :2] * (window.width, window.height) + (window.x, window.y)
        return points if np.isfinite(points).all() else None

    def reset(self) -> None:
        """See :class:`PoseDetector`. Reloads the graph, about 80 ms."""
        with self._lock:
            if not self._closed:
                with quiet():
                    self._pose.reset()
                    self._pose.process(_BLANK)
                self._window, self._turn, self._followed = None, 0, False

    def close(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._pose.close()
