"""Native TensorRT: an engine built for this GPU from the bundle's graph, run as a CUDA graph.

What differs between TensorRT 10.3 and 11 is asked for with ``hasattr``. Nothing here is imported before an engine is
asked for, and TensorRT itself only by :func:`unavailable` and :class:`TensorRtEngine`.
"""

from __future__ import annotations

__all__ = ["TensorRtEngine", "engine_key", "unavailable"]

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import DeviceError, EngineError
from .cuda_memory import Buffer, Cuda, open_cuda
from .inputs import checked_inputs, checked_outputs
from .tensorrt_build import OLDEST, Limits, build_plan, check_precision, first_line, log, prepared_graph
from .tensorrt_cache import Stamp, UnusableEngine, cache_folder, load_or_build, sha256, stored_profile

logger = logging.getLogger(__name__)

_KEPT = 16
"""Shapes whose buffers and CUDA graphs are kept; the one that was not used for longest goes first."""

_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


def _import_tensorrt() -> Any:
    """The package, if it is new enough.

    Raises:
        EngineError: it is not installed, broken, or too old.
    """
    try:
        import tensorrt as trt
    except Exception as error:  # a broken installation raises all sorts of things
        raise EngineError(
            f"TensorRT is not installed ({first_line(error)}): JetPack brings it, elsewhere "
            "pip install 'hmr_prob_ros[tensorrt]'"
        ) from error
    version = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if version < OLDEST:
        raise EngineError(
            f"TensorRT {trt.__version__} is too old: {OLDEST[0]}.{OLDEST[1]} or newer is needed (JetPack 6)"
        )
    return trt


def unavailable() -> str:
    """Why TensorRT cannot run here, with the mend; "" where it can."""
    try:
        _import_tensorrt()
        open_cuda()
    except EngineError as error:
        return str(error)
    return ""


def engine_key(path: Path, precision: str) -> str:
    """Name of the engine of a graph in the cache: one for each file and precision."""
    whole = path.resolve()
    return f"{whole.parent.name}-{path.stem}-{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}-{precision}"


