"""Hypotheses as RViz markers: skeletons coloured by weight and 95 % covariance ellipsoids."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from ..hypotheses import HypothesisSet
from ..skeleton import BONES

__all__ = ["CHI2_95", "MarkerBuilder", "ellipsoids", "mode_colours"]

CHI2_95 = 7.814727903251178
"""95 % quantile of the chi-squared distribution with three degrees of freedom."""

_MIN_DIAMETER = 0.002  # RViz warns of scales near zero
_BONE_ORDER = np.array(BONES).reshape(-1)


def ellipsoids(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes of the ellipsoids that hold 95 % of a normal distribution.

    The surface is x' C^-1 x = chi2(0.95, 3): half-axes sqrt(chi2 * eigenvalue) along the eigenvectors of C.

    Args:
        covariance: (J, 3, 3) in square metres.

    Returns:
        diameters (J, 3) in metres and the rotation (J, 4) as quaternions x, y, z, w.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    diameters = 2 * np.sqrt(CHI2_95 * np.maximum(values, 0))
    # Eigenvectors may form a mirrored frame; a quaternion cannot.
    vectors = vectors * np.where(np.linalg.det(vectors) < 0, -1.0, 1.0)[:, None, None]
    axis_angle = np.concatenate([cv2.Rodrigues(v)[0].T for v in vectors]) if len(vectors) else np.zeros((0, 3))
    angle = np.linalg.norm(axis_angle, axis=1, keepdims=True)
    # sin(a/2)/a as a sinc, which has no hole at zero
    quaternions = np.concatenate([axis_angle * (0.5 * np.sinc(angle / (2 * np.pi))), np.cos(angle / 2)], axis=1)
    return diameters, quaternions


def mode_colours(share: np.ndarray) -> np.ndarray:
    """From blue and faint (light mode) to orange and solid (heaviest mode).

    Args:
        share: (n,) weight over largest weight.

    Returns:
        (n, 4) red, green, blue and alpha from 0 to 1.
    """
    low, high = np.array([0.25, 0.45, 0.95, 0.15]), np.array([1.0, 0.55, 0.1, 1.0])
    return low + (high - low) * np.asarray(share, np.float64)[:, None]


def _colour(share: float) -> ColorRGBA:
    r, g, b, a = mode_colours(np.array([share]))[0].tolist()
    return ColorRGBA(r=r, g=g, b=b, a=a)


class MarkerBuilder:
    """Builds a ``MarkerArray`` a frame and deletes the markers of people and modes that are gone.

    Args:
        lifetime: seconds after which a marker vanishes when no newer one comes (0: never).
    """

    def __init__(self, lifetime: float = 0.5) -> None:
        self.lifetime = Duration(sec=int(lifetime), nanosec=int(lifetime % 1 * 1e9))
        self._shown: set[tuple[str, int]] = set()

    def build(self, people: Sequence[HypothesisSet], header: Header) -> MarkerArray:
        """All markers of one frame, in the frame and at the time of ``header``.

        Namespaces are ``person<id>/modes`` (marker id = rank of the mode) and ``person<id>/uncertainty`` (joint).
        """
        markers: list[Marker] = []
        for index, person in enumerate(people):
            name = f"person{person.id if person.id >= 0 else f'_{index}'}"
            markers += self._skeletons(person, header, f"{name}/modes")
            markers += self._ellipsoids(person, header, f"{name}/uncertainty")
        shown = {(m.ns, m.id) for m in markers}
        gone = [
            Marker(header=header, ns=ns, id=number, action=Marker.DELETE) for ns, number in sorted(self._shown - shown)
        ]
        self._shown = shown
        return MarkerArray(markers=gone + markers)

    def _marker(self, header: Header, ns: str, number: int, kind: int) -> Marker:
        return Marker(header=header, ns=ns, id=number, type=kind, action=Marker.ADD, lifetime=self.lifetime)

    def _skeletons(self, person: HypothesisSet, header: Header, ns: str) -> list[Marker]:
        markers = []
        heaviest = float(person.weights.max())
        for rank, mode in enumerate(np.argsort(-person.weights, kind="stable")):
            share = float(person.weights[mode]) / heaviest
            marker = self._marker(header, ns, rank, Marker.LINE_LIST)
            marker.pose.orientation.w = 1.0
            marker.scale.x = 0.008 + 0.012 * share
            marker.color = _colour(share)
            marker.points = [Point(x=x, y=y, z=z) for x, y, z in person.joints[mode][_BONE_ORDER].tolist()]
            markers.append(marker)
        return markers

    def _ellipsoids(self, person: HypothesisSet, header: Header, ns: str) -> list[Marker]:
        diameters, quaternions = ellipsoids(person.covariance)
        colour = ColorRGBA(r=0.2, g=0.8, b=0.5, a=0.25)
        markers = []
        rows = zip(
            person.mean.tolist(), quaternions.tolist(), np.maximum(diameters, _MIN_DIAMETER).tolist(), strict=True
        )
        for joint, ((x, y, z), (qx, qy, qz, qw), (a, b, c)) in enumerate(rows):
            marker = self._marker(header, ns, joint, Marker.SPHERE)
            marker.pose = Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
            marker.scale = Vector3(x=a, y=b, z=c)
            marker.color = colour
            markers.append(marker)
        return markers
