"""Everything of the TensorRT engine that is true without a GPU, and, where there is one, its outputs.

Its cache: ``test_engines_cache.py``; half precision: ``test_engines_half.py``.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx to read graphs ([tensorrt] or [train] extra)")

from onnx import helper  # noqa: E402

from hmr_prob_ros.bundle import Bundle, update_card  # noqa: E402
from hmr_prob_ros.cli import main  # noqa: E402
from hmr_prob_ros.commands import doctor  # noqa: E402
from hmr_prob_ros.commands.build_engine import example_inputs  # noqa: E402
from hmr_prob_ros.engines import ENGINES, EngineError, cuda_memory, make_engine, unavailable  # noqa: E402
from hmr_prob_ros.engines.compare import differences, worst  # noqa: E402
from hmr_prob_ros.engines.half import half_networks, linear_layers  # noqa: E402
from hmr_prob_ros.engines.tensorrt import TensorRtEngine  # noqa: E402
from hmr_prob_ros.engines.tensorrt_build import (  # noqa: E402
    Limits,
    check_precision,
    graph_shapes,
    prepared_graph,
    profile,
)
from hmr_prob_ros.engines.tensorrt_operators import OPERATORS, listed_version, unsupported  # noqa: E402

FLOAT, HALF, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load()


@pytest.fixture(scope="module")
def graph(bundle: Bundle) -> Any:
    return onnx.load(str(bundle.model_path))


# Profile and precision


def test_profile_of_the_shipped_graphs(bundle: Bundle, graph: Any) -> None:
    found = profile(graph_shapes(graph), Limits())
    size = bundle.latent_size
    assert found == {
        "keypoints": ((1, 23, 3), (1, 23, 3), (8, 23, 3)),
        "box": ((1, 3), (1, 3), (8, 3)),
        "latents": ((1, 1, size), (1, 100, size), (8, 4096, size)),
    }
    density = onnx.load(str(bundle.density_path), load_external_data=False)
    assert profile(graph_shapes(density), Limits(2, 300, 30))["pose"] == ((1, 1, 144), (1, 30, 144), (2, 300, 144))


def test_profile_takes_the_names_from_the_graph() -> None:
    shapes: dict[str, list[int | str]] = {"points": ["batch", "count", 3], "offset": ["batch", 1], "fixed": [4, 4]}
    found = profile(shapes, Limits(3, 20, 5))
    assert found == {
        "points": ((1, 1, 3), (1, 5, 3), (3, 20, 3)),
        "offset": ((1, 1), (1, 1), (3, 1)),
        "fixed": ((4, 4), (4, 4), (4, 4)),
    }


@pytest.mark.parametrize("limits", [(0, 4096, 100), (8, 50, 100), (8, 4096, 0)])
def test_limits_that_make_no_sense(limits: tuple[int, int, int]) -> None:
    with pytest.raises(EngineError, match="cannot be built: persons must be"):
        Limits(*limits)


def test_precisions_by_capability() -> None:
    for capability in (None, (8, 7), (9, 0), (12, 0)):
        for precision in ("fp32", "tf32", "fp16"):
            check_precision(precision, capability)
    with pytest.raises(EngineError, match=r"'tf32' is not available on a GPU .* 7\.5: choose fp32 or fp16"):
        check_precision("tf32", (7, 5))
    with pytest.raises(EngineError, match="'int4' is not available: choose fp32 or tf32 or fp16"):
        check_precision("int4")


# Operators


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.0.0.114", "11.4.0.106"])
@pytest.mark.parametrize("name", ["model.onnx", "density.onnx"])
def test_tensorrt_takes_the_shipped_graphs(bundle: Bundle, name: str, version: str) -> None:
    model = onnx.load(str(bundle.path / name))
    assert unsupported(model, version) == []
    assert unsupported(half_networks(model), version) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flow", "joint", "prohmr", "regressor"])
def test_tensorrt_takes_fresh_exports(method: str, tmp_path: Path) -> None:
    """Every export checks itself (``check_operators``), so that other tests' exports are checked too; here, in half."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from hmr_prob_ros.training.body import TorchBody
    from hmr_prob_ros.training.export import export, export_regressor
    from hmr_prob_ros.training.models import MODELS, save_checkpoint

    sizes = {"condition": 16, "encoder_width": 16, "encoder_depth": 1, "head_hidden": 16}
    more = {"joint": {"hypotheses": 6, "codebook": 3, "nested": (3,), "quantiser_hidden": 20}}.get(method, {})
    kind = MODELS[method]
    model = kind(kind.config_class(**sizes, **({} if method == "regressor" else {"hidden": 16}), **more), TorchBody())
    save_checkpoint(tmp_path / "model.pt", model.eval())
    if method == "regressor":
        paths = [export_regressor(tmp_path / "model.pt", tmp_path / "regressor.onnx")]
    else:
        made = export(tmp_path / "model.pt", tmp_path / "bundle", modes=4, samples=20)
        paths = [made.model_path, made.path / "density.onnx"]
    for path in paths:
        model = onnx.load(str(path))
        assert linear_layers(model)
        # The linear maps of the latents themselves stay as they are.
        assert not any(
            list(v.dims) == [144, 144] and v.data_type == HALF for v in half_networks(model).graph.initializer
        )
        for version in OPERATORS:
            assert unsupported(model, version) == []
            assert unsupported(half_networks(model), version) == []