class TensorRtEngine:
    """A graph in native TensorRT.

    Calls from several threads wait for each other. The first call with new numbers of persons and samples is slow, it
    makes buffers and captures a CUDA graph: see :meth:`warm_up`.

    Args:
        model_path: the ONNX file.
        precision: ``fp32``, ``tf32`` (products of float32 with 10 bits of mantissa), or ``fp16`` (the networks in half
            precision, see :mod:`.half`).
        cache: folder of built engines; None: the user's cache folder.
        limits: persons and samples that it must serve; None: those of the engine in the cache, or the usual ones. More
            persons at once are run in parts.
        force: build it even if the cache has it.
        progress: show bars while it is built.
        cuda_graphs: replay captured graphs; off, every kernel is launched on its own.
        threads: of no use here, for the sake of the other engines.

    Raises:
        EngineError: TensorRT cannot run here, the precision is not available, or the graph cannot be loaded.
        DeviceError: the GPU or TensorRT failed, for example for want of memory.
    """

    def __init__(
        self,
        model_path: str | Path,
        precision: str = "fp32",
        cache: str | Path | None = None,
        limits: Limits | None = None,
        force: bool = False,
        progress: bool = False,
        cuda_graphs: bool = True,
        threads: int = 0,
    ) -> None:
        check_precision(precision)
        self.path, self.precision = Path(model_path), precision
        if not self.path.is_file():
            raise EngineError(f"no graph at {self.path}: point to a bundle made with `hmr-prob export`")
        folder, key = cache_folder(cache), engine_key(self.path, precision)
        self.limits = limits or Limits.read(stored_profile(folder, key)) or Limits()
        self._trt = trt = _import_tensorrt()
        self._cuda = open_cuda()
        self._cuda_graphs, self._lock = cuda_graphs, threading.Lock()
        self._lanes: OrderedDict[Any, _Lane] = OrderedDict()
        gpu = self._cuda.gpu
        check_precision(precision, gpu.capability)
        self.name = f"tensorrt {trt.__version__} {precision} {gpu.name}"
        stamp = Stamp(
            model=sha256(self.path),
            tensorrt=str(trt.__version__),
            gpu=gpu.name,
            capability=f"{gpu.capability[0]}.{gpu.capability[1]}",
            precision=precision,
            profile=self.limits.ranges(),
        )
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{trt.__version__}-{gpu.name}")
        timing = folder / f"timing-{name}.cache" if folder is not None else None

        def build() -> bytes:
            graph = prepared_graph(self.path, precision, str(trt.__version__))
            return build_plan(graph, precision, self.limits, timing, progress)

        with self._cuda.active():
            self._runtime = trt.Runtime(log.logger())
            self.built = load_or_build(folder, key, stamp, build, self._load, force)
            self._engine = self.built.engine
            self._stream = self._cuda.make_stream()
        self._read_tensors()

    def _load(self, data: bytes) -> Any:
        log.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            complaint = " ".join(log.errors[-1].split())[:200] if log.errors else "it gave no reason"
            failure = log.failure("loading the engine")
            if "not enough memory" in str(failure):  # a new one would need as much
                raise failure
            raise UnusableEngine(complaint)
        return engine

    def _read_tensors(self) -> None:
        engine, trt = self._engine, self._trt
        self._signature: dict[str, tuple[list[int | str], np.dtype | None]] = {}
        self._outputs: dict[str, np.dtype] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = np.dtype(_TYPES[engine.get_tensor_dtype(name).name])
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                shape: list[int | str] = [
                    int(size) if size >= 0 else ("N" if axis else "B")  # the engine forgot the names
                    for axis, size in enumerate(engine.get_tensor_shape(name))
                ]
                self._signature[name] = (shape, kind)
            else:
                self._outputs[name] = kind

    @property
    def input_names(self) -> list[str]:
        """Inputs of the graph."""
        return list(self._signature)

    @property
    def output_names(self) -> list[str]:
        """Outputs of the graph."""
        return list(self._outputs)

    def warm_up(self, calls: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None = None) -> None:
        """Run each of the calls, so that their shapes are captured and quick from then on; see :meth:`run`."""
        for inputs in calls:
            self.run(inputs, outputs)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the graph.

        Args:
            inputs: an array for every input of the graph.
            outputs: names of those to hand out; None for all.

        Raises:
            EngineError: an input or output is unknown or missing, or has a wrong type or shape.
            DeviceError: the GPU failed, or has not enough memory.
        """
        wanted = checked_outputs(self.path, self.output_names, outputs)
        feeds = checked_inputs(self.path, self._signature, inputs)
        persons = self._size(feeds, "B")
        if self._size(feeds, "N") > self.limits.samples:
            raise DeviceError(
                f"{self._size(feeds, 'N')} samples are asked for, the engine was built for at most "
                f"{self.limits.samples}: ask for fewer, or build it for more (`hmr-prob build-engine --max-samples`)"
            )
        parts = [self._run(self._slice(feeds, start), wanted) for start in range(0, persons, self.limits.persons)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def _size(self, feeds: Mapping[str, np.ndarray], axis: str) -> int:
        sizes = [
            size
            for name, (shape, _) in self._signature.items()
            for size, declared in zip(feeds[name].shape, shape, strict=True)
            if declared == axis
        ]
        return max(sizes, default=1)

    def _slice(self, feeds: Mapping[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
        """As many persons from number ``start`` on as the engine takes at a time."""
        stop = start + self.limits.persons
        return {n: v[start:stop] if self._signature[n][0][:1] == ["B"] else v for n, v in feeds.items()}

    def _run(self, feeds: Mapping[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        key = (tuple(value.shape for value in feeds.values()), tuple(wanted))
        try:
            with self._lock, self._cuda.active():
                lane = self._lanes.get(key)
                if lane is not None:
                    self._lanes.move_to_end(key)
                    return lane.run(feeds)
                while len(self._lanes) >= _KEPT:
                    self._lanes.popitem(last=False)[1].close()
                lane = _Lane(self._trt, self._engine, self._cuda, self._stream, feeds, self._outputs, wanted)
                result = lane.first_run(feeds, self._cuda_graphs)
                self._lanes[key] = lane
                return result
        except EngineError:
            raise
        except Exception as error:  # so that whoever has a substitute for a failing device takes it
            raise DeviceError(f"TensorRT failed ({type(error).__name__}: {first_line(error)})") from error

    def close(self) -> None:
        """Give the GPU's memory back."""
        with self._lock, self._cuda.active():
            while self._lanes:
                self._lanes.popitem()[1].close()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter or the driver may be going down
            self.close()


