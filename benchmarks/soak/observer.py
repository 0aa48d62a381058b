"""The other process of the soak: hears the hypotheses as a planner would, and writes down when each came.

    python observer.py --out FOLDER

``answers.i64`` gets three int64 for each message: the image's stamp, its reception (both in ns) and its bytes.
``people.f64`` gets three numbers for every tenth of them: its reception in ns, people, and metres to the nearest.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import contextlib
import signal
import struct
import time
from pathlib import Path
from typing import BinaryIO

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

from hmr_prob_ros.msg import HumanHypothesesArray
from hmr_prob_ros.ros.cdr import peek_stamp

_DECODED = 10  # one message in so many: decoding costs more than all else here


class Observer(Node):
    """Writes each message's times as it comes."""

    def __init__(self, answers: BinaryIO, people: BinaryIO) -> None:
        super().__init__("soak_observer")
        self._answers, self._people = answers, people
        self._count = 0
        self.create_subscription(
            HumanHypothesesArray, "/human/hypotheses", self._on_hypotheses, QoSProfile(depth=100), raw=True
        )

    def _on_hypotheses(self, data: bytes) -> None:
        now, stamp = time.time_ns(), peek_stamp(data)
        self._answers.write(struct.pack("<qqq", stamp.sec * 10**9 + stamp.nanosec, now, len(data)))
        self._count += 1
        if self._count % _DECODED == 0:
            people = deserialize_message(data, HumanHypothesesArray).people
            nearest = min((person.uncertainty.mean[2] for person in people), default=float("nan"))
            self._people.write(struct.pack("<ddd", now, len(people), nearest))


def main() -> int:
    """Listen until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open(folder / "answers.i64", "wb", buffering=0) as answers, open(folder / "people.f64", "wb", 0) as people:
        with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
            rclpy.init()
            rclpy.spin(Observer(answers, people))
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
