"""The recorder (``hmr-prob-recorder``): writes a run to a bag, and after it a video and a summary.

While the run lasts, it only stores bytes and times, so that it takes little from the estimator; it draws when the run
is over.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, Image

from hmr_prob_ros.msg import HumanHypothesesArray

from ..video import VideoError
from .bag import BagError, BagWriter
from .render import render_run
from .security import RosStartError, starting
from .statistics import STATUS_NAME

__all__ = ["Recorder", "RecorderError", "main"]


class RecorderError(RuntimeError):
    """Nothing worth recording came; the text names the topic and the mend."""


def _stamp(data: bytes) -> int:
    """Stamp in ns of a serialised message that begins with a header (CDR: 4 bytes of encapsulation, sec, nanosec)."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _image_size(data: bytes) -> tuple[int, int]:
    """Width and height of a serialised image: after the stamp comes the frame_id, then both as uint32, aligned to 4."""
    order = "<" if data[1] & 1 else ">"
    (length,) = struct.unpack_from(f"{order}I", data, 12)
    at = 16 + length + (-length % 4)
    height, width = struct.unpack_from(f"{order}II", data, at)
    return int(width), int(height)


class Recorder(Node):
    """Stores images, camera infos, hypotheses and diagnostics in a bag, with the time at which each came.

    Args:
        path: the mcap file.
        topics: image, camera info and hypotheses topics.
        reliable: ask for every image again that got lost; cameras with the sensor-data profile do not offer it.
    """

    def __init__(self, path: Path, topics: tuple[str, str, str], reliable: bool = True) -> None:
        super().__init__("recorder")
        self.topics = topics
        self.images: dict[int, int] = {}
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.latency_ms: dict[int, float] = {}
        self.answers: list[bytes] = []
        self.stages: list[dict[str, str]] = []
        self.last_received = 0.0
        image, info, hypotheses = topics
        self._bag = BagWriter(
            path, {image: Image, info: CameraInfo, hypotheses: HumanHypothesesArray, "/diagnostics": DiagnosticArray}
        )
        kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        many = QoSProfile(depth=30, reliability=kind)
        self.create_subscription(Image, image, self._on_image, many, raw=True)
        self.create_subscription(CameraInfo, info, self._on_info, qos_profile_sensor_data, raw=True)
        self.create_subscription(HumanHypothesesArray, hypotheses, self._on_hypotheses, QoSProfile(depth=100), raw=True)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=10), raw=True)

    def _add(self, topic: str, data: bytes) -> tuple[int, int]:
        now, stamp = time.time_ns(), _stamp(data)
        self._bag.add(topic, data, now, stamp)
        return now, stamp

    def _on_image(self, data: bytes) -> None:
        now, stamp = self._add(self.topics[0], data)
        self.images[stamp] = now
        self.sizes[_image_size(data)] += 1
        self.last_received = time.monotonic()

    def _on_info(self, data: bytes) -> None:
        self._add(self.topics[1], data)

    def _on_hypotheses(self, data: bytes) -> None:
        now, stamp = self._add(self.topics[2], data)
        self.latency_ms[stamp] = (now - stamp) * 1e-6
        self.answers.append(data)
        self.last_received = time.monotonic()

    def _on_diagnostics(self, data: bytes) -> None:
        self._add("/diagnostics", data)
        for status in deserialize_message(data, DiagnosticArray).status:
            if status.name == STATUS_NAME:
                self.stages.append({v.key: v.value for v in status.values})

    def finish(self) -> None:
        """Complete the bag.

        Raises:
            BagError: the disk was full.
        """
        self._bag.close()

    def summary(self) -> dict[str, Any]:
        """What ``demo.json`` holds, apart from what a caller knows better.

        Raises:
            RecorderError: no image or no hypotheses came.
        """
        if not self.images:
            raise RecorderError(f"no image came on {self.topics[0]}: is the camera on, in the same ROS domain?")
        if not self.answers:
            raise RecorderError(f"images came but nothing on {self.topics[2]}: see the log of the estimator node")
        arrays = [deserialize_message(a, HumanHypothesesArray) for a in self.answers]
        latency = np.array(list(self.latency_ms.values()))
        bodies = [len(p.hypotheses) for a in arrays for p in a.people]
        last = self.stages[-1] if self.stages else {}
        names = sorted({k for s in self.stages for k in s if k.startswith("stage_")})
        order = sorted(self.images)
        seconds = (order[-1] - order[0]) * 1e-9
        return {
            "frames_in": len(self.images),
            "frames_out": len(arrays),
            "people": max(len(a.people) for a in arrays),
            "frames_with_people": sum(bool(a.people) for a in arrays),
            "hypotheses_per_person": statistics.mode(bodies) if bodies else 0,
            "latency_ms": {
                "p50": round(float(np.percentile(latency, 50)), 2),
                "p99": round(float(np.percentile(latency, 99)), 2),
            },
            "stages_ms": {
                name.removeprefix("stage_").removesuffix("_ms"): round(
                    statistics.median(float(s[name]) for s in self.stages if name in s), 3
                )
                for name in names
            },
            "rate_hz": round((len(order) - 1) / seconds, 2) if seconds > 0 else 0.0,
            "camera_known": all(a.camera_known for a in arrays),
            "detector": last.get("detector", ""),
            "engine": last.get("engine", ""),
            "bundle": arrays[-1].bundle,
            "samples": int(last.get("samples", 0)),
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hmr-prob-recorder", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of NAME.mcap, NAME.mp4, NAME.json")
    parser.add_argument("--name", default="demo", help="name of the files")
    parser.add_argument("--image-topic", default="/camera/image_raw")
    parser.add_argument("--camera-info-topic", default="/camera/camera_info")
    parser.add_argument("--hypotheses-topic", default="/human/hypotheses")
    parser.add_argument("--best-effort", action="store_true", help="for cameras that publish images as best effort")
    parser.add_argument("--idle", type=float, help="stop after so many seconds without a message (default: at Ctrl-C)")
    parser.add_argument("--no-video", action="store_true", help="bag and summary only")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _record(node: Recorder, idle: float | None) -> None:
    """Spin until a signal, or until nothing came for ``idle`` seconds."""
    try:
        while rclpy.ok():
            rclpy.spin_once(node, timeout_sec=0.2)
            if idle and node.last_received and time.monotonic() - node.last_received > idle:
                return
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM, then draw.

    Returns:
        0 when all files are complete, 1 when nothing came or a file cannot be written, 130 after Ctrl-C while drawing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = list(sys.argv if argv is None else argv)
    args = _parser().parse_args(remove_ros_args(arguments)[1:])
    bag, video, report = (args.out / f"{args.name}.{ending}" for ending in ("mcap", "mp4", "json"))
    topics = (args.image_topic, args.camera_info_topic, args.hypotheses_topic)
    try:
        with starting():
            rclpy.init(args=arguments)
            node = Recorder(bag, topics, reliable=not args.best_effort)
        _record(node, args.idle)
        node.finish()
        summary = node.summary()
        if rclpy.ok():
            rclpy.shutdown()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C while drawing gives up
        report.write_text(json.dumps(summary, indent=2) + "\n")
        if not args.no_video:
            rate = summary["rate_hz"] or 30.0
            render_run(bag, video, topics, node.latency_ms, node.sizes, rate, progress=not args.quiet)
    except KeyboardInterrupt:
        print("hmr-prob-recorder: interrupted, the video is not complete", file=sys.stderr)
        return 130
    except (BagError, RecorderError, VideoError, RosStartError, OSError) as error:
        print(f"hmr-prob-recorder: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
