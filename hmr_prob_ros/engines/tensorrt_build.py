"""From an ONNX graph to a TensorRT engine: profile, precision, timing cache, progress.

Written for TensorRT 10.3 to 11: every network is strongly typed, so that a precision is what the graph says
(:mod:`.half`) and not what the builder fancies; TF32 is the one that stays a flag.
"""

from __future__ import annotations

__all__ = [
    "OLDEST",
    "PRECISIONS",
    "Limits",
    "build_plan",
    "check_precision",
    "first_line",
    "graph_shapes",
    "log",
    "prepared_graph",
    "profile",
]

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import DeviceError, EngineError
from .half import half_networks
from .tensorrt_operators import unsupported

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

OLDEST = (10, 3)
"""The oldest TensorRT that this is written for: that of JetPack 6."""

PRECISIONS = ("fp32", "tf32", "fp16")
_NEEDS = {"tf32": (8, 0), "fp16": (5, 3)}  # compute capability
_EXTRA = "pip install 'hmr_prob_ros[tensorrt]'"


@dataclass(frozen=True)
class Limits:
    """What an engine serves: up to so many persons and samples, fastest for ``typical`` samples of one person."""

    persons: int = 8
    samples: int = 4096
    typical: int = 100

    def __post_init__(self) -> None:
        if self.persons < 1 or not 1 <= self.typical <= self.samples:
            raise EngineError(
                f"an engine for {self.persons} persons and 1 to {self.samples} samples, typically {self.typical}, "
                "cannot be built: persons must be 1 or more, typical between 1 and samples"
            )

    @classmethod
    def read(cls, ranges: Mapping[str, Sequence[int]] | None) -> Limits | None:
        """The limits that :meth:`ranges` gave, None where it did not."""
        try:
            (_, _, persons), (_, typical, samples) = ranges["persons"], ranges["samples"]  # type: ignore[index]
            return cls(int(persons), int(samples), int(typical))
        except (EngineError, KeyError, TypeError, ValueError):
            return None

    def ranges(self) -> dict[str, list[int]]:
        """Smallest, typical and largest number of persons and samples."""
        return {"persons": [1, 1, self.persons], "samples": [1, self.typical, self.samples]}


def check_precision(precision: str, capability: tuple[int, int] | None = None) -> None:
    """Raise EngineError for a precision that is none, or that a GPU of this compute capability does not have."""
    available = [name for name in PRECISIONS if capability is None or capability >= _NEEDS.get(name, (0, 0))]
    if precision not in available:
        here = "" if capability is None else f" on a GPU of compute capability {capability[0]}.{capability[1]}"
        raise EngineError(f"the precision {precision!r} is not available{here}: choose {' or '.join(available)}")


