"""What the tests of the benchmarks share: somebody to look at, a set with known answers, a picture of a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.detectors import DetectorError, make_detector
from hmr_prob_ros.estimator import Estimator
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.setfile import PoseSet

CAMERA = Camera.guess(640, 480)


def keypoints_of_somebody(seed: int = 0) -> np.ndarray:
    """(23, 3) somebody in the middle of a 640x480 picture; where exactly does not matter."""
    random = np.random.default_rng(seed)
    points = random.uniform((220, 60), (420, 440), (23, 2))
    return np.concatenate((points, np.full((23, 1), 0.9)), axis=1).astype(np.float32)


def answered_set(bundle: Bundle, count: int = 4) -> PoseSet:
    """People whose true bodies are the model's own single answers."""
    keypoints = np.stack([keypoints_of_somebody(seed) for seed in range(count)])
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


def photograph_path() -> str:
    """A picture in which mediapipe finds somebody; skips without mediapipe or the picture."""
    try:
        make_detector("mediapipe").close()
    except DetectorError as error:
        pytest.skip(str(error))
    data = pytest.importorskip("skimage.data", reason="needs scikit-image for its photograph of a person")
    return str(Path(data.__file__).parent / "astronaut.png")
