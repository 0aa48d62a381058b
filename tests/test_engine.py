"""ONNX Runtime behind the Engine seam, on a small graph and with every wrong input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr_prob_ros.engines import DeviceError, Engine, EngineError, engine_or_fallback, make_engine, unavailable

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


# Providers


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"provider": "abacus"}, "unknown provider 'abacus': choose one of cpu, cuda, tensorrt"),
        ({"precision": "fp16"}, "'fp16' is not available in onnxruntime on cpu: choose fp32"),
        ({"provider": "tensorrt", "precision": "fp16"}, "'fp16' is not available in onnxruntime on tensorrt"),
    ],
)
def test_wrong_providers_and_precisions(graph: Path, options: dict[str, str], text: str) -> None:
    with pytest.raises(EngineError, match=text):
        make_engine("onnxruntime", graph, **options)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_is_not_installed(graph: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"has no provider .*pip install onnxruntime-gpu"):
        make_engine(name, graph)
    assert "onnxruntime-gpu" in unavailable(name)
    assert unavailable("onnxruntime") == ""


def test_a_provider_that_does_not_start(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on without it and says nothing."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it may start here")
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(EngineError, match="could not start"):
        make_engine("onnxruntime-cuda", graph)


# Falling back


class Failing:
    """A device that fails at the calls of these numbers."""

    def __init__(self, path: Path, at: set[int], error: Exception) -> None:
        self.name, self.at, self.error, self.calls = "failing device", at, error, 0
        self.engine = make_engine("onnxruntime", path)

    def run(self, inputs: Any, outputs: Any = None) -> dict[str, np.ndarray]:
        self.calls += 1
        if self.calls - 1 in self.at:
            raise self.error
        return self.engine.run(inputs, outputs)

    def warm_up(self, calls: Any, outputs: Any = None) -> None:
        raise AssertionError("the wrapper calls run")


@pytest.fixture
def device(graph: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an engine that fails, behind the name ``tensorrt``, with its substitute; and what was said."""
    import hmr_prob_ros.engines as engines

    said: list[str] = []

    def make(at: set[int], error: Exception | None = None) -> tuple[Any, Failing, list[str]]:
        failing = Failing(graph, at, error or DeviceError("the GPU\nhas no memory"))
        real = engines.make_engine
        substitute = lambda name, *a, **o: failing if name == "tensorrt" else real(name, *a, **o)  # noqa: E731
        monkeypatch.setattr(engines, "make_engine", substitute)
        return engine_or_fallback("tensorrt", graph, said.append), failing, said

    return make


def test_the_cpu_takes_over_at_the_first_call(device: Any) -> None:
    engine, failing, said = device({0})
    assert isinstance(engine, Engine)
    assert engine.name == "failing device"
    engine.warm_up([_inputs(1), _inputs(2)], ["total"])
    assert engine.name.startswith("onnxruntime")
    assert failing.calls == 1
    assert said == [
        "engine failing device failed, onnxruntime on the CPU (fp32) takes its place: the GPU has no memory"
    ]
    engine.run(_inputs())
    assert failing.calls == 1


def test_the_cpu_takes_over_after_three_failures_in_a_row(device: Any) -> None:
    engine, failing, said = device({2, 3, 5, 6, 7})
    expected = engine.run(_inputs())["total"]
    engine.run(_inputs())
    for _ in range(2):
        with pytest.raises(DeviceError, match="no memory"):
            engine.run(_inputs())
    engine.run(_inputs())  # well again
    for _ in range(2):
        with pytest.raises(DeviceError):
            engine.run(_inputs())
    assert not said
    np.testing.assert_array_equal(engine.run(_inputs())["total"], expected)
    assert (failing.calls, len(said)) == (8, 1)
    assert engine.run(_inputs(), ["doubled"]).keys() == {"doubled"}


def test_wrong_inputs_are_no_failures_of_the_device(device: Any) -> None:
    engine, _, said = device(set())
    for _ in range(5):
        with pytest.raises(EngineError, match="'points' is empty"):
            engine.run({**_inputs(), "points": np.zeros((2, 0, 3), np.float32)})
    assert not said
    assert engine.name == "failing device"


@pytest.mark.parametrize("name", ["tensorrt", "auto"])
def test_an_engine_that_cannot_run_here(
    graph: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    said: list[str] = []
    engine = engine_or_fallback(name, graph, said.append, precision="fp16", threads=1)
    assert engine.name.endswith("CPU")
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "TensorRT is not installed" in said[0]
    caplog.set_level(logging.INFO)
    assert make_engine("auto", graph).name.endswith("CPU")
    assert len(caplog.messages) == 1
    # What nobody can fall back from.
    with pytest.raises(EngineError, match="unknown precision 'fp8': choose one of fp32, tf32, fp16"):
        engine_or_fallback(name, graph, precision="fp8")
    with pytest.raises(EngineError, match="unknown engine 'abacus'"):
        engine_or_fallback("abacus", graph)
    with pytest.raises(EngineError, match="no graph at"):
        engine_or_fallback(name, graph.parent / "absent.onnx")


def test_a_library_that_breaks_is_no_crash(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmr_prob_ros.engines.tensorrt as native

    monkeypatch.setattr(native, "_import_tensorrt", lambda: 1 / 0)
    said: list[str] = []
    assert engine_or_fallback("tensorrt", graph, said.append).name.endswith("CPU")
    assert "division by zero" in said[0]


def test_the_cpu_says_that_it_knows_one_precision(graph: Path) -> None:
    said: list[str] = []
    engine_or_fallback("onnxruntime", graph, said.append, precision="fp16")
    assert said == ["the engine onnxruntime computes in fp32 only, not in fp16"]
