"""``hmr-prob replay``: publishes a bag again, byte for byte, in its own time or faster or slower."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions

from .bag import BagError, message_class
from .bag_reader import BagReader
from .bag_storage import Topic
from .qos import offered_by, serve_all
from .raw_type import clear_error, raw_message_class
from .security import starting

__all__ = ["BagPlayer", "ReplayOptions", "replay"]


@dataclass(frozen=True)
class ReplayOptions:
    """What to publish and how.

    Args:
        bag: folder or file.
        rate: seconds of the bag in one second.
        loop: begin again at the end.
        start: seconds of the bag that are left out.
        seconds: of the bag that are played; None: to its end.
        topics: only these; all when empty.
        remap: topic of the bag -> topic to publish on.
        clock: ``/clock`` so many times a second, for nodes with ``use_sim_time``; 0: none.
        wait: seconds to wait at most until somebody subscribes to every topic.
    """

    bag: Path
    rate: float = 1.0
    loop: bool = False
    start: float = 0.0
    seconds: float | None = None
    topics: Sequence[str] = ()
    remap: Mapping[str, str] = field(default_factory=dict)
    clock: float = 0.0
    wait: float = 2.0


class BagPlayer(Node):
    """Publishers for the topics of a bag.

    Args:
        bag: what to play.
        topics: only these; all when empty.
        remap: topic of the bag -> topic to publish on.
        clock: ``/clock`` so many times a second; 0: none.

    Raises:
        BagError: the bag lacks a topic that is asked for, or no type of it is installed.
    """

    def __init__(
        self,
        bag: BagReader,
        topics: Collection[str] = (),
        remap: Mapping[str, str] | None = None,
        clock: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__("bag_player", start_parameter_services=False, **kwargs)
        self.bag = bag
        names = {t if t.startswith("/") else f"/{t}" for t in (*topics, *(remap or ()))}
        if missing := sorted(names - bag.topics.keys()):
            raise BagError(f"{bag.path} has no topic {', '.join(missing)}: it has {', '.join(sorted(bag.topics))}")
        self._clock_period = 1 / clock if clock else 0.0
        self._clock_pub: Publisher | None = None
        if clock:
            self._clock_pub = self.create_publisher(
                message_class("rosgraph_msgs/msg/Clock"), "/clock", QoSProfile(depth=1)
            )
        self.outputs: dict[str, Publisher] = {}
        reasons = []
        for name, topic in bag.topics.items():
            if (topics and name not in names) or (clock and name == "/clock"):
                continue
            try:
                qos = serve_all(offered_by(topic.qos))
                target = (remap or {}).get(name, name)
                self.outputs[name] = self.create_publisher(_class(topic), target, qos)
                clear_error()
            except (ImportError, ValueError) as error:
                reasons.append(f"{name} is not played: {error}")
                self.get_logger().warning(reasons[-1])
        if bag.topics and not self.outputs:
            raise BagError(f"nothing of {bag.path} can be played: {'; '.join(reasons) or 'it holds /clock only'}")

    def wait_for_subscribers(self, seconds: float, stop: threading.Event) -> None:
        """Wait until somebody subscribes to every topic, at most so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not stop.is_set():
            if all(p.get_subscription_count() for p in self.outputs.values()):
                stop.wait(0.2)  # discovery goes both ways: they must know these publishers too
                return
            stop.wait(0.05)

    def play(self, stop: threading.Event, rate: float = 1.0, start: float = 0.0, seconds: float | None = None) -> int:
        """Publish the bag once, from ``start`` seconds behind its first message on; returns the number of messages."""
        first = self.bag.first + round(start * 1e9)
        end = None if seconds is None else first + round(seconds * 1e9)
        began = tick = time.monotonic()
        count = 0
        for message in self.bag.messages(self.outputs.keys(), first):
            if end is not None and message.time >= end:
                break
            due = began + (message.time - first) * 1e-9 / rate
            while not stop.is_set():
                now = time.monotonic()
                if self._clock_pub is not None and now >= tick:
                    self._publish_clock(first + round((min(now, due) - began) * 1e9 * rate))
                    tick += self._clock_period * (1 + (now - tick) // self._clock_period)
                if now >= due:
                    break
                stop.wait(min(due, tick) - now if self._clock_pub is not None else due - now)
            if stop.is_set():
                break
            self.outputs[message.topic].publish(message.data)
            count += 1
        return count

    def _publish_clock(self, nanoseconds: int) -> None:
        assert self._clock_pub is not None
        seconds, rest = divmod(nanoseconds, 10**9)
        self._clock_pub.publish(self._clock_pub.msg_type(clock=Time(sec=seconds, nanosec=rest)))

    def finish(self) -> None:
        """Wait until reliable subscribers have everything: what is under way is lost when the process ends."""
        for publisher in self.outputs.values():
            publisher.wait_for_all_acked(Duration(seconds=1))


def _class(topic: Topic) -> type:
    try:
        return message_class(topic.type)
    except ImportError:
        return raw_message_class(topic.type, topic.type_hash)


def replay(options: ReplayOptions, stop: threading.Event) -> int:
    """Play a bag to its end or until ``stop`` is set; returns the number of messages published.

    Raises:
        BagError: the bag cannot be read or played.
        RosStartError: ROS does not start.
    """
    bag = BagReader(options.bag)
    if not bag.topics:
        raise BagError(f"{options.bag} is empty: nothing was published while it was recorded")
    if options.start * 1e9 > bag.last - bag.first:
        raise BagError(f"{options.bag} is {(bag.last - bag.first) * 1e-9:.1f} s long: --start must lie within")
    try:
        with starting():
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            node = BagPlayer(bag, options.topics, options.remap, options.clock)
        node.wait_for_subscribers(options.wait, stop)
        count = 0
        while not stop.is_set():
            count += node.play(stop, options.rate, options.start, options.seconds)
            if not options.loop:
                break
        node.finish()
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return count
