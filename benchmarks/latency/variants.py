"""Other ways to run the same graph: precisions, optimisation, binding, spinning, threads, widths; time and accuracy."""

from __future__ import annotations

__all__ = ["SessionEngine", "bfloat16_trouble", "compare_variants", "int8_graph", "variants"]

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from common import Bench, graph_inputs
from tqdm import tqdm

from hmr_prob_ros.benchmark import accuracy
from hmr_prob_ros.benchmark.measure import timed
from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.engines import EngineError
from hmr_prob_ros.engines.half import half_networks, linear_layers
from hmr_prob_ros.engines.onnxruntime import default_threads
from hmr_prob_ros.estimator import Estimator, draw_latents

_BFLOAT16 = "mlas.enable_gemm_fastmath_arm64_bfloat16"


class SessionEngine:
    """An ONNX Runtime session on the CPU with settings that the package's own engine does not offer.

    Args:
        model: file of a graph, or its bytes.
        threads: 0 as the engine's own choice.
        level: graph optimisation: all, extended, basic or off.
        spinning: idle threads wait busily.
        binding: inputs and outputs are bound instead of handed over.
        entries: more settings of the session.

    Raises:
        EngineError: the graph cannot be loaded.
    """

    def __init__(
        self,
        model: Path | bytes,
        name: str = "session",
        threads: int = 0,
        level: str = "all",
        spinning: bool = False,
        binding: bool = False,
        entries: Mapping[str, str] | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        level = "DISABLE_ALL" if level == "off" else f"ENABLE_{level.upper()}"
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        for key, value in (entries or {}).items():
            options.add_session_config_entry(key, value)
        try:
            graph = model if isinstance(model, bytes) else str(model)
            self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"{name} cannot run here: {str(error).splitlines()[0][:160]}") from error
        self.name, self.binding = name, binding

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """See ``Engine.run``."""
        names = list(outputs) if outputs is not None else [value.name for value in self.session.get_outputs()]
        if not self.binding:
            return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        bound = self.session.io_binding()
        for name, value in inputs.items():
            bound.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in names:
            bound.bind_output(name)
        self.session.run_with_iobinding(bound)
        return dict(zip(names, bound.copy_outputs_to_cpu(), strict=True))


def int8_graph(path: Path, out: Path, layers: bool) -> Path:
    """Dynamic int8 of every product with constant weights, or with ``layers`` of the flow's networks alone."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names: list[str] | None = None
    if layers:  # the quantiser splits Gemm into products, with names of their own, and sums
        found = linear_layers(onnx.load(str(path)))
        names = [node.name + "_MatMul" * (node.op_type == "Gemm") for node in found]
    logging.disable(logging.WARNING)  # it advises what was done at the export
    try:
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=names,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
    return out


def bfloat16_trouble() -> str:
    """Why ONNX Runtime's CPU provider cannot take products in bfloat16 here, "" where it can."""
    helper, kind = onnx.helper, onnx.TensorProto.BFLOAT16
    values = [helper.make_tensor_value_info(name, kind, ["N", "N"]) for name in "xwy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    try:
        SessionEngine(model.SerializeToString(), "bfloat16")
    except EngineError as error:
        return str(error)
    return ""


class Variant(NamedTuple):
    """A way to run a graph, or why it cannot be run."""

    name: str
    bundle: Bundle
    engine: SessionEngine | None
    why: str = ""


def variants(bench: Bench) -> Iterator[Variant]:
    """All of them, the reference (float32, everything optimised) first."""
    bundle, count = bench.bundle, bench.options.threads
    path = Path(bundle.model_path)

    def make(name: str, model: Path | bytes = path, of: Bundle = bundle, **more: Any) -> Variant:
        try:
            return Variant(name, of, SessionEngine(model, name, **{"threads": count, **more}))
        except EngineError as error:
            return Variant(name, of, None, str(error))

    yield make("fp32")
    for level in ("off", "basic", "extended"):
        yield make(f"optimisation {level}", level=level)
    yield make("spinning", spinning=True)
    yield make("binding", binding=True)
    for threads in bench.options.sweep_threads:
        yield make(f"{threads} thread{'s' * (threads > 1)}", threads=threads)
    for layers, name in ((False, "int8, all layers"), (True, "int8, layers of the flow")):
        try:
            yield make(name, int8_graph(path, bench.folder / f"int8_{layers:d}.onnx", layers))
        except Exception as error:  # of the quantiser, which has no class of its own
            yield Variant(name, bundle, None, f"{type(error).__name__}: {error}")
    yield make("fp16 (in float32 where the CPU has none)", half_networks(onnx.load(str(path))).SerializeToString())
    trouble = bfloat16_trouble()
    yield Variant("bf16", bundle, None, trouble) if trouble else make("bf16", entries={_BFLOAT16: "1"})
    for folder in bench.options.bundles:
        other = Bundle.load(folder)
        width = other.card.get("config", {}).get("hidden", "?")
        yield make(f"{other.name}, width {width}", Path(other.model_path), other)


def compare_variants(bench: Bench) -> dict[str, Any]:
    """For each variant: median milliseconds of the graph for one person and each N, how far its bodies are from the
    reference's in mm, and the errors on the set."""
    rows: list[dict[str, Any]] = []
    counts = [n for n in (100, 1024) if n <= max(bench.options.sweep_samples)] or [100]
    reference: np.ndarray | None = None
    for variant in tqdm(variants(bench), desc="variants", unit="variant"):
        if variant.engine is None:
            rows.append({"variant": variant.name, "skipped": variant.why})
            continue
        engine, bundle = variant.engine, variant.bundle
        try:
            ms = {}
            for n in counts:
                inputs = graph_inputs(bench.people[:1], draw_latents(n, bundle.latent_size))
                took = timed(lambda e=engine, i=inputs: e.run(i), bench.options.rounds, 10)
                ms[str(n)] = round(float(np.median(took)), 3)
            latents = draw_latents(max(25, bundle.num_modes), bundle.latent_size)
            joints = engine.run(graph_inputs(bench.people[:32], latents), ["sample_joints"])["sample_joints"]
            reference = joints if reference is None else reference
            known = None
            if bench.data is not None:
                with Estimator(
                    bundle, None, engine, samples=bench.options.samples, modes=bundle.num_modes, keep_samples=True
                ) as estimator:
                    known = accuracy.errors(estimator, bench.data)
        except Exception as error:  # a graph that loads may still meet a kernel that fails
            rows.append({"variant": variant.name, "skipped": f"{type(error).__name__}: {str(error)[:160]}"})
            continue
        distance = 1e3 * np.linalg.norm(joints - reference, axis=-1)
        same = bundle is bench.bundle
        rows.append(
            {
                "variant": variant.name,
                "ms": ms,
                "difference_mm": {"mean": float(f"{distance.mean():.3g}"), "largest": float(f"{distance.max():.3g}")}
                if same
                else None,
                "accuracy": known,
                "megabytes": round(Path(bundle.model_path).stat().st_size / 1e6, 1),
            }
        )
    return {"rows": rows}
