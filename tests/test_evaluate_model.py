"""The evaluation of any method: against the runtime's own, brute force, and methods whose errors are known."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from torch import Tensor, nn  # noqa: E402

from hmr_prob_ros import evaluate as runtime  # noqa: E402
from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.joint_sets import joint_set  # noqa: E402
from hmr_prob_ros.metrics import mpjpe, pa_mpjpe  # noqa: E402
from hmr_prob_ros.quantize import quantize_heads  # noqa: E402
from hmr_prob_ros.setfile import PoseSet  # noqa: E402
from hmr_prob_ros.training import evaluate_samples  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.noise import VISIBLE, DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.sets import examples_from_set  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.evaluate import evaluate_model  # noqa: E402
from hmr_prob_ros.training.graph import OUTPUTS, DensityGraph, PosteriorGraph  # noqa: E402
from hmr_prob_ros.training.models import (  # noqa: E402
    FlowConfig,
    FlowPosterior,
    MultiHead,
    MultiHeadConfig,
)

SMALL: dict[str, Any] = {"hidden": 16, "condition": 16, "encoder_width": 16, "encoder_depth": 1, "head_hidden": 16}
HEADS = 6
quiet: dict[str, Any] = {"progress": False, "timing": False, "threads": 1}


@pytest.fixture(scope="module")
def torch_body(body: Body) -> TorchBody:
    return TorchBody(body)


@pytest.fixture(scope="module")
def examples(torch_body: TorchBody) -> Examples:
    rng = np.random.default_rng(0)
    poses = 0.25 * rng.standard_normal((40, 24, 3))
    poses[:, 0] *= 0.3
    return Synthesizer(torch_body, [DetectorNoise.load("blazepose")], seed=3)(poses)[:23]


@pytest.fixture(scope="module")
def data(examples: Examples, body: Body) -> PoseSet:
    names = ("joints", "keypoints3d", "rotations", "betas", "translation", "visible")
    return PoseSet(
        keypoints=examples.detected.numpy(),
        intrinsics=examples.intrinsics.numpy(),
        image_size=examples.size.numpy(),
        take=np.full(len(examples), "take"),
        body=body.hash,
        **{name: getattr(examples, name).numpy() for name in names},
    )


def ready(model: nn.Module, examples: Examples) -> nn.Module:
    """A model that gives each example another answer."""
    model.fit_statistics(examples.pose6d.repeat(10, 1) + 0.1 * torch.randn(10 * len(examples), 144))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("last.weight") or name.endswith("network.4.weight"):
                value.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def flow(torch_body: TorchBody, examples: Examples) -> FlowPosterior:
    torch.manual_seed(0)
    config = FlowConfig(couplings=2, sample_shape=True, sample_translation=True, **SMALL)
    return ready(FlowPosterior(config, torch_body), examples)


@pytest.fixture(scope="module")
def heads(torch_body: TorchBody, examples: Examples) -> MultiHead:
    torch.manual_seed(1)
    return ready(MultiHead(MultiHeadConfig(heads=HEADS, spread=0.5, **SMALL), torch_body), examples)


def same(a: Any, b: Any, tolerance: float, relative: float = 1e-4, path: str = "") -> None:
    """Equal figures wherever both have them."""
    if isinstance(a, dict):
        for key in a.keys() & b.keys():
            same(a[key], b[key], tolerance, relative, f"{path}.{key}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=tolerance, rel=relative, nan_ok=True), path


def test_agrees_with_the_runtimes_evaluation(
    flow: FlowPosterior, data: PoseSet, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph that is exported, run in torch, through the code that evaluates bundles, with equal latents."""
    graphs = {"model": (PosteriorGraph(flow, 5), OUTPUTS), "density": (DensityGraph(flow), ("log_density",))}

    class Engine:
        def __init__(self, which: str) -> None:
            self.graph, self.names = graphs[which]

        def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
            with torch.no_grad():
                values = self.graph(*(torch.as_tensor(value) for value in inputs.values()))
            return {n: v.numpy() for n, v in zip(self.names, values) if n in outputs}

    bundle = SimpleNamespace(
        name="trial", latent_size=flow.latent_size, num_modes=5, nested_modes=False, model_path="model",
        density_path=__file__, body_hash=body.hash,
    )  # fmt: skip
    monkeypatch.setattr(runtime.Bundle, "load", lambda path: bundle)
    monkeypatch.setattr(
        runtime, "make_engine", lambda n, path, threads: Engine("model" if path == "model" else "density")
    )
    expected = runtime.evaluate(data, None, counts=(5, 10, 25, 100), batch=8, seed=4, progress=False)

    rng = np.random.default_rng(4)

    def latents(source: evaluate_samples.Source, start: int, count: int) -> Tensor:
        drawn = rng.standard_normal((count, 400, flow.latent_size), dtype=np.float32)
        drawn[:, 0] = 0.0
        return torch.from_numpy(drawn)

    monkeypatch.setattr(evaluate_samples.Source, "latents", latents)
    given = evaluate_model(flow, examples_from_set(data, body.hash), (5, 10, 25, 100), batch=8, seed=4, **quiet)
    assert given["count"] == expected["count"] == len(data)
    for name in ("mode", "mean", "min_of", "absolute", "nll"):
        same(given[name], expected[name], 0.02, path=name)
    same(given["spread"], expected["spread"], 0.02)
    same(given["quantised"], expected["quantised"], 0, 0.03)  # the last digit of a distance decides whom it starts from
    same(given["coverage"], expected["coverage"], 0.01)
    same(given["coverage_relative"], expected["coverage_relative"], 0.02)  # unbiased here
    assert np.isfinite(given["nll"])


