"""BlazePose's two networks on LiteRT, without mediapipe's graph: several people, and less time for each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..hypotheses import Person2D
from . import DetectorError, check_image
from .blazepose_networks import (
    COMPLEXITIES,
    LandmarkNetwork,
    Landmarks,
    OneEuro,
    PersonNetwork,
    read_networks,
    region_from_points,
)
from .keypoints import person_from_keypoints
from .mediapipe import Window, search_windows

__all__ = ["BlazePoseDetector"]

_TRUNK = [11, 12, 23, 24]  # shoulders and hips among BlazePose's points
_MOST_PEOPLE = 32


class _Track:
    """One person from frame to frame: what was seen last, and the region to look at next."""

    points: np.ndarray
    """(33, 3) pixels and visibility."""
    size: float
    """Diameter of the body in pixels."""
    jump: float
    """Way of the region's middle since the last frame, in sizes of the region."""

    def __init__(self, region: np.ndarray, seen: Landmarks, smooth: bool) -> None:
        self.region = region
        self._next = OneEuro(0.01, 10.0)
        self._points = OneEuro(0.05, 80.0) if smooth else None
        self._visible: np.ndarray | None = None
        self.move(seen)

    def move(self, seen: Landmarks) -> None:
        """Go on to what the landmark network has seen in the region."""
        before = self.region
        centre, reach = seen.next
        self.size = float(region_from_points(centre, reach, expand=1.0)[2])
        self.region = region_from_points(*self._next(seen.next, self.size))
        self.jump = float(np.linalg.norm(self.region[:2] - before[:2]) / before[2])
        self.points = seen.points
        if self._points is not None:
            self.points = self.points.copy()
            self.points[:, :2] = self._points(seen.points[:, :2].astype(np.float64), self.size)
            if self._visible is not None:
                self.points[:, 2] = 0.1 * seen.points[:, 2] + 0.9 * self._visible
            self._visible = self.points[:, 2]

    def is_at(self, region: np.ndarray) -> bool:
        """Whether a region (4,), its turn aside, is this person's: more than 0.6 of their union is shared."""
        sides = np.array([self.region[2], region[2]])
        shared = (sides.mean() - np.abs(self.region[:2] - region[:2])).clip(0, sides.min()).prod()
        return bool(shared > 0.6 * ((sides**2).sum() - shared))

    def is_same(self, other: _Track) -> bool:
        """Whether both have one trunk's middle, or half of their points, to a tenth of the smaller body."""
        near = 0.1 * min(self.size, other.size)
        apart = self.points[:, :2] - other.points[:, :2]
        half = np.median(np.linalg.norm(apart, axis=-1))
        return bool(half < near or np.linalg.norm(apart[_TRUNK].mean(0)) < near)


