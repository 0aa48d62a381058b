"""Optional outputs in the messages of the ecosystem, one module each.

Every module has pure functions that make the messages and a small class that owns the publisher:
``Output(node)``, ``output.publish(frame)``, ``output.close()``. :func:`open_output` makes one by its name; where its
message package is not installed it gives the reason instead.
"""

from __future__ import annotations

import importlib
from typing import Any

from rclpy.node import Node

from .frame import Output, OutputFrame

__all__ = ["OUTPUTS", "Output", "OutputFrame", "open_output"]

OUTPUTS: dict[str, tuple[str, str]] = {
    "detections": ("vision_msgs", "DetectionsOutput"),
    "hri": ("hri_msgs", "HriOutput"),
    "pelvis_tf": ("tf2_msgs", "PelvisTfOutput"),
    "joint_states": ("sensor_msgs", "JointStatesOutput"),
    "mesh": ("visualization_msgs", "MeshOutput"),
}
"""Name, which is also the module's -> message package that must be installed, class."""


def open_output(node: Node, name: str, **options: Any) -> Output | str:
    """An output on the node, or one line that says why there is none.

    Args:
        node: owns the publishers.
        name: one of :data:`OUTPUTS`.
        options: of its class.

    Raises:
        KeyError: another name.
    """
    package, kind = OUTPUTS[name]
    try:
        importlib.import_module(f"{package}.msg")
        made: Output = getattr(importlib.import_module(f".{name}", __name__), kind)(node, **options)
    except ImportError as error:
        return (
            f"output {name} is off, {package} is not installed ({error}): apt install ros-$ROS_DISTRO-"
            f"{package.replace('_', '-')} or source the workspace that has it"
        )
    return made
