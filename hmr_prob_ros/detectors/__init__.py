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

__all__ = ["DETECTORS", "DetectorError", "PoseDetector", "make_detector"]


class DetectorError(RuntimeError):
    """A detector cannot be made or run; the text says why and what to do."""


@runtime_checkable
class PoseDetector(Protocol):
    """What the estimator asks of a detector. Calls from several threads are safe; they wait for each other."""

    name: str
    max_people: int

    def detect(self, image: np.ndarray) -> list[Person2D]:
        """People in ``image`` (H, W, 3) uint8 **RGB**, best first; an empty list where there is nobody.

        Points guessed outside the picture keep their place and their low confidence.
        """
        ...

    def reset(self) -> None:
        """Forget earlier frames: a new clip begins, or time has jumped."""
        ...

    def close(self) -> None:
        """Free the models. The detector cannot be used after that."""
        ...


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
