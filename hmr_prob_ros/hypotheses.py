"""The values that everything passes on: a detected person, and what the body may be doing."""

from __future__ import annotations

__all__ = ["HypothesisError", "HypothesisSet", "Person2D"]

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .skeleton import NUM_JOINTS, NUM_KEYPOINTS


class HypothesisError(ValueError):
    """A value does not fit; the text names the field, the shape it has and the shape it needs."""


def _check(name: str, array: np.ndarray, shape: tuple[int | str, ...], sizes: dict[str, int]) -> np.ndarray:
    """``array`` as float32 of the shape asked for; letters in the shape stand for sizes that must agree."""
    array = np.asarray(array, dtype=np.float32)
    wanted = tuple(
        sizes.setdefault(s, array.shape[i] if i < array.ndim else -1) if isinstance(s, str) else s
        for i, s in enumerate(shape)
    )
    if array.shape != wanted:
        raise HypothesisError(f"{name} has shape {array.shape}, but it must be {shape} with {sizes}")
    if not np.isfinite(array).all():
        raise HypothesisError(f"{name} holds a number that is not finite")
    return array


@dataclass(frozen=True)
class Person2D:
    """One person as a 2D detector sees it.

    Args:
        box: (4,) left, top, right, bottom in pixels.
        score: confidence that this is a person, in [0, 1].
        keypoints: (23, 3) x, y in pixels and confidence in [0, 1], in the order of ``KEYPOINT_NAMES``;
            a keypoint that the detector does not give has confidence 0.
        id: identity across frames, -1 before tracking.

    Raises:
        HypothesisError: a shape does not fit or a number is not finite.
    """

    box: np.ndarray
    score: float
    keypoints: np.ndarray
    id: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", _check("box", self.box, (4,), {}))
        object.__setattr__(self, "keypoints", _check("keypoints", self.keypoints, (NUM_KEYPOINTS, 3), {}))

    def with_id(self, identity: int) -> Person2D:
        """The same person with an identity."""
        return replace(self, id=identity)


@dataclass(frozen=True)
class HypothesisSet:
    """What one person's body may be doing: n weighted modes and the moments of all N samples.

    Positions are in metres in the camera's optical frame (x right, y down, z forward).

    Args:
        id: identity across frames.
        box: (4,) left, top, right, bottom in pixels.
        score: detection score in [0, 1].
        keypoints: (23, 3) detected x, y in pixels, and confidence.
        weights: (n,) probability of each mode, most probable first, summing to one.
        log_density: (n,) log-density of the mode's pose under the model, in nats.
        rotations: (n, 24, 3, 3) rotation of each joint relative to its parent; the root's maps body to camera axes.
        betas: (n, 10) shape.
        translation: (n, 3) SMPL's translation.
        joints: (n, 24, 3).
        keypoints3d: (n, 23, 3) surface points that the 2D keypoints are images of.
        mean: (24, 3) mean of the samples' joints.
        covariance: (24, 3, 3) their covariance, in square metres.
        visibility: (24,) highest confidence of the keypoints that show a joint, in [0, 1].
        samples: (N, 24, 3) joints of every sample, where asked for.
        samples_keypoints3d: (N, 23, 3), likewise.

    Raises:
        HypothesisError: a shape does not fit, a number is not finite, or the weights do not sum to one.

    A set is iterable and indexable by mode: ``for weight, joints in hypotheses``.
    """

    id: int
    box: np.ndarray
    score: float
    keypoints: np.ndarray
    weights: np.ndarray
    log_density: np.ndarray
    rotations: np.ndarray
    betas: np.ndarray
    translation: np.ndarray
    joints: np.ndarray
    keypoints3d: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    visibility: np.ndarray
    samples: np.ndarray | None = None
    samples_keypoints3d: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        shapes: dict[str, tuple[int | str, ...]] = {
            "box": (4,),
            "keypoints": (NUM_KEYPOINTS, 3),
            "weights": ("n",),
            "log_density": ("n",),
            "rotations": ("n", NUM_JOINTS, 3, 3),
            "betas": ("n", 10),
            "translation": ("n", 3),
            "joints": ("n", NUM_JOINTS, 3),
            "keypoints3d": ("n", NUM_KEYPOINTS, 3),
            "mean": (NUM_JOINTS, 3),
            "covariance": (NUM_JOINTS, 3, 3),
            "visibility": (NUM_JOINTS,),
            "samples": ("N", NUM_JOINTS, 3),
            "samples_keypoints3d": ("N", NUM_KEYPOINTS, 3),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _check(name, value, shape, sizes))
        if sizes["n"] < 1:
            raise HypothesisError("a hypothesis set needs at least one mode")
        if abs(float(self.weights.sum()) - 1.0) > 1e-3 or float(self.weights.min()) < 0:
            raise HypothesisError(f"weights must be positive and sum to one, they are {self.weights.tolist()}")

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, mode: int) -> tuple[float, np.ndarray]:
        return float(self.weights[mode]), self.joints[mode]

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        return (self[mode] for mode in range(len(self)))

    @property
    def spread(self) -> np.ndarray:
        """(24,) root of the trace of each joint's covariance: its root mean square distance to the mean, in metres."""
        return np.sqrt(np.trace(self.covariance, axis1=1, axis2=2))
