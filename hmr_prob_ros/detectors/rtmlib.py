"""Several people through rtmlib: a YOLOX person detector, and a top-down pose network for each box."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..hypotheses import Person2D
from . import DetectorError, Pace, check_image
from .keypoints import LAYOUTS, person_from_keypoints, without_doubles

__all__ = ["RtmlibDetector"]

_BOX_PADDING = 1.25
"""rtmlib's enlargement of a box before it is cut out."""

_SEEN = 0.3
"""Confidence of the points that a box is drawn round."""


def _extent(person: Person2D) -> np.ndarray:
    """(4,) smallest box round the seen points; the person's own where fewer than three are."""
    seen = person.keypoints[person.keypoints[:, 2] >= _SEEN, :2]
    return np.concatenate([seen.min(0), seen.max(0)]) if len(seen) >= 3 else person.box


def _margins(person: Person2D) -> np.ndarray:
    """(4,) by how much the person detector's box goes beyond the points, in the longer side of their extent."""
    extent = _extent(person)
    return np.asarray((person.box - extent) / max(float((extent[2:] - extent[:2]).max()), 1.0))


def _grown(person: Person2D, margins: np.ndarray) -> np.ndarray:
    """(4,) box for the next frame: as large beyond the points as the person detector's."""
    extent = _extent(person)
    return np.asarray(extent + margins * float((extent[2:] - extent[:2]).max()))


