"""From parameters to an estimator that is warm, in a thread of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from ..bundle import Bundle
from ..camera import Camera
from ..detectors import make_detector
from ..engines import engine_or_fallback, usual_threads
from ..estimator import Estimator
from ..tracking import Tracker
from .complaints import listening
from .parameters import Settings

__all__ = [
    "Load",
    "Loading",
    "Prepared",
    "give_memory_back",
    "load_estimator",
    "settle_memory",
    "tune",
    "with_samples",
]

Load: TypeAlias = Callable[[Settings, Callable[[str], object]], Estimator]
"""Settings, and what takes a warning -> an estimator."""


class Prepared(NamedTuple):
    """What a change of parameters leads to."""

    settings: Settings
    estimator: Estimator | None


def load_estimator(settings: Settings, warn: Callable[[str], object]) -> Estimator:
    """The estimator that the parameters ask for; its detector and its engine have seen their first, slow frame.

    Raises:
        ParameterError, BundleError, DetectorError, EngineError: it cannot be had; the text names the mend.
    """
    options = settings.options()
    if settings.detector in ("blazepose", "rtmlib"):
        # Each person costs it a run of its network; both keep those who are largest in the picture.
        options.setdefault("max_people", min(settings.max_people, 32))
    bundle = Bundle.load(settings.bundle or None)  # before the detector: it loads faster and fails more often
    detector = None if settings.detector == "topic" else make_detector(settings.detector, **options)
    try:
        # An engine that has to be built is built here, and none is ever built for a frame.
        engine = engine_or_fallback(
            settings.engine,
            bundle.model_path,
            warn,
            threads=settings.engine_threads or usual_threads(settings.samples),
            precision=settings.precision,
        )
        estimator = Estimator(
            bundle,
            detector=detector,
            engine=engine,
            samples=settings.samples,
            modes=settings.modes,
            seed=settings.seed,
        )
        tune(estimator, settings)
        if detector is not None:
            estimator(np.zeros((480, 640, 3), np.uint8), Camera.guess(640, 480))
            estimator.reset()
    except BaseException:
        if detector is not None:
            detector.close()
        raise
    return estimator


def with_samples(estimator: Estimator, settings: Settings) -> Estimator:
    """The same bundle, detector, engine and tracks with the samples, modes and seed of the settings.

    Raises:
        ValueError, EngineError, BundleError: the engine cannot serve so many.
    """
    other = Estimator(
        estimator.bundle,
        detector=estimator.detector,
        engine=estimator.engine,
        samples=settings.samples,
        modes=settings.modes,
        seed=settings.seed,
        tracker=estimator.tracker,
    )
    tune(other, settings)
    return other


def tune(estimator: Estimator, settings: Settings) -> None:
    """Set what may change between two frames."""
    estimator.max_people = settings.max_people
    estimator.tracker.max_age = settings.identity_memory
    estimator.tracker.colours = Tracker().colours if settings.identity_by_clothes else 1.0


def settle_memory() -> None:
    """What lives now lives for good: without it a full collection in the middle of a frame costs up to 50 ms."""
    gc.collect()
    gc.freeze()


def give_memory_back() -> None:
    """Undo :func:`settle_memory`, and give the system what is free; glibc keeps it otherwise."""
    gc.unfreeze()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Loading:
    """An estimator in the making: it may take minutes (an engine is built) or never end (a download that hangs).

    Args:
        make: gives the estimator.
        listener: of what is logged meanwhile (:func:`.complaints.listening`).
        discard: gets an estimator that nobody waits for any more.
    """

    def __init__(
        self,
        make: Callable[[], Estimator],
        listener: Callable[[int, str], None],
        discard: Callable[[Estimator], None] = Estimator.close,
    ) -> None:
        self._make, self._listener, self._discard = make, listener, discard
        self._lock = threading.Lock()
        self._estimator: Estimator | None = None
        self._error: Exception | None = None
        self._unwanted = False
        self._thread = threading.Thread(target=self._work, name="load", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with listening(self._listener):
                estimator = self._make()
        except Exception as error:
            self._error = error
            return
        with self._lock:
            if not self._unwanted:
                self._estimator = estimator
                return
        self._discard(estimator)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Estimator:
        """Hand over the estimator, once it is :attr:`done`; raises what its making raised."""
        if self._error is not None:
            raise self._error
        estimator, self._estimator = self._estimator, None
        if estimator is None:
            raise RuntimeError("the estimator is not there: it was given up, handed over or is not done")
        return estimator

    def wait(self, go_on: Callable[[], bool], timeout: float | None = None) -> Estimator | None:
        """The estimator, or None where ``go_on()`` became false or ``timeout`` seconds passed: then it is given up."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.done:
            self._thread.join(0.05)
            if not go_on() or (end is not None and time.monotonic() > end):
                self.give_up()
                return None
        return self.result()

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._unwanted = True
            estimator, self._estimator = self._estimator, None
        if estimator is not None:
            self._discard(estimator)
