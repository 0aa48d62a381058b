"""``hmr-prob bench`` and benchmarks/latency: what they count and measure, against closed forms and other libraries."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT

from hmr_prob_ros.benchmark import accuracy, measure, posterior, stages, work
from hmr_prob_ros.benchmark.posterior import Line, plan
from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.cli import main
from hmr_prob_ros.detectors import DetectorError, make_detector
from hmr_prob_ros.engines import EngineError, make_engine
from hmr_prob_ros.engines.profile import (
    matmul_graph,
    matmul_rate,
    product_operations,
    products,
    without_modes,
)
from hmr_prob_ros.estimator import Estimator, draw_latents
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.setfile import PoseSet, SetError

SCRIPT = ROOT / "benchmarks" / "latency" / "run.py"
CAMERA = Camera.guess(640, 480)


def _keypoints(seed: int = 0) -> np.ndarray:
    """(23, 3) somebody in the middle of a 640x480 picture; where exactly does not matter."""
    random = np.random.default_rng(seed)
    points = random.uniform((220, 60), (420, 440), (23, 2))
    return np.concatenate((points, np.full((23, 1), 0.9)), axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(os.environ.get("HMR_PROB_TEST_BUNDLE"))


@pytest.fixture(scope="module")
def person() -> Person2D:
    return Person2D(np.array([220, 60, 420, 440], np.float32), 0.9, _keypoints())


def _set(bundle: Bundle, count: int = 4) -> PoseSet:
    """People whose true bodies are the model's own single answers."""
    keypoints = np.stack([_keypoints(seed) for seed in range(count)])
    with Estimator(bundle, None, keep_samples=True, threads=1) as estimator:
        found = [estimator.infer([Person2D(np.ones(4, np.float32), 1.0, k)], CAMERA)[0] for k in keypoints]
    return PoseSet(
        keypoints=keypoints,
        intrinsics=np.tile([CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy], (count, 1)),
        image_size=np.tile([640, 480], (count, 1)),
        joints=np.stack([one.samples[0] for one in found]),
        keypoints3d=np.full((count, 23, 3), np.nan),
        visible=np.ones((count, 24), bool),
        take=np.full(count, "a"),
    )


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
    assert measure.load_warning({"load_average": 0.5, "cores": 2}) == ""
    assert "load average 1.5 on 2 cores" in measure.load_warning({"load_average": 1.5, "cores": 2})
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
    data = _set(bundle)
    with Estimator(bundle, None, samples=30, threads=1) as estimator:
        known = accuracy.Accuracy(data).of(estimator, "fp32")
        assert accuracy.Accuracy(None).of(estimator, "fp32") is None
    assert known is not None
    assert known["examples"] == len(data)
    assert known["mode"] == known["mode_mpjpe"] == known["best_of_25"] == 0
    assert known["best_mode"] >= 0


def test_examples_are_spread_over_the_set(bundle: Bundle, tmp_path: Path) -> None:
    data = _set(bundle, 5)
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
    known = accuracy.Accuracy(_set(bundle, 2))
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
    """A picture in which mediapipe finds somebody."""
    try:
        make_detector("mediapipe").close()
    except DetectorError as error:
        pytest.skip(str(error))
    data = pytest.importorskip("skimage.data", reason="needs scikit-image for its photograph of a person")
    return str(Path(data.__file__).parent / "astronaut.png")


TINY = ["--frames", "3", "--people", "1", "2", "--sweep-samples", "25", "--sweep-modes", "5", "--sweep-threads", "1"]


