"""ONNX Runtime behind the Engine seam, on a small graph and with every wrong input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.engines import Engine, EngineError, make_engine

onnx = pytest.importorskip("onnx", reason="needs onnx to write a graph ([train] extra)")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """total (B, 3) = sum over N of (points (B, N, 3) + offset (B, 1, 3)), and doubled = 2 total."""
    helper, tensor = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Add", ["points", "offset"], ["moved"]),
        helper.make_node("ReduceSum", ["moved", "axis"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "total"], ["doubled"]),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [
                helper.make_tensor_value_info("points", tensor.FLOAT, ["B", "N", 3]),
                helper.make_tensor_value_info("offset", tensor.FLOAT, ["B", 1, 3]),
            ],
            [helper.make_tensor_value_info(name, tensor.FLOAT, ["B", 3]) for name in ("total", "doubled")],
            [helper.make_tensor("axis", tensor.INT64, [1], [1])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    onnx.save(proto, str(path))
    return path


def _inputs(persons: int = 2, count: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "points": rng.normal(size=(persons, count, 3)).astype(np.float32),
        "offset": rng.normal(size=(persons, 1, 3)).astype(np.float32),
    }


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("persons", [1, 3])
def test_runs_what_is_asked_for(graph: Path, threads: int, persons: int) -> None:
    engine = make_engine("onnxruntime", graph, threads=threads)
    assert isinstance(engine, Engine)
    assert "onnxruntime" in engine.name
    inputs = _inputs(persons)
    expected = (inputs["points"] + inputs["offset"]).sum(1)
    everything = engine.run(inputs)
    assert set(everything) == {"total", "doubled"}
    np.testing.assert_allclose(everything["total"], expected, rtol=1e-5)
    some = engine.run(inputs, outputs=["doubled"])
    assert list(some) == ["doubled"]
    np.testing.assert_allclose(some["doubled"], 2 * expected, rtol=1e-5)


def test_strided_input(graph: Path) -> None:
    inputs = _inputs()
    inputs["points"] = np.asfortranarray(inputs["points"])[:, ::-1]
    result = make_engine("onnxruntime", graph).run(inputs)["total"]
    np.testing.assert_allclose(result, (inputs["points"] + inputs["offset"]).sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "outputs", "text"),
    [
        ({"points": None}, None, "'points' of .*small.onnx is missing"),
        ({"image": np.zeros(3, np.float32)}, None, "no input image: it takes points, offset"),
        ({"points": np.zeros((2, 5, 3))}, None, "'points' must be float32, not float64"),
        ({"points": [[1.0]]}, None, "numpy array, not list"),
        ({"points": np.zeros((5, 3), np.float32)}, None, r"shape \(B, N, 3\), not \(5, 3\)"),
        ({"points": np.zeros((2, 5, 4), np.float32)}, None, r"shape \(B, N, 3\), not \(2, 5, 4\)"),
        ({"points": np.zeros((2, 0, 3), np.float32)}, None, "'points' is empty"),
        ({"offset": np.zeros((3, 1, 3), np.float32)}, None, "'offset' has B = 3, but 'points' has B = 2"),
        ({}, ["colour"], "no output 'colour': it has total, doubled"),
    ],
)
def test_wrong_calls_name_the_input(graph: Path, change: dict, outputs: list[str] | None, text: str) -> None:
    inputs = {key: value for key, value in {**_inputs(), **change}.items() if value is not None}
    with pytest.raises(EngineError, match=text):
        make_engine("onnxruntime", graph).run(inputs, outputs)


def test_wrong_files(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no graph at"):
        make_engine("onnxruntime", tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(graph.read_bytes()[:-40])
    with pytest.raises(EngineError, match="truncated or no ONNX graph"):
        make_engine("onnxruntime", broken)


def test_wrong_options(graph: Path) -> None:
    with pytest.raises(EngineError, match="unknown engine 'abacus': choose one of onnxruntime"):
        make_engine("abacus", graph)
    with pytest.raises(EngineError, match="threads must be"):
        make_engine("onnxruntime", graph, threads=-1)


def test_a_missing_runtime_names_the_command(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmr_prob_ros.engines as engines

    monkeypatch.setitem(engines.ENGINES, "other", ("no_such_module", "Engine"))
    with pytest.raises(EngineError, match="pip install other"):
        make_engine("other", graph)