class RtmlibDetector:
    """YOLOX boxes and RTMPose, ViTPose or PP-TinyPose keypoints for each.

    Without paths, rtmlib downloads its own weights at first use: YOLOX and RTMPose with 26 Halpe points, so that the
    feet are there too.

    Args:
        detector: path of a YOLOX .onnx file, trained on persons only or on COCO's 80 classes; None = rtmlib's own.
        pose: path of a pose .onnx file; None = rtmlib's own.
        architecture: rtmlib's class for ``pose``: ``RTMPose`` (SimCC) or ``ViTPose`` (heatmaps).
        detector_size: height and width of the box network's input.
        pose_size: width and height of the pose network's input.
        mode: ``lightweight``, ``balanced`` or ``performance``: which of rtmlib's own weights.
        tinypose: ``pose`` is a PP-TinyPose: it takes RGB, and its heatmap maps to the crop by a plain factor of four
            where rtmlib's ViTPose decodes corner to corner, which puts points up to 4 crop pixels too far right and
            down. None = told by the word "tinypose" in the file's name.
        max_people: highest number of people, the largest boxes first.
        min_detection: score of a box; only for COCO's 80 classes, boxes of a person-only YOLOX pass at 0.3.
        min_score: mean keypoint score from which a box is reported as a person.
        every: run the person detector every so many frames, and at once where somebody is lost. In between the boxes
            follow from the keypoints of the frame before, so newcomers wait for the next turn. See ``docs/people.md``.
        seconds: run it every so many seconds instead.
        backend, device: rtmlib's, e.g. ``onnxruntime`` and ``cuda``.
    """

    name = "rtmlib"
    _next: np.ndarray
    """(P, 4) boxes to look at in the next frame."""
    _margins: np.ndarray
    """(P, 4) what each goes beyond the points, see :func:`_margins`."""

    def __init__(
        self,
        detector: str | Path | None = None,
        pose: str | Path | None = None,
        architecture: str = "RTMPose",
        detector_size: tuple[int, int] = (416, 416),
        pose_size: tuple[int, int] = (192, 256),
        mode: str = "balanced",
        tinypose: bool | None = None,
        max_people: int = 8,
        min_detection: float = 0.4,
        min_score: float = 0.3,
        every: int = 1,
        seconds: float | None = None,
        backend: str = "onnxruntime",
        device: str = "cpu",
    ) -> None:
        self._pace = Pace(every, seconds)
        self._forget()
        package = importlib.import_module("rtmlib")
        defaults = package.BodyWithFeet.MODE
        if mode not in defaults:
            raise DetectorError(f"rtmlib has no mode '{mode}': choose one of {', '.join(sorted(defaults))}")
        for role, path in (("detector", detector), ("pose", pose)):
            if path is not None and not Path(path).is_file():
                raise DetectorError(f"rtmlib: no {role} weights at {path}: give a file, or leave it out to download")
        if detector is None:
            detector, detector_size = defaults[mode]["det"], defaults[mode]["det_input_size"]
        self.tinypose = pose is not None and "tinypose" in Path(pose).name.lower() if tinypose is None else tinypose
        if pose is None:
            pose, pose_size, architecture = defaults[mode]["pose"], defaults[mode]["pose_input_size"], "RTMPose"
        elif self.tinypose:
            architecture = "ViTPose"
        if architecture not in ("RTMPose", "ViTPose"):
            raise DetectorError(f"architecture is '{architecture}', but it must be RTMPose or ViTPose")
        self.max_people = max_people
        self.min_score = min_score
        self.runs = 0
        """How often the person detector has run."""
        self._lock = threading.Lock()
        common = {"backend": backend, "device": device}
        try:
            # rtmlib prints what it loads; standard output belongs to the caller.
            with contextlib.redirect_stdout(io.StringIO()):
                self._detector: Any = package.YOLOX(
                    str(detector), model_input_size=detector_size, score_thr=min_detection, **common
                )
                self._pose: Any = getattr(package, architecture)(str(pose), model_input_size=pose_size, **common)
        except Exception as error:
            raise DetectorError(f"rtmlib could not load its weights ({detector}, {pose}): {error}") from error
        self._classes: bool | None = None

    def _boxes(self, bgr: np.ndarray) -> np.ndarray:
        """(P, 4) boxes of persons."""
        if self._classes is None:
            # Five numbers a row: a person-only network with suppression inside. More: 80 classes, person the first.
            prepared, _ = self._detector.preprocess(bgr)
            self._classes = self._detector.inference(prepared)[0].shape[-1] > 5
            self._detector.det_mode = "multiclass" if self._classes else "human"
        found = self._detector(bgr)
        boxes = found[0][found[1] == 0] if self._classes else found
        return np.asarray(boxes, dtype=np.float32).reshape(-1, 4)

    def detect(self, image: np.ndarray, stamp: float | None = None) -> list[Person2D]:
        """See :class:`PoseDetector`."""
        if not check_image(image):
            return []
        image = np.ascontiguousarray(image)
        height, width = image.shape[:2]
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        with self._lock:
            if self._detector is None:
                raise DetectorError("the rtmlib detector is closed: make a new one")
            people: list[Person2D] | None = None
            if not self._pace.due(stamp):
                people = self._look(image, bgr, self._next.clip(0, [width, height, width, height]))
                if len(people) < len(self._next):  # somebody was lost: look everywhere in this frame already
                    people = None
                    self._pace.restart()
            if people is None:
                self.runs += 1
                boxes = self._boxes(bgr).clip(0, [width, height, width, height])
                area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
                people = self._look(image, bgr, boxes[np.argsort(-area, kind="stable")][: self.max_people])
                self._margins = np.array([_margins(p) for p in people]).reshape(-1, 4)
            self._next = np.array([_grown(p, m) for p, m in zip(people, self._margins, strict=True)]).reshape(-1, 4)
        return sorted(people, key=lambda p: -p.score)

    def _look(self, image: np.ndarray, bgr: np.ndarray, boxes: np.ndarray) -> list[Person2D]:
        """The people in boxes (P, 4), in their order, without those who are none or seen already."""
        height, width = image.shape[:2]
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 1).all(-1)]
        if len(boxes) == 0:  # rtmlib would take the whole picture for a person
            return []
        points, scores = self._pose(image if self.tinypose else bgr, boxes)
        if points.shape[1] not in LAYOUTS:
            raise DetectorError(f"the pose network gives {points.shape[1]} points; known are {sorted(LAYOUTS)}")
        if self.tinypose:
            points = self._plain_decode(points, boxes)
        people = [
            person_from_keypoints(np.concatenate([p, s[:, None]], -1), (width, height), box)
            for p, s, box in zip(points, scores, boxes, strict=True)
        ]
        best = without_doubles(sorted((p for p in people if p.score >= self.min_score), key=lambda p: -p.score))
        return [p for p in people if any(p is one for one in best)]

    def _plain_decode(self, points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Points (P, k, 2) of a corner-to-corner heatmap decode, brought to the plain one: crop = 4 * heatmap."""
        width, height = self._pose.model_input_size
        size = (boxes[:, 2:] - boxes[:, :2]) * _BOX_PADDING
        aspect = width / height
        padded = np.maximum(size, size[:, ::-1] * (aspect, 1 / aspect))
        corner = ((boxes[:, :2] + boxes[:, 2:]) / 2 - padded / 2)[:, None]
        cells = np.array([width / 4, height / 4])
        return np.asarray(corner + (points - corner) * (cells - 1) / cells)

    def reset(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._pace.reset()
        self._next = self._margins = np.zeros((0, 4))

    def close(self) -> None:
        """See :class:`PoseDetector`."""
        with self._lock:
            self._detector = self._pose = None
