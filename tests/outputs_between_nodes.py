"""Run by ``test_outputs.py`` where the message packages are compiled: sends every output to another node."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import rclpy
from hri_msgs.msg import IdsList, Skeleton2D
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from test_outputs import HEADER, person_of
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import Marker

from hmr_prob_ros.body import Body
from hmr_prob_ros.ros.outputs import OUTPUTS, OutputFrame, open_output
from hmr_prob_ros.ros.outputs.detections import detections_to_msg
from hmr_prob_ros.ros.outputs.hri import skeleton_to_msg
from hmr_prob_ros.ros.outputs.joint_states import joint_states
from hmr_prob_ros.ros.outputs.pelvis_tf import transforms

TOPICS: dict[str, type] = {
    "/human/detections": Detection3DArray,
    "/human/joint_states": JointState,
    "/human/mesh": Marker,
    "/humans/bodies/tracked": IdsList,
    "/humans/bodies/p4/skeleton2d": Skeleton2D,
    "/tf": TFMessage,
}


def main() -> None:
    rclpy.init(domain_id=random.SystemRandom().randint(30, 101))
    sender, receiver = Node("sender"), Node("receiver")
    executor = SingleThreadedExecutor()
    executor.add_node(receiver)
    got: dict[str, list[Any]] = {topic: [] for topic in TOPICS}
    for topic, kind in TOPICS.items():
        latched = DurabilityPolicy.TRANSIENT_LOCAL if topic.endswith("tracked") else DurabilityPolicy.VOLATILE
        receiver.create_subscription(kind, topic, got[topic].append, QoSProfile(depth=50, durability=latched))
    outputs = [open_output(sender, name) for name in OUTPUTS]
    assert not [o for o in outputs if isinstance(o, str)], outputs
    frame = OutputFrame([person_of(Body.load())], HEADER, (640, 480))
    end = time.monotonic() + 30
    while time.monotonic() < end and not all(got.values()):
        frame.header.stamp.sec += 1
        for output in outputs:
            assert not isinstance(output, str)
            output.publish(frame)
        for _ in range(20):
            executor.spin_once(timeout_sec=0.01)
    stamps = {topic: messages[-1] for topic, messages in got.items() if messages}
    assert stamps.keys() == TOPICS.keys(), f"nothing came on {TOPICS.keys() - stamps.keys()}"

    def at(message: Any) -> OutputFrame:
        frame.header.stamp = message.header.stamp
        return frame

    states = got["/human/joint_states"][-1]
    assert states == joint_states(at(states))
    detections = got["/human/detections"][-1]
    sent = detections_to_msg(at(detections))
    assert detections.detections[0].bbox == sent.detections[0].bbox
    for one, other in zip(detections.detections[0].results, sent.detections[0].results, strict=True):
        assert (one.hypothesis, one.pose.pose) == (other.hypothesis, other.pose.pose)
        np.testing.assert_allclose(one.pose.covariance, other.pose.covariance, rtol=1e-9, atol=1e-12)
    skeleton = got["/humans/bodies/p4/skeleton2d"][-1]
    for one, other in zip(skeleton.skeleton, skeleton_to_msg(frame.people[0], at(skeleton)).skeleton, strict=True):
        np.testing.assert_allclose((one.x, one.y, one.c), (other.x, other.y, other.c), rtol=1e-6)
    assert got["/humans/bodies/tracked"][-1].ids == ["p4"]
    names = {t.child_frame_id for m in got["/tf"] for t in m.transforms}
    assert names == {"person_4", "body_p4"}
    moved = got["/tf"][-1].transforms[0]
    assert moved.transform == transforms(at(moved), "x")[0].transform
    assert len(got["/human/mesh"][-1].points) == 3 * len(Body.load().faces)
    for output in outputs:
        assert not isinstance(output, str)
        output.close()
    assert [p.topic_name for p in sender.publishers if p.topic_name in TOPICS] == []
    executor.shutdown()
    rclpy.shutdown()
    print("all outputs came")


if __name__ == "__main__":
    main()
