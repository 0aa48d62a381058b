"""Probabilistic 3D human hypotheses for robots: camera frames in, weighted bodies and joint uncertainty out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .body import Body
    from .bundle import Bundle
    from .camera import Camera
    from .estimator import Estimator
    from .hypotheses import HypothesisSet, Person2D

__all__ = ["Body", "Bundle", "Camera", "Estimator", "HypothesisSet", "Person2D"]

_HOMES = {
    "Body": ".body",
    "Bundle": ".bundle",
    "Camera": ".camera",
    "Estimator": ".estimator",
    "HypothesisSet": ".hypotheses",
    "Person2D": ".hypotheses",
}


def __getattr__(name: str) -> Any:
    # Loaded at first use: the training half and the messages must not pull in the runtime's engines and detectors.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
