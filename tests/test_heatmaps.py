"""Samples of heatmaps have the heatmap's moments, and every detector's cells lie where its own library puts them."""

from __future__ import annotations

import sys
from math import erf
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'hmr_prob_ros[train]'")

from hmr_prob_ros.skeleton import KEYPOINT_NAMES
from hmr_prob_ros.training.data.heatmap_detectors import OnnxHeatmaps, VitPoseHeatmaps, make_heatmap_detector
from hmr_prob_ros.training.data.heatmaps import (
    FLOOR,
    SAMPLES,
    HeatmapError,
    complete,
    decode,
    decode_simcc,
    sample,
    sample_simcc,
)

RNG = np.random.default_rng(0)
BOX = np.array([60.0, 30.0, 190.0, 290.0])
PICTURE = cv2.GaussianBlur(RNG.integers(0, 255, size=(320, 240, 3), dtype=np.uint8), (0, 0), 3)


def gaussian(mean: np.ndarray, covariance: np.ndarray, shape: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A heatmap (H, W) with a peak of one."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    d = np.stack([x - mean[0], y - mean[1]], axis=-1)
    return np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", d, np.linalg.inv(covariance), d))


def test_samples_of_a_gaussian_have_its_mean_and_covariance() -> None:
    """Against the closed form: cut at the floor, a Gaussian in the plane loses a known share of its covariance."""
    mean, covariance = np.array([21.3, 30.8]), np.array([[9.0, 3.0], [3.0, 16.0]])
    points, peaks = sample(gaussian(mean, covariance)[None], np.random.default_rng(1), 200_000)
    assert points.shape == (200_000, 1, 2)
    half = -np.log(FLOOR)  # half the squared radius at which the value falls to the floor
    kept = 1 - half * FLOOR / (1 - FLOOR)
    expected = kept * covariance + np.eye(2) / 12  # and a uniform place inside the cell
    np.testing.assert_allclose(points[:, 0].mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(points[:, 0].T), expected, rtol=0.03, atol=0.05)
    assert peaks[0] == pytest.approx(1.0, abs=0.01)


def test_simcc_samples_have_the_moments_of_their_profiles() -> None:
    along = np.arange(400)
    x, y = (np.exp(-0.5 * ((along - m) / s) ** 2)[None] for m, s in ((120.4, 9.0), (260.2, 14.0)))
    points, peaks = sample_simcc(x, 0.6 * y, np.random.default_rng(2), 200_000)
    np.testing.assert_allclose(points[:, 0].mean(axis=0), [120.4, 260.2], atol=0.1)
    # A normal law cut at +-c of its deviations has the variance 1 - 2 c phi(c) / (2 Phi(c) - 1).
    for axis, (deviation, peak) in enumerate(((9.0, 1.0), (14.0, 0.6))):
        c = np.sqrt(-2 * np.log(FLOOR / peak))
        variance = deviation**2 * (1 - np.sqrt(2 / np.pi) * c * np.exp(-c * c / 2) / erf(c / np.sqrt(2))) + 1 / 12
        assert points[:, 0, axis].var() == pytest.approx(variance, rel=0.03)
    assert peaks[0] == pytest.approx(0.8, abs=0.01)
    assert np.corrcoef(points[:, 0].T)[0, 1] == pytest.approx(0.0, abs=0.01)


def test_cells_are_drawn_in_proportion_and_never_below_the_floor() -> None:
    heatmaps = np.full((2, 8, 6), 0.9 * FLOOR)
    heatmaps[0, 2, 1], heatmaps[0, 5, 4] = 0.75, 0.25
    heatmaps[1, 7, 0] = 0.04999  # nothing above the floor: only the maximum is left
    points, peaks = sample(heatmaps, np.random.default_rng(3), 20_000)
    cells = np.floor(points + 0.5).astype(int)
    first = (cells[:, 0] == (1, 2)).all(axis=1)
    assert first.mean() == pytest.approx(0.75, abs=0.015)
    assert (first | (cells[:, 0] == (4, 5)).all(axis=1)).all()
    assert (cells[:, 1] == (0, 7)).all()
    inside = points - cells
    assert inside.min() >= -0.5
    assert inside.max() <= 0.5
    assert np.abs(inside.mean(axis=0)).max() < 0.01
    np.testing.assert_allclose(peaks, [0.75, 0.04999], atol=1e-5)


def test_batches_and_the_generator() -> None:
    heatmaps = RNG.random((3, 5, 8, 6))
    points, peaks = sample(heatmaps, np.random.default_rng(4))
    assert points.shape == (3, SAMPLES, 5, 2)
    assert peaks.shape == (3, 5)
    again, _ = sample(heatmaps, np.random.default_rng(4))
    other, _ = sample(heatmaps, np.random.default_rng(5))
    np.testing.assert_array_equal(points, again)
    assert not np.array_equal(points, other)


@pytest.mark.parametrize(
    ("values", "text"),
    [(np.full((2, 4, 4), np.nan), "NaN"), (np.zeros((0, 4, 4)), "not empty"), (np.zeros((4, 4)), "3 axes")],
)
def test_bad_heatmaps(values: np.ndarray, text: str) -> None:
    with pytest.raises(HeatmapError, match=text):
        sample(values, RNG)
    with pytest.raises(HeatmapError, match=text):
        decode(values)


def test_simcc_profiles_must_fit() -> None:
    with pytest.raises(HeatmapError, match="only W may differ"):
        sample_simcc(np.ones((17, 10)), np.ones((16, 10)), RNG)


def test_decode_finds_the_peak_between_the_cells() -> None:
    means = np.array([[10.2, 20.7], [30.45, 40.1], [20.0, 5.0]])
    found = decode(np.stack([gaussian(m, 4 * np.eye(2)) for m in means]))
    np.testing.assert_allclose(found[:, :2], means, atol=0.03)
    flat = decode(np.zeros((1, 64, 48)))
    assert np.isfinite(flat).all()
    assert flat[0, 2] == 0


def test_decode_agrees_with_rtmlib() -> None:
    post = pytest.importorskip("rtmlib.tools.pose_estimation.post_processings", reason="rtmlib is not installed")
    heatmaps = np.stack([gaussian(RNG.uniform(8, 40, 2), np.diag(RNG.uniform(2, 9, 2))) for _ in range(17)])
    heatmaps = np.maximum(heatmaps + RNG.normal(0, 0.01, heatmaps.shape), 0).astype(np.float32)
    best = heatmaps.reshape(17, -1).argmax(1)
    start = np.stack([best % 48, best // 48], axis=-1)[None].astype(np.float32)
    expected = post.post_dark_udp(start, heatmaps[None].copy(), kernel=11)[0]
    np.testing.assert_allclose(decode(heatmaps)[:, :2], expected, atol=2e-3)


def test_missing_feet_take_the_ankles_samples_and_no_peak() -> None:
    points = np.column_stack([RNG.uniform(0, 50, (17, 2)), np.ones(17)])
    samples = RNG.uniform(0, 50, (SAMPLES, 17, 2)).astype(np.float32)
    made = complete(points, samples, np.ones(17))
    left, right = (KEYPOINT_NAMES.index(n) for n in ("left_ankle", "right_ankle"))
    np.testing.assert_array_equal(made.heatmap[:, KEYPOINT_NAMES.index("left_heel")], samples[:, left])
    np.testing.assert_array_equal(made.heatmap[:, KEYPOINT_NAMES.index("right_big_toe")], samples[:, right])
    assert (made.peak[:17] == 1).all()
    assert (made.peak[17:] == 0).all()
    assert (made.keypoints[17:, 2] == 0).all()
    halpe = complete(np.ones((26, 3)), np.ones((SAMPLES, 26, 2)), np.ones(26))
    assert (halpe.peak == 1).all()
    with pytest.raises(HeatmapError, match="gives 16 points"):
        complete(np.ones((16, 3)), np.ones((SAMPLES, 16, 2)), np.ones(16))


def test_tinypose_finds_what_the_packages_own_detector_finds(test_data: Path) -> None:
    """The same network through rtmlib, in the same box; that one counts pixels from the middle of the first."""
    pytest.importorskip("rtmlib", reason="rtmlib is not installed: pip install 'hmr_prob_ros[rtmlib]'")
    from hmr_prob_ros.detectors import make_detector

    folder = test_data / "models"
    if not (folder / "tinypose_256x192.onnx").is_file():
        pytest.skip(f"no weights in {folder}")
    image = cv2.imread(str(test_data / "real" / "astronaut.png"))[..., ::-1].copy()
    other: Any = make_detector("rtmlib", detector=folder / "yolox_nano.onnx", pose=folder / "tinypose_256x192.onnx")
    box = np.array([40.0, 0.0, 440.0, 511.0])
    points, scores = other._pose(image, box[None] - 0.5)
    points = other._plain_decode(points, box[None] - 0.5)[0] + 0.5
    detector = OnnxHeatmaps(folder / "tinypose_256x192.onnx")
    seen = detector(image, box, np.random.default_rng(0))
    np.testing.assert_allclose(seen.keypoints[:17, 2], scores[0], atol=1e-3)
    sure = scores[0] > 0.5
    assert sure.sum() >= 7
    np.testing.assert_allclose(seen.keypoints[:17, :2][sure], points[sure], atol=0.5)
    np.testing.assert_allclose(seen.peak[:17], seen.keypoints[:17, 2])
    spread = np.linalg.norm(seen.heatmap[:, :17].mean(axis=0) - seen.keypoints[:17, :2], axis=-1)[sure]
    assert np.median(spread) < 0.03 * 511
    twice = detector(image, box, np.random.default_rng(0))
    np.testing.assert_array_equal(seen.heatmap, twice.heatmap)


def planted_network(path: Path, outputs: dict[str, np.ndarray], size: tuple[int, int] = (192, 256)) -> Path:
    """An ONNX file that answers every picture with fixed values."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'hmr_prob_ros[train]'")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "z"], ["o"]),
    ]
    initial, infos = [numpy_helper.from_array(np.float32(0), "z")], []
    for name, value in outputs.items():
        initial.append(numpy_helper.from_array(value.astype(np.float32), f"{name}_value"))
        nodes.append(helper.make_node("Add", [f"{name}_value", "o"], [name]))
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size[1], size[0]])
    graph = helper.make_graph(nodes, "planted", [image], infos, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


def test_rtmpose_cells_lie_where_rtmlib_puts_them(tmp_path: Path) -> None:
    rtmpose = pytest.importorskip("rtmlib.tools.pose_estimation.rtmpose", reason="rtmlib is not installed").RTMPose
    columns, rows = RNG.integers(60, 320, 26), RNG.integers(60, 450, 26)
    x = np.exp(-0.5 * ((np.arange(384) - columns[:, None]) / 6) ** 2)[None]
    y = np.exp(-0.5 * ((np.arange(512) - rows[:, None]) / 6) ** 2)[None]
    detector = OnnxHeatmaps(planted_network(tmp_path / "rtmpose.onnx", {"x": x, "y": y}), "rtmpose", samples=4000)
    seen = detector(PICTURE, BOX, np.random.default_rng(0))
    other = rtmpose.__new__(rtmpose)  # its decoding needs no session
    other.model_input_size, other.mean, other.std = (192, 256), (0, 0, 0), (1, 1, 1)
    _, centre, scale = other.preprocess(PICTURE, BOX)
    points, scores = other.postprocess([x, y], centre, scale)
    from hmr_prob_ros.detectors.keypoints import to_keypoints

    expected = to_keypoints(np.concatenate([points, scores[..., None]], -1))[0]
    np.testing.assert_allclose(seen.keypoints, expected, atol=1e-3)
    np.testing.assert_allclose(seen.heatmap.mean(axis=0), expected[:, :2], atol=0.5)
    found = decode_simcc(x[0], y[0])
    np.testing.assert_array_equal(found[:, 0], columns)
    np.testing.assert_array_equal(found[:, 1], rows)


@pytest.mark.parametrize("name", ["tinypose", "vitpose-onnx"])
def test_heatmap_geometry_of_onnx_networks(tmp_path: Path, name: str) -> None:
    """Plain: the heatmap is a quarter of the input. Corner to corner: first and last cells lie on the border."""
    cells = np.array([[0.0, 0.0], [24.0, 32.0], [47.0, 63.0], *([[10.0, 20.0]] * 14)])
    heatmaps = np.stack([gaussian(c, 2 * np.eye(2)) for c in cells])[None]
    detector = OnnxHeatmaps(planted_network(tmp_path / "n.onnx", {"heatmaps": heatmaps}), name, samples=4000)
    seen = detector(PICTURE, BOX, np.random.default_rng(0))
    centre, height = (BOX[:2] + BOX[2:]) / 2, 1.25 * 260
    size = np.array([0.75 * height, height])
    count = np.array([48, 64]) if name == "tinypose" else np.array([47, 63])
    inner = [1, 3]
    expected = centre - size / 2 + cells / count * size
    np.testing.assert_allclose(seen.keypoints[inner, :2], expected[inner], atol=0.1)
    np.testing.assert_allclose(seen.heatmap[:, inner].mean(axis=0), expected[inner], atol=0.5)


@pytest.fixture(scope="module")
def vitpose() -> VitPoseHeatmaps:
    """A tiny ViTPose with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        out_indices=[1],
    )  # fmt: skip
    labels = {i: f"p{i}" for i in range(17)}
    config = transformers.VitPoseConfig(backbone_config=backbone, id2label=labels)
    return VitPoseHeatmaps(model=transformers.VitPoseForPoseEstimation(config))


def test_vitpose_sees_and_decodes_as_its_own_library(vitpose: VitPoseHeatmaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preprocessing, network and decoding against transformers' own processor, for planted heatmaps too."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    torch = pytest.importorskip("torch")
    from transformers import VitPoseImageProcessor
    from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

    processor = VitPoseImageProcessor(size={"height": 64, "width": 48})
    # Theirs counts from the middle of the first pixel and takes left, top, width, height.
    box = [[[BOX[0] - 0.5, BOX[1] - 0.5, BOX[2] - BOX[0], BOX[3] - BOX[1]]]]
    theirs = processor(PICTURE, boxes=box, return_tensors="pt")["pixel_values"]
    given: list[np.ndarray] = []
    real = vitpose.heatmaps

    def spy(prepared: np.ndarray) -> np.ndarray:
        given.append(prepared)
        return real(prepared)

    monkeypatch.setattr(vitpose, "heatmaps", spy)
    seen = vitpose(PICTURE, BOX, np.random.default_rng(0))
    assert seen.keypoints.shape == (23, 3)
    assert seen.heatmap.shape == (SAMPLES, 23, 2)
    assert np.abs(given[0] - theirs.numpy())[..., 2:-2, 2:-2].max() < 0.05
    with torch.inference_mode():
        expected = vitpose._model(pixel_values=theirs).heatmaps[0].numpy()
    np.testing.assert_allclose(real(theirs.numpy()), expected, atol=1e-5)

    # Off the border, where the two smooth differently.
    cells = RNG.uniform((8, 8), (39, 55), (17, 2))
    planted = np.stack([gaussian(c, 3 * np.eye(2)) for c in cells]).astype(np.float32)
    monkeypatch.setattr(vitpose, "heatmaps", lambda prepared: planted.copy())
    seen = vitpose(PICTURE, BOX, np.random.default_rng(0))
    answer = processor.post_process_pose_estimation(
        VitPoseEstimatorOutput(heatmaps=torch.from_numpy(planted.copy()[None])), boxes=box
    )[0][0]
    cell = 1.25 * 260 / 63
    np.testing.assert_allclose(seen.keypoints[:17, :2], answer["keypoints"].numpy() + 0.5, atol=0.05 * cell)
    np.testing.assert_allclose(seen.keypoints[:17, 2], answer["scores"].numpy(), atol=1e-4)
    assert np.abs(seen.heatmap[:, :17].mean(axis=0) - seen.keypoints[:17, :2]).max() < 1.7 * cell


def test_vitpose_reads_a_local_folder(vitpose: VitPoseHeatmaps, tmp_path: Path) -> None:
    vitpose._model.save_pretrained(tmp_path / "weights")
    again = make_heatmap_detector("vitpose", tmp_path / "weights", samples=5)
    first = VitPoseHeatmaps(model=vitpose._model, samples=5)(PICTURE, BOX, np.random.default_rng(0))
    second = again(PICTURE, BOX, np.random.default_rng(0))
    np.testing.assert_allclose(first.keypoints, second.keypoints, atol=1e-4)
    with pytest.raises(HeatmapError, match=r"no ViTPose weights at .*config\.json"):
        make_heatmap_detector("vitpose", tmp_path / "nothing")


def test_errors_name_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, weights, text in (
        ("mediapipe", None, "points are regressed"),
        ("openpose", None, "choose one of tinypose"),
        ("tinypose", None, "--weights"),
        ("tinypose", tmp_path / "none.onnx", "no weights of tinypose at"),
    ):
        with pytest.raises(HeatmapError, match=text):
            make_heatmap_detector(name, weights)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(HeatmapError, match="cannot be loaded as rtmpose"):
        make_heatmap_detector("rtmpose", tmp_path / "broken.onnx")
    one = planted_network(tmp_path / "one.onnx", {"heatmaps": np.zeros((1, 17, 64, 48))})
    with pytest.raises(HeatmapError, match="name the detector that the file holds"):
        make_heatmap_detector("rtmpose", one)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(HeatmapError, match="pip install 'transformers"):
        make_heatmap_detector("vitpose")