class BlazePoseDetector:
    """The points of :class:`MediaPipeDetector` from the same networks, for one person or several.

    One network finds people in the picture, the other sees each of them in a turned square. The square of the next
    frame follows from the points of this one, so the first network runs only while somebody may be missing: when
    nobody is there or somebody was lost, and, where there is room for more, every so many frames.

    Args:
        min_detection: score from which a region counts as a person.
        min_tracking: presence from which the landmarks count as a person, in the first frame and in later ones.
            For both see :class:`MediaPipeDetector`.
        tracking: look for people where the last frame had them; off for unrelated pictures.
        smooth: low-pass the points over time, as mediapipe does at 30 frames a second. Off by default: the filter
            lags and hides how unsure the detector is.
        search: look at parts of the picture, too, while nobody is found (one part a frame in a video, all of them
            without ``tracking``): people smaller than about a third of the picture are not found in the whole of it.
        max_people: highest number of people. Each of them costs a run of the landmark network.
        every: with room for more people, look for newcomers every so many frames, by turns in the whole picture and
            in each part of it (once a frame in the first round, after somebody came or was lost). Without
            ``tracking`` each picture is looked at in all its parts: some 100 ms.
        complexity: 0 lite, 1 full or 2 heavy landmark network. mediapipe 0.10.21 carries 1.
        models: where the networks are, if not in an installed mediapipe: a folder or a ``.task`` file, see
            :func:`hmr_prob_ros.detectors.blazepose_networks.read_networks`.
        threads: of the runtime, for each network.
    """

    name = "blazepose"

    def __init__(
        self,
        min_detection: float = 0.6,
        min_tracking: float = 0.9,
        tracking: bool = True,
        smooth: bool = False,
        search: bool = True,
        max_people: int = 1,
        every: int = 10,
        complexity: int = 1,
        models: str | Path | None = None,
        threads: int = 1,
    ) -> None:
        for option, share in (("min_detection", min_detection), ("min_tracking", min_tracking)):
            if not 0.0 <= share <= 1.0:
                raise DetectorError(f"{option} is {share}, but it is a probability: 0 to 1")
        ranges = {"max_people": (max_people, 1, _MOST_PEOPLE), "every": (every, 1, 10**6), "threads": (threads, 1, 64)}
        ranges["complexity"] = (complexity, 0, len(COMPLEXITIES) - 1)
        for option, (value, low, high) in ranges.items():
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise DetectorError(f"{option} is {value!r}, but it must be a whole number from {low} to {high}")
        self.min_detection, self.min_tracking = min_detection, min_tracking
        self.tracking, self.smooth, self.search = tracking, smooth and tracking, search
        self.max_people, self.every = max_people, every
        persons, landmarks = read_networks(models, complexity)
        self._persons: PersonNetwork | None = PersonNetwork(*persons, threads=threads)
        self._landmarks: LandmarkNetwork | None = LandmarkNetwork(*landmarks, threads=threads)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._tracks: list[_Track] = []
        self._waited = self._looks = self._turn = 0

    @property
    def runs(self) -> tuple[int, int]:
        """How often the person network and the landmark network have run."""
        with self._lock:
            return (self._persons.runs, self._landmarks.runs) if self._persons and self._landmarks else (0, 0)

    def detect(self, image: np.ndarray) -> list[Person2D]:
        """See :class:`PoseDetector`."""
        if not check_image(image):
            return []
        image = np.ascontiguousarray(image)
        height, width = image.shape[:2]
        with self._lock:
            if self._persons is None or self._landmarks is None:
                raise DetectorError("the blazepose detector is closed: make a new one")
            before = len(self._tracks)
            self._follow(image, self._landmarks)
            if len(self._tracks) < self.max_people:
                for window in self._windows(width, height, lost=len(self._tracks) < before):
                    self._welcome(image, window, self._persons, self._landmarks)
                    if len(self._tracks) == self.max_people:
                        break
            people = [person_from_keypoints(track.points, (width, height)) for track in self._tracks]
            if not self.tracking:
                self._forget()
        return sorted(people, key=lambda person: -person.score)

    def _follow(self, image: np.ndarray, network: LandmarkNetwork) -> None:
        """Look at everybody again; forget who is not there any more."""
        kept: list[_Track] = []
        for track in self._tracks:
            seen = network.look(image, track.region) if track.region[2] > 1 else None
            if seen is not None and seen.presence > self.min_tracking:
                track.move(seen)
                kept.append(track)
        # Where one person has walked behind another, both are seen on the one in front, who moved on steadily.
        kept = [a for a in kept if not any(b.jump < a.jump and a.is_same(b) for b in kept)]
        self._tracks = kept

    def _windows(self, width: int, height: int, lost: bool) -> Iterator[Window]:
        """Where to look for people now; asked for the next one while there is room for more."""
        whole = Window(0, 0, width, height)
        parts = search_windows(width, height) if self.search else []
        if not self.tracking:
            yield whole
            yield from parts
            return
        if lost or not self._tracks:
            self._waited = self._looks = 0
            yield whole
            if self._tracks:
                return
            places = parts
        else:
            # Once a frame all round after somebody came, then from time to time.
            places = [whole, *parts]
            self._waited += 1
            if self._looks >= len(places) and self._waited < self.every:
                return
            self._waited = 0
            self._looks += 1
        if places:
            self._turn += 1
            yield places[(self._turn - 1) % len(places)]

    def _welcome(self, image: np.ndarray, window: Window, persons: PersonNetwork, network: LandmarkNetwork) -> None:
        """Take up the people in a window who are not known yet."""
        part = image[window.y : window.y + window.height, window.x : window.x + window.width]
        regions = persons.find(part, self.min_detection) + (window.x, window.y, 0, 0)
        new = [region for region in regions if region[2] > 1 and not any(t.is_at(region) for t in self._tracks)]
        for region in new[: self.max_people - len(self._tracks) + 1]:  # one to spare: the best may be a table's foot
            # A region made of a part of somebody known goes over to the whole of them at a second look.
            for _ in range(2 if self._tracks else 1):
                seen = network.look(image, region)
                if seen is None or seen.presence <= self.min_tracking:
                    break
                track = _Track(region, seen, self.smooth)
                if any(track.is_same(known) for known in self._tracks):
                    break
                region = track.region
            else:
                self._tracks.append(track)
            if len(self._tracks) == self.max_people:
                break

    def reset(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            self._forget()

    def close(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            self._persons = self._landmarks = None
            self._forget()
