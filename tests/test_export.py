"""The exported graphs in ONNX Runtime against torch and numpy, for several persons and samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("nflows")

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.bundle import Bundle  # noqa: E402
from hmr_prob_ros.engines import make_engine  # noqa: E402
from hmr_prob_ros.quantize import quantize  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.export import (  # noqa: E402
    ExportError,
    check_operators,
    export,
    export_graph,
    export_regressor,
)
from hmr_prob_ros.training.graph import OUTPUTS  # noqa: E402
from hmr_prob_ros.training.models import (  # noqa: E402
    CheckpointError,
    FlowConfig,
    FlowPosterior,
    Regressor,
    RegressorConfig,
    save_checkpoint,
)
from hmr_prob_ros.training.rotations import axis_angle_to_matrix, matrix_to_rotation6d  # noqa: E402

MODES = 3
SMALL = {"hidden": 16, "condition": 16, "encoder_width": 16, "encoder_depth": 1, "head_hidden": 16}


def _poses() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return matrix_to_rotation6d(axis_angle_to_matrix(0.3 * torch.randn(200, 24, 3, generator=random))).flatten(1)


@pytest.fixture(scope="module")
def model() -> FlowPosterior:
    torch.manual_seed(0)
    model = FlowPosterior(FlowConfig(couplings=2, sample_shape=True, **SMALL), TorchBody(mesh=False))
    model.fit_statistics(_poses())
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("last.weight"):
                value.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def bundle(model: FlowPosterior, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export")
    save_checkpoint(folder / "model.pt", model, {"name": "trial", "steps": 7, "body_hash": Body.load().hash})
    return export(folder / "model.pt", folder / "bundle", samples=50, modes=MODES, extra={"licence": "Apache-2.0"})


def _inputs(model: FlowPosterior, persons: int, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(persons * 1000 + count)
    latents = rng.normal(size=(persons, count, model.latent_size))
    latents[:, 0] = 0
    keypoints = rng.uniform(-1, 1, (persons, 23, 3))
    keypoints[..., 2] = np.abs(keypoints[..., 2])
    box = rng.uniform([-0.5, -0.3, 0.3], [0.5, 0.3, 1.2], (persons, 3))
    values = {"keypoints": keypoints, "box": box, "latents": latents}
    return {name: value.astype(np.float32) for name, value in values.items()}


def test_card(bundle: Bundle, model: FlowPosterior) -> None:
    assert bundle.name == "trial"
    assert bundle.card["licence"] == "Apache-2.0"
    assert (bundle.latent_size, bundle.samples, bundle.num_modes) == (154, 50, MODES)
    assert bundle.card["config"] == dataclasses.asdict(model.config)
    assert bundle.card["training"] == {"steps": 7}
    assert not bundle.nested_modes  # k-means of the draws
    bundle.check_body(Body.load().hash)
    assert sorted(path.name for path in bundle.path.iterdir()) == ["density.onnx", "model.onnx", "model.yaml"]


def test_only_plain_operators_and_no_stale_shapes(bundle: Bundle) -> None:
    for path in (bundle.model_path, bundle.density_path):
        proto = onnx.load(path)
        check_operators(proto)
        assert not proto.graph.value_info
        assert not proto.functions
        assert 18 <= proto.opset_import[0].version <= 21
        shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
        dims = {name: [d.dim_param or d.dim_value for d in shape] for name, shape in shapes.items()}
        assert dims["keypoints"] == ["B", 23, 3]
        assert dims["box"] == ["B", 3]
    inner = {node.op_type for node in onnx.load(bundle.model_path).graph.node}
    assert not inner & {"GatherND", "ScatterND", "TopK", "NonZero", "If", "Loop", "RandomNormal", "RandomUniform"}


def test_strange_operators_are_refused(tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.topk(x, 2).values,)

    with pytest.raises(ExportError, match="TopK"):
        export_graph(Masked(), {"x": torch.randn(2, 5)}, ["y"], {"x": {0: "B"}}, tmp_path / "x.onnx")


@pytest.mark.parametrize(("persons", "count"), [(1, 25), (2, 100), (4, 25), (1, 1000), (1, 3)])
def test_graph_against_torch_and_numpy(bundle: Bundle, model: FlowPosterior, persons: int, count: int) -> None:
    inputs = _inputs(model, persons, count)
    out = make_engine("onnxruntime", bundle.model_path, threads=1).run(inputs)
    assert list(out) == list(OUTPUTS)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(value) for value in inputs.values()))
    for name, value in expected.items():
        if name in out:
            gap = np.abs(out[name] - value.numpy()) / (1 + np.abs(value.numpy()))
            assert np.quantile(gap, 0.999) < 2e-5, name
            assert gap.max() < 2e-3, name

    # Modes are samples, all different; their weights sum to one, heaviest first; the same as in numpy.
    assert out["mode_index"].dtype == np.int64
    np.testing.assert_allclose(out["mode_weight"].sum(-1), 1, atol=1e-6)
    assert (np.diff(out["mode_weight"], axis=-1) <= 1e-6).all()
    assert out["mode_weight"].min() > 0
    for b in range(persons):
        index = out["mode_index"][b]
        assert len(set(index.tolist())) == MODES
        for name in ("log_density", "rotations", "betas", "translation", "joints", "keypoints"):
            np.testing.assert_array_equal(out["mode_" + name][b], out["sample_" + name][b][index], err_msg=name)
        modes = quantize(out["sample_joints"][b], MODES)
        np.testing.assert_allclose(out["mode_weight"][b], modes.weight, atol=0.02)

    # Mean and covariance.
    joints = out["sample_joints"].astype(np.float64)
    np.testing.assert_allclose(out["mean"], joints.mean(1), atol=1e-5)
    for b in range(persons):
        for j in range(24):
            covariance = np.cov(joints[b, :, j].T) + 1e-6 * np.eye(3)
            np.testing.assert_allclose(out["covariance"][b, j], covariance, atol=1e-5)
    assert np.linalg.eigvalsh(out["covariance"].astype(np.float64)).min() > 0


def test_one_sample_needs_no_modes(bundle: Bundle, model: FlowPosterior) -> None:
    inputs = _inputs(model, 2, 1)
    out = make_engine("onnxruntime", bundle.model_path).run(inputs, ["sample_joints", "mean", "covariance"])
    np.testing.assert_allclose(out["mean"], out["sample_joints"][:, 0], atol=1e-5)
    np.testing.assert_allclose(out["covariance"], np.broadcast_to(1e-6 * np.eye(3), (2, 24, 3, 3)), atol=1e-9)


def test_density_graph(bundle: Bundle, model: FlowPosterior) -> None:
    inputs = _inputs(model, 3, 7)
    keypoints, box, latents = (torch.from_numpy(value) for value in inputs.values())
    with torch.no_grad():
        pose, expected = model.sample(latents, model.condition(keypoints, box))
    assert bundle.density_path is not None
    given = make_engine("onnxruntime", bundle.density_path).run(
        {"keypoints": inputs["keypoints"], "box": inputs["box"], "pose": pose.numpy()}, ["log_density"]
    )["log_density"]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-2)


def test_regressor(tmp_path: Path, model: FlowPosterior) -> None:
    torch.manual_seed(0)
    regressor = Regressor(RegressorConfig(**SMALL), TorchBody(mesh=False)).eval()
    regressor.fit_statistics(_poses())
    save_checkpoint(tmp_path / "regressor.pt", regressor)
    path = export_regressor(tmp_path / "regressor.pt", tmp_path / "out" / "regressor.onnx")
    inputs = {name: value for name, value in _inputs(model, 2, 1).items() if name != "latents"}
    out = make_engine("onnxruntime", path).run(inputs)
    with torch.no_grad():
        expected = regressor(*(torch.from_numpy(value) for value in inputs.values()))
    np.testing.assert_allclose(out["betas"], expected["sample_betas"][:, 0], atol=1e-5)
    np.testing.assert_allclose(out["translation"], expected["sample_translation"][:, 0], atol=1e-4)
    joints = Body.load().joints(out["rotations"], out["betas"], out["translation"])
    np.testing.assert_allclose(out["joints"], joints, atol=1e-4)
    with pytest.raises(ExportError, match=r"holds a regressor, but a bundle needs a flow.*--regressor"):
        export(tmp_path / "regressor.pt", tmp_path / "bundle")


def test_wrong_requests(model: FlowPosterior, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", model, {"body_hash": "f" * 64})
    with pytest.raises(CheckpointError, match=r"trained with the body ffffffffffff.*give the body file"):
        export(tmp_path / "model.pt", tmp_path / "bundle")
    save_checkpoint(tmp_path / "model.pt", model)
    with pytest.raises(ExportError, match="20 modes cannot be made of 10 samples"):
        export(tmp_path / "model.pt", tmp_path / "bundle", samples=10, modes=20)
    with pytest.raises(ExportError, match="holds a flow, not a regressor"):
        export_regressor(tmp_path / "model.pt", tmp_path / "regressor.onnx")


def test_a_model_of_pictures_is_not_exported(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="backbones need the [images] extra")
    config = RegressorConfig(**SMALL, image="mobilenetv3_small_050")
    save_checkpoint(tmp_path / "model.pt", Regressor(config, TorchBody(mesh=False)))
    with pytest.raises(ExportError, match="image backbone mobilenetv3_small_050"):
        export_regressor(tmp_path / "model.pt", tmp_path / "regressor.onnx")
