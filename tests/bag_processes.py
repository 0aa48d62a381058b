# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""A recorder or player as a process, a node that talks with it, and bags read by rosbags."""

from __future__ import annotations

import array
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("mcap", reason="needs the extra [demo]: pip install mcap")
highlevel = pytest.importorskip("rosbags.highlevel", reason="needs rosbags: pip install rosbags")

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import String

from hmr_prob_ros.ros.bag import message_definition
from hmr_prob_ros.ros.bag_storage import Topic
from hmr_prob_ros.ros.fastdds import fastdds_environment

ROOT = Path(__file__).resolve().parents[1]


STORAGES = ("mcap", "sqlite3")


STRING = Topic("/text", "std_msgs/msg/String", message_definition(String))


both_storages = pytest.mark.parametrize("storage", STORAGES)


def text(value: str) -> bytes:
    return serialize_message(String(data=value))


class Command:
    """``hmr-prob`` as a process in a ROS domain."""

    def __init__(self, folder: Path, domain: int, *arguments: str, path: Path | None = None) -> None:
        environment = fastdds_environment() | {"ROS_DOMAIN_ID": str(domain), "ROS_LOG_DIR": str(folder)}
        environment["PYTHONPATH"] = os.pathsep.join(str(p) for p in (path, ROOT) if p)
        self.log = folder / f"{random.getrandbits(32)}.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hmr_prob_ros.cli", *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + 30
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


class World:
    """A node that publishes and listens, spun in a thread; ``at`` names topics that nobody else in the domain has."""

    def __init__(self) -> None:
        self._prefix = f"/t{random.SystemRandom().getrandbits(40):x}"
        self.domain = random.SystemRandom().randint(30, 101)
        self.context = Context()
        os.environ.update({k: v for k, v in fastdds_environment().items() if k.endswith("PROFILES_FILE")})
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = Node("world", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin)
        self.stop = threading.Event()
        self.children: list[Command] = []
        self.thread.start()

    def _spin(self) -> None:
        while not self.stop.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def at(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def run(self, folder: Path, *arguments: str, **options: Any) -> Command:
        self.children.append(Command(folder, self.domain, *arguments, **options))
        return self.children[-1]

    def wait(self, publisher: Any, count: int = 1) -> None:
        end = time.monotonic() + 30
        while publisher.get_subscription_count() < count:
            assert time.monotonic() < end, [c.text for c in self.children]
            time.sleep(0.02)
        time.sleep(0.2)

    def close(self) -> None:
        for child in self.children:
            if child.process.poll() is None:
                child.end(signal.SIGTERM)
        self.stop.set()
        self.thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def read(path: Path) -> tuple[dict[str, list[tuple[int, bytes]]], dict[str, Any]]:
    """(time, bytes) of each message and the connection of each topic, as rosbags reads them; all are deserialised."""
    messages, connections = defaultdict(list), {}
    with highlevel.AnyReader([path]) as reader:
        for connection, when, data in reader.messages():
            messages[connection.topic].append((when, bytes(data)))
            reader.deserialize(data, connection.msgtype)
            connections[connection.topic] = connection
    return dict(messages), connections


def picture(number: int) -> Image:
    pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
    msg = Image(width=64, height=48, step=192, encoding="rgb8", data=array.array("B", pixels.tobytes()))
    msg.header.stamp.sec, msg.header.stamp.nanosec = number, 123_456_789
    return msg
