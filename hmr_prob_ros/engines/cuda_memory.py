"""Memory, streams and graphs of an NVIDIA GPU, through ``pycuda`` where it is installed, else ``cuda-python``.

Both work in the device's primary context, the one that TensorRT uses. Buffers are pairs of pinned host memory and
device memory; on a GPU that shares its memory with the CPU (Jetson) they are one piece that both see, and nothing is
copied.
"""

from __future__ import annotations

__all__ = ["Buffer", "Cuda", "DeviceError", "Gpu", "open_cuda"]

import ctypes
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import DeviceError, EngineError

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY
_THREAD_LOCAL = 1  # capture mode: other threads may go on allocating
_NON_BLOCKING = 1  # stream flag: does not wait for the default stream
_MAPPED = 2  # cudaHostAllocMapped


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, compute capability, and whether it shares the CPU's memory."""

    name: str
    capability: tuple[int, int]
    integrated: bool


@dataclass
class Buffer:
    """Memory that a tensor lives in.

    Attributes:
        pointer: address on the device.
        host: (nbytes,) uint8 on the host, pinned; None for a buffer that the host never sees.
        mapped: host and device see the same memory.
        handles: what keeps the memory alive.
    """

    pointer: int
    nbytes: int
    host: np.ndarray | None
    mapped: bool
    handles: tuple[Any, ...] = ()


