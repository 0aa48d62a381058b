"""The node's topics: what it offers from configure to cleanup, and what it listens to while it is active."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from visualization_msgs.msg import MarkerArray

from hmr_prob_ros.msg import HumanHypothesesArray, HumanUncertaintyArray, PoseKeypointsArray

from ..body import Body
from ..estimator import Estimator
from .outputs import Output, open_output
from .parameters import Settings

__all__ = ["Outputs", "Sinks", "offer", "subscribe", "withdraw"]


class Outputs(NamedTuple):
    """Publishers."""

    hypotheses: Any
    uncertainty: Any
    markers: Any
    overlay: Any
    others: tuple[Output, ...] = ()
    """In the messages of other packages."""


class Sinks(NamedTuple):
    """What takes the messages of each kind; ``serialised`` is None where images come as objects."""

    info: Callable[[CameraInfo], None]
    message: Callable[..., None]
    serialised: Callable[..., None] | None


def offer(node: LifecycleNode, settings: Settings, estimator: Estimator, warn: Callable[[str], None]) -> Outputs:
    """Make all publishers; what cannot be made of ``settings.outputs`` is told, unless it is ``auto``."""
    reliable = QoSProfile(depth=10)
    others = []
    for name in settings.output_names():
        options: dict[str, Any] = {"rate": settings.mesh_rate} if name == "mesh" else {}
        if name == "mesh" and Body.load().hash != estimator.bundle.body_hash:
            made: Output | str = "output mesh is off: the bundle is of another body than the package's"
        else:
            made = open_output(node, name, **options)
        if not isinstance(made, str):
            others.append(made)
        elif settings.outputs != "auto":
            warn(made)
    return Outputs(
        node.create_lifecycle_publisher(HumanHypothesesArray, "human/hypotheses", reliable),
        node.create_lifecycle_publisher(HumanUncertaintyArray, "human/uncertainty", reliable),
        node.create_lifecycle_publisher(MarkerArray, "human/markers", reliable),
        node.create_lifecycle_publisher(Image, "human/overlay", qos_profile_sensor_data),
        tuple(others),
    )


def withdraw(node: LifecycleNode, outputs: Outputs) -> None:
    """Take all publishers off the node."""
    *publishers, others = outputs
    for publisher in publishers:
        node.destroy_lifecycle_publisher(publisher)
    for output in others:
        output.close()


def subscribe(node: LifecycleNode, settings: Settings, topic_mode: bool, sinks: Sinks) -> list[Any]:
    """Listen to camera info, which comes first in the result, and to frames: keypoints in topic mode, else images."""
    # Newest frame only: best effort takes what any camera driver offers, depth 1 keeps no queue.
    newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
    raw, compressed, info = settings.topics()
    made = [node.create_subscription(CameraInfo, info, sinks.info, qos_profile_sensor_data)]
    if topic_mode:
        made.append(node.create_subscription(PoseKeypointsArray, settings.keypoints_topic, sinks.message, newest))
    if not topic_mode and settings.transport in ("auto", "raw"):
        take = sinks.serialised or sinks.message
        made.append(node.create_subscription(Image, raw, take, newest, raw=sinks.serialised is not None))
    if not topic_mode and settings.transport in ("auto", "compressed"):
        made.append(node.create_subscription(CompressedImage, compressed, sinks.message, newest))
    return made
