r"""BlazePose's two networks and what stands round them: anchors, boxes, regions, landmarks.

A person is looked at through a square **region** (4,): centre x, y and side in pixels of the picture, and the angle in
radians by which it is turned clockwise. With :math:`d` the pixels of a network's input of :math:`n` pixels a side,

.. math:: p = c + \frac{s}{n} R(\alpha) (d - n/2), \qquad R(\alpha) = \begin{pmatrix} \cos\alpha & -\sin\alpha \\
    \sin\alpha & \cos\alpha \end{pmatrix}.

Two points make a region: the middle of the hips, its centre, and one that lies above the head of a standing person, as
far away as the body reaches. Constants and conventions are those of mediapipe's pose graph (Bazarevsky et al. 2020,
BlazePose: On-device Real-time Body Pose tracking), so that the same picture gives the same points.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from . import DetectorError
from .mediapipe import quiet

__all__ = [
    "COMPLEXITIES",
    "Landmarks",
    "LandmarkNetwork",
    "Network",
    "OneEuro",
    "PersonNetwork",
    "make_anchors",
    "merge_boxes",
    "read_networks",
    "region_from_points",
    "region_matrix",
    "select_outputs",
]

COMPLEXITIES = ("lite", "full", "heavy")
"""Landmark networks by the option ``complexity``."""

DETECTOR_SIZE, LANDMARK_SIZE = 224, 256
_STRIDES = (8, 16, 32, 32, 32)
_OVERLAP = 0.3
_EXPAND = 1.25
_LANDMARKS, _AUXILIARY = 33, 35  # after the body's landmarks come the two points of the next region
_REACH = 4  # heatmap cells to each side that refine a landmark. The graph file says 3; what its Python API runs is 4
_CONFIDENT = 0.5  # highest cell from which they do


def make_anchors() -> np.ndarray:
    """(2254, 2) centres of the SSD's anchors in [0, 1], two in a cell for each of its five layers.

    Layers of one stride share their cells. Every anchor has size one.
    """
    out = []
    for stride in sorted(set(_STRIDES)):
        cells = DETECTOR_SIZE // stride
        centres = (np.arange(cells, dtype=np.float32) + np.float32(0.5)) / np.float32(cells)
        grid = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)  # rows one after the other
        out.append(np.repeat(grid, 2 * _STRIDES.count(stride), axis=0))
    return np.concatenate(out)


def merge_boxes(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted non-maximum suppression.

    The best box takes all that overlap it by more than 0.3 and becomes their mean, weighted by their scores; and so on
    with those that are left.

    Args:
        boxes: (n, 4 + 2 k) left, top, right, bottom, and points that go with the box.
        scores: (n,).

    Returns:
        (m, 4 + 2 k) merged boxes and (m,) the highest score of each, best first.
    """
    order = np.argsort(-scores, kind="stable")
    merged, best = [], []
    while len(order):
        box = boxes[order[0]]
        rest = boxes[order]
        overlap = (np.minimum(rest[:, 2:4], box[2:4]) - np.maximum(rest[:, :2], box[:2])).clip(0).prod(-1)
        union = (rest[:, 2:4] - rest[:, :2]).prod(-1) + (box[2:4] - box[:2]).prod() - overlap
        same = overlap > _OVERLAP * union
        same[0] = True  # also a box without area is itself
        weight = scores[order[same]]
        merged.append((rest[same] * weight[:, None]).sum(0) / weight.sum())
        best.append(scores[order[0]])
        order = order[~same]
    return np.array(merged).reshape(-1, boxes.shape[1]), np.array(best)


def region_from_points(centre: np.ndarray, reach: np.ndarray, expand: float = _EXPAND) -> np.ndarray:
    """(4,) region about ``centre`` (2,) whose upper edge's middle lies in the direction of ``reach`` (2,)."""
    x, y = np.asarray(reach, dtype=np.float64) - centre
    return np.array([centre[0], centre[1], 2 * expand * np.hypot(x, y), np.arctan2(x, -y)])