def graph_shapes(model: ModelProto) -> dict[str, list[int | str]]:
    """Input of a graph -> its shape, dynamic sizes by their names."""
    return {
        value.name: [
            axis.dim_value if axis.HasField("dim_value") else axis.dim_param
            for axis in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
    }


def profile(shapes: Mapping[str, Sequence[int | str]], limits: Limits) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input -> its smallest, typical and largest shape.

    The dynamic size that comes first in a shape counts persons, every other one samples.

    Args:
        shapes: of :func:`graph_shapes`; the same name must stand for the same size everywhere.
    """
    persons = {shape[0] for shape in shapes.values() if shape and isinstance(shape[0], str)}
    ranges = limits.ranges()
    found = {}
    for name, shape in shapes.items():
        sizes = [
            [size] * 3 if isinstance(size, int) else ranges["persons" if size in persons else "samples"]
            for size in shape
        ]
        found[name] = tuple(tuple(size[which] for size in sizes) for which in range(3))
    return found


def prepared_graph(path: Path, precision: str, version: str) -> ModelProto:
    """The graph that TensorRT is given: with the precision written into it, and every operator looked up.

    Raises:
        EngineError: no ONNX graph, ``onnx`` is not installed, or an operator that this TensorRT does not take.
    """
    try:
        import onnx
    except ImportError as error:
        raise EngineError(f"building an engine needs the package onnx ({error}): {_EXTRA}") from error
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise EngineError(
            f"{path} cannot be loaded ({first_line(error)}): it is truncated or no ONNX graph, export it again with "
            "`hmr-prob export`"
        ) from error
    if precision == "fp16":
        model = half_networks(model)
    if missing := unsupported(model, version):
        more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise EngineError(
            f"TensorRT {version} does not take {path}: {'; '.join(missing[:3])}{more}. Export it again with "
            "`hmr-prob export`, or use the engine onnxruntime"
        )
    return model


class _Log:
    """TensorRT's one logger of this process: to ``logging``, and the last complaints kept for error texts."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        self._logger: Any = None

    def logger(self) -> Any:
        """The object that TensorRT wants; TensorRT keeps the first one that it is given for good."""
        if self._logger is None:
            import tensorrt as trt

            levels = {
                trt.ILogger.INTERNAL_ERROR: logging.ERROR,
                trt.ILogger.ERROR: logging.ERROR,
                trt.ILogger.WARNING: logging.INFO,  # of things that nobody can mend here
                trt.ILogger.INFO: logging.DEBUG,
                trt.ILogger.VERBOSE: logging.DEBUG,
            }
            errors = self.errors

            class Forward(trt.ILogger):  # type: ignore[misc, name-defined]
                def __init__(self) -> None:
                    trt.ILogger.__init__(self)

                def log(self, severity: Any, msg: str) -> None:
                    level = levels.get(severity, logging.DEBUG)
                    if level == logging.ERROR:
                        errors.append(msg)
                    if severity != trt.ILogger.VERBOSE:
                        logger.log(logging.DEBUG if level == logging.ERROR else level, "TensorRT: %s", msg)

            self._logger = Forward()
        return self._logger

    def failure(self, what: str, error: Exception | None = None) -> DeviceError:
        """The error for something that TensorRT refused, with its last complaint (else ``error``'s) and the mend."""
        if not self.errors:
            self.errors.append(first_line(error) if error is not None else "it gave no reason")
        said = " | ".join(self.errors)
        last = " ".join(self.errors[-1].split())[:300]
        self.errors.clear()
        if any(word in said.lower() for word in ("out of memory", "outofmemory", "out_of_memory", "cudamalloc")):
            return DeviceError(
                f"the GPU has not enough memory for {what} ({last}): end other programs on it, build the engine for "
                "fewer samples or people (`hmr-prob build-engine --max-samples --max-people`), or use the engine "
                "onnxruntime"
            )
        return DeviceError(f"TensorRT failed at {what} ({last}): use the engine onnxruntime, and report this")


log = _Log()


def build_plan(
    model: ModelProto, precision: str, limits: Limits, timing: Path | None = None, progress: bool = False
) -> bytes:
    """Builds an engine on this machine's GPU.

    Args:
        model: of :func:`prepared_graph`.
        timing: file of the timing cache, made or added to; None: none.
        progress: show bars.

    Raises:
        EngineError: Polygraphy is not installed, or TensorRT cannot build it (DeviceError; with its complaint).
    """
    import tensorrt as trt

    try:
        from polygraphy.backend.trt import Profile, create_config, engine_bytes_from_network
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise EngineError(f"building an engine needs the package polygraphy ({error}): {_EXTRA}") from error
    log.errors.clear()
    builder = trt.Builder(log.logger())
    flags = trt.NetworkDefinitionCreationFlag
    # Gone where every network is strongly typed.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log.logger())
    if not parser.parse(model.SerializeToString()):
        complaints = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {trt.__version__} cannot read the graph: {complaints or 'it gave no reason'}")
    shapes = Profile()
    for name, (smallest, typical, largest) in profile(graph_shapes(model), limits).items():
        shapes.add(name, min=smallest, opt=typical, max=largest)
    more: dict[str, Any] = {}
    if progress and hasattr(trt, "IProgressMonitor"):
        more["progress_monitor"] = _progress_monitor(trt)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):  # all that it has to say comes as exceptions too

        def configured(cache: Path | None) -> Any:
            cached = {"load_timing_cache": str(cache)} if cache is not None and cache.exists() else {}
            return create_config(builder, network, profiles=[shapes], tf32=precision == "tf32", **cached, **more)

        try:
            config = configured(timing)
        except Exception as error:
            if timing is None or not timing.exists():
                raise log.failure("configuring the build", error) from error
            logger.warning("the timing cache %s is not usable (%s): a new one is made", timing, first_line(error))
            with suppress(OSError):
                timing.unlink()
            config = configured(None)
        try:
            saved = {"save_timing_cache": str(timing)} if timing is not None and _writable(timing) else {}
            plan = engine_bytes_from_network((builder, network, parser), config=config, **saved)
        except Exception as error:
            raise log.failure("building the engine", error) from error
        return bytes(plan)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class where it has none."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _writable(path: Path) -> bool:
    """A build of minutes must not be lost because its timing cache cannot be stored."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            return True
    except OSError:
        return False


def _progress_monitor(trt: Any) -> Any:
    """TensorRT's build phases as bars, the inner below the outer."""

    class Bars(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, Any] = {}
            self._lock = threading.Lock()  # TensorRT calls from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._bars[phase_name] = tqdm(
                    total=num_steps, desc=phase_name[:40], leave=parent_phase is None, position=len(self._bars)
                )

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                bar = self._bars.get(phase_name)
                if bar is not None:
                    bar.update(step + 1 - bar.n)
            return True

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                bar = self._bars.pop(phase_name, None)
                if bar is not None:
                    bar.update(bar.total - bar.n)
                    bar.close()

    return Bars()