class Cuda(ABC):
    """The few calls that running an engine needs. Use them inside :meth:`active`."""

    name: str
    gpu: Gpu

    @abstractmethod
    def active(self) -> Any:
        """A context manager: this device is the calling thread's."""

    @abstractmethod
    def make_stream(self) -> int:
        """A stream of its own, not waiting for the default one; lives as long as this object."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait for the stream."""

    @abstractmethod
    def allocate(self, nbytes: int, host: bool) -> Buffer:
        """Device memory, with a host side or without.

        Raises:
            DeviceError: there is not enough.
        """

    @abstractmethod
    def free(self, buffer: Buffer) -> None:
        """Give memory back; the stream must be idle."""

    @abstractmethod
    def upload(self, buffer: Buffer) -> None:
        """Host to device, in the stream's order; nothing for mapped memory."""

    @abstractmethod
    def download(self, buffer: Buffer) -> None:
        """Device to host, in the stream's order; nothing for mapped memory."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Any:
        """A graph of what ``work`` puts on the stream, ready to launch.

        Raises:
            DeviceError: something in it cannot be captured.
        """

    @abstractmethod
    def launch(self, graph: Any) -> None:
        """Put a captured graph on the stream."""

    @abstractmethod
    def release(self, graph: Any) -> None:
        """Give a captured graph back."""


def open_cuda() -> Cuda:
    """The first implementation whose package is installed.

    Raises:
        EngineError: neither package is installed, or there is no GPU; the text names the mend.
    """
    missing = []
    for kind in (PyCuda, CudaPython):
        try:
            return kind()
        except ImportError as error:
            missing.append(str(error))
    raise EngineError(
        f"neither pycuda nor cuda-python can be imported ({'; '.join(missing)}): pip install cuda-python, of the "
        "version of the installed CUDA"
    )


def _failed(what: str, code: int, text: str) -> DeviceError:
    if code == _OUT_OF_MEMORY:
        return DeviceError(
            f"the GPU has not enough memory ({what}): end other programs on it, ask for fewer samples or people, or "
            "use the engine onnxruntime"
        )
    return DeviceError(f"CUDA failed in {what}: {text} ({code})")


class CudaPython(Cuda):
    """NVIDIA's ``cuda-python``, the runtime API."""

    name = "cuda-python"

    def __init__(self) -> None:
        try:
            self._cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            self._cuda = importlib.import_module("cuda.cudart")  # before 12.6
        try:
            (count,) = self._call("cudaGetDeviceCount")
        except EngineError:
            raise
        except RuntimeError as error:  # the binding loads the driver's library here
            raise EngineError(f"there is no usable NVIDIA driver ({error}): install it, or use onnxruntime") from error
        if not count:
            raise EngineError("there is no NVIDIA GPU: use the engine onnxruntime")
        (properties,) = self._call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        self.gpu = Gpu(name.rstrip("\0"), (properties.major, properties.minor), bool(properties.integrated))
        self._stream: Any = None

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        """What a CUDA function gives besides its error code."""
        code, *values = getattr(self._cuda, function)(*arguments)
        if int(code):
            text = getattr(code, "name", str(code))
            if function in ("cudaGetDeviceCount", "cudaGetDeviceProperties"):
                raise EngineError(f"there is no usable NVIDIA GPU ({text}): use the engine onnxruntime")
            raise _failed(function, int(code), text)
        return tuple(values)

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call("cudaSetDevice", 0)
        yield

    def make_stream(self) -> int:
        (self._stream,) = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        return int(self._stream)

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def allocate(self, nbytes: int, host: bool) -> Buffer:
        mapped = host and self.gpu.integrated
        if not host:
            return Buffer(int(self._call("cudaMalloc", nbytes)[0]), nbytes, None, False)
        (address,) = self._call("cudaHostAlloc", nbytes, _MAPPED if mapped else 0)
        view = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))
        try:
            (pointer,) = (
                self._call("cudaHostGetDevicePointer", address, 0) if mapped else self._call("cudaMalloc", nbytes)
            )
        except DeviceError:
            self._call("cudaFreeHost", address)
            raise
        return Buffer(int(pointer), nbytes, view, mapped, (int(address),))

    def free(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            self._call("cudaFree", buffer.pointer)
        if buffer.handles:
            buffer.host = None
            self._call("cudaFreeHost", buffer.handles[0])

    def _copy(self, to: int, source: int, nbytes: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", to, source, nbytes, getattr(self._cuda.cudaMemcpyKind, kind), self._stream)

    def upload(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            self._copy(buffer.pointer, buffer.handles[0], buffer.nbytes, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            self._copy(buffer.handles[0], buffer.pointer, buffer.nbytes, "cudaMemcpyDeviceToHost")

    def capture(self, work: Callable[[], None]) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            with suppress(DeviceError):  # it ends the capture, and says that it failed
                self._call("cudaStreamEndCapture", self._stream)
            raise
        (graph,) = self._call("cudaStreamEndCapture", self._stream)
        try:
            (ready,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return ready

    def launch(self, graph: Any) -> None:
        self._call("cudaGraphLaunch", graph, self._stream)

    def release(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)


class PyCuda(Cuda):
    """``pycuda``, which is what JetPack's users have. It knows no graphs, so those calls go to the driver itself."""

    name = "pycuda"

    def __init__(self) -> None:
        self._cuda = importlib.import_module("pycuda.driver")
        try:
            self._cuda.init()
            if not self._cuda.Device.count():
                raise EngineError("there is no NVIDIA GPU: use the engine onnxruntime")
            device = self._cuda.Device(0)
            self._context = device.retain_primary_context()
        except self._cuda.Error as error:
            raise EngineError(f"there is no usable NVIDIA GPU ({error}): use the engine onnxruntime") from error
        integrated = bool(device.get_attribute(self._cuda.device_attribute.INTEGRATED))
        self.gpu = Gpu(device.name(), tuple(device.compute_capability()), integrated)
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._stream: Any = None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise _failed(what, _OUT_OF_MEMORY, str(error)) from error
        except self._cuda.Error as error:
            raise _failed(what, -1, str(error)) from error

    @contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def make_stream(self) -> int:
        with self._translated("making a stream"):
            self._stream = self._cuda.Stream(_NON_BLOCKING)
        return int(self._stream.handle)

    def synchronise(self) -> None:
        with self._translated("waiting for the GPU"):
            self._stream.synchronize()

    def allocate(self, nbytes: int, host: bool) -> Buffer:
        mapped = host and self.gpu.integrated
        with self._translated(f"allocating {nbytes} bytes"):
            if not host:
                memory = self._cuda.mem_alloc(nbytes)
                return Buffer(int(memory), nbytes, None, False, (memory,))
            flags = self._cuda.host_alloc_flags.DEVICEMAP if mapped else 0
            view = self._cuda.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
            if mapped:
                return Buffer(int(view.base.get_device_pointer()), nbytes, view, True)
            memory = self._cuda.mem_alloc(nbytes)
            return Buffer(int(memory), nbytes, view, False, (memory,))

    def free(self, buffer: Buffer) -> None:
        for memory in buffer.handles:
            memory.free()
        buffer.host, buffer.handles = None, ()  # the host's side goes with its last reference

    def upload(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            with self._translated("copying to the GPU"):
                self._cuda.memcpy_htod_async(buffer.pointer, buffer.host, self._stream)

    def download(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            with self._translated("copying from the GPU"):
                self._cuda.memcpy_dtoh_async(buffer.host, buffer.pointer, self._stream)

    def _call(self, function: str, *arguments: Any) -> None:
        """A function of the driver's C interface."""
        if code := getattr(self._driver, function)(*arguments):
            raise _failed(function, code, "see CUresult")

    def capture(self, work: Callable[[], None]) -> Any:
        stream, graph, ready = ctypes.c_void_p(self._stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            work()
        except BaseException:
            with suppress(DeviceError):  # it ends the capture, and says that it failed
                self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
            raise
        self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return ready

    def launch(self, graph: Any) -> None:
        self._call("cuGraphLaunch", graph, ctypes.c_void_p(self._stream.handle))

    def release(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)