def test_bench_writes_everything(
    bundle: Bundle, photograph: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _set(bundle).save(tmp_path / "set.npz")
    out = tmp_path / "bench.json"
    wanted = ["--set", str(tmp_path / "set.npz"), "--samples", "30", "--json", str(out), "--bundle", str(bundle.path)]
    assert main(["bench", photograph, *TINY, *wanted]) == 0
    result = json.loads(out.read_text())
    assert {"cpu", "cores", "memory_gb", "governor", "load_average", "versions"} <= set(result["machine"])
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


# benchmarks/latency -------------------------------------------------------------------------------------------------


@pytest.fixture
def section(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of benchmarks/latency, which is no package."""
    pytest.importorskip("torch", reason="the comparisons need the [train] extra")
    pytest.importorskip("sklearn", reason="the comparisons need the [train] extra")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(SCRIPT.parent)):
            del sys.modules[name]


@pytest.mark.parametrize("additive", [False, True])
def test_the_plain_sampler_is_the_graph(section: Any, additive: bool, tmp_path: Path) -> None:
    import torch

    from hmr_prob_ros.training.flow import ConditionalFlow

    torch.manual_seed(0)
    flow = ConditionalFlow(size=8, context=5, hidden=16, couplings=3, additive=additive).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        flow.standardise.fit(1 + torch.randn(100, 8))
    plain = section("plain").PlainSampler(flow)
    path = section("sampler").FlowGraph(flow).write(tmp_path / "flow.onnx", 5)
    latents, code = torch.randn(3, 20, 8), torch.randn(3, 5)
    with torch.no_grad():
        pose, density = plain.sample(latents, code)
    given = make_engine("onnxruntime", path, threads=1).run({"latents": latents.numpy(), "code": code.numpy()})
    assert np.abs(given["pose"] - pose.numpy()).max() <= 1e-5
    assert (np.abs(given["log_density"] - density.numpy()) / np.maximum(np.abs(density.numpy()), 1)).max() <= 1e-5
    with pytest.raises(TypeError, match="not of a Linear"):
        section("plain").PlainSampler(torch.nn.Linear(2, 2))


def test_inertia_is_that_of_scikit_learn(section: Any) -> None:
    from sklearn.cluster import KMeans

    points = np.random.default_rng(0).standard_normal((60, 5))
    found = KMeans(4, n_init=3, max_iter=500, tol=0, random_state=0).fit(points)
    assert section("modes").inertia(points, found.labels_) == pytest.approx(found.inertia_, rel=1e-9)


def test_latents_are_normal_and_begin_with_zero(section: Any) -> None:
    latents = section("latents")
    for kind, draw in latents.KINDS.items():
        drawn = draw(257, 30, 0)
        assert drawn.shape == (257, 30)
        assert drawn.dtype == np.float32
        assert not drawn[0].any(), kind
        assert np.abs(drawn[1:].mean()) < 0.03, kind
        assert drawn[1:].std() == pytest.approx(1, abs=0.05), kind
        assert not np.array_equal(drawn, draw(257, 30, 1)), kind
    even = latents.sobol(257, 30, 0)[1:]
    # What makes them even: every column has one number in each 256th of the distribution.
    from scipy.special import ndtr

    for column in even.T:
        assert len(set(np.floor(256 * ndtr(column.astype(np.float64)) + 1e-4).astype(int))) > 250


def test_other_precisions_run(section: Any, bundle: Bundle, person: Person2D, tmp_path: Path) -> None:
    import onnx

    from hmr_prob_ros.engines.half import half_networks

    variants = section("variants")
    path = Path(bundle.model_path)
    inputs = work._inputs(bundle, person, CAMERA, 30)
    reference = variants.SessionEngine(path, threads=1).run(inputs, ["sample_joints"])["sample_joints"]
    int8 = variants.int8_graph(path, tmp_path / "int8.onnx", layers=True)
    kinds = [node.op_type for node in onnx.load(str(int8)).graph.node]
    assert kinds.count("MatMulInteger") >= 3 * bundle.card["config"]["couplings"] - 2
    half = half_networks(onnx.load(str(path))).SerializeToString()
    for model, limit in ((int8, 0.5), (half, 0.05)):
        given = variants.SessionEngine(model, threads=1).run(inputs, ["sample_joints"])["sample_joints"]
        assert 0 < np.linalg.norm(given - reference, axis=-1).mean() < limit
    for more in ({"binding": True}, {"spinning": True}, {"level": "basic"}):
        given = variants.SessionEngine(path, threads=1, **more).run(inputs, ["mean", "sample_joints"])
        assert list(given) == ["mean", "sample_joints"]
        assert np.allclose(given["sample_joints"], reference, atol=1e-4)
    with pytest.raises(EngineError, match="broken cannot run here"):
        variants.SessionEngine(b"no graph", "broken")
    trouble = variants.bfloat16_trouble()
    assert trouble == "" or "bfloat16" in trouble


def test_figures_of_a_run_of_processes(section: Any) -> None:
    """Three minutes with a latency and a memory that grow by known amounts, and every hundredth frame lost."""
    launch = section("launch")
    period, count = 33_333_333, 30 * 190
    stamps = 10**18 + period * np.arange(count)
    minute = (stamps - stamps[0]) / 60e9
    answers = np.stack((stamps, stamps + (1e6 * (20 + 2 * minute)).astype(np.int64), np.full(count, 5000)), axis=1)
    kept = np.arange(count) % 100 != 0
    seconds = np.arange(0, 190)
    usage = np.stack((1e18 + 1e9 * seconds, 0.5 * seconds, 1e8 + 1e6 * seconds / 60), axis=1)
    status = {"stage_detect_ms": "12.5", "engine": "e", "detector": "d"}
    run = launch.Run(int(1e18 - 2e9), stamps, answers[kept], [1, 1], status, usage)
    summary = run.summary()
    assert summary["start_s"] == pytest.approx(2.053, abs=0.01)
    assert summary["cpu_load"] == pytest.approx(0.5)
    assert summary["dropped"] / summary["frames"] == pytest.approx(0.01, abs=0.001)
    assert summary["rate_hz"] == pytest.approx(29.7, abs=0.05)
    assert summary["stages_ms"] == {"detect": 12.5}
    grown = run.minutes()["growth_per_minute"]
    assert grown["p50"] == pytest.approx(2, abs=0.01)
    assert grown["memory_mb"] == pytest.approx(1, abs=0.02)
    with pytest.raises(section("common").Skipped, match="too short"):
        launch.Run(0, stamps[:3], answers[:3], [], {}, usage).summary()


def _run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)


@pytest.mark.slow
def test_the_whole_benchmark(bundle: Bundle, photograph: str, test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the comparisons need the [train] extra")
    _set(bundle).save(tmp_path / "set.npz")
    small = ["--sweep-samples", "25", "100", "--sweep-modes", "5", "--rounds", "2", "--frames", "10", "--seeds", "2"]
    small += ["--seconds", "5", "--starts", "1", "--minutes", "0.15", "--sweep-threads", "1", "--width", "32"]
    weights = [f"detector={test_data}/models/yolox_nano.onnx", f"pose={test_data}/models/tinypose_256x192.onnx"]
    arguments = ["--quick", *small, "--set", str(tmp_path / "set.npz"), "--rtmlib", *weights]
    out = tmp_path / "latency"
    done = _run(out, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((out / "latency.json").read_text())
    sections = result["sections"]
    names = ("stages", "growth", "peak", "sampler", "modes", "latents", "variants", "processes", "four", "sustained")
    assert list(sections) == list(names)
    skipped = {name: section["skipped"] for name, section in sections.items() if "skipped" in section}
    assert not {name: why for name, why in skipped.items() if "not installed" not in why}
    assert all(row["equal"] for row in sections["sampler"]["result"]["rows"])
    table = (out / "latency.md").read_text()
    for words in ("best of 25, mm", "nflows", "scikit-learn", "int8", "bf16", "sobol", "in the layers"):
        assert words in table, words
    for name in ("cost_over_people", "cost_over_samples", "plain_sampler", "latents"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    if "processes" not in skipped:
        runs = sections["processes"]["result"]
        assert all(run["latency_ms"]["p50"] > 0 and run["memory_mb"] > 50 for run in runs["runs"])
        assert 0 < runs["start_s"]["warm"] < 60
        assert sections["sustained"]["result"]["rows"]
        assert (out / "sustained.png").stat().st_size > 10_000
        assert sections["four"]["result"]["in_process"]["posterior_share"] < 1
    # Nothing is measured again, but for what has other options.
    times = {path.name: path.stat().st_mtime_ns for path in (out / "sections").glob("*.json")}
    changed = arguments[: arguments.index("--seeds") + 1] + ["3"] + arguments[arguments.index("--seeds") + 2 :]
    assert _run(out, *changed).returncode == 0
    again = {path.name for path in (out / "sections").glob("*.json") if path.stat().st_mtime_ns != times[path.name]}
    assert again == {"latents.json"}


def test_wrong_options_of_the_benchmark_are_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [bench] extra")
    done = _run(tmp_path / "out", "--only", "magic")
    assert done.returncode == 2
    assert "invalid choice: 'magic'" in done.stderr
    done = _run(tmp_path / "out", "--quick", "--only", "growth", "--set", str(tmp_path / "no.npz"))
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("failed: growth: ")], done.stderr
    assert "there is no set" in done.stderr


def test_draws_begin_with_the_mode() -> None:
    """What the errors lean on: the first latent of a line is zero, whatever N."""
    for count in (1, 25, 100):
        assert not draw_latents(count, 7)[0].any()
