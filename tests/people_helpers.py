"""Somebody to look at: what a perfect detector would say of a body that stands before a camera."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hmr_prob_ros import Camera, Person2D
from hmr_prob_ros.body import Body

CAMERA = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)


def standing(
    body: Body, camera: Camera = CAMERA, x: float = 0.0, z: float = 3.0, hidden: Sequence[int] = ()
) -> Person2D:
    """A person who stands upright x m to the right and z m ahead, arms down, facing the camera, seen without error."""
    rotations = np.tile(np.eye(3, dtype=np.float32), (24, 1, 1))
    rotations[0] = np.diag([1, -1, -1])
    for joint, sign in ((16, -1), (17, 1)):
        rotations[joint] = cv2.Rodrigues(np.array([0.0, 0.0, sign * 1.2]))[0]
    betas = np.zeros(10, np.float32)
    points = camera.project(body.keypoints(rotations, betas, np.array([x, 0.1, z], np.float32)))
    keypoints = np.concatenate([points, np.full((23, 1), 0.95)], axis=1)
    keypoints[list(hidden), 2] = 0.0
    return Person2D(np.concatenate([points.min(0), points.max(0)]), 0.9, keypoints, id=4)
