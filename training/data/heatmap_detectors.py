"""2D detectors that show their heatmaps: PP-TinyPose, RTMPose and ViTPose as ONNX files, ViTPose through transformers.

All are top-down: they look at a box round one person, with the preprocessing that the package's own detectors use, and
give keypoints, samples of their heatmaps and the heatmaps' peaks.

>>> sorted(HEATMAP_DETECTORS)
['rtmpose', 'tinypose', 'vitpose', 'vitpose-onnx']
"""

from __future__ import annotations

__all__ = ["HEATMAP_DETECTORS", "HeatmapDetector", "OnnxHeatmaps", "VitPoseHeatmaps", "make_heatmap_detector"]

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from hmr_prob_ros.engines import EngineError, make_engine

from .heatmaps import SAMPLES, Detection, HeatmapError, complete, decode, decode_simcc, sample, sample_simcc

HEATMAP_DETECTORS = ("tinypose", "rtmpose", "vitpose-onnx", "vitpose")
BOX_PADDING = 1.25
"""Enlargement of a person's box before it is cut out; all these networks were trained with it."""

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_SD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_VITPOSE = "usyd-community/vitpose-base-simple"
_SIMCC_SPLIT = 2


class HeatmapDetector(Protocol):
    """A top-down pose network with heatmaps."""

    name: str

    def __call__(self, image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> Detection:
        """What it sees in a box (4,) left, top, right, bottom of ``image`` (H, W, 3) uint8 RGB, in its pixels."""
        ...


class Window(NamedTuple):
    """The part of the picture that a network sees: ``corner`` (2,) and ``size`` (2,) in pixels."""

    corner: np.ndarray
    size: np.ndarray

    @classmethod
    def around(cls, box: np.ndarray, input_size: tuple[int, int]) -> Window:
        """The padded box, widened to the shape of the network's input."""
        box = np.asarray(box, dtype=np.float64)
        size = np.maximum(box[2:] - box[:2], 1.0) * BOX_PADDING
        aspect = input_size[0] / input_size[1]
        size = np.maximum(size, size[::-1] * (aspect, 1 / aspect))
        return cls((box[:2] + box[2:]) / 2 - size / 2, size)

    def cut(self, image: np.ndarray, input_size: tuple[int, int], corner_to_corner: bool) -> np.ndarray:
        """(1, 3, H, W) normalised input; black beyond the picture.

        ``corner_to_corner``: the first and last pixel of the input lie on the window's border (UDP); else the input has
        its own width in pixels across the window.
        """
        width, height = input_size
        # Boxes and windows reach from 0 to the width; OpenCV counts from the middle of the first pixel.
        start = self.corner - 0.5
        scale = (np.array(input_size) - corner_to_corner) / self.size
        matrix = np.array([[scale[0], 0, -start[0] * scale[0]], [0, scale[1], -start[1] * scale[1]]])
        cut = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return np.ascontiguousarray(((cut.astype(np.float32) / 255 - _MEAN) / _SD).transpose(2, 0, 1)[None])

    def pixels(self, cells: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Cells (..., 2) of a heatmap that is ``count`` (2,) cells wide and high to pixels (..., 2)."""
        return self.corner + np.asarray(cells, dtype=np.float64) * (self.size / count)


class OnnxHeatmaps:
    """A pose network in an ONNX file.

    Args:
        weights: the file. Two outputs are SimCC's profiles, one is heatmaps.
        name: ``tinypose``, ``rtmpose`` or ``vitpose-onnx``. TinyPose takes RGB and its heatmap maps to the crop by a
            plain factor of four; the others take BGR, and ViTPose's heatmap reaches from corner to corner.
        samples: T, drawn for each keypoint.
        threads: of one run.

    Raises:
        HeatmapError: no such file, or a network of another form.
    """

    def __init__(self, weights: str | Path, name: str = "tinypose", samples: int = SAMPLES, threads: int = 1) -> None:
        if not Path(weights).is_file():
            raise HeatmapError(f"no weights of {name} at {weights}: give the ONNX file with --weights")
        try:
            self._engine: Any = make_engine("onnxruntime", weights, threads=threads)
        except EngineError as error:
            raise HeatmapError(f"{weights} cannot be loaded as {name}: {error}") from error
        self.name, self.samples = name, samples
        shape = self._engine._session.get_inputs()[0].shape
        expected = 2 if name == "rtmpose" else 1
        if len(self._engine.output_names) != expected or len(shape) != 4:
            raise HeatmapError(
                f"{weights} has {len(self._engine.output_names)} outputs and an input of shape {shape}, but {name} has "
                f"{expected} and (B, 3, H, W): name the detector that the file holds"
            )
        height, width = (s if isinstance(s, int) else d for s, d in zip(shape[2:], (256, 192), strict=True))
        self.input_size = (width, height)

    def __call__(self, image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> Detection:
        """See :class:`HeatmapDetector`."""
        window = Window.around(box, self.input_size)
        seen = image if self.name == "tinypose" else image[..., ::-1]
        prepared = window.cut(np.ascontiguousarray(seen), self.input_size, corner_to_corner=False)
        output = self._engine.run({self._engine.input_names[0]: prepared})
        values = [output[name][0] for name in self._engine.output_names]
        if len(values) == 2:
            points, (samples, peaks) = decode_simcc(*values), sample_simcc(*values, rng, self.samples)
            count = np.array(self.input_size) * _SIMCC_SPLIT
        else:
            points, (samples, peaks) = decode(values[0]), sample(values[0], rng, self.samples)
            count = np.array(values[0].shape[:0:-1]) - (self.name != "tinypose")
        return _detection(window, points, samples, peaks, count)


class VitPoseHeatmaps:
    """ViTPose (Xu et al. 2022) of the ``transformers`` package.

    Args:
        weights: a local folder, or a name on the hub, which the library downloads.
        samples: T, drawn for each keypoint.
        model: a ``VitPoseForPoseEstimation`` in place of ``weights``.
        device: of the network.

    Raises:
        HeatmapError: transformers is missing, or the weights cannot be had.
    """

    name = "vitpose"

    def __init__(
        self,
        weights: str | Path | None = None,
        samples: int = SAMPLES,
        model: Any = None,
        device: str = "cpu",
    ) -> None:
        try:
            import torch
            from transformers import VitPoseForPoseEstimation
        except ImportError as error:
            raise HeatmapError(
                f"vitpose needs the package transformers ({error}): pip install 'transformers>=4.48'"
            ) from error
        self._torch = torch
        if model is None:
            source = str(weights or _VITPOSE)
            try:
                model = VitPoseForPoseEstimation.from_pretrained(source)
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0][:200]
                raise HeatmapError(
                    f"no ViTPose weights at {source} ({reason}): give --weights a folder with config.json and "
                    "model.safetensors, or allow the download"
                ) from error
        self._model = model.eval().to(device)
        self._device, self.samples = device, samples
        config = model.config.backbone_config
        height, width = config.image_size
        self.input_size = (int(width), int(height))
        # ViTPose+ holds experts for several data sets; the first is COCO's.
        self._experts = getattr(config, "num_experts", 1) > 1

    def heatmaps(self, prepared: np.ndarray) -> np.ndarray:
        """(k, H, W) of a normalised input (1, 3, H, W)."""
        torch = self._torch
        more = {"dataset_index": torch.zeros(1, dtype=torch.long, device=self._device)} if self._experts else {}
        with torch.inference_mode():
            found = self._model(pixel_values=torch.from_numpy(prepared).to(self._device), **more).heatmaps
        return np.asarray(found[0].float().cpu().numpy())

    def __call__(self, image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> Detection:
        """See :class:`HeatmapDetector`."""
        window = Window.around(box, self.input_size)
        values = self.heatmaps(window.cut(image, self.input_size, corner_to_corner=True))
        samples, peaks = sample(values, rng, self.samples)
        return _detection(window, decode(values), samples, peaks, np.array(values.shape[:0:-1]) - 1)


def _detection(
    window: Window, points: np.ndarray, samples: np.ndarray, peaks: np.ndarray, count: np.ndarray
) -> Detection:
    points = np.column_stack([window.pixels(points[:, :2], count), points[:, 2]])
    return complete(points, window.pixels(samples, count), peaks)


def make_heatmap_detector(
    name: str, weights: str | Path | None = None, samples: int = SAMPLES, threads: int = 1
) -> HeatmapDetector:
    """A detector of :data:`HEATMAP_DETECTORS`.

    Raises:
        HeatmapError: no such detector, one without heatmaps, or its weights or package are missing.
    """
    if name in ("mediapipe", "blazepose"):
        raise HeatmapError(
            "BlazePose's points are regressed, its heatmaps are not what they are read from: "
            f"choose one of {', '.join(HEATMAP_DETECTORS)}"
        )
    if name not in HEATMAP_DETECTORS:
        raise HeatmapError(f"unknown detector {name!r}: choose one of {', '.join(HEATMAP_DETECTORS)}")
    if name == "vitpose":
        return VitPoseHeatmaps(weights, samples)
    if weights is None:
        raise HeatmapError(f"{name} needs its ONNX file: give it with --weights")
    return OnnxHeatmaps(weights, name, samples, threads)
