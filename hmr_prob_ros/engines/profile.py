"""What the matrix products of a graph cost on ONNX Runtime's CPU provider, and how fast products can be here."""

from __future__ import annotations

__all__ = ["Product", "matmul_graph", "matmul_rate", "product_operations", "products", "without_modes"]

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from . import EngineError
from .onnxruntime import default_threads

_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"})
_SUFFIX = "_kernel_time"


class Product(NamedTuple):
    """One matrix product of a graph as it ran: its name, shapes, floating-point operations and median seconds.

    ``second`` is empty where the second factor is constant: ONNX Runtime repacks it and does not tell its shape.
    """

    name: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    output: tuple[int, ...]
    operations: int
    seconds: float

    @property
    def rows(self) -> int:
        """Rows of the result, over all axes but the last: B N in a layer that runs once per sample."""
        return math.prod(self.output[:-1])


def product_operations(first: Sequence[int], output: Sequence[int]) -> int:
    """Floating-point operations, 2 M K N a matrix, of a product from the shapes of its first factor and its result.

    The first factor may be transposed, and a second factor that was repacked needs no shape.

    >>> product_operations((100, 72), (100, 256))
    3686400
    """
    if len(first) < 2 or len(output) < 2:
        raise ValueError(f"no matrix product: shapes {tuple(first)} and {tuple(output)}")
    inner = first[-1] if first[-2] == output[-2] else first[-2]
    return 2 * math.prod(output) * inner


def products(
    model_path: str | Path, inputs: Mapping[str, np.ndarray], threads: int = 0, rounds: int = 20
) -> list[Product]:
    """The matrix products of a graph as ONNX Runtime runs it, in order, from its own profile of ``rounds`` runs.

    Raises:
        EngineError: the graph cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
            for _ in range(rounds + 2):
                session.run(None, dict(inputs))
            events = json.loads(Path(session.end_profiling()).read_text())
        except Exception as error:
            raise EngineError(f"{model_path} cannot be profiled: {str(error).splitlines()[0][:200]}") from error
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    took: dict[str, list[float]] = defaultdict(list)
    for event in events:
        about = event.get("args", {})
        if event.get("cat") != "Node" or about.get("op_name") not in _PRODUCTS:
            continue
        name = str(event["name"]).removesuffix(_SUFFIX)
        first, *others = map(_shape, about["input_type_shape"])
        second = next((shape for shape in others if len(shape) > 1), ())  # the others are biases
        found[name] = (first, second, _shape(about["output_type_shape"][0]))
        took[name].append(1e-6 * event["dur"])
    return [
        Product(name, first, second, output, product_operations(first, output), float(np.median(took[name][2:])))
        for name, (first, second, output) in found.items()
    ]


def _shape(typed: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The shape in ``{"float": [1, 100, 72]}``."""
    return tuple(next(iter(typed.values())))


def _options(threads: int) -> Any:
    """As the engine's own, see ``OnnxRuntimeEngine``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def matmul_rate(rows: int, inner: int, columns: int, threads: int = 0, seconds: float = 0.3) -> float:
    """Fastest rate, floating-point operations a second, of (rows, inner) @ constant (inner, columns) in float32.

    The best of many runs, since it is a peak; the constant is repacked beforehand as a layer's weights are.
    """
    random = np.random.default_rng(0)
    weights = random.standard_normal((inner, columns), dtype=np.float32)
    session = ort.InferenceSession(matmul_graph(weights), _options(threads), providers=["CPUExecutionProvider"])
    feeds = {"x": random.standard_normal((rows, inner), dtype=np.float32)}
    best, end, count = math.inf, time.perf_counter() + seconds, 0
    while count < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feeds)
        best, count = min(best, time.perf_counter() - start), count + 1
    return 2.0 * rows * inner * columns / best


def matmul_graph(weights: np.ndarray) -> bytes:
    """An ONNX file with ``y = x @ weights``, weights (K, N) float32: written by hand, a robot has no package onnx.

    Messages and field numbers are those of ``onnx.proto3``.
    """
    inner, columns = weights.shape
    raw = np.ascontiguousarray(weights, "<f4").tobytes()
    tensor = _message((1, inner), (1, columns), (2, 1), (8, "w"), (9, raw))
    node = _message((1, "x"), (1, "w"), (2, "y"), (4, "MatMul"))
    graph = _message((1, node), (2, "product"), (5, tensor), (11, _matrix("x", inner)), (12, _matrix("y", columns)))
    return _message((1, 8), (7, graph), (8, _message((2, 18))))


def _matrix(name: str, columns: int) -> bytes:
    """ValueInfoProto of a float32 matrix with any number of rows."""
    shape = _message((1, _message((2, "rows"))), (1, _message((1, columns))))
    return _message((1, name), (2, _message((1, _message((1, 1), (2, shape))))))


def _message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message of (field number, value)."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def without_modes(model_path: str | Path, prefix: str = "mode_") -> bytes:
    """The graph without the outputs that begin with ``prefix`` and without all that only they need.

    ONNX Runtime computes every node of a graph, whatever outputs are asked for; this is how to tell what they cost.

    Raises:
        EngineError: the package onnx is missing, or nothing would be left.
    """
    try:
        import onnx
    except ImportError as error:
        raise EngineError(f"cutting a graph needs the package onnx ({error}): pip install onnx") from error
    model = onnx.load(str(model_path))
    graph = model.graph
    kept = [value for value in graph.output if not value.name.startswith(prefix)]
    if not kept:
        raise EngineError(f"{model_path} has no outputs but those that begin with {prefix!r}")
    needed = {value.name for value in kept}
    nodes = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    weights = [onnx.TensorProto.FromString(w.SerializeToString()) for w in graph.initializer if w.name in needed]
    del graph.node[:], graph.output[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    graph.initializer.extend(weights)
    return bytes(model.SerializeToString())