def _graph_of(node: Any, kind: int = FLOAT, opset: int = 18, domain: str = "") -> Any:
    names = [name for name in node.input if name not in ("axis", "")]
    inputs = [helper.make_tensor_value_info(name, kind, ["B", 4]) for name in names]
    axis = helper.make_tensor("axis", INT64, [1] if node.op_type != "CumSum" else [], [1])
    outputs = [helper.make_tensor_value_info(node.output[0], kind, ["B", "M"])]
    inner = helper.make_graph([node], "one", inputs, outputs, [axis])
    sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(inner, opset_imports=sets, ir_version=10)


@pytest.mark.parametrize(
    ("node", "kind", "text"),
    [
        (helper.make_node("Unique", ["x"], ["y"], "u"), FLOAT, r"Unique \(u\): TensorRT 10.3 does not take this"),
        (helper.make_node("Fancy", ["x"], ["y"], "f", domain="own"), FLOAT, r"Fancy \(f\): .* does not take this"),
        (
            helper.make_node("CumSum", ["x", "axis"], ["y"], "c"),
            INT64,
            r"CumSum \(c\): its data x is INT64, TensorRT 10.3 takes BF16, FP16, FP32",
        ),
        (helper.make_node("Pow", ["x", "x"], ["y"], "p"), INT64, r"Pow \(p\): its data x is INT64"),
        (helper.make_node("Abs", ["x"], ["y"], "a"), onnx.TensorProto.DOUBLE, r"Abs \(a\): its data x is FP64"),
        (
            helper.make_node("Cast", ["x"], ["y"], "k", to=onnx.TensorProto.DOUBLE),
            FLOAT,
            r"Cast \(k\): its data y is FP64",
        ),
    ],
)
def test_unsupported_nodes_are_named(node: Any, kind: int, text: str) -> None:
    model = _graph_of(node, kind, domain="own" if node.domain else "")
    if node.op_type == "Cast":
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    found = unsupported(model, "10.3")
    assert len(found) == 1
    assert re.search(text, found[0]), found
    plain = _graph_of(helper.make_node("CumSum", ["x", "axis"], ["y"]))
    assert unsupported(plain, "10.3") == []
    # Eleven takes whole numbers to a power.
    assert (unsupported(model, "11") == []) == (node.op_type == "Pow")


def test_axes_must_be_constants_and_opsets_known() -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], "r")
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["B", 4]), helper.make_tensor_value_info("axes", INT64, [1])]
    inner = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("y", FLOAT, None)])
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert unsupported(model, "11.0") == ["ReduceSum (r): input axes must be a constant for TensorRT 11"]
    model = _graph_of(helper.make_node("Abs", ["x"], ["y"]), opset=22)
    assert unsupported(model, "10.3") == ["opset 22: TensorRT 10.3 reads 9 to 20"]
    assert unsupported(model, "11.0") == []


