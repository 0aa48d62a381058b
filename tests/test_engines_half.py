"""Half precision in the graph: which layers it reaches, that it rounds as float16 does, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx to read graphs ([tensorrt] or [train] extra)")

from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from hmr_prob_ros.bundle import Bundle  # noqa: E402
from hmr_prob_ros.commands.build_engine import example_inputs  # noqa: E402
from hmr_prob_ros.engines import EngineError, make_engine  # noqa: E402
from hmr_prob_ros.engines.compare import differences, worst  # noqa: E402
from hmr_prob_ros.engines.half import half_networks, linear_layers  # noqa: E402

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load()


@pytest.fixture(scope="module")
def graph(bundle: Bundle) -> Any:
    return onnx.load(str(bundle.model_path))


def _small(weights: list[np.ndarray], bias: np.ndarray) -> Any:
    """y (B, N, 4) = relu(x W0) W1 + b on samples x (B, N, 8), and side (B, 4) = relu(c W0) W1 on a condition c."""
    first, second = (numpy_helper.from_array(value, f"W{number}") for number, value in enumerate(weights))
    nodes = [
        helper.make_node("MatMul", ["x", "W0"], ["inner"], "first"),
        helper.make_node("Relu", ["inner"], ["active"]),
        helper.make_node("MatMul", ["active", "W1"], ["outer"], "second"),
        helper.make_node("Add", ["outer", "b"], ["y"]),
        helper.make_node("MatMul", ["c", "W0"], ["c_inner"], "of_condition"),
        helper.make_node("Relu", ["c_inner"], ["c_active"]),
        helper.make_node("MatMul", ["c_active", "W1"], ["side"]),
        helper.make_node("Exp", ["y"], ["scale"]),
        helper.make_node("MatMul", ["scale", "map"], ["mapped"], "of_flow"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["B", "N", 8]),
        helper.make_tensor_value_info("c", FLOAT, ["B", 8]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, FLOAT, shape)
        for name, shape in (("y", ["B", "N", 4]), ("side", ["B", 4]), ("mapped", ["B", "N", 4]))
    ]
    constants = [
        first,
        second,
        numpy_helper.from_array(bias, "b"),
        numpy_helper.from_array(np.eye(4, 4, 1, "f"), "map"),
    ]
    inner = helper.make_graph(nodes, "small", inputs, outputs, constants)
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _parts() -> tuple[list[np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(8, 16)).astype("f"), rng.normal(size=(16, 4)).astype("f")]
    inputs = {"x": rng.normal(size=(2, 5, 8)).astype("f"), "c": rng.normal(size=(2, 8)).astype("f")}
    return weights, rng.normal(size=4).astype("f"), inputs


def test_half_layers_round_as_float16_does() -> None:
    """In the reference evaluator: ONNX Runtime's CPU leaves out the roundings between layers."""
    weights, bias, inputs = _parts()
    model = _small(weights, bias)
    before = model.SerializeToString()
    half = half_networks(model)
    assert model.SerializeToString() == before
    assert [node.name for node in linear_layers(model)] == ["first", "second"]
    y, side, _ = ReferenceEvaluator(half).run(None, inputs)

    def rounded(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float16).astype(np.float32)

    inner = np.maximum(rounded(rounded(inputs["x"]) @ rounded(weights[0])), 0)
    np.testing.assert_allclose(y, rounded(inner @ rounded(weights[1])) + bias, rtol=2e-3, atol=2e-3)
    assert np.abs(y - (np.maximum(inputs["x"] @ weights[0], 0) @ weights[1] + bias)).max() > 1e-4
    # What runs once per person is exact.
    np.testing.assert_allclose(side, np.maximum(inputs["c"] @ weights[0], 0) @ weights[1], rtol=1e-6, atol=1e-6)


def test_layers_with_the_samples_last_are_layers_too() -> None:
    """W1 relu(W0 x): the weights are the first factor; a product behind the network with no ReLU near is none."""
    nodes = [
        helper.make_node("MatMul", ["W0", "x"], ["inner"], "first"),
        helper.make_node("Relu", ["inner"], ["active"]),
        helper.make_node("Gemm", ["W1", "active", "b"], ["outer"], "second"),
        helper.make_node("Exp", ["outer"], ["scale"]),
        helper.make_node("MatMul", ["map", "scale"], ["y"], "of_flow"),
    ]
    rng = np.random.default_rng(0)
    values = {"W0": rng.normal(size=(16, 8)), "W1": rng.normal(size=(4, 16)), "map": np.eye(4), "b": np.ones((4, 1))}
    constants = [numpy_helper.from_array(value.astype("f"), name) for name, value in values.items()]
    ends = [helper.make_tensor_value_info(n, FLOAT, [k, "N"]) for n, k in (("x", 8), ("y", 4))]
    inner = helper.make_graph(nodes, "columns", ends[:1], ends[1:], constants)
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert [node.name for node in linear_layers(model)] == ["first", "second"]
    x = rng.normal(size=(8, 5)).astype("f")
    (given,) = ReferenceEvaluator(half_networks(model)).run(None, {"x": x})
    expected = np.exp(values["W1"] @ np.maximum(values["W0"] @ x, 0) + 1)
    assert 0 < np.abs(given / expected - 1).max() < 0.05


