"""2D person detectors: a picture goes in, people with the 23 keypoints of the design come out.

Detectors are optional parts with packages of their own, so each one is imported only when it is made:

>>> from hmr_prob_ros.detectors import DETECTORS
>>> sorted(DETECTORS)
['blazepose', 'mediapipe', 'rtmlib']
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..hypotheses import Person2D

__all__ = ["DETECTORS", "RATE", "DetectorError", "Pace", "PoseDetector", "make_detector"]

RATE = 30.0
"""Frames a second where they have no stamps."""


class DetectorError(RuntimeError):
    """A detector cannot be made or run; the text says why and what to do."""


@runtime_checkable
class PoseDetector(Protocol):
    """What the estimator asks of a detector. Calls from several threads are safe; they wait for each other."""

    name: str
    max_people: int

    def detect(self, image: np.ndarray, stamp: float | None = None) -> list[Person2D]:
        """People in ``image`` (H, W, 3) uint8 **RGB**, best first; an empty list where there is nobody.

        Points guessed outside the picture keep their place and their low confidence. ``stamp`` is when the picture was
        taken, in seconds; without it frames come :data:`RATE` times a second. (A detector of your own may leave
        ``stamp`` out; the estimator then does not give it.)
        """
        ...

    def reset(self) -> None:
        """Forget earlier frames: a new clip begins, or time has jumped."""
        ...

    def close(self) -> None:
        """Free the models. The detector cannot be used after that."""
        ...


class Pace:
    """When to look at the whole picture again: every so many frames or, where that is given, seconds.

    Args:
        every: frames, 1 for each of them.
        seconds: in place of frames; None counts frames.

    Raises:
        DetectorError: ``every`` is no whole number above 0, or ``seconds`` no number from 0 to 3600.

    >>> pace = Pace(3)
    >>> [pace.due() for _ in range(7)]
    [True, False, False, True, False, False, True]
    """

    def __init__(self, every: int, seconds: float | None = None) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every <= 10**6:
            raise DetectorError(f"every is {every!r}, but it must be a whole number from 1 to {10**6}")
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 <= seconds <= 3600):
            raise DetectorError(f"seconds is {seconds!r}, but it must be a time from 0 to 3600 s, or None")
        self.every, self.seconds = every, seconds
        self.now = 0.0
        """Time of the last frame in seconds."""
        self._frames = 0
        self._since: float | None = None

    def due(self, stamp: float | None = None) -> bool:
        """Count a frame taken at ``stamp``; True if it is time, and then the next turn begins."""
        self.now = self.now + 1 / RATE if stamp is None else float(stamp)
        self._frames += 1
        if self._since is not None:
            passed = self._frames if self.seconds is None else self.now - self._since
            wanted = self.every if self.seconds is None else self.seconds - 1e-6
            if 0 <= passed < wanted:
                return False
        self.restart()
        return True

    def restart(self) -> None:
        """The next turn begins with the frame counted last."""
        self._frames, self._since = 0, self.now

    def reset(self) -> None:
        """The next frame is due."""
        self.now, self._frames, self._since = 0.0, 0, None


class _Entry(NamedTuple):
    module: str
    factory: str
    needs: str
    """The third-party module that must be importable."""
    install: str


DETECTORS: dict[str, _Entry] = {
    "blazepose": _Entry(".blazepose", "BlazePoseDetector", "ai_edge_litert", "pip install ai-edge-litert"),
    "mediapipe": _Entry(".mediapipe", "MediaPipeDetector", "mediapipe", 'pip install "mediapipe==0.10.21" "numpy<2"'),
    "rtmlib": _Entry(".rtmlib", "RtmlibDetector", "rtmlib", 'pip install "rtmlib>=0.0.16" onnxruntime'),
}
"""Detectors by name. Add an entry to bring in one of your own."""


def make_detector(name: str, **options: Any) -> PoseDetector:
    """Make the detector ``name``.

    Args:
        name: a key of :data:`DETECTORS`.
        options: passed on to the detector's class.

    Raises:
        DetectorError: no such detector, its package is missing (with the command that installs it), or an option
            that it does not know or a value that it cannot have.
    """
    if name not in DETECTORS:
        raise DetectorError(f"unknown detector '{name}': choose one of {', '.join(sorted(DETECTORS))}")
    entry = DETECTORS[name]
    try:
        importlib.import_module(entry.needs)
    except ImportError as error:
        raise DetectorError(
            f"detector '{name}' needs the package {entry.needs}, which cannot be imported ({error}): {entry.install}"
        ) from error
    factory = getattr(importlib.import_module(entry.module, __name__), entry.factory)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(factory).parameters)
        raise DetectorError(f"detector '{name}': {error}; its options are {known}") from error
    try:
        detector: PoseDetector = factory(**options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise DetectorError(
            f"detector '{name}' cannot be made with {given or 'its defaults'} ({error}): check the options' values"
        ) from error
    return detector


def check_image(image: np.ndarray) -> bool:
    """True if there is a picture to look at, False for an empty one.

    Raises:
        DetectorError: not an (H, W, 3) uint8 array.
    """
    image = np.asarray(image)
    if image.size == 0:
        return False
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DetectorError(f"a detector takes (H, W, 3) uint8 RGB pictures, not {image.shape} {image.dtype}")
    return True
