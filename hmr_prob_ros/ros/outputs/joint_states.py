"""``sensor_msgs/JointState``: the angles of each person's most likely body."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState

from ...skeleton import JOINT_NAMES
from .frame import OutputFrame, person_name

__all__ = ["AXES", "JointStatesOutput", "joint_angles", "joint_states"]

AXES = ("x", "y", "z")
_EDGE = 1 - 1e-7  # |sin| of the middle angle from which the outer two turn about the same axis


def joint_angles(rotations: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> angles (..., 3) in radians: R = Rx(a) Ry(b) Rz(c), b within +-pi/2.

    Three revolute joints one after another about x, y and z have these angles. Where b is +-pi/2 only a +- c is known;
    c is zero there.
    """
    r = np.asarray(rotations, np.float64)
    sine = np.clip(r[..., 0, 2], -1.0, 1.0)
    edge = np.abs(sine) > _EDGE
    first = np.where(edge, np.arctan2(r[..., 2, 1], r[..., 1, 1]), np.arctan2(-r[..., 1, 2], r[..., 2, 2]))
    last = np.where(edge, 0.0, np.arctan2(-r[..., 0, 1], r[..., 0, 0]))
    return np.stack([first, np.arcsin(sine), last], axis=-1)


def joint_states(frame: OutputFrame) -> JointState:
    """Everybody's joints but the pelvis, which TF has: ``person_<id>_<joint>_<axis>``, 69 angles a person.

    The angles are those of the heaviest mode, of each joint relative to its parent, in SMPL's axes at rest (x left,
    y up, z front).
    """
    message = JointState(header=frame.header)
    for index, person in enumerate(frame.people):
        name = f"person_{person_name(person, index)}"
        angles = joint_angles(person.rotations[int(person.weights.argmax()), 1:])
        message.name += [f"{name}_{joint}_{axis}" for joint in JOINT_NAMES[1:] for axis in AXES]
        message.position.extend(angles.reshape(-1).tolist())
    return message


class JointStatesOutput:
    """Publishes ``JointState``.

    Args:
        node: owns the publisher.
        topic: below the node's namespace.
    """

    def __init__(self, node: Node, topic: str = "human/joint_states") -> None:
        self._node = node
        self._publisher = node.create_publisher(JointState, topic, QoSProfile(depth=10))

    def publish(self, frame: OutputFrame) -> None:
        """Publish a frame; nothing for one without people."""
        if frame.people and self._publisher.get_subscription_count():
            self._publisher.publish(joint_states(frame))

    def close(self) -> None:
        """Take the publisher off the node."""
        self._node.destroy_publisher(self._publisher)
