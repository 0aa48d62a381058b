"""The other process: hears the camera's infos and the hypotheses as a planner would, and notes when each came.

    python listener.py --out FILE.json

It does not subscribe to the images, so that they are sent once, to the node. SIGINT or SIGTERM ends it, and then it
writes the file.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import contextlib
import json
import signal
import time
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo

from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.cdr import peek_stamp
from hmr_prob_ros.ros.statistics import STATUS_NAME


class Listener(Node):
    """Notes (stamp, time of reception) in ns of camera infos and hypotheses, and what the node says about itself."""

    def __init__(self) -> None:
        super().__init__("latency_listener")
        self.published: list[int] = []
        self.answers: list[tuple[int, int, int]] = []
        self.people: list[int] = []
        self.status: dict[str, str] = {}
        self.create_subscription(CameraInfo, "/camera/camera_info", self._on_info, qos_profile_sensor_data, raw=True)
        many = QoSProfile(depth=100)
        self.create_subscription(HumanHypothesesArray, "/human/hypotheses", self._on_hypotheses, many, raw=True)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_info(self, data: bytes) -> None:
        stamp = peek_stamp(data)
        self.published.append(stamp.sec * 10**9 + stamp.nanosec)

    def _on_hypotheses(self, data: bytes) -> None:
        now, stamp = time.time_ns(), peek_stamp(data)
        self.answers.append((stamp.sec * 10**9 + stamp.nanosec, now, len(data)))
        if len(self.answers) % 30 == 1:  # decoding costs more than all else here
            self.people.append(len(deserialize_message(data, HumanHypothesesArray).people))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == STATUS_NAME:
                self.status = {value.key: value.value for value in status.values}


def main() -> int:
    """Listen until a signal, then write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rclpy.init()
    node = Listener()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    found = {key: getattr(node, key) for key in ("published", "answers", "people", "status")}
    partial = options.out.with_suffix(".part")
    partial.write_text(json.dumps(found))
    partial.replace(options.out)
    if rclpy.ok():
        rclpy.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
