"""benchmarks/latency: that the alternatives are what they are said to be, and that figures are computed right."""

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

import numpy as np
import pytest
from bench_helpers import answered_set
from conftest import ROOT

from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.engines import EngineError, make_engine
from hmr_prob_ros.estimator import draw_latents

SCRIPT = ROOT / "benchmarks" / "latency" / "run.py"


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


def test_other_precisions_run(section: Any, tmp_path: Path) -> None:
    import onnx

    from hmr_prob_ros.engines.half import half_networks

    variants = section("variants")
    bundle = Bundle.load()
    path, couplings = Path(bundle.model_path), bundle.card["config"]["couplings"]
    rng = np.random.default_rng(0)
    shapes = {"keypoints": (1, 23, 3), "latents": (1, 30, bundle.latent_size)}
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["box"] = np.array([[0.1, 0.1, 0.5]], np.float32)
    reference = variants.SessionEngine(path, threads=1).run(inputs, ["sample_joints"])["sample_joints"]
    int8 = variants.int8_graph(path, tmp_path / "int8.onnx", layers=True)
    kinds = [node.op_type for node in onnx.load(str(int8)).graph.node]
    assert kinds.count("MatMulInteger") == 3 * couplings
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


def test_four_people_are_cut_out_of_one_clip(section: Any) -> None:
    frames = [np.zeros((480, 640, 3), np.uint8) for _ in range(8)]
    for number, frame in enumerate(frames):  # somebody from the left edge to the right, 100 pixels tall
        frame[200:300, 100 + 10 * number : 140 + 10 * number] = 200
    boxes = np.array([[100 + 10 * n, 200, 140 + 10 * n, 300] for n in range(8)], np.float32)
    four = section("people").mosaic(frames, boxes)
    assert len(four) == 8
    assert all(picture.shape == (480, 640, 3) for picture in four)
    for picture in four:
        for tile in (picture[:240, :320], picture[:240, 320:], picture[240:, :320], picture[240:, 320:]):
            tall = (tile.max(axis=(1, 2)) > 100).sum()
            assert 240 / 1.5 < tall <= 240 / 1.05


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
def test_the_whole_benchmark(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the comparisons need the [train] extra")
    answered_set(Bundle.load()).save(tmp_path / "set.npz")
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