def test_neither_batch_nor_counts_change_the_first_samples(flow: FlowPosterior, examples: Examples) -> None:
    one = evaluate_model(flow, examples, (1, 5), batch=5, seed=2, quantised=False, **quiet)
    other = evaluate_model(flow, [examples[:9], examples[9:]], (1, 5, 130), batch=16, seed=2, quantised=False, **quiet)
    for name in ("mode", "mean", "min_of", "spread", "coverage", "keypoints2d", "nll", "absolute"):
        same(one[name], other[name], 0.001, path=name)
    assert one["min_of"]["1"] == one["mode"]
    assert other["min_of"]["130"]["mpjpe"] < other["min_of"]["5"]["mpjpe"] < other["mode"]["mpjpe"]
    third = evaluate_model(flow, examples, (1, 5), batch=5, seed=3, quantised=False, **quiet)
    assert third["min_of"]["5"] != one["min_of"]["5"]


def test_thousands_of_samples_come_in_portions(
    flow: FlowPosterior, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = FlowPosterior.forward

    def watched(self: FlowPosterior, keypoints: Tensor, box: Tensor, latents: Tensor, image: Any = None) -> Any:
        seen.append(latents.shape[0] * latents.shape[1])
        return forward(self, keypoints, box, latents, image)

    monkeypatch.setattr(FlowPosterior, "forward", watched)
    result = evaluate_model(flow, examples[:2], (100, 4096), batch=2, quantised=False, **quiet)
    assert sum(seen) == 2 * 4096
    assert max(seen) <= 4096
    assert result["samples"] == 4096
    assert result["min_of"]["4096"]["pa_mpjpe"] < result["min_of"]["100"]["pa_mpjpe"]


@pytest.mark.parametrize("name", ["smpl", "h36m", "lsp"])
def test_errors_by_brute_force(name: str, heads: MultiHead, examples: Examples) -> None:
    chosen = joint_set(name)
    result = evaluate_model(heads, examples, (1, 3, HEADS, HEADS + 1), name, **quiet)
    with torch.no_grad():
        out = heads(examples.keypoints, examples.box, heads.latents(len(examples), 1))
    joints, surface = out["sample_joints"].numpy(), out["sample_keypoints"].numpy()
    truth = chosen.rooted(examples.joints.numpy(), examples.keypoints3d.numpy())
    given = chosen.rooted(joints, surface)
    for metric, function in (("mpjpe", mpjpe), ("pa_mpjpe", pa_mpjpe)):
        errors = np.array(
            [[1000 * (function(given[b, m], truth[b], None) if metric == "mpjpe" else function(given[b, m], truth[b]))
              for m in range(HEADS)] for b in range(len(examples))]
        )  # fmt: skip
        assert result["mode"][metric] == pytest.approx(errors[:, 0].mean(), abs=0.01)
        assert result["min_of"]["1"][metric] == result["mode"][metric]
        for kind in ("min_of", "quantised", "quantised_uniform"):
            assert result[kind][str(HEADS)][metric] == pytest.approx(errors.min(axis=1).mean(), abs=0.01)
            assert np.isnan(result[kind][str(HEADS + 1)][metric])
        chosen3 = [quantize_heads(j, 3).index for j in joints]
        expected = np.mean([errors[b, index].min() for b, index in enumerate(chosen3)])
        assert result["quantised_uniform"]["3"][metric] == pytest.approx(expected, abs=0.01)
    assert result["heads"] == HEADS
    assert np.isnan(result["nll"])


def test_weights_of_heads_decide(heads: MultiHead, examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the heaviest head counts for one mode; logarithms tell heads apart whose weights are all but zero."""
    heavy = 4

    def log_weights(joints: Tensor) -> Tensor:
        return torch.tensor([-2000.0 if m != heavy else 0.0 for m in range(HEADS)]).expand(joints.shape[:2])

    monkeypatch.setattr(heads, "log_weights", log_weights)
    result = evaluate_model(heads, examples, (1, 2), **quiet)
    with torch.no_grad():
        out = heads(examples.keypoints, examples.box, heads.latents(1, 1))["sample_joints"].numpy()
    errors = 1000 * mpjpe(out, examples.joints.numpy()[:, None])
    assert result["quantised"]["1"]["mpjpe"] == pytest.approx(errors[:, heavy].mean(), abs=0.01)
    assert result["min_of"]["2"]["mpjpe"] == pytest.approx(errors[:, [0, heavy]].min(axis=1).mean(), abs=0.01)
    assert result["quantised_uniform"]["1"]["mpjpe"] != result["quantised"]["1"]["mpjpe"]
    kept = evaluate_model(heads, examples, (1, 2), keep_first=True, **quiet)
    assert kept["quantised"]["1"] == kept["mode"]
    assert kept["quantised"]["2"]["mpjpe"] == pytest.approx(result["min_of"]["2"]["mpjpe"], abs=0.01)


class Known(nn.Module):
    """A method whose samples are Gaussian points round the truth's own centre: everything about it is known."""

    name, heads, has_density = "known", None, False

    def __init__(self, body: nn.Module, centre: Examples, sigma: float, latent_size: int = 47 * 3) -> None:
        super().__init__()
        self.body, self.centre, self.sigma, self.latent_size = body, centre, sigma, latent_size

    def latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        latents = torch.randn(count, samples, self.latent_size, generator=generator)
        latents[:, 0] = 0
        return latents

    def forward(self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Any = None) -> dict[str, Tensor]:
        rows = [int((self.centre.box == b).all(dim=1).nonzero()[0, 0]) for b in box]
        shift = self.sigma * latents.unflatten(-1, (47, 3))
        return {
            "sample_joints": self.centre.joints[rows][:, None] + shift[:, :, :24],
            "sample_keypoints": self.centre.keypoints3d[rows][:, None] + shift[:, :, 24:],
            "sample_weight": torch.full(latents.shape[:2], 1 / latents.shape[1]),
        }


def test_a_method_that_is_always_right(torch_body: TorchBody, examples: Examples) -> None:
    masked = examples[:]
    masked.mask = torch.ones(len(examples), 64, 64, dtype=torch.bool)
    result = evaluate_model(Known(torch_body, examples, 0.0), masked, (1, 5), "lsp", **quiet)
    for pair in (result["mode"], result["mean"], result["min_of"]["5"], result["quantised"]["5"]):
        assert pair["mpjpe"] == pytest.approx(0, abs=1e-3)
        assert pair["pa_mpjpe"] == pytest.approx(0, abs=1e-3)
    assert result["absolute"]["mode"] == {"pelvis": 0.0, "joints": 0.0}
    assert result["spread"]["all"] == pytest.approx(0.0, abs=1e-3)
    assert result["keypoints2d"] == {"mode": 0.0, "samples": pytest.approx(0.0, abs=1e-3)}
    assert result["mask"]["perc_in"] == result["mask"]["truth"] == 1.0
    assert result["mask"]["min_dist"] == 0.0


def test_a_calibrated_gaussian(torch_body: TorchBody, examples: Examples) -> None:
    sigma = 0.05
    many = Examples.cat([examples] * 8)
    many.box = many.box + 1e-4 * torch.arange(len(many))[:, None]  # each example can be told by its box
    truth = many[:]
    shift = sigma * torch.randn(len(many), 24, 3, generator=torch.Generator().manual_seed(1))
    truth.joints = many.joints + shift
    model = Known(torch_body, many, sigma)
    result = evaluate_model(model, truth, (1, 25), quantised=False, **quiet)
    # A covariance of 100 samples is a little too small and too large by turns: F instead of chi-squared, a percent.
    assert result["coverage"]["50%"]["all"] == pytest.approx(0.5, abs=0.025)
    assert result["coverage"]["90%"]["all"] == pytest.approx(0.9, abs=0.025)
    assert result["coverage_relative"]["90%"]["all"] == pytest.approx(0.9, abs=0.025)
    # Two points of the pelvis-relative difference: sqrt(2) sigma each, mean length 2 sqrt(2 / pi) of that.
    spread = 1000 * sigma * 2 * np.sqrt(2 / np.pi) * np.sqrt(2) * 23 / 24 * np.sqrt(1 - 1 / 100)
    assert result["spread"]["all"] == pytest.approx(spread, rel=0.02)
    assert result["absolute"]["mode"]["joints"] == pytest.approx(1000 * sigma * 2 * np.sqrt(2 / np.pi), rel=0.02)
    assert result["mean"]["mpjpe"] < result["min_of"]["25"]["mpjpe"] * 1.3


def test_picture_metrics_by_brute_force(torch_body: TorchBody, examples: Examples) -> None:
    part = examples[:6]
    part.mask = torch.zeros(6, 64, 64, dtype=torch.bool)
    part.mask[:, :, :40] = True
    part.occluded = torch.tensor([False, True, False, False, True, False])
    model = Known(torch_body, examples, 0.1)
    result = evaluate_model(model, part, (1,), quantised=False, batch=6, **quiet)
    source = evaluate_samples.Source(model, joint_set("smpl"), 100, 100, False, "truth", 0)
    surface = model(part.keypoints, part.box, source.latents(0, 6))["sample_keypoints"].numpy()
    pixels, single, inside, away, ceiling = [], [], [], [], []
    for b, n, k in itertools.product(range(6), range(100), range(17)):
        cx, cy, size = part.box[b].numpy()
        true, place = (
            np.array([(p[0] / p[2] - cx) / (size / 2), (p[1] / p[2] - cy) / (size / 2)])
            for p in (part.keypoints3d[b, k].numpy(), surface[b, n, k])
        )
        if part.state[b, k] == VISIBLE:
            (pixels if n else single).append(128 * np.hypot(*(place - true)))
        elif np.abs(true).max() <= 1 and not part.occluded[b]:
            far = max(place[0] - 0.25, 0), max(-1 - place[0], 0), max(abs(place[1]) - 1, 0)  # 40 of 64 columns
            away.append(128 * np.hypot(max(far[:2]), far[2]))
            inside.append(away[-1] == 0)
            ceiling.append(true[0] < 0.25)
    assert result["keypoints2d"]["mode"] == pytest.approx(np.mean(single), rel=1e-3, abs=1e-3)
    assert result["keypoints2d"]["samples"] == pytest.approx(np.mean(pixels), rel=1e-3)
    assert result["mask"]["perc_in"] == pytest.approx(np.mean(inside), abs=2e-3)
    assert result["mask"]["min_dist"] == pytest.approx(np.mean(away), rel=1e-3)
    assert result["mask"]["truth"] == pytest.approx(np.mean(ceiling), abs=1e-6)