def region_matrix(region: np.ndarray, size: int) -> np.ndarray:
    """(2, 3) affine map from the input's pixels, ``size`` a side, to the picture's."""
    x, y, side, angle = region
    along, across = np.cos(angle) * side / size, np.sin(angle) * side / size
    half = size / 2
    return np.array(
        [[along, -across, x - half * (along - across)], [across, along, y - half * (across + along)]]
    )  # fmt: skip


class OneEuro:
    """The one-euro filter (Casiez et al. 2012) at 30 frames a second: slow points are steadied, fast ones pass.

    Args:
        cutoff: frequency in Hz that passes at rest.
        beta: growth of it with the speed, which is measured in sizes of the body a second.
    """

    def __init__(self, cutoff: float, beta: float) -> None:
        self._cutoff, self._beta = cutoff, beta
        self._raw: np.ndarray | None = None

    def __call__(self, values: np.ndarray, size: float) -> np.ndarray:
        """Filtered ``values`` of any fixed shape, of a body of ``size`` in the same unit."""
        if self._raw is None:
            self._raw, self._speed, self._smooth = values, np.zeros_like(values), values
            return values
        if size < 1e-6:
            return values
        speed = (values - self._raw) * (30.0 / size)
        self._speed = self._speed + _share(1.0) * (speed - self._speed)
        share = _share(self._cutoff + self._beta * np.abs(self._speed))
        self._raw, self._smooth = values, self._smooth + share * (values - self._smooth)
        return self._smooth


def _share(cutoff: Any) -> Any:
    """Share of the new value in a low pass at 30 frames a second."""
    return 1.0 / (1.0 + 30.0 / (2 * np.pi * cutoff))


def select_outputs(model: bytes, shapes: list[tuple[int, ...]]) -> bytes:
    """A TensorFlow Lite model that gives only the outputs of these shapes, in this order.

    What feeds no output is not computed: without the person's mask the landmark network takes 40 % less time.
    Only the list of outputs in the file (a flatbuffer) changes.

    Raises:
        ValueError: no such model, or it has no such outputs.
    """
    content = bytearray(model)
    if content[4:8] != b"TFL3":
        raise ValueError("it is no TensorFlow Lite model")
    try:
        graphs, count = _vector(content, _unsigned(content, 0), 2)
        if count != 1:
            raise ValueError(f"it has {count} graphs in place of one")
        graph = graphs + _unsigned(content, graphs)
        tensors, number = _vector(content, graph, 0)
        outputs, count = _vector(content, graph, 2)
        have: dict[tuple[int, ...], int] = {}
        for i in struct.unpack_from(f"<{count}i", content, outputs):
            if not 0 <= i < number:
                raise ValueError("its list of outputs is damaged")
            tensor = tensors + 4 * i
            shape, rank = _vector(content, tensor + _unsigned(content, tensor), 0)
            have[struct.unpack_from(f"<{rank}i", content, shape)] = i
    except struct.error as error:
        raise ValueError("it is cut short or damaged") from error
    if missing := [shape for shape in shapes if shape not in have]:
        raise ValueError(f"it has outputs {sorted(have)} and lacks {missing}")
    struct.pack_into(f"<I{len(shapes)}i", content, outputs - 4, len(shapes), *(have[shape] for shape in shapes))
    return bytes(content)


def _unsigned(content: bytearray, place: int) -> int:
    return int(struct.unpack_from("<I", content, place)[0])


def _vector(content: bytearray, table: int, field: int) -> tuple[int, int]:
    """Place of the first element and length of a table's vector; 0, 0 where it has none."""
    fields = table - int(struct.unpack_from("<i", content, table)[0])
    size = int(struct.unpack_from("<H", content, fields)[0])
    offset = int(struct.unpack_from("<H", content, fields + 4 + 2 * field)[0]) if 4 + 2 * field < size else 0
    if offset == 0:
        return 0, 0
    start = table + offset + _unsigned(content, table + offset)
    return start + 4, _unsigned(content, start)


