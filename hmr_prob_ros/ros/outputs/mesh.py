"""The mesh of each person's heaviest mode, for RViz and Foxglove, at a limited rate."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker

from ...body import Body
from ...hypotheses import HypothesisSet
from .frame import OutputFrame, person_name

__all__ = ["MeshOutput", "mesh_marker", "mesh_triangles"]

_SKIN = ColorRGBA(r=0.95, g=0.72, b=0.5, a=0.9)
_MARK = Point(x=1.2345e200, y=-2.3456e201, z=3.4567e202)
_MARK_BYTES = struct.pack("<3d", _MARK.x, _MARK.y, _MARK.z)


@lru_cache(maxsize=1)
def _default_body() -> Body:
    return Body.load()


def mesh_triangles(person: HypothesisSet, body: Body) -> np.ndarray:
    """Corners (F, 3, 3) of the triangles of the heaviest mode's mesh, in metres, in the frame of the header."""
    best = int(person.weights.argmax())
    vertices = body.vertices(person.rotations[best], person.betas[best], person.translation[best])
    return vertices[body.faces]


def mesh_marker(person: HypothesisSet, header: Header, body: Body, name: str, lifetime: float = 1.0) -> bytes:
    """A serialised ``Marker`` of type TRIANGLE_LIST.

    Forty thousand points would be forty thousand Python objects: a marker with a single point is serialised, and its
    bytes are replaced by those of all points, which are as long as a multiple of it and so leave what follows aligned.
    """
    marker = Marker(header=header, ns=f"person{name}/mesh", id=0, type=Marker.TRIANGLE_LIST, action=Marker.ADD)
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = marker.scale.z = 1.0
    marker.color = _SKIN
    marker.lifetime = Duration(sec=int(lifetime), nanosec=int(lifetime % 1 * 1e9))
    marker.points = [_MARK]
    data = serialize_message(marker)
    points = mesh_triangles(person, body).reshape(-1, 3).astype("<f8")
    place = data.index(_MARK_BYTES)
    count = place - 4 if data[place - 4 : place] == struct.pack("<I", 1) else place - 8  # aligned to 8 behind it
    return b"".join(
        [
            data[:count],
            struct.pack("<I", len(points)),
            data[count + 4 : place],
            points.tobytes(),
            data[place + len(_MARK_BYTES) :],
        ]
    )


class MeshOutput:
    """Publishes one ``Marker`` a person and deletes those of people who are gone.

    Args:
        node: owns the publisher.
        topic: below the node's namespace.
        rate: meshes a second of each person, by the stamps of the images.
        body: of the bundle; None: the default one.
    """

    def __init__(self, node: Node, topic: str = "human/mesh", rate: float = 2.0, body: Body | None = None) -> None:
        self._node = node
        self._period = round(1e9 / rate)
        self._body = body
        self._last: int | None = None
        self._shown: set[str] = set()
        self._publisher = node.create_publisher(Marker, topic, QoSProfile(depth=20))

    def publish(self, frame: OutputFrame) -> None:
        """Publish the meshes, unless the last ones are too new."""
        stamp = frame.header.stamp.sec * 10**9 + frame.header.stamp.nanosec
        if self._last is not None and 0 <= stamp - self._last < self._period:
            return
        if not self._publisher.get_subscription_count():
            return
        self._last = stamp
        body = self._body or _default_body()
        names = {person_name(person, index) for index, person in enumerate(frame.people)}
        for name in sorted(self._shown - names):
            self._publisher.publish(Marker(header=frame.header, ns=f"person{name}/mesh", action=Marker.DELETE))
        for index, person in enumerate(frame.people):
            lifetime = 2.5e-9 * self._period
            self._publisher.publish(mesh_marker(person, frame.header, body, person_name(person, index), lifetime))
        self._shown = names

    def close(self) -> None:
        """Take the publisher off the node."""
        self._node.destroy_publisher(self._publisher)
