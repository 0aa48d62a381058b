"""``vision_msgs/Detection3DArray``: every mode as a result, with the covariance of its pelvis pose."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseWithCovariance, Quaternion, Vector3
from rclpy.node import Node
from rclpy.qos import QoSProfile
from vision_msgs.msg import (
    BoundingBox3D,
    Detection3D,
    Detection3DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)

from ...hypotheses import HypothesisSet
from .frame import OutputFrame, body_axes, person_name, pose_covariance, quaternions

__all__ = ["CLASS_ID", "DetectionsOutput", "detections_to_msg"]

CLASS_ID = "person"


def _poses(person: HypothesisSet) -> list[Pose]:
    rows = zip(person.joints[:, 0].tolist(), quaternions(body_axes(person.rotations[:, 0])).tolist(), strict=True)
    return [
        Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=a, y=b, z=c, w=d))
        for (x, y, z), (a, b, c, d) in rows
    ]


def _box(person: HypothesisSet, mode: int) -> BoundingBox3D:
    """Round the joints and the surface keypoints of a mode, along the axes of the frame."""
    points = np.concatenate([person.joints[mode], person.keypoints3d[mode]])
    low, high = points.min(axis=0), points.max(axis=0)
    (x, y, z), (a, b, c) = ((low + high) / 2).tolist(), (high - low).tolist()
    return BoundingBox3D(center=Pose(position=Point(x=x, y=y, z=z)), size=Vector3(x=a, y=b, z=c))


def detections_to_msg(frame: OutputFrame) -> Detection3DArray:
    """One detection a person, one result a mode, heaviest first.

    The score of a result is the mode's weight, so those of a person sum to one; its pose is that of the pelvis (x to
    the front of the person, y left, z up). :func:`.frame.pose_covariance` tells what the covariance means.
    """
    array = Detection3DArray(header=frame.header)
    for index, person in enumerate(frame.people):
        order = np.argsort(-person.weights, kind="stable")
        poses, covariances = _poses(person), pose_covariance(person)
        detection: Any = Detection3D(header=frame.header, bbox=_box(person, int(order[0])))
        detection.id = person_name(person, index)
        detection.results = [
            ObjectHypothesisWithPose(
                hypothesis=ObjectHypothesis(class_id=CLASS_ID, score=float(person.weights[mode])),
                pose=PoseWithCovariance(pose=poses[mode], covariance=covariances[mode].reshape(-1)),
            )
            for mode in order
        ]
        array.detections.append(detection)
    return array


class DetectionsOutput:
    """Publishes ``Detection3DArray``.

    Args:
        node: owns the publisher.
        topic: below the node's namespace.
    """

    def __init__(self, node: Node, topic: str = "human/detections") -> None:
        self._node = node
        self._publisher = node.create_publisher(Detection3DArray, topic, QoSProfile(depth=10))

    def publish(self, frame: OutputFrame) -> None:
        """Publish a frame, also one without people."""
        if self._publisher.get_subscription_count():
            self._publisher.publish(detections_to_msg(frame))

    def close(self) -> None:
        """Take the publisher off the node."""
        self._node.destroy_publisher(self._publisher)
