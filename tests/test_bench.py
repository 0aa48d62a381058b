"""``hmr-prob bench``: what it counts and measures, against closed forms and other libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from bench_helpers import CAMERA, answered_set, keypoints_of_somebody, photograph_path

from hmr_prob_ros.benchmark import accuracy, measure, posterior, stages, work
from hmr_prob_ros.benchmark.posterior import Line, plan
from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.cli import main
from hmr_prob_ros.engines import EngineError, make_engine
from hmr_prob_ros.engines.profile import (
    matmul_graph,
    matmul_rate,
    product_operations,
    products,
    without_modes,
)
from hmr_prob_ros.estimator import Estimator
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.setfile import SetError


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(os.environ.get("HMR_PROB_TEST_BUNDLE"))


@pytest.fixture(scope="module")
def person() -> Person2D:
    return Person2D(np.array([220, 60, 420, 440], np.float32), 0.9, keypoints_of_somebody())


@pytest.mark.parametrize(
    ("first", "output", "operations"),
    [
        ((100, 72), (100, 256), 2 * 100 * 72 * 256),
        ((1, 100, 72), (1, 100, 256), 2 * 100 * 72 * 256),
        ((72, 100), (100, 256), 2 * 100 * 72 * 256),  # transposed
        ((4, 6, 100), (4, 6, 74), 2 * 4 * 6 * 100 * 74),
        ((8, 8), (8, 3), 2 * 8 * 8 * 3),
    ],
)
def test_operations_of_a_product(first: tuple[int, ...], output: tuple[int, ...], operations: int) -> None:
    assert product_operations(first, output) == operations


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="no matrix product"):
        product_operations((3,), (3, 3))


@pytest.mark.parametrize("samples", [40, 100])
def test_operations_of_the_flow(bundle: Bundle, person: Person2D, samples: int) -> None:
    """Against the closed form: three layers a coupling, on one half of 144 numbers."""
    config = bundle.card["config"]
    hidden, rows = config["hidden"], samples
    if bundle.card["method"] == "joint":  # its modes go through the flow too
        rows += bundle.num_modes - 1
    last = 72 if config.get("coupling") == "additive" else 144
    inputs = work._inputs(bundle, person, CAMERA, samples)
    layers = work.sample_layers(products(bundle.model_path, inputs, 1, 3), samples, bundle.num_modes)
    assert len(layers) == 3 * config["couplings"]
    expected = 2 * rows * config["couplings"] * (72 * hidden + hidden * hidden + hidden * last)
    assert sum(layer.operations for layer in layers) == expected
    assert all(layer.seconds > 0 for layer in layers)


def test_the_hand_written_graph_is_a_product(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 300), dtype=np.float32)
    data = np.random.default_rng(1).standard_normal((7, 5), dtype=np.float32)
    path = tmp_path / "product.onnx"
    path.write_bytes(matmul_graph(weights))
    assert np.allclose(make_engine("onnxruntime", path).run({"x": data})["y"], data @ weights, atol=1e-5)
    onnx = pytest.importorskip("onnx", reason="needs onnx to check the file ([train] extra)")
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    assert matmul_rate(8, 16, 16, threads=1, seconds=0.01) > 0


def test_a_graph_without_modes_gives_the_rest_alike(bundle: Bundle, person: Person2D, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx to cut a graph ([train] extra)")
    path = tmp_path / "cut.onnx"
    path.write_bytes(without_modes(bundle.model_path))
    inputs = work._inputs(bundle, person, CAMERA, 30)
    whole, cut = (make_engine("onnxruntime", p, threads=1).run(inputs) for p in (bundle.model_path, path))
    assert set(whole) - set(cut) == {name for name in whole if name.startswith("mode_")}
    for name, value in cut.items():
        assert np.allclose(value, whole[name], atol=1e-5), name
    with pytest.raises(EngineError, match="no outputs but those"):
        without_modes(bundle.model_path, "")


def test_percentiles_and_rounds() -> None:
    assert measure.percentiles(list(range(1, 102))) == {"p50": 51.0, "p90": 91.0, "p99": 100.0, "mean": 51.0}
    calls: list[int] = []
    assert len(measure.timed(lambda: calls.append(1), 7, warm_up=2)) == 7
    assert len(calls) == 9
    assert len(measure.timed(lambda: None, 1000, seconds=0, least=4)) == 4


def test_a_busy_machine_is_told() -> None:
    about = measure.machine()
    assert about["cores"] >= 1
    assert about["cpu"]
    assert about["versions"]["numpy"] == np.__version__
    assert measure.load_warning({"busy_cores": 0.1, "cores": 2}) == ""
    assert measure.load_warning({"busy_cores": None, "cores": 2}) == ""
    assert "1.5 of 2 cores with other programs" in measure.load_warning({"busy_cores": 1.5, "cores": 2})
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            busy = measure.machine(())["busy_cores"]
        finally:
            other.kill()
    assert busy is None or busy > 0.3
    with measure.Meter() as meter:
        sum(range(100_000))
    assert 0 < meter.load <= 1.1
    assert 0 < meter.summary()["memory_mb"]["resident"] <= meter.summary()["memory_mb"]["peak"]


def test_the_plan_has_every_line_once() -> None:
    base = Line(1, 100, 10, 2)
    lines = plan(base, [1, 4], [5, 100, 1024], [5, 10, 200], [1, 2], [("onnxruntime", "fp32"), ("tensorrt", "fp16")])
    assert len(lines) == len(set(lines))
    assert lines[0] == base
    assert {(line.people, line.samples) for line in lines} >= {(1, 100), (4, 100), (1, 1024), (4, 1024)}
    assert {line.modes for line in lines} == {5, 10}  # 200 modes of 100 samples, and 10 of 5, cannot be
    assert {(line.threads, line.samples) for line in lines} >= {(1, 100), (2, 100), (1, 1024), (2, 1024)}
    assert [line.precision for line in lines if line.engine == "tensorrt"] == ["fp16"]


def test_errors_are_zero_where_the_truth_is_the_answer(bundle: Bundle) -> None:
    data = answered_set(bundle)
    with Estimator(bundle, None, samples=30, threads=1) as estimator:
        known = accuracy.Accuracy(data).of(estimator, "fp32")
        assert accuracy.Accuracy(None).of(estimator, "fp32") is None
    assert known is not None
    assert known["examples"] == len(data)
    assert known["mode"] == known["mode_mpjpe"] == known["best_of_25"] == 0
    assert known["best_mode"] >= 0


def test_examples_are_spread_over_the_set(bundle: Bundle, tmp_path: Path) -> None:
    data = answered_set(bundle, 5)
    data.keypoints[2, :, 2] = 0  # nobody can be made of that
    data.save(tmp_path / "set.npz")
    used = accuracy.load_examples(tmp_path / "set.npz", 3)
    assert used is not None
    assert np.array_equal(used.joints[[0, -1]], data.joints[[0, 4]])
    assert len(used) == 3
    data.keypoints[..., 2] = 0
    data.save(tmp_path / "none.npz")
    with pytest.raises(SetError, match="no example can be used"):
        accuracy.load_examples(tmp_path / "none.npz", 3)


def test_lines_of_the_posterior(bundle: Bundle, person: Person2D) -> None:
    lines = [Line(2, 30, 5, 1), Line(1, 30, 10, 1)]
    known = accuracy.Accuracy(answered_set(bundle, 2))
    rows, failed = posterior.measure(lines, bundle, person, CAMERA, known, rounds=3, progress=False)
    assert not failed
    for line, row in zip(lines, rows, strict=True):
        assert Line(**{name: row[name] for name in line.__dict__}) == line
        assert 0 < row["ms"]["p50"] <= row["ms"]["p99"]
        assert row["accuracy"]["best_of_25"] == 0
    assert work.peak(bundle, person, CAMERA, [30], [1], rounds=2)[0]["fraction"] > 0
    share = work.kmeans_share(bundle, person, CAMERA, [30], 1, rounds=3)
    assert isinstance(share, str) or share[0]["share"] < 1


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph() -> str:
    return photograph_path()


TINY = ["--frames", "3", "--people", "1", "2", "--sweep-samples", "25", "--sweep-modes", "5", "--sweep-threads", "1"]


def test_bench_writes_everything(
    bundle: Bundle, photograph: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered_set(bundle).save(tmp_path / "set.npz")
    out = tmp_path / "bench.json"
    wanted = ["--set", str(tmp_path / "set.npz"), "--samples", "30", "--json", str(out), "--bundle", str(bundle.path)]
    assert main(["bench", photograph, *TINY, *wanted]) == 0
    result = json.loads(out.read_text())
    assert {"cpu", "cores", "memory_gb", "governor", "busy_cores", "versions"} <= set(result["machine"])
    entry = result["detectors"][0]
    for stage in ("detect", "track", "condition", "infer", "assemble", "total"):
        times = entry["stages_ms"][stage]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    assert 0 < entry["posterior_share"] < 1
    assert entry["cpu_load"] > 0
    assert entry["memory_mb"]["peak"] > 0
    rows = result["posterior"]
    assert {(row["people"], row["samples"]) for row in rows} == {(1, 25), (2, 25), (1, 30), (2, 30)}
    assert 5 in {row["modes"] for row in rows}
    assert all(row["accuracy"]["best_of_25"] == 0 and row["memory_mb"]["resident"] > 0 for row in rows)
    assert {row["samples"] for row in result["peak"]} == {25, 30}
    assert "tensorrt" in result["engines_missing"] or "tensorrt" in {row["engine"] for row in rows}
    text = capsys.readouterr().out
    for words in ("best of 25", "share of the modes", "matrix-product peak", "posterior (condition"):
        assert words in text, text


def test_bench_without_a_set_says_so(bundle: Bundle, photograph: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--samples", "25", "--people", "1", "--frames", "1", "--sweep-threads", "1", "--sweep-modes", "10"]
    code = main(["bench", photograph, *arguments, "--sweep-samples", "25", "--bundle", str(bundle.path)])
    assert code == 0
    assert accuracy.NOT_MEASURED in capsys.readouterr().out


def _black(folder: Path) -> str:
    cv2.imwrite(str(folder / "black.png"), np.zeros((480, 640, 3), np.uint8))
    return str(folder / "black.png")


def _useless(folder: Path) -> str:
    np.savez(folder / "other.npz", format="something else")
    return str(folder / "other.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda folder: [_black(folder)], "no person was found in the frames"),
        (lambda folder: ["--set", str(folder / "no.npz")], "there is no set"),
        (lambda folder: ["--set", _useless(folder)], "is not an evaluation set"),
        (lambda folder: ["--engines", "abacus"], "unknown engine 'abacus': choose one of onnxruntime"),
        (lambda folder: ["--detector", "abacus"], "unknown detector 'abacus'"),
        (lambda folder: ["--modes", "20", "--samples", "10"], "lower --modes to 10"),
        (lambda folder: ["--size", "large"], "640x480"),
    ],
)
def test_errors_are_one_line(
    arguments: Callable[[Path], list[str]],
    words: str,
    photograph: str,
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", *arguments(tmp_path), "--frames", "2", "--quiet", "--bundle", str(bundle.path)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hmr-prob:")]
    assert len(lines) == 1
    assert words in lines[0]


def test_pictures_are_fitted_and_messages_written(bundle: Bundle, person: Person2D) -> None:
    image = stages.fit(np.full((100, 50, 3), 255, np.uint8), (640, 480))
    assert image.shape == (480, 640, 3)
    assert (image[:, 200:440] == 255).all()
    assert not image[:, :199].any()
    write = stages.message_writer(bundle.name, bundle.body_hash)
    if write is not None:
        with Estimator(bundle, None, threads=1) as estimator:
            few, many = (len(write(estimator.infer([person] * n, CAMERA))) for n in (1, 3))
        assert few < many < 3 * few
