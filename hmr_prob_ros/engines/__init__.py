"""Engines: what runs a bundle's graph. Each runtime has a file of its own and is imported only when asked for."""

from __future__ import annotations

__all__ = ["ENGINES", "Engine", "EngineError", "make_engine"]

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

ENGINES: dict[str, tuple[str, str]] = {"onnxruntime": ("onnxruntime", "OnnxRuntimeEngine")}
"""Name -> (module in this package, class)."""


class EngineError(RuntimeError):
    """A graph cannot be loaded or run; the text names the input or the file and the mend."""


@runtime_checkable
class Engine(Protocol):
    """Runs one graph.

    ``name`` tells the runtime and its device. ``run`` takes every input of the graph by name, float32, and gives the
    outputs asked for (None: all).
    """

    name: str

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]: ...


def make_engine(name: str, model_path: str | Path, **options: Any) -> Engine:
    """An engine holding the graph of ``model_path``.

    Args:
        name: a key of ``ENGINES``.
        model_path: an ONNX file.
        options: of the engine; ``threads`` (0: its own choice) is known to all.

    Raises:
        EngineError: unknown engine, runtime not installed, or the graph cannot be loaded.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: choose one of {', '.join(ENGINES)}")
    module, attribute = ENGINES[name]
    try:
        engine_class = getattr(importlib.import_module(f".{module}", __name__), attribute)
    except ImportError as error:
        raise EngineError(f"the engine {name} needs a package that is missing ({error}): pip install {name}") from error
    engine: Engine = engine_class(model_path, **options)
    return engine
