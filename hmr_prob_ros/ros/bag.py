"""Writes serialised ROS messages to an mcap file that ``rosbags``, ``ros2 bag`` and Foxglove read.

Every channel carries the full text of its message type, so that a reader needs no installed package, not even for
this project's own messages.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from rclpy.serialization import deserialize_message

__all__ = ["BagError", "BagWriter", "Recorded", "message_definition", "read_bag", "type_name"]

_BASIC = {"boolean": "bool", "octet": "byte", "float": "float32", "double": "float64"}
_SEPARATOR = "=" * 80


class BagError(RuntimeError):
    """A bag cannot be written or read; the text names the file and the mend."""


def type_name(message: type) -> str:
    """``sensor_msgs/msg/Image`` for the class of that message."""
    return f"{message.__module__.split('.')[0]}/msg/{message.__name__}"


def _field_type(text: str) -> str:
    """A field type as rosidl's Python classes tell it, in the words of a ``.msg`` file."""
    if match := re.fullmatch(r"sequence<(.+?)(?:, (\d+))?>", text):
        return f"{_field_type(match[1])}[{f'<={match[2]}' if match[2] else ''}]"
    if match := re.fullmatch(r"(.+)\[(\d+)\]", text):
        return f"{_field_type(match[1])}[{match[2]}]"
    if match := re.fullmatch(r"(w?string)<(\d+)>", text):
        return f"{match[1]}<={match[2]}"
    return _BASIC.get(text, text)


def _class_of(name: str) -> type:
    package, short = name.split("/")
    __import__(f"{package}.msg")
    return getattr(sys.modules[f"{package}.msg"], short)


def message_definition(message: type) -> str:
    """Text of a message type and of all types inside it, in the ``ros2msg`` form of mcap.

    It is made from the compiled class and not from the ``.msg`` files, which a pip installation may place anywhere.
    """
    parts: list[str] = []
    todo, seen = [message], {message}
    while todo:
        current = todo.pop(0)
        lines = []
        for field, kind in current.get_fields_and_field_types().items():  # type: ignore[attr-defined]
            lines.append(f"{_field_type(kind)} {field}")
            if match := re.search(r"[a-z]\w*/[A-Z]\w*", kind):
                nested = _class_of(match[0])
                if nested not in seen:
                    seen.add(nested)
                    todo.append(nested)
        package, _, short = type_name(current).split("/")
        parts.append(("" if not parts else f"{_SEPARATOR}\nMSG: {package}/{short}\n") + "\n".join(lines) + "\n")
    return "".join(parts)


class Recorded(NamedTuple):
    """One message of a bag: topic, time of reception in ns, and the message."""

    topic: str
    time: int
    message: Any


class BagWriter:
    """Writes messages from a thread of its own: compressing an image must not delay the next reception.

    Args:
        path: the mcap file; its folder is made.
        topics: topic -> message class.

    Raises:
        BagError: the file cannot be written.
    """

    def __init__(self, path: str | Path, topics: Mapping[str, type]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        except OSError as error:
            raise BagError(f"cannot write the bag {self.path} ({error.strerror}): choose another folder") from error
        # Chunks of several images: zstd finds what they share. 1 to 3 ms an image, and half of lz4's size or less.
        self._writer = Writer(self._file, chunk_size=4 << 20, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="hmr_prob_ros")
        self._channels: dict[str, int] = {}
        for topic, message in topics.items():
            schema = self._writer.register_schema(type_name(message), "ros2msg", message_definition(message).encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", schema, {"offered_qos_profiles": ""})
        self._counts = dict.fromkeys(topics, 0)
        self._queue: queue.Queue[tuple[str, bytes, int, int] | None] = queue.Queue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="bag", daemon=True)
        self._thread.start()

    def add(self, topic: str, data: bytes, received: int, published: int) -> None:
        """Queue a serialised message; both times in nanoseconds."""
        self._queue.put((topic, data, received, published))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue
            topic, data, received, published = item
            try:
                self._writer.add_message(self._channels[topic], received, data, published, self._counts[topic])
                self._counts[topic] += 1
            except OSError as error:
                self._error = error

    def close(self) -> None:
        """Write what is queued and the index.

        Raises:
            BagError: the disk was full or the file went away.
        """
        if self._file.closed:
            return
        self._queue.put(None)
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self._writer.finish()
            self._file.close()
        except OSError as error:
            raise BagError(f"the bag {self.path} is not complete ({error.strerror}): make room on the disk") from error


def read_bag(path: str | Path, topics: Mapping[str, type]) -> Iterator[Recorded]:
    """Messages of a bag in order of reception, deserialised as the classes given for their topics.

    Raises:
        BagError: the file is missing or is no complete mcap file.
    """
    try:
        with Path(path).open("rb") as file:
            for _, channel, message in make_reader(file).iter_messages(topics=list(topics)):
                value: Any = deserialize_message(message.data, topics[channel.topic])
                yield Recorded(channel.topic, message.log_time, value)
    except (OSError, McapError) as error:
        raise BagError(f"cannot read the bag {path}: {error}; record it again") from error
