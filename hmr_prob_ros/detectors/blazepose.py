"""BlazePose's two networks on LiteRT, without mediapipe's graph: several people, and less time for each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..hypotheses import Person2D
from . import DetectorError, Pace, check_image
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
_EYES, _EYES_EARS, _MOUTH = [2, 5], [2, 5, 7, 8], [9, 10]
_MOST_PEOPLE = 32
_GREY = (127, 127, 127)
_REMEMBER = 2.0  # seconds for which a lost person is looked for at the place
_NEARER = 1.2  # by how much a newcomer must be larger to take somebody's place


class _Track:
    """One person from frame to frame: what was seen last, and the region to look at next."""

    points: np.ndarray
    """(33, 3) pixels and visibility."""
    size: float
    """Diameter of the body in pixels."""
    jump: float
    """Way of the region's middle since the last frame, in sizes of the region."""

    def __init__(self, region: np.ndarray, seen: Landmarks, smooth: bool, sure: bool = True) -> None:
        self.sure = sure
        """Whether to report the person: what was found beside others must be there in the next frame, too."""
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
    nobody is there, for two seconds after somebody was lost about the place (every second frame), and for newcomers
    every so many frames.

    Args:
        min_detection: score from which a region counts as a person.
        min_tracking: presence from which the landmarks count as a person, in the first frame and in later ones.
            For both see :class:`MediaPipeDetector`.
        tracking: look for people where the last frame had them; off for unrelated pictures.
        smooth: low-pass the points over time, as mediapipe does at 30 frames a second. Off by default: the filter
            lags and hides how unsure the detector is.
        search: look at parts of the picture, too, while nobody is found (one part a frame in a video, all of them
            without ``tracking``): people smaller than about a third of the picture are not found in the whole of it.
        max_people: highest number of people. Each of them costs a run of the landmark network. A newcomer who is a
            fifth larger in the picture, so nearer, takes the place of the smallest one.
        every: look for newcomers every so many frames, by turns in the whole picture and in each part of it (with room
            for more people once a frame in the first round, after somebody came or was lost). Without ``tracking``
            each picture is looked at in all its parts: some 100 ms.
        seconds: look for newcomers every so many seconds instead.
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
        seconds: float | None = None,
        complexity: int = 1,
        models: str | Path | None = None,
        threads: int = 1,
    ) -> None:
        for option, share in (("min_detection", min_detection), ("min_tracking", min_tracking)):
            if not 0.0 <= share <= 1.0:
                raise DetectorError(f"{option} is {share}, but it is a probability: 0 to 1")
        ranges = {"max_people": (max_people, 1, _MOST_PEOPLE), "threads": (threads, 1, 64)}
        ranges["complexity"] = (complexity, 0, len(COMPLEXITIES) - 1)
        for option, (value, low, high) in ranges.items():
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise DetectorError(f"{option} is {value!r}, but it must be a whole number from {low} to {high}")
        self.min_detection, self.min_tracking = min_detection, min_tracking
        self.tracking, self.smooth, self.search = tracking, smooth and tracking, search
        self.max_people = max_people
        self._pace = Pace(every, seconds)
        persons, landmarks = read_networks(models, complexity)
        self._persons: PersonNetwork | None = PersonNetwork(*persons, threads=threads)
        self._landmarks: LandmarkNetwork | None = LandmarkNetwork(*landmarks, threads=threads)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._tracks: list[_Track] = []
        self._lost: list[tuple[np.ndarray, float]] = []
        self._looks = self._turn = 0
        self._pace.reset()

    @property
    def runs(self) -> tuple[int, int]:
        """How often the person network and the landmark network have run."""
        with self._lock:
            return (self._persons.runs, self._landmarks.runs) if self._persons and self._landmarks else (0, 0)

    def detect(self, image: np.ndarray, stamp: float | None = None) -> list[Person2D]:
        """See :class:`PoseDetector`."""
        if not check_image(image):
            return []
        image = np.ascontiguousarray(image)
        height, width = image.shape[:2]
        with self._lock:
            if self._persons is None or self._landmarks is None:
                raise DetectorError("the blazepose detector is closed: make a new one")
            due = self._pace.due(stamp)
            lost = self._follow(image, self._landmarks)
            for window in self._windows(width, height, lost, due):
                self._welcome(image, window, self._persons, self._landmarks)
            people = [person_from_keypoints(track.points, (width, height)) for track in self._tracks if track.sure]
            if not self.tracking:
                self._forget()
        return sorted(people, key=lambda person: -person.score)

    def _follow(self, image: np.ndarray, network: LandmarkNetwork) -> bool:
        """Look at everybody again; True where somebody who was reported is not there any more."""
        kept: list[_Track] = []
        places = {id(track): track.region for track in self._tracks if track.sure}
        for track in self._tracks:
            seen = network.look(image, track.region) if track.region[2] > 1 else None
            if seen is not None and seen.presence > self.min_tracking:
                track.move(seen)
                track.sure = True
                kept.append(track)
        # Where one person has walked behind another, both are seen on the one in front, who moved on steadily.
        kept = [a for a in kept if not any(b.jump < a.jump and a.is_same(b) for b in kept)]
        gone = set(places) - {id(track) for track in kept}
        now = self._pace.now
        self._lost = [(region, since) for region, since in self._lost if 0 <= now - since <= _REMEMBER]
        self._lost += [(places[one], now) for one in gone]
        if len(kept) > self.max_people:  # somebody nearer has come
            kept = sorted(kept, key=lambda track: -track.size)[: self.max_people]
        self._tracks = kept
        return bool(gone)

    def _windows(self, width: int, height: int, lost: bool, due: bool) -> Iterator[Window]:
        """Where to look for people now; nowhere else once there is no room for more."""
        whole = Window(0, 0, width, height)
        parts = search_windows(width, height) if self.search else []
        if not self.tracking:
            for window in (whole, *parts):
                if len(self._tracks) < self.max_people:
                    yield window
            return
        room = len(self._tracks) < self.max_people
        self._turn += 1
        if lost or not self._tracks:
            self._looks = 0
            yield whole
            if not self._tracks and parts:
                about = self._about_the_lost(width, height)
                places = about if about and self._turn % 2 else parts
                yield places[self._turn // (2 if about else 1) % len(places)]
            return
        # With room for more, once a frame all round after somebody came; later, and without, from time to time.
        places = [whole, *parts]
        about = [whole, *self._about_the_lost(width, height)] if room and self._lost else []
        if about and self._turn % 2:
            yield about[self._turn // 2 % len(about)]
        elif due or (room and self._looks < len(places)):
            self._looks += 1
            self._pace.restart()
            yield places[self._looks % len(places)]

    def _about_the_lost(self, width: int, height: int) -> list[Window]:
        """Squares about the places where people were lost."""
        out = []
        for region, _ in self._lost:
            side = min(max(2, round(1.6 * region[2])), width, height)
            x, y = (region[:2] - side / 2).clip(0, (width - side, height - side))
            out.append(Window(int(x), int(y), side, side))
        return out

    def _welcome(self, image: np.ndarray, window: Window, persons: PersonNetwork, network: LandmarkNetwork) -> None:
        """Take up the people in a window who are not known yet, where there is room or they are nearer than others."""
        part = self._without_the_known(image)[window.y : window.y + window.height, window.x : window.x + window.width]
        regions = persons.find(part, self.min_detection) + (window.x, window.y, 0, 0)
        new = [region for region in regions if region[2] > 1 and not any(t.is_at(region) for t in self._tracks)]
        for region in new[: max(self.max_people - len(self._tracks), 0) + 1]:  # one to spare: it may be a table's foot
            least = self._smallest()
            if least is not None and region[2] < _NEARER * least.region[2]:
                continue
            # A region made of a part of somebody known goes over to the whole of them at a second look.
            for _ in range(2 if self._tracks else 1):
                seen = network.look(image, region)
                if seen is None or seen.presence <= self.min_tracking:
                    break
                track = _Track(region, seen, self.smooth, sure=not (self._tracks and self.tracking))
                if any(track.is_same(known) for known in self._tracks):
                    break
                region = track.region
            else:
                if least is not None and track.size < _NEARER * least.size:
                    continue
                near = [np.linalg.norm(region[:2] - place[:2]) < 2 * region[2] for place, _ in self._lost]
                if any(near):  # found again
                    del self._lost[near.index(True)]
                self._tracks.append(track)

    def _without_the_known(self, image: np.ndarray) -> np.ndarray:
        """The picture with everybody known painted over: the network sees mostly one of two people close together."""
        if not self._tracks:
            return image
        out = image.copy()
        for track in self._tracks:
            points = track.points[:, :2]
            scalp = points[_EYES_EARS] + 2 * (points[_EYES].mean(0) - points[_MOUTH].mean(0))  # no point lies so high
            hull = cv2.convexHull(np.rint(np.concatenate([points, scalp]).clip(-1e5, 1e5)).astype(np.int32))
            cv2.fillConvexPoly(out, hull, _GREY)
            cv2.polylines(out, [hull], True, _GREY, int(np.clip(0.06 * track.size, 1, 255)))
        return out

    def _smallest(self) -> _Track | None:
        """The person who has to make room for a nearer one, None while there is room."""
        return min(self._tracks, key=lambda track: track.size) if len(self._tracks) >= self.max_people else None

    def reset(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            self._forget()

    def close(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            self._persons = self._landmarks = None
            self._forget()