class _Lane:
    """Everything for one shape of the inputs and one choice of outputs: context, buffers, captured graph.

    A context of its own, because a captured graph holds on to its context's state, and scratch memory for this shape
    alone: for the largest one it would be a hundred times as much.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        cuda: Cuda,
        stream: int,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.dtype],
        wanted: Sequence[str],
    ) -> None:
        self._cuda, self._stream, self._wanted = cuda, stream, list(wanted)
        self._buffers: dict[str, Buffer] = {}
        self._views: dict[str, np.ndarray] = {}
        self._scratch: Buffer | None = None
        self._graph: Any = None
        try:
            self._prepare(trt, engine, feeds, outputs)
        except BaseException:
            with suppress(DeviceError):
                self.close()
            raise

    def _prepare(self, trt: Any, engine: Any, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.dtype]) -> None:
        log.errors.clear()
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise log.failure("making an execution context")
        self._context = context
        for name, value in feeds.items():
            if not context.set_input_shape(name, tuple(value.shape)):
                raise log.failure(f"taking {name} with shape {value.shape}")
        if missing := context.infer_shapes():
            raise DeviceError(f"TensorRT cannot tell the shapes of {', '.join(missing)}: use the engine onnxruntime")
        # Zero where the sizes of this shape are not known: then the bound for all shapes.
        needed = int(context.update_device_memory_size_for_shapes()) or int(engine.device_memory_size_v2)
        if needed:
            self._scratch = self._cuda.allocate(needed, host=False)
            context.set_device_memory(self._scratch.pointer, needed)
        for name, kind in (*((name, value.dtype) for name, value in feeds.items()), *outputs.items()):
            shape = tuple(int(size) for size in context.get_tensor_shape(name))
            nbytes = max(int(np.prod(shape)) * kind.itemsize, 1)
            buffer = self._cuda.allocate(nbytes, host=name in feeds or name in self._wanted)
            self._buffers[name] = buffer
            if buffer.host is not None:
                self._views[name] = buffer.host[: int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
            if not context.set_tensor_address(name, buffer.pointer):
                raise log.failure(f"taking the memory of {name}")
        self._inputs = list(feeds)

    def first_run(self, feeds: Mapping[str, np.ndarray], capture: bool) -> dict[str, np.ndarray]:
        """A run without a graph (which also settles what TensorRT puts off until then), then the capture."""
        try:
            result = self.run(feeds)
        except BaseException:
            with suppress(DeviceError):
                self.close()
            raise
        if capture:
            try:
                self._graph = self._cuda.capture(self._enqueue)
            except DeviceError as error:
                logger.warning("no CUDA graph, kernels are launched one by one: %s", error)
        return result

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, value in feeds.items():
            np.copyto(self._views[name], value)
        if self._graph is not None:
            self._cuda.launch(self._graph)
        else:
            self._enqueue()
        self._cuda.synchronise()
        return {name: self._views[name].copy() for name in self._wanted}

    def _enqueue(self) -> None:
        for name in self._inputs:
            self._cuda.upload(self._buffers[name])
        if not self._context.execute_async_v3(self._stream):
            raise log.failure("running the engine")
        for name in self._wanted:
            self._cuda.download(self._buffers[name])

    def close(self) -> None:
        """Give everything back; the stream must be idle."""
        if self._graph is not None:
            self._cuda.release(self._graph)
            self._graph = None
        self._context = None
        self._views.clear()
        for buffer in (*self._buffers.values(), *([self._scratch] if self._scratch is not None else [])):
            self._cuda.free(buffer)
        self._buffers.clear()
        self._scratch = None
