"""ONNX Runtime, on the CPU or through its CUDA and TensorRT providers."""

from __future__ import annotations

__all__ = ["OnnxRuntimeEngine", "default_threads", "unavailable"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from . import DeviceError, EngineError
from .inputs import Signature, checked_inputs, checked_outputs

_TYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
}
_MOST_THREADS = 2
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_PRECISIONS = {
    "cpu": ("fp32",),
    "cuda": ("fp32", "tf32", "fp16"),
    # It builds weakly typed networks: half precision would reach the densities too.
    "tensorrt": ("fp32",),
}


def default_threads() -> int:
    """Two where this process may use two cores: the graph is small, more threads wait more than they work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def unavailable(provider: str = "cpu") -> str:
    """Why this installation has no such provider, with the mend; "" where it has."""
    if _PROVIDERS[provider] in ort.get_available_providers():
        return ""
    return (
        f"this onnxruntime {ort.__version__} has no provider {_PROVIDERS[provider]} (it has "
        f"{', '.join(ort.get_available_providers())}): on a machine with an NVIDIA GPU, "
        "pip uninstall onnxruntime && pip install onnxruntime-gpu"
    )


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime.

    Args:
        model_path: the ONNX file.
        threads: of one run on the CPU, 0 for :func:`default_threads`.
        spinning: let idle threads spin. It saves some tenths of a millisecond a run, and burns whole cores that a
            robot has other work for, so it is off.
        provider: ``cpu``, ``cuda`` or ``tensorrt`` (which also needs TensorRT's libraries).
        precision: ``fp32``; ``cuda`` also knows ``tf32`` and ``fp16`` (the networks in half precision).
        cache: folder for the engines of ``tensorrt``; None: the user's cache folder.

    Raises:
        EngineError: the file is missing, truncated or no ONNX graph, ``threads`` is negative, or the provider or the
            precision is not available.
    """

    def __init__(
        self,
        model_path: str | Path,
        threads: int = 0,
        spinning: bool = False,
        provider: str = "cpu",
        precision: str = "fp32",
        cache: str | Path | None = None,
    ) -> None:
        path = Path(model_path)
        if threads < 0:
            raise EngineError(f"threads must be 0 (own choice) or more, not {threads}")
        if provider not in _PROVIDERS:
            raise EngineError(f"unknown provider {provider!r}: choose one of {', '.join(_PROVIDERS)}")
        if precision not in _PRECISIONS[provider]:
            raise EngineError(
                f"the precision {precision!r} is not available in onnxruntime on {provider}: "
                f"choose {' or '.join(_PRECISIONS[provider])}"
            )
        if not path.is_file():
            raise EngineError(f"no graph at {path}: point to a bundle made with `hmr-prob export`")
        if reason := unavailable(provider):
            raise EngineError(reason)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        self.path = path
        self._cpu = provider == "cpu"
        providers = self._providers(provider, precision, cache)
        self._session = self._open(_half(path) if precision == "fp16" else str(path), options, providers)
        # A provider that cannot start is left out without an error.
        if _PROVIDERS[provider] not in self._session.get_providers():
            raise EngineError(
                f"onnxruntime could not start its provider {_PROVIDERS[provider]}: there is no usable NVIDIA GPU, or "
                "its libraries (CUDA, cuDNN, TensorRT) are not installed"
            )
        self.threads = options.intra_op_num_threads
        device = "CPU" if self._cpu else f"{_PROVIDERS[provider].removesuffix('ExecutionProvider')} {precision}"
        self.name = f"onnxruntime {ort.__version__} {device}"
        self._inputs: Signature = {
            str(item.name): (list(item.shape), _TYPES.get(item.type)) for item in self._session.get_inputs()
        }
        self._outputs = [item.name for item in self._session.get_outputs()]

    def _open(self, model: str | bytes, options: Any, providers: Sequence[Any]) -> Any:
        try:
            return ort.InferenceSession(model, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime raises a class of its own for every cause
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            if "memory" in reason.lower() and not self._cpu:
                raise _no_memory(reason) from error
            raise EngineError(
                f"{self.path} cannot be loaded ({reason}): it is truncated or no ONNX graph, "
                "export it again with `hmr-prob export`"
            ) from error

    def _providers(self, provider: str, precision: str, cache: str | Path | None) -> list[Any]:
        """The providers in order of preference, with their options."""
        cpu = _PROVIDERS["cpu"]
        if provider == "cpu":
            return [cpu]
        cuda = (_PROVIDERS["cuda"], {"use_tf32": "1" if precision == "tf32" else "0"})  # on unless told otherwise
        if provider == "cuda":
            return [cuda, cpu]
        from .tensorrt_build import Limits, profile
        from .tensorrt_cache import cache_folder

        quick = ort.SessionOptions()
        quick.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        quick.log_severity_level = 3
        graph = self._open(str(self.path), quick, [cpu])
        # Without the ranges it would build a new engine whenever a larger number of people comes.
        shapes = profile({item.name: item.shape for item in graph.get_inputs()}, Limits())
        settings = {
            f"trt_profile_{which}_shapes": ",".join(
                f"{name}:{'x'.join(str(size) for size in sizes[number])}" for name, sizes in shapes.items()
            )
            for number, which in enumerate(("min", "opt", "max"))
        }
        folder = cache_folder(cache)
        if folder is not None:
            settings |= {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
            settings["trt_engine_cache_path"] = str(folder / "onnxruntime")
        return [(_PROVIDERS["tensorrt"], settings), cuda, cpu]

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
            DeviceError: a GPU failed.
        """
        wanted = checked_outputs(self.path, self._outputs, outputs)
        feeds = checked_inputs(self.path, self._inputs, inputs)
        try:
            values = self._session.run(wanted, feeds)
        except Exception as error:
            reason = str(error).splitlines()[0][:300]
            if "memory" in reason.lower() and not self._cpu:
                raise _no_memory(reason) from error
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            kind = EngineError if self._cpu else DeviceError
            raise kind(f"{self.path} failed on {shapes}: {reason}") from error
        return dict(zip(wanted, values, strict=True))


def _half(path: Path) -> bytes:
    """The graph with its networks in half precision."""
    try:
        import onnx
    except ImportError as error:
        raise EngineError(f"fp16 needs the package onnx ({error}): pip install onnx") from error
    from .half import half_networks

    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise EngineError(
            f"{path} cannot be loaded ({type(error).__name__}): it is truncated or no ONNX graph, "
            "export it again with `hmr-prob export`"
        ) from error
    return half_networks(model).SerializeToString()


def _no_memory(reason: str) -> DeviceError:
    return DeviceError(
        f"the GPU has not enough memory ({reason}): end other programs on it, ask for fewer samples or people, or use "
        "the engine onnxruntime"
    )
