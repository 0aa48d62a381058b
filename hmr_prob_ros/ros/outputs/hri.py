"""REP 155 (ROS4HRI): the list of tracked bodies, a 2D skeleton and a TF frame for each."""

from __future__ import annotations

import numpy as np
from hri_msgs.msg import IdsList, NormalizedPointOfInterest2D, Skeleton2D
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile

from ...hypotheses import HypothesisSet
from ...skeleton import KEYPOINT_NAMES
from .frame import Output, OutputFrame, person_name

__all__ = ["ORDER", "HriOutput", "body_id", "skeleton_to_msg"]

ORDER: tuple[str, ...] = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "left_eye", "right_eye",
    "left_ear", "right_ear",
)  # fmt: skip
"""The points of ``hri_msgs/Skeleton2D``."""

_SHOULDERS = [KEYPOINT_NAMES.index(n) for n in ("left_shoulder", "right_shoulder")]


def body_id(person: HypothesisSet, index: int) -> str:
    """The body's name in topics and frames: letters and digits alone."""
    return f"p{person_name(person, index).replace('_', 'x')}"


def skeleton_to_msg(person: HypothesisSet, frame: OutputFrame) -> Skeleton2D:
    """The detected keypoints, x and y as shares of the image's width and height; the neck is between the shoulders.

    The message knows nothing beyond [0, 1]: a point that was guessed outside of the image lies on its border, with
    confidence 0.

    Raises:
        ValueError: the size of the image is not known.
    """
    if frame.size is None:
        raise ValueError("a 2D skeleton of REP 155 needs the size of the image")
    points = person.keypoints.astype(np.float64)
    neck = points[_SHOULDERS].mean(axis=0)
    neck[2] = points[_SHOULDERS, 2].min()
    rows = np.stack([neck if name == "neck" else points[KEYPOINT_NAMES.index(name)] for name in ORDER])
    rows[:, :2] /= frame.size
    outside = ((rows[:, :2] < 0) | (rows[:, :2] > 1)).any(axis=1)
    rows[:, :2] = rows[:, :2].clip(0, 1)
    rows[outside, 2] = 0
    return Skeleton2D(
        header=frame.header, skeleton=[NormalizedPointOfInterest2D(x=x, y=y, c=c) for x, y, c in rows.tolist()]
    )


class HriOutput:
    """Publishes ``/humans/bodies/tracked``, ``/humans/bodies/<id>/skeleton2d`` and, with tf2_msgs, ``body_<id>``.

    Args:
        node: owns the publishers.
        root: where REP 155 has the bodies.
    """

    def __init__(self, node: Node, root: str = "/humans/bodies") -> None:
        self._node = node
        self._root = root
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._tracked = node.create_publisher(IdsList, f"{root}/tracked", latched)
        self._skeletons: dict[str, Publisher] = {}
        self._transforms: Output | None = None
        try:
            from .pelvis_tf import PelvisTfOutput

            self._transforms = PelvisTfOutput(node, prefix="body_", name_of=body_id)
        except ImportError as error:
            node.get_logger().warning(f"no frames body_<id>, tf2_msgs is not installed ({error})")

    def publish(self, frame: OutputFrame) -> None:
        """Publish a frame; the topics of people who are gone are closed."""
        ids = {body_id(person, index): person for index, person in enumerate(frame.people)}
        for name in self._skeletons.keys() - ids.keys():
            self._node.destroy_publisher(self._skeletons.pop(name))
        for name in ids.keys() - self._skeletons.keys():
            topic = f"{self._root}/{name}/skeleton2d"
            self._skeletons[name] = self._node.create_publisher(Skeleton2D, topic, QoSProfile(depth=10))
        self._tracked.publish(IdsList(header=frame.header, ids=list(ids)))
        if frame.size is not None:
            for name, person in ids.items():
                self._skeletons[name].publish(skeleton_to_msg(person, frame))
        if self._transforms is not None:
            self._transforms.publish(frame)

    def close(self) -> None:
        """Take the publishers off the node."""
        for publisher in (self._tracked, *self._skeletons.values()):
            self._node.destroy_publisher(publisher)
        self._skeletons.clear()
        if self._transforms is not None:
            self._transforms.close()