def read_networks(models: str | Path | None, complexity: int) -> list[tuple[str, bytes]]:
    """Name and content of the person and the landmark network.

    Args:
        models: a folder with ``pose_detection.tflite`` and ``pose_landmark_full.tflite`` (or ``lite``, ``heavy``), a
            pose landmarker ``.task`` file of mediapipe's, which holds both, or None: those of the mediapipe package,
            which is not imported for it.
        complexity: 0 lite, 1 full, 2 heavy; a ``.task`` file has its own.

    Raises:
        DetectorError: where they should be, and how to get them.
    """
    landmark = f"pose_landmark_{COMPLEXITIES[complexity]}.tflite"
    if models is None:
        spec = importlib.util.find_spec("mediapipe")
        if spec is None or spec.origin is None:
            raise DetectorError(
                "blazepose takes its networks from the mediapipe package, which is not installed: "
                'pip install --no-deps "mediapipe==0.10.21", or give models=DIR with pose_detection.tflite and '
                f"{landmark}, or models=FILE with a pose landmarker's .task file"
            )
        root = Path(spec.origin).parent / "modules"
        paths = [root / "pose_detection" / "pose_detection.tflite", root / "pose_landmark" / landmark]
        mend = "give models=DIR with this file, or models=FILE with a pose landmarker's .task file"
        mend += "; mediapipe 0.10.21 carries complexity 1" if complexity != 1 else " (mediapipe 0.10.21 carries it)"
    elif Path(models).suffix == ".task":
        names = ("pose_detector.tflite", "pose_landmarks_detector.tflite")
        try:
            with zipfile.ZipFile(models) as archive:
                return [(f"{name} in {models}", archive.read(name)) for name in names]
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DetectorError(f"{models} is no pose landmarker with {' and '.join(names)} ({error})") from error
    else:
        paths = [Path(models) / "pose_detection.tflite", Path(models) / landmark]
        mend = "put it there, or leave models out to take those of an installed mediapipe"
    out = []
    for path in paths:
        try:
            out.append((str(path), path.read_bytes()))
        except OSError as error:
            raise DetectorError(f"blazepose cannot read its network {path} ({error.strerror}): {mend}") from error
    return out


class Network:
    """A TensorFlow Lite network that looks at a square part of a picture.

    Args:
        name: where it comes from, for errors.
        model: content of its file.
        size: pixels of its input, each side.
        shapes: of the outputs that are wanted, in this order.
        threads: of the runtime.
    """

    def __init__(self, name: str, model: bytes, size: int, shapes: list[tuple[int, ...]], threads: int) -> None:
        try:
            with quiet():
                runtime = importlib.import_module("ai_edge_litert.interpreter")
                self._run: Any = runtime.Interpreter(model_content=select_outputs(model, shapes), num_threads=threads)
                self._run.allocate_tensors()
        except ImportError as error:
            raise DetectorError(f"blazepose cannot load LiteRT ({error}): pip install ai-edge-litert") from error
        except (ValueError, RuntimeError, MemoryError) as error:
            raise DetectorError(
                f"blazepose cannot load {name}: {error}; fetch the file again, or leave models out"
            ) from error
        (taken,) = self._run.get_input_details()
        if tuple(taken["shape"]) != (1, size, size, 3) or taken["dtype"] != np.float32:
            raise DetectorError(f"blazepose cannot use {name}: it takes {taken['shape']}, not (1, {size}, {size}, 3)")
        self.size = size
        self._input = self._run.tensor(taken["index"])
        self._outputs = [self._run.tensor(given["index"]) for given in self._run.get_output_details()]
        self.runs = 0

    def __call__(
        self, image: np.ndarray, region: np.ndarray, scale: float, shift: float, border: int
    ) -> list[np.ndarray]:
        """Outputs for a region (4,) of ``image``, whose values are scaled and shifted."""
        matrix = region_matrix(region, self.size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        part = cv2.warpAffine(image, matrix, (self.size, self.size), flags=flags, borderMode=border)
        given = self._input()[0]
        np.multiply(part, np.float32(scale), out=given)
        if shift:
            given += np.float32(shift)
        del given  # the runtime runs only while nobody holds its memory
        self._run.invoke()
        self.runs += 1
        return [np.array(output()[0]) for output in self._outputs]


class PersonNetwork(Network):
    """The SSD: where people are."""

    def __init__(self, name: str, model: bytes, threads: int = 1) -> None:
        self._anchors = make_anchors()
        count = len(self._anchors)
        super().__init__(name, model, DETECTOR_SIZE, [(1, count, 12), (1, count, 1)], threads)

    def find(self, image: np.ndarray, least: float) -> np.ndarray:
        """(m, 4) regions of the people in the whole of ``image`` with a score of at least ``least``, best first."""
        height, width = image.shape[:2]
        side = max(width, height)
        whole = np.array([width / 2, height / 2, side, 0.0])
        values, logits = self(image, whole, 2 / 255, -1.0, cv2.BORDER_CONSTANT)
        scores = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64).clip(-100, 100)))
        take = np.flatnonzero(scores >= least)
        if len(take) == 0:
            return np.zeros((0, 4))
        centres = self._anchors[take]
        values = values[take].astype(np.float64) / DETECTOR_SIZE
        values[:, :2] += centres
        points = values[:, 4:8].reshape(-1, 2, 2) + centres[:, None]  # of four only the first two are needed
        half = values[:, 2:4] / 2
        boxes = np.concatenate([values[:, :2] - half, values[:, :2] + half, points.reshape(-1, 4)], -1)
        proper = (half > 0).all(-1)
        boxes, _ = merge_boxes(boxes[proper], scores[take][proper])
        pixels = boxes[:, 4:].reshape(-1, 2, 2) * side - (side - np.array([width, height])) / 2
        return np.array([region_from_points(*pair) for pair in pixels]).reshape(-1, 4)


