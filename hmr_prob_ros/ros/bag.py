"""Writes serialised ROS messages to an mcap file that ``rosbags``, ``ros2 bag`` and Foxglove read.

Every channel carries the full text of its message type, so that a reader needs no installed package, not even for
this project's own messages.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mcap.exceptions import McapError
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message

from .bag_storage import McapFile, Topic

__all__ = [
    "BagError",
    "BagThread",
    "BagWriter",
    "Recorded",
    "Sink",
    "message_class",
    "message_definition",
    "read_bag",
    "type_name",
]

_BASIC = {"boolean": "bool", "octet": "byte", "float": "float32", "double": "float64"}
_SEPARATOR = "=" * 80
_FLUSH = 0.5  # seconds of messages that a killed recorder loses at most


class BagError(RuntimeError):
    """A bag cannot be written or read; the text names the file and the mend."""


def type_name(message: type) -> str:
    """``sensor_msgs/msg/Image`` for the class of that message."""
    package, folder, *_ = message.__module__.split(".")
    return f"{package}/{folder}/{message.__name__}"


def _field_type(text: str) -> str:
    """A field type as rosidl's Python classes tell it, in the words of a ``.msg`` file."""
    if match := re.fullmatch(r"sequence<(.+?)(?:, (\d+))?>", text):
        return f"{_field_type(match[1])}[{f'<={match[2]}' if match[2] else ''}]"
    if match := re.fullmatch(r"(.+)\[(\d+)\]", text):
        return f"{_field_type(match[1])}[{match[2]}]"
    if match := re.fullmatch(r"(w?string)<(\d+)>", text):
        return f"{match[1]}<={match[2]}"
    return _BASIC.get(text, text)


def message_class(name: str) -> type:
    """The class of ``sensor_msgs/msg/Image`` (or ``sensor_msgs/Image``).

    Raises:
        ImportError: its package is not installed or has no such message.
    """
    package, *folders, short = name.split("/")
    folder = folders[0] if folders else "msg"
    mend = f"pip install ros-{package.replace('_', '-')}, apt install it or source the workspace that has it"
    try:
        # Names come out of files and from the network: nothing is imported that is no package of messages.
        if not _has_interfaces(package, folder):
            raise ImportError(f"no installed package {package} has a folder {folder}")
        return getattr(importlib.import_module(f"{package}.{folder}"), short)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"the type {name} is not installed: {mend}") from error


def _has_interfaces(package: str, folder: str) -> bool:
    """Whether an installed package has a folder of messages, services or actions; tells without importing it."""
    if folder not in ("msg", "srv", "action") or not package.isidentifier():
        return False
    spec = importlib.util.find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    return any((Path(place) / folder).is_dir() for place in places or ())


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
                nested = message_class(match[0])
                if nested not in seen:
                    seen.add(nested)
                    todo.append(nested)
        package, _, short = type_name(current).split("/")
        parts.append(("" if not parts else f"{_SEPARATOR}\nMSG: {package}/{short}\n") + "\n".join(lines) + "\n")
    return "".join(parts)


class Sink(Protocol):
    """What a :class:`BagThread` writes to: one file, or the folder of a bag."""

    path: Path

    def add_topic(self, topic: Topic) -> None: ...

    def write(self, topic: str, data: bytes, received: int, published: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Recorded(NamedTuple):
    """One message of a bag: topic, time of reception in ns, and the message."""

    topic: str
    time: int
    message: Any


class BagThread:
    """Writes a bag from a thread of its own: compressing an image must not delay the next reception.

    Args:
        sink: what the thread alone writes to.
        limit: bytes that may wait for the disk; messages beyond are dropped and counted.
    """

    def __init__(self, sink: Sink, limit: int = 512 << 20) -> None:
        self.dropped = 0
        self._sink = sink
        self._limit = limit
        self._waiting = 0
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[str, bytes, int, int] | Topic | None] = queue.Queue()
        self._error: OSError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="bag", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """The disk is full or the file went away; :meth:`close` tells."""
        return self._error is not None

    def add_topic(self, topic: Topic) -> None:
        """Before its first message."""
        self._queue.put(topic)

    def add(self, topic: str, data: bytes, received: int, published: int) -> bool:
        """Queue a serialised message, both times in nanoseconds; False when it was dropped."""
        with self._lock:
            if self._waiting + len(data) > self._limit:
                self.dropped += 1
                return False
            self._waiting += len(data)
        self._queue.put((topic, data, received, published))
        return True

    def _work(self) -> None:
        last, flushed = 0, time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=_FLUSH)
                if item is None:
                    return
                if self._error is not None:
                    continue
                if isinstance(item, Topic):
                    self._sink.add_topic(item)
                else:
                    topic, data, received, published = item
                    with self._lock:
                        self._waiting -= len(data)
                    last = max(last, received)  # readers of a bag without an index want its times in order
                    self._sink.write(topic, data, last, published)
            except queue.Empty:
                pass
            except OSError as error:
                self._error = error
            if time.monotonic() - flushed >= _FLUSH and self._error is None:
                try:
                    self._sink.flush()
                except OSError as error:
                    self._error = error
                flushed = time.monotonic()

    def close(self) -> None:
        """Write what is queued and the index.

        Raises:
            BagError: the disk was full or the file went away.
        """
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        try:
            self._sink.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            reason = self._error.strerror or self._error
            raise BagError(f"the bag {self._sink.path} is not complete ({reason}): make room on the disk")


class BagWriter(BagThread):
    """Writes serialised messages to one mcap file, from a thread of its own.

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
            file = McapFile(self.path)
        except OSError as error:
            raise BagError(f"cannot write the bag {self.path} ({error.strerror}): choose another folder") from error
        super().__init__(file, limit=4 << 30)
        for topic, message in topics.items():
            self.add_topic(Topic(topic, type_name(message), message_definition(message)))


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
