"""Transforms to the pelvis of each person, on ``/tf`` without ``tf2_ros``."""

from __future__ import annotations

from collections.abc import Callable

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.node import Node
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage

from ...hypotheses import HypothesisSet
from .frame import OutputFrame, body_axes, person_name, quaternions

__all__ = ["PelvisTfOutput", "transforms"]


def transforms(
    frame: OutputFrame, prefix: str = "person_", name_of: Callable[[HypothesisSet, int], str] = person_name
) -> list[TransformStamped]:
    """From the header's frame to ``<prefix><id>``: the pelvis of each person's heaviest mode, x front, y left, z up."""
    result = []
    for index, person in enumerate(frame.people):
        best = int(person.weights.argmax())
        x, y, z = person.joints[best, 0].tolist()
        a, b, c, d = quaternions(body_axes(person.rotations[best, 0])).tolist()
        transform = Transform(translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=a, y=b, z=c, w=d))
        name = f"{prefix}{name_of(person, index)}"
        result.append(TransformStamped(header=frame.header, child_frame_id=name, transform=transform))
    return result


class PelvisTfOutput:
    """Publishes the transforms of each frame; a person who is gone has no newer ones.

    Args:
        node: owns the publisher.
        topic: where listeners of TF look.
        prefix: of the frames' names; several cameras need different ones.
        name_of: the part of the names behind the prefix.
    """

    def __init__(
        self,
        node: Node,
        topic: str = "/tf",
        prefix: str = "person_",
        name_of: Callable[[HypothesisSet, int], str] = person_name,
    ) -> None:
        self._node = node
        self._prefix = prefix
        self._name_of = name_of
        self._publisher = node.create_publisher(TFMessage, topic, QoSProfile(depth=100))

    def publish(self, frame: OutputFrame) -> None:
        """Publish the transforms of a frame; nothing for one without people."""
        if frame.people and self._publisher.get_subscription_count():
            self._publisher.publish(TFMessage(transforms=transforms(frame, self._prefix, self._name_of)))

    def close(self) -> None:
        """Take the publisher off the node."""
        self._node.destroy_publisher(self._publisher)
