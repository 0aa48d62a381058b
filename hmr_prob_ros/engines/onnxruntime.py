"""ONNX Runtime on the CPU."""

from __future__ import annotations

__all__ = ["OnnxRuntimeEngine"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from . import EngineError

_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
}
_MOST_THREADS = 2


def default_threads() -> int:
    """Two where this process may use two cores: the graph is small, more threads wait more than they work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime, CPU.

    Args:
        model_path: the ONNX file.
        threads: of one run, 0 for :func:`default_threads`.
        spinning: let idle threads spin. It saves some tenths of a millisecond a run, and burns whole cores that a
            robot has other work for, so it is off.

    Raises:
        EngineError: the file is missing, truncated or no ONNX graph, or ``threads`` is negative.
    """

    def __init__(self, model_path: str | Path, threads: int = 0, spinning: bool = False) -> None:
        path = Path(model_path)
        if threads < 0:
            raise EngineError(f"threads must be 0 (own choice) or more, not {threads}")
        if not path.is_file():
            raise EngineError(f"no graph at {path}: point to a bundle made with `hmr-prob export`")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a class of its own for every cause
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise EngineError(
                f"{path} cannot be loaded ({reason}): it is truncated or no ONNX graph, "
                "export it again with `hmr-prob export`"
            ) from error
        self.path = path
        self.threads = options.intra_op_num_threads
        self.name = f"onnxruntime {ort.__version__} CPU"
        self._inputs = {item.name: (item.shape, item.type) for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]

    @property
    def input_names(self) -> list[str]:
        """Inputs of the graph."""
        return list(self._inputs)

    @property
    def output_names(self) -> list[str]:
        """Outputs of the graph."""
        return list(self._outputs)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the graph.

        Args:
            inputs: an array for every input of the graph.
            outputs: names of those to hand out; None for all.

        Raises:
            EngineError: an input or output is unknown or missing, or has a wrong type or shape.
        """
        wanted = self._outputs if outputs is None else list(outputs)
        for name in wanted:
            if name not in self._outputs:
                raise EngineError(f"{self.path} has no output {name!r}: it has {', '.join(self._outputs)}")
        feeds = self._checked(inputs)
        try:
            values = self._session.run(wanted, feeds)
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            raise EngineError(f"{self.path} failed on {shapes}: {str(error).splitlines()[0][:300]}") from error
        return dict(zip(wanted, values, strict=True))

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        unknown = [name for name in inputs if name not in self._inputs]
        if unknown:
            raise EngineError(f"{self.path} has no input {', '.join(unknown)}: it takes {', '.join(self._inputs)}")
        feeds: dict[str, np.ndarray] = {}
        sizes: dict[str, tuple[int, str]] = {}
        for name, (shape, kind) in self._inputs.items():
            if name not in inputs:
                raise EngineError(f"input {name!r} of {self.path} is missing: it takes {', '.join(self._inputs)}")
            value = inputs[name]
            if not isinstance(value, np.ndarray):
                raise EngineError(f"input {name!r} must be a numpy array, not {type(value).__name__}")
            declared = ", ".join(str(size) for size in shape)
            if kind in _TYPES and value.dtype != _TYPES[kind]:
                kind = str(_TYPES[kind])
                raise EngineError(f"input {name!r} must be {kind}, not {value.dtype}: use .astype(np.{kind})")
            if value.ndim != len(shape):
                raise EngineError(f"input {name!r} must have shape ({declared}), not {value.shape}")
            for size, wanted in zip(value.shape, shape, strict=True):
                if isinstance(wanted, int):
                    if size != wanted:
                        raise EngineError(f"input {name!r} must have shape ({declared}), not {value.shape}")
                elif size == 0:
                    raise EngineError(f"input {name!r} is empty: its shape is {value.shape}")
                elif sizes.setdefault(wanted, (size, name))[0] != size:
                    raise EngineError(
                        f"input {name!r} has {wanted} = {size}, "
                        f"but {sizes[wanted][1]!r} has {wanted} = {sizes[wanted][0]}"
                    )
            feeds[name] = np.ascontiguousarray(value)
        return feeds
