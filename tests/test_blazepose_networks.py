"""Laws of what stands round BlazePose's networks: anchors, boxes, regions, refinement, filter, outputs."""

from __future__ import annotations

import importlib
import importlib.util

import cv2
import numpy as np
import pytest

from hmr_prob_ros.detectors.blazepose_networks import (
    OneEuro,
    make_anchors,
    merge_boxes,
    read_networks,
    refine,
    region_from_points,
    region_matrix,
    select_outputs,
)


def test_anchors_cover_each_grid() -> None:
    anchors = make_anchors()
    expected = [
        ((column + 0.5) / cells, (row + 0.5) / cells)
        for cells, layers in ((28, 1), (14, 1), (7, 3))  # strides 8 and 16 once, 32 three times
        for row in range(cells)
        for column in range(cells)
        for _ in range(2 * layers)
    ]
    assert len(expected) == 2 * (28**2 + 14**2 + 3 * 7**2) == 2254
    np.testing.assert_allclose(anchors, expected, atol=1e-7)


def test_boxes_merge_like_greedy_suppression_and_average_what_overlaps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner, size = rng.uniform(0, 60, (40, 2)), rng.uniform(10, 50, (40, 2))
        boxes = np.concatenate([corner, corner + size, rng.normal(size=(40, 4))], -1)
        scores = rng.permutation(40) / 40 + 0.01
        merged, best = merge_boxes(boxes, scores)
        kept = cv2.dnn.NMSBoxes(np.concatenate([corner, size], -1).tolist(), scores.tolist(), 0.0, 0.3)
        np.testing.assert_allclose(best, scores[np.asarray(kept).ravel()])
        assert (merged >= boxes.min(0) - 1e-9).all()
        assert (merged <= boxes.max(0) + 1e-9).all()
    pair = np.array([[0.0, 0, 10, 10, 5, 5], [1, 0, 11, 10, 9, 5], [50, 50, 60, 60, 1, 2]])
    merged, best = merge_boxes(pair, np.array([0.9, 0.3, 0.8]))
    np.testing.assert_allclose(merged, [[0.25, 0, 10.25, 10, 6, 5], [50, 50, 60, 60, 1, 2]])
    np.testing.assert_allclose(best, [0.9, 0.8])
    assert merge_boxes(np.zeros((0, 8)), np.zeros(0))[0].shape == (0, 8)
    flat = np.array([[5.0, 5, 5, 5, 0, 0]])
    np.testing.assert_allclose(merge_boxes(flat, np.array([0.7]))[0], flat)