class Landmarks(NamedTuple):
    """What the landmark network sees in a region."""

    presence: float
    points: np.ndarray
    """(33, 3) pixels of the picture and visibility."""
    next: np.ndarray
    """(2, 2) the two points, in pixels, that make the region of the next frame."""


class LandmarkNetwork(Network):
    """Where the body's points are in a region."""

    def __init__(self, name: str, model: bytes, threads: int = 1) -> None:
        super().__init__(name, model, LANDMARK_SIZE, [(1, 195), (1, 1), (1, 64, 64, 39)], threads)

    def look(self, image: np.ndarray, region: np.ndarray) -> Landmarks | None:
        """The person in a region (4,), or None where the numbers make no sense."""
        values, presence, heatmaps = self(image, region, 1 / 255, 0.0, cv2.BORDER_REPLICATE)
        values = values.reshape(39, 5)[:_AUXILIARY].astype(np.float64)
        if not (np.isfinite(values).all() and np.isfinite(presence[0])):
            return None
        places = refine(values[:, :2] / LANDMARK_SIZE, heatmaps[..., :_AUXILIARY])
        matrix = region_matrix(region, 1)
        pixels = places @ matrix[:, :2].T + matrix[:, 2]
        visible = 1 / (1 + np.exp(-values[:_LANDMARKS, 3].clip(-100, 100)))
        points = np.concatenate([pixels[:_LANDMARKS], visible[:, None]], -1)
        return Landmarks(float(presence[0]), points.astype(np.float32), pixels[_LANDMARKS:])


def refine(places: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """Places (k, 2) in [0, 1], moved to the mean of the heatmap's cells round them where the heatmap is confident.

    Args:
        places: (k, 2) x, y.
        heatmaps: (H, W, k) logits.
    """
    height, width = heatmaps.shape[:2]
    cells = (places * (width, height)).clip(-1e6, 1e6).astype(int)  # towards zero
    steps = np.arange(-_REACH, _REACH + 1)
    columns, rows = cells[:, :1] + steps, cells[:, 1:] + steps
    inside_x, inside_y = (columns >= 0) & (columns < width), (rows >= 0) & (rows < height)
    logits = heatmaps[
        rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None], np.arange(len(places))[:, None, None]
    ]
    weight = inside_y[:, :, None] * inside_x[:, None] / (1 + np.exp(-logits.clip(-80, 80)))
    total = weight.sum((1, 2))
    # A landmark just below the heatmap is refined as well, as in mediapipe.
    sure = (weight.max((1, 2)) >= _CONFIDENT) & (cells >= 0).all(-1) & (cells[:, 0] < width)
    x = (weight.sum(1) * columns).sum(-1) / np.maximum(total, 1e-12) / width
    y = (weight.sum(2) * rows).sum(-1) / np.maximum(total, 1e-12) / height
    return np.where(sure[:, None], np.stack([x, y], -1), places)
