"""``hmr-prob record``: all topics, or some, into a bag that ``ros2 bag``, ``rosbags`` and Foxglove read."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from .bag import BagThread, message_class, message_definition
from .bag_folder import BagFolder
from .bag_storage import Topic
from .qos import profiles_to_yaml, take_from_all
from .raw_type import clear_error, raw_message_class
from .security import starting
from .type_description import DescriptionRequest

__all__ = ["RecordOptions", "TopicRecorder", "record"]

_LOOK = 0.25  # seconds between two looks for new topics
_LAST = 2.0  # seconds that a definition is waited for at the end


@dataclass(frozen=True)
class RecordOptions:
    """What to record and where to.

    Args:
        out: folder of the bag.
        storage: ``mcap`` or ``sqlite3``.
        topics: names; with neither these nor ``regex``, all topics.
        regex: topics whose whole name it matches, besides those named.
        exclude: regular expression of topics that are left out whatever else is asked for.
        seconds: end after so long; None: at a signal.
        split_bytes: begin a new file at this size; 0: never.
        hidden: topics below a name that begins with an underscore too (services, actions).

    Raises:
        ValueError: a regular expression that is none; the text tells which.
    """

    out: Path
    storage: str = "mcap"
    topics: Sequence[str] = ()
    regex: str = ""
    exclude: str = ""
    seconds: float | None = None
    split_bytes: int = 0
    hidden: bool = False
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(t if t.startswith("/") else f"/{t}" for t in self.topics))
        for name in ("regex", "exclude"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"--{name} {getattr(self, name)!r} is no regular expression: {error}") from error

    def wants(self, topic: str) -> bool:
        """Whether a topic is to be recorded."""
        if self.exclude and re.fullmatch(self.exclude, topic):
            return False
        if topic in self.names or (self.regex and re.fullmatch(self.regex, topic)):
            return True
        hidden = any(part.startswith("_") for part in topic.split("/"))
        return not self.names and not self.regex and (self.hidden or not hidden)


class TopicRecorder(Node):
    """Subscribes to what is published and hands the bytes on.

    Args:
        bag: where they go.
        options: which topics.
    """

    def __init__(self, bag: BagThread, options: RecordOptions, **kwargs: Any) -> None:
        super().__init__("bag_recorder", start_parameter_services=False, **kwargs)
        self.options = options
        self.counts: Counter[str] = Counter()
        self._bag = bag
        self._taken: dict[str, tuple[Subscription, QoSProfile]] = {}
        self._asked: dict[str, DescriptionRequest] = {}
        self._held: dict[str, tuple[Topic, list[tuple[bytes, int, int]]]] = {}
        self._said: set[str] = set()
        self.create_timer(_LOOK, self.look)
        self.look()

    def look(self) -> None:
        """Subscribe to topics that are new, and again where a publisher came that offers less than the others."""
        for name, kinds in self.get_topic_names_and_types():
            if not self.options.wants(name):
                continue
            publishers = [p for p in self.get_publishers_info_by_topic(name) if p.topic_type == kinds[0]]
            if len(kinds) > 1:
                self._say(f"{name} has the types {' and '.join(kinds)}: only the first one is recorded")
            if not publishers:
                continue
            wanted = take_from_all([p.qos_profile for p in publishers])
            if name in self._taken:
                subscription, used = self._taken[name]
                if (wanted.reliability, wanted.durability) != (used.reliability, used.durability):
                    self.destroy_subscription(subscription)
                    self._take(name, subscription.msg_type, wanted)
            else:
                self._begin(name, publishers, wanted)
        for name in list(self._asked):
            if (definition := self._asked[name].answer()) is not None:
                self._settle(name, definition)

    def _begin(self, name: str, publishers: Sequence[TopicEndpointInfo], qos: QoSProfile) -> None:
        """Subscribe to a new topic. The messages of a type that is not installed wait for its definition."""
        first = publishers[0]
        digest = str(getattr(first, "topic_type_hash", ""))  # since Iron
        topic = Topic(name, first.topic_type, "", digest, profiles_to_yaml(p.qos_profile for p in publishers))
        try:
            kind = message_class(first.topic_type)
            self._bag.add_topic(topic._replace(definition=_definition(kind)))
        except ImportError as missing:
            try:
                kind = raw_message_class(first.topic_type, digest)
            except ImportError as error:
                self._say(f"{name} is not recorded: {missing}; {error}")
                return
            self._say(f"{name} is recorded as bytes: {missing}")
            self._asked[name] = DescriptionRequest(self, name, first.topic_type)
            self._held[name] = topic, []
        self._take(name, kind, qos)

    def _take(self, topic: str, kind: type, qos: QoSProfile) -> None:
        self._taken[topic] = self.create_subscription(kind, topic, self._handler(topic), qos, raw=True), qos
        clear_error()

    def _settle(self, name: str, definition: str) -> None:
        topic, messages = self._held.pop(name)
        del self._asked[name]
        self._bag.add_topic(topic._replace(definition=definition))
        for message in messages:
            self._store(name, *message)

    def _store(self, topic: str, data: bytes, received: int, published: int) -> None:
        if topic in self._held:
            self._held[topic][1].append((data, received, published))
        elif self._bag.add(topic, data, received, published):
            self.counts[topic] += 1
        else:
            self._say("the disk is too slow, messages are dropped: record fewer topics (--topics, --exclude)")

    def _handler(self, topic: str) -> Callable[[bytes, Any], None]:
        def store(data: bytes, info: Any) -> None:
            received = info.get("received_timestamp") or time.time_ns()
            self._store(topic, data, received, info.get("source_timestamp") or received)

        return store

    @property
    def asks(self) -> bool:
        """Whether an answer about a type may still come."""
        return bool(self._asked)

    def finish(self) -> None:
        """Hand on what still waits."""
        for name in list(self._asked):
            self._settle(name, "")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.get_logger().warning(text)


def _definition(kind: type) -> str:
    """Text of a type, "" where a part of it cannot be found (those of services)."""
    try:
        return message_definition(kind)
    except ImportError:
        return ""


def record(options: RecordOptions, stop: threading.Event) -> dict[str, int]:
    """Record until ``stop`` is set or the end of ``options.seconds``; returns the number of messages of each topic.

    Raises:
        BagError: the folder cannot be used, or the disk got full.
        RosStartError: ROS does not start.
    """
    bag = BagThread(BagFolder(options.out, options.storage, options.split_bytes))
    try:
        with starting():
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            node = TopicRecorder(bag, options)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.get_logger().info(f"recording to {options.out}")
        end = time.monotonic() + (options.seconds or float("inf"))
        while not stop.is_set() and time.monotonic() < end and not bag.failed:
            executor.spin_once(timeout_sec=0.1)
        end = time.monotonic() + _LAST
        while node.asks and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
        node.finish()
        executor.shutdown()
        node.destroy_node()
    finally:
        bag.close()
        rclpy.try_shutdown()
    return dict(node.counts)
