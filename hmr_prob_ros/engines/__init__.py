"""Engines: what runs a bundle's graph. Each runtime has a file of its own and is imported only when asked for."""

from __future__ import annotations

__all__ = [
    "CPU",
    "ENGINES",
    "PRECISIONS",
    "DeviceError",
    "Engine",
    "EngineError",
    "engine_or_fallback",
    "make_engine",
    "unavailable",
    "usual_threads",
]

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

logger = logging.getLogger(__name__)

CPU = "onnxruntime"
"""The engine that runs everywhere."""

ENGINES: dict[str, tuple[str, str]] = {
    CPU: ("onnxruntime", "OnnxRuntimeEngine"),
    "onnxruntime-cuda": ("onnxruntime", "OnnxRuntimeEngine"),
    "onnxruntime-tensorrt": ("onnxruntime", "OnnxRuntimeEngine"),
    "tensorrt": ("tensorrt", "TensorRtEngine"),
}
"""Name -> (module in this package, class). ``auto`` is a name too: TensorRT where it can run, else ``CPU``."""

PRECISIONS = ("fp32", "tf32", "fp16")
"""What an engine may be asked to compute in; which of them it can do differs."""

_PROVIDERS = {"onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}
_PACKAGES = {"tensorrt": "'hmr_prob_ros[tensorrt]'"}


class EngineError(RuntimeError):
    """A graph cannot be loaded or run; the text names the input or the file and the mend."""


class DeviceError(EngineError):
    """The device or its runtime failed, not the graph and not the call."""


@runtime_checkable
class Engine(Protocol):
    """Runs one graph.

    ``name`` tells the runtime and its device. ``run`` takes every input of the graph by name, float32, and gives the
    outputs asked for (None: all). An engine that is slow at the first call with new shapes has, besides,
    ``warm_up(calls, outputs=None)``, which makes those calls.
    """

    name: str

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]: ...


def make_engine(name: str, model_path: str | Path, **options: Any) -> Engine:
    """An engine holding the graph of ``model_path``.

    Args:
        name: a key of ``ENGINES``, or ``auto``: TensorRT where it can run, else ONNX Runtime on the CPU, as
            :func:`engine_or_fallback` does it.
        model_path: an ONNX file.
        options: of the engine; ``threads`` (0: its own choice) and ``precision`` are known to all.

    Raises:
        EngineError: unknown engine, runtime not installed, precision not available, or the graph cannot be loaded.
    """
    if name == "auto":
        return engine_or_fallback(name, model_path, logger.info, **options)
    _check_name(name)
    module, attribute = ENGINES[name]
    try:
        engine_class = getattr(importlib.import_module(f".{module}", __name__), attribute)
    except ImportError as error:
        package = _PACKAGES.get(name, name)
        raise EngineError(
            f"the engine {name} needs a package that is missing ({error}): pip install {package}"
        ) from error
    if name in _PROVIDERS:
        options = {"provider": _PROVIDERS[name], **options}
    engine: Engine = engine_class(model_path, **options)
    return engine


def _check_name(name: str) -> None:
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: choose one of {', '.join(ENGINES)}, or auto")


def usual_threads(samples: int) -> int:
    """Threads of an engine on the CPU for so many samples of a person; 0: its own choice.

    Up to 256 samples waking a second thread takes longer than it saves: 2.0 ms with one, 2.0 to 3.6 with two for 100
    samples of one person (and 6.3 to 5.6 for four people), which keep another core from the detector besides.
    """
    return 1 if samples <= 256 else 0


def unavailable(name: str) -> str:
    """Why an engine cannot run here, in one line with the mend; "" where it can.

    A GPU provider of ONNX Runtime that is installed may still fail to start; only making the engine tells.
    """
    _check_name(name)
    module = ENGINES[name][0]
    try:
        imported = importlib.import_module(f".{module}", __name__)
    except ImportError as error:
        return f"a package is missing ({error}): pip install {_PACKAGES.get(name, name)}"
    text = imported.unavailable(_PROVIDERS[name]) if name in _PROVIDERS else getattr(imported, "unavailable", str)()
    return " ".join(str(text).split())


def engine_or_fallback(
    name: str, model_path: str | Path, say: Callable[[str], Any] = logger.warning, **options: Any
) -> Engine:
    """An engine that ends on the CPU rather than with an error: for a node or a command that has to go on.

    Where the engine cannot be made, ``say`` gets the reason in one line, and ONNX Runtime on the CPU takes its place;
    likewise where the engine fails at its first call, or three times in a row later on.

    Args:
        name, model_path, options: as of :func:`make_engine`; ``auto`` is ``tensorrt`` here.
        say: told the reason, in one line.

    Raises:
        EngineError: an unknown engine or precision, or a graph that the CPU cannot run either.
    """
    name = "tensorrt" if name == "auto" else name
    _check_name(name)
    precision, threads = options.get("precision", "fp32"), options.get("threads", 0)
    if precision not in PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if name == CPU:
        if precision != "fp32":
            say(f"the engine {CPU} computes in fp32 only, not in {precision}")
        return make_engine(CPU, model_path, threads=threads)
    try:
        primary = make_engine(name, model_path, **options)
    except Exception as error:  # a GPU's libraries raise more than EngineErrors where they are broken
        say(f"engine {name} cannot run here, {CPU} on the CPU (fp32) takes its place: {_line(error)}")
        return make_engine(CPU, model_path, threads=threads)
    return _Substituted(primary, lambda: make_engine(CPU, model_path, threads=threads), say)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Substituted:
    """An engine with a substitute on the CPU, for good once it failed too often."""

    patience = 3

    def __init__(self, engine: Engine, make: Callable[[], Engine], say: Callable[[str], Any]) -> None:
        self._engine, self._make, self._say, self.name = engine, make, say, engine.name
        self._failures, self._worked, self._substituted = 0, False, False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine, name)  # warm_up, input_names and the like

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As :meth:`Engine.run`; raises what the engine raises until its substitute has taken over."""
        try:
            result = self._engine.run(inputs, outputs)
        except DeviceError as error:
            self._failures += 1
            if self._substituted or (self._worked and self._failures < self.patience):
                raise
            self._say(f"engine {self.name} failed, {CPU} on the CPU (fp32) takes its place: {_line(error)}")
            self._engine, self._substituted = self._make(), True
            self.name = self._engine.name
            result = self._engine.run(inputs, outputs)
        self._failures, self._worked = 0, True
        return result

    def warm_up(self, calls: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None = None) -> None:
        """Through :meth:`run`, so that an engine that fails here is replaced before the first frame."""
        if hasattr(self._engine, "warm_up"):
            for inputs in calls:
                self.run(inputs, outputs)