def test_listed_versions() -> None:
    versions = ("10.3.0", "10.9.0.34", "11.0.0.114", "11.4.0", "12.0")
    assert [listed_version(v) for v in versions] == ["10.3", "10.3", "11", "11", "11"]
    assert set(OPERATORS["10.3"]) < set(OPERATORS["11"])


def test_the_build_refuses_what_the_parser_would_not_take(tmp_path: Path, bundle: Bundle) -> None:
    path = tmp_path / "model.onnx"
    model = _graph_of(helper.make_node("Unique", ["x"], ["y"], "u"))
    onnx.save(model, str(path))
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 does not take .*Unique \(u\).*hmr-prob export"):
        prepared_graph(path, "fp32", "10.3.0")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EngineError, match="truncated or no ONNX graph"):
        prepared_graph(path, "fp32", "10.3.0")
    half = prepared_graph(bundle.model_path, "fp16", "10.3.0")
    assert any(value.data_type == HALF for value in half.graph.initializer)
    full = prepared_graph(bundle.model_path, "tf32", "11.0.0")
    assert not any(value.data_type == HALF for value in full.graph.initializer)


# Without a GPU


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # an import of it fails


@pytest.mark.usefixtures("no_tensorrt")
def test_build_engine_without_tensorrt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-engine"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("hmr-prob: no engine can be built here: TensorRT is not installed")
    assert "JetPack" in lines[0]


@pytest.mark.usefixtures("no_tensorrt")
def test_library_callers_get_an_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"TensorRT is not installed .*pip install 'hmr_prob_ros\[tensorrt\]'"):
        make_engine("tensorrt", bundle.model_path)
    with pytest.raises(EngineError, match="precision 'int8' is not available: choose fp32 or tf32 or fp16"):
        make_engine("tensorrt", bundle.model_path, precision="int8")
    with pytest.raises(EngineError, match="no graph at"):
        make_engine("tensorrt", tmp_path / "absent.onnx")


def test_an_old_tensorrt_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", argparse.Namespace(__version__="8.6.1"))
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 is too old: 10\.3 or newer"):
        TensorRtEngine(bundle.model_path)


def test_without_a_binding_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match="neither pycuda nor cuda-python"):
        cuda_memory.open_cuda()


def test_doctor_tells_of_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = {name: doctor._try(name, doctor.OPTIONAL, "", doctor._engine(name)) for name in ENGINES}
    assert found["onnxruntime"].ok
    assert not found["tensorrt"].ok
    assert "TensorRT is not installed" in found["tensorrt"].detail
    assert all(check.needed == doctor.OPTIONAL for check in found.values())


# With a GPU


@pytest.fixture(scope="module")
def gpu() -> None:
    if reason := unavailable("tensorrt"):
        pytest.skip(reason)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("tf32", 5e-3), ("fp16", 5e-3)])
def test_outputs_of_tensorrt(
    gpu: None, bundle: Bundle, tmp_path: Path, precision: str, limit: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Against ONNX Runtime, output by output, for several shapes; stored, loaded, and written into a card."""
    caplog.set_level(logging.WARNING)
    engine = TensorRtEngine(bundle.model_path, precision, tmp_path)
    cpu = make_engine("onnxruntime", bundle.model_path)
    for people, samples in ((1, 100), (4, 25), (2, 1000), (9, 30), (1, 100)):
        inputs = example_inputs(bundle, people, samples)
        expected = cpu.run(inputs)
        for _ in range(2):  # the first run, and the captured graph's
            errors = differences(expected, engine.run(inputs))
            assert worst(errors, "p99")[1] < limit, (people, samples, errors)
        some = engine.run(inputs, ["mean"])
        np.testing.assert_allclose(some["mean"], expected["mean"], atol=10 * limit)
    assert not [text for text in caplog.messages if "no CUDA graph" in text]
    start = time.perf_counter()
    again = TensorRtEngine(bundle.model_path, precision, tmp_path)
    assert again.built.reason == ""
    assert time.perf_counter() - start < 10
    shutil.copytree(bundle.path, tmp_path / "bundle")
    card = update_card(tmp_path / "bundle", engine_errors={engine.name: errors}).card
    assert card["engine_errors"][engine.name]["mean"].keys() == {"median", "p99", "max"}