def test_half_refuses_weights_that_do_not_fit() -> None:
    weights, bias, _ = _parts()
    weights[1][0, 0] = 1e6
    with pytest.raises(EngineError, match=r"W1 has numbers up to 1e\+06, float16 ends at 65504"):
        half_networks(_small(weights, bias))


def test_only_networks_of_samples_are_halved(graph: Any) -> None:
    layers = linear_layers(graph)
    couplings = sum(node.op_type == "Atan" for node in graph.graph.node)
    assert len(layers) == 3 * couplings  # three layers each
    half = half_networks(graph)
    assert [(v.name, v.type) for v in half.graph.input] == [(v.name, v.type) for v in graph.graph.input]
    assert [(v.name, v.type) for v in half.graph.output] == [(v.name, v.type) for v in graph.graph.output]
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    types |= {v.name: v.data_type for v in half.graph.initializer}
    in_half = [node for node in half.graph.node if any(types.get(name) == HALF for name in node.output)]
    assert {"Cast", "Gemm", "Relu"} <= {node.op_type for node in in_half} <= {"Cast", "Gemm", "MatMul", "Relu"}
    assert sum(node.op_type in ("Gemm", "MatMul") for node in in_half) == len(layers)
    # Scales, shifts, log-determinants, normalisation and modes: in float32.
    exact = {"Atan", "Exp", "ReduceSum", "Log", "LayerNormalization", "ArgMin", "ArgMax", "CumSum", "Sqrt", "Div"}
    for node in half.graph.node:
        if node.op_type in exact:
            assert HALF not in {types.get(name) for name in (*node.input, *node.output)}, node.name


def test_the_density_graph_stays_as_it_is(bundle: Bundle) -> None:
    model = onnx.load(str(bundle.density_path))
    assert len(linear_layers(model)) > 0
    assert half_networks(model) == model


def test_half_precision_costs_little(bundle: Bundle, graph: Any) -> None:
    """With every rounding (the reference evaluator): millimetres, and a thousandth of the density's spread."""
    inputs = example_inputs(bundle, people=2, samples=24)
    expected = make_engine("onnxruntime", bundle.model_path, threads=1).run(inputs)
    evaluator = ReferenceEvaluator(half_networks(graph))
    errors = differences(expected, dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True)))
    assert errors["sample_joints"]["median"] < 3e-4
    assert errors["sample_joints"]["max"] < 1e-2
    assert errors["mean"]["max"] < 2e-3
    assert errors["sample_rotations"]["p99"] < 5e-3
    assert errors["sample_log_density"]["p99"] < 0.1 < 1e-3 * np.abs(expected["sample_log_density"]).max()
    assert errors["sample_betas"]["max"] < 1e-3
    assert worst(errors, "p99")[1] < 5e-3


def test_half_graph_runs_on_another_runtime(bundle: Bundle, graph: Any, tmp_path: Path) -> None:
    onnx.save(half_networks(graph), str(tmp_path / "half.onnx"))
    inputs = example_inputs(bundle, people=2, samples=30)
    expected = make_engine("onnxruntime", bundle.model_path, threads=1).run(inputs)
    given = make_engine("onnxruntime", tmp_path / "half.onnx", threads=1).run(inputs)
    errors = differences(expected, given)
    assert 0 < errors["sample_joints"]["median"] < 3e-4
    assert worst(errors, "p99")[1] < 5e-3


def test_differences() -> None:
    one = {"mode_index": np.array([[0, 1], [2, 3]]), "mode_joints": np.zeros((2, 2)), "mean": np.zeros((2, 3))}
    other = {**one, "mode_index": np.array([[0, 1], [2, 4]]), "mode_joints": np.array([[0.5, 0], [9.0, 9]])}
    errors = differences(one, {**other, "mean": np.full((2, 3), 0.25)})
    assert errors["mode_index"] == {"same": 0.5}
    assert errors["mode_joints"]["max"] == 0.5  # of the person with the same modes
    assert errors["mean"] == {"median": 0.25, "p99": 0.25, "max": 0.25}
    assert worst(errors, "max") == ("mode_joints", 0.5)
    with pytest.raises(ValueError, match="mean has shape None"):
        differences({"mean": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="not finite"):
        differences({"mean": np.zeros(1)}, {"mean": np.array([np.nan])})
