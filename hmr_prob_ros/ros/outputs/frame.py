"""What every output is given, and the geometry that they share.

Frames: a person's frame has its origin in the pelvis and, as REP 103 has it for bodies, x to the front, y to the left
and z up; the parent is the frame of the header, the camera's optical one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...hypotheses import HypothesisSet

__all__ = ["Output", "OutputFrame", "body_axes", "person_name", "pose_covariance", "quaternions", "rotation_vectors"]

_AXES = np.array(
    [[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]
)  # columns: front, left and up in SMPL's axes (x left, y up, z front)
_ROOT_BONES = (1, 2, 3)  # joints that the root's rotation alone moves
_LEAST = np.diag([1e-3**2] * 3 + [np.radians(0.1) ** 2] * 3)  # a posterior is never surer than this


@dataclass(frozen=True)
class OutputFrame:
    """The people of one image.

    Args:
        people: in no particular order.
        header: ``std_msgs/Header`` of the image.
        size: width and height of the image in pixels; None where keypoints came without one.
    """

    people: list[HypothesisSet]
    header: Any
    size: tuple[int, int] | None = field(default=None)


class Output(Protocol):
    """Something that publishes what is known about a frame."""

    def publish(self, frame: OutputFrame) -> None:
        """Publish the frame, where somebody listens."""

    def close(self) -> None:
        """Take the publishers off the node."""


def person_name(person: HypothesisSet, index: int) -> str:
    """A name that is the same from frame to frame; people without an identity are numbered within the frame."""
    return str(person.id) if person.id >= 0 else f"_{index}"


def body_axes(rotations: np.ndarray) -> np.ndarray:
    """Root rotations (..., 3, 3) of bodies -> rotations (..., 3, 3) of their frames (x front, y left, z up)."""
    return np.asarray(rotations, np.float64) @ _AXES


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> unit quaternions (..., 4) x, y, z, w with w >= 0.

    The largest of the four, which Shepperd's method (1978) takes as the divisor, keeps it stable at every angle.
    """
    r = np.asarray(rotations, np.float64)
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    x, y, z = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    # Row i is q times 4 q_i.
    rows = np.stack(
        [
            np.stack([1 + xx - yy - zz, xy, xz, x], -1),
            np.stack([xy, 1 - xx + yy - zz, yz, y], -1),
            np.stack([xz, yz, 1 - xx - yy + zz, z], -1),
            np.stack([x, y, z, 1 + xx + yy + zz], -1),
        ],
        axis=-2,
    )
    best = np.argmax(np.einsum("...ii->...i", rows), axis=-1)
    q = np.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return q * np.where(q[..., 3:] < 0, -1.0, 1.0)


def rotation_vectors(rotations: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> axis times angle (..., 3), angle at most pi."""
    q = quaternions(rotations)
    sine = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., 3:])
    return q[..., :3] * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)


def _root_rotations(person: HypothesisSet, samples: np.ndarray) -> np.ndarray:
    """Root rotations (N, 3, 3) of samples (N, 24, 3): Kabsch on the three bones that only the root moves."""
    bones = list(_ROOT_BONES)
    of_samples = (samples[:, bones] - samples[:, :1]).astype(np.float64)
    of_mode = (person.joints[0, bones] - person.joints[0, :1]).astype(np.float64)
    u, _, vt = np.linalg.svd(np.einsum("nbi,bj->nij", of_samples, of_mode))
    u[..., :, 2] *= np.linalg.det(u @ vt)[:, None]
    return u @ vt @ person.rotations[0, 0]


def pose_covariance(person: HypothesisSet) -> np.ndarray:
    r"""How far the true pelvis pose may be from that of each mode: 6x6 matrices (n, 6, 6), positive definite.

    For mode :math:`m` with position :math:`p_m` and rotation :math:`R_m`, the mean over the posterior of
    :math:`d d^\top` with :math:`d = (p - p_m, \log(R R_m^\top))`: position in metres, then rotation in radians about
    the fixed axes x, y, z of the parent frame, as ``geometry_msgs/PoseWithCovariance`` has it. It is about the mode and
    not about the mean: it holds for whoever uses this one pose.

    With the samples at hand (``person.samples``) they are the posterior. Without, the modes are, and what their
    pelvises lack of the posterior's covariance is added to the position.
    """
    roots = person.rotations[:, 0].astype(np.float64)
    if person.samples is not None:
        places, turns = person.samples[:, 0].astype(np.float64), _root_rotations(person, person.samples)
        weights, missing = np.full(len(places), 1 / len(places)), np.zeros((3, 3))
    else:
        places, turns = person.joints[:, 0].astype(np.float64), roots
        weights, missing = person.weights.astype(np.float64), _between(person)
    # (n, N, 6): every sample as seen from every mode
    d = np.concatenate(
        [places - person.joints[:, :1], rotation_vectors(turns @ roots[:, None].swapaxes(-1, -2))], axis=-1
    )
    result = d.swapaxes(-1, -2) @ (d * weights[:, None])
    result[:, :3, :3] += missing
    return (result + result.swapaxes(-1, -2)) / 2 + _LEAST


def _between(person: HypothesisSet) -> np.ndarray:
    """Covariance (3, 3) of the pelvis that the modes do not show."""
    places = person.joints[:, 0].astype(np.float64)
    centred = places - person.weights @ places
    rest = person.covariance[0].astype(np.float64) - centred.T @ (centred * person.weights[:, None])
    values, vectors = np.linalg.eigh((rest + rest.T) / 2)
    return vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