@pytest.mark.parametrize("size", [1, 224, 256])
def test_region_and_its_inverse(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        centre, reach = rng.uniform(-50, 700, (2, 2))
        region = region_from_points(centre, reach, expand=1.0)
        matrix = region_matrix(region, size)
        ends = np.array([[size / 2, size / 2, 1], [size / 2, 0, 1]])
        np.testing.assert_allclose(ends @ matrix.T, [centre, reach], atol=1e-9)
        assert np.linalg.det(matrix[:, :2]) == pytest.approx((region[2] / size) ** 2), "no mirroring, no shear"
        points = rng.uniform(-100, 900, (30, 2))
        back = cv2.invertAffineTransform(matrix)
        there = points @ back[:, :2].T + back[:, 2]
        np.testing.assert_allclose(there @ matrix[:, :2].T + matrix[:, 2], points, atol=1e-8)
    assert region_from_points(np.zeros(2), np.array([0, -8.0]))[2:].tolist() == [20.0, 0.0], "upright, a quarter wider"


def test_what_is_cut_out_lies_where_the_region_says() -> None:
    """A spot in the picture is found again in the cut-out part and mapped back to its place."""
    y, x = np.mgrid[:400, :500]
    region = region_from_points(np.array([260.0, 190.0]), np.array([330.0, 80.0]))
    for spot in ([200.0, 150.0], [300.0, 260.0], [310.0, 120.0]):
        picture = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 72).astype(np.float32)
        matrix = region_matrix(region, 256)
        part = cv2.warpAffine(picture, matrix, (256, 256), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        rows, columns = np.mgrid[:256, :256]
        middle = np.array([(columns * part).sum(), (rows * part).sum()]) / part.sum()
        np.testing.assert_allclose(matrix @ [*middle, 1], spot, atol=0.2)


def test_refinement_is_the_mean_of_the_cells_around() -> None:
    rng = np.random.default_rng(1)
    heatmaps = rng.normal(-3, 2, (64, 64, 30)).astype(np.float32)
    places = rng.uniform(-0.2, 1.2, (30, 2))
    found = refine(places, heatmaps)
    changed = 0
    for k, (x, y) in enumerate(places):
        column, row = int(x * 64), int(y * 64)
        total, sums, highest = 0.0, np.zeros(2), 0.0
        for r in range(max(0, row - 4), min(64, row + 5)):
            for c in range(max(0, column - 4), min(64, column + 5)):
                value = 1 / (1 + np.exp(-float(heatmaps[r, c, k])))
                total, sums, highest = total + value, sums + value * np.array([c, r]), max(highest, value)
        refined = highest >= 0.5 and min(column, row) >= 0 and column < 64
        changed += refined
        np.testing.assert_allclose(found[k], sums / total / 64 if refined else places[k], rtol=1e-5)
    assert 5 < changed < 30


def test_one_euro_filter() -> None:
    """Against the paper's formulas, number by number."""
    rng = np.random.default_rng(2)
    signal = np.cumsum(rng.normal(size=(40, 2)), axis=0)
    made, size = OneEuro(0.05, 80.0), 50.0
    smooth, raw, speed = signal[0].copy(), signal[0].copy(), np.zeros(2)
    for step, values in enumerate(signal):
        found = made(values, size)
        for axis in range(2):
            if step:
                rate = (values[axis] - raw[axis]) / size * 30
                tau = 1 / (2 * np.pi * 1.0)
                speed[axis] += (rate - speed[axis]) / (1 + tau * 30)
                tau = 1 / (2 * np.pi * (0.05 + 80 * abs(speed[axis])))
                smooth[axis] += (values[axis] - smooth[axis]) / (1 + tau * 30)
            raw[axis] = values[axis]
        np.testing.assert_allclose(found, smooth, rtol=1e-9)
    still = OneEuro(0.01, 10.0)
    assert all((still(np.ones(2), 10.0) == 1).all() for _ in range(5))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ai_edge_litert", "mediapipe")),
    reason="needs LiteRT and the networks in mediapipe's wheel: pip install 'hmr_prob_ros[blazepose]'",
)
def test_selected_outputs_are_those_of_the_whole_network() -> None:
    runtime = importlib.import_module("ai_edge_litert.interpreter")
    name, model = read_networks(None, 1)[1]
    assert name.endswith("pose_landmark_full.tflite")
    shapes = [(1, 64, 64, 39), (1, 195), (1, 1)]  # not in the order of the file
    given = np.random.default_rng(3).random((1, 256, 256, 3), dtype=np.float32)
    found = []
    for content in (model, select_outputs(model, shapes)):
        network = runtime.Interpreter(model_content=content, num_threads=1)
        network.allocate_tensors()
        network.set_tensor(network.get_input_details()[0]["index"], given)
        network.invoke()
        found.append([(tuple(d["shape"]), network.get_tensor(d["index"])) for d in network.get_output_details()])
    whole, selected = found
    assert len(whole) == 5
    assert [shape for shape, _ in selected] == shapes
    for shape, values in selected:
        np.testing.assert_allclose(values, dict(whole)[shape], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="lacks"):
        select_outputs(model, [(1, 196)])
    with pytest.raises(ValueError, match="no TensorFlow Lite model"):
        select_outputs(b"nothing of the kind", shapes)
