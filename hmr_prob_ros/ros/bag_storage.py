"""The files of a rosbag2 bag, mcap and sqlite3, written so that a process killed at any moment leaves a readable one.

Both hold serialised messages as they came, the full text of each message type and the publishers' QoS, in the layout
that rosbag2 writes (sqlite3: schema 4 of Iron and later), so that ``ros2 bag``, ``rosbags`` and Foxglove read them.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
from pathlib import Path
from typing import IO, NamedTuple, Protocol, cast

from mcap.opcode import Opcode
from mcap.writer import CompressionType, Writer

__all__ = ["STORAGES", "CompleteFile", "McapFile", "Sqlite3File", "StorageFile", "Topic"]


class Topic(NamedTuple):
    """What a bag says of a topic."""

    name: str
    type: str
    """Such as ``sensor_msgs/msg/Image``."""
    definition: str = ""
    """Text of the type and all types inside it (``ros2msg``); "" where it is not known."""
    type_hash: str = ""
    """REP-2011's hash, ``RIHS01_...``."""
    qos: str = ""
    """The publishers' profiles as the YAML list that rosbag2 writes."""


class StorageFile(Protocol):
    """A file that a bag is written to."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes on the disk and still to be written."""

    def add_topic(self, topic: Topic) -> None: ...

    def write(self, topic: str, data: bytes, received: int, published: int) -> None:
        """Add a serialised message; both times in nanoseconds, the first one never smaller than before."""

    def flush(self) -> None:
        """Whatever was added is in the file, and stays there when the process is killed."""

    def close(self) -> None: ...


_MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")
_PADDING = 0x80  # the first opcode that the format leaves to applications; every reader skips it
# DataEnd without a checksum, Footer without a summary: where readers stop, and that they must scan.
_TAIL = _RECORD.pack(Opcode.DATA_END, 4) + bytes(4) + _RECORD.pack(Opcode.FOOTER, 20) + bytes(20) + _MAGIC
_CHUNK, _END = bytes([Opcode.CHUNK]), bytes([Opcode.DATA_END])
_PAGE = 4096


class CompleteFile:
    """A file for an mcap writer that readers take for a complete mcap file after every system call.

    Behind the records stands one of padding, then the end of an mcap file. New records are first written inside the
    padding, where no reader looks, and the nine bytes that head the first of them last. They lie in one page of
    memory, which the kernel writes whole or not at all, also for a process that is being killed.
    Every call of :meth:`write` must bring whole records, but for the magic at both ends.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.closed = False
        self._end = 0
        self._size = 0
        # What cannot stand alone: the magic, a chunk without its index (readers rely on one following the other), and
        # the parts of the end.
        self._waiting = b""
        self._ending = False
        self._failed = False

    def tell(self) -> int:
        """Where the next record begins."""
        return self._end + len(self._waiting)

    def flush(self) -> None:
        """Nothing waits here that readers could use."""

    def write(self, data: bytes) -> int:
        """Append whole records."""
        self._ending |= data[:1] == _END
        self._waiting += data
        if self._waiting and self._waiting != _MAGIC and data[:1] != _CHUNK and not self._ending:
            self._append(self._waiting)
            self._waiting = b""
        return len(data)

    def close(self) -> None:
        """Write the end and cut off the padding."""
        if self.closed:
            return
        self.closed = True
        try:
            if self._ending and not self._failed:
                self._append(self._waiting, final=True)
        finally:
            os.close(self._file)

    def _put(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file, view, at)
            view, at = view[done:], at + done

    def _pad(self, at: int, size: int) -> bytes:
        """The head of a padding record from ``at`` to the tail of a file of this size."""
        return _RECORD.pack(_PADDING, size - len(_TAIL) - at - _RECORD.size)

    def _append(self, data: bytes, final: bool = False) -> None:
        if self._failed:  # what came before is whole; nothing may follow a hole
            raise OSError(errno.EIO, "an earlier write failed")
        self._failed = True
        end = self._end + len(data)
        if not final and end % _PAGE > _PAGE - _RECORD.size:  # the next head must not lie in two pages
            data += _RECORD.pack(_PADDING, 0)
            end += _RECORD.size
        needed = end + _RECORD.size + len(_TAIL)
        size = max(self._size, -(-needed // _PAGE) * _PAGE)
        if self._end == 0:
            self._put((data + self._pad(end, size)).ljust(size - len(_TAIL), b"\0") + _TAIL, 0)
        else:
            if size > self._size:
                self._put(self._pad(self._end, size), self._end)
                self._put(_TAIL, size - len(_TAIL))
            head = _RECORD.size
            self._put(data[head:] + self._pad(end, size), self._end + head)
            if final:  # from here on readers have an index, and do not come to the padding
                os.ftruncate(self._file, end)
            self._put(data[:head], self._end)
        self._end, self._size, self._failed = end, size, False


class McapFile:
    """One mcap file; messages are compressed in chunks.

    Raises:
        OSError: the file cannot be written.
    """

    suffix = ".mcap"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = CompleteFile(path)
        # Chunks of several images: zstd finds what they share. 1 to 3 ms an image, and half of lz4's size or less.
        self._writer = Writer(cast(IO[bytes], self._file), chunk_size=4 << 20, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="hmr_prob_ros")
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._pending = 0

    @property
    def size(self) -> int:
        return self._file.tell() + self._pending

    def add_topic(self, topic: Topic) -> None:
        if topic.type not in self._schemas:
            encoding = "ros2msg" if topic.definition else ""
            self._schemas[topic.type] = self._writer.register_schema(topic.type, encoding, topic.definition.encode())
        about = {"offered_qos_profiles": topic.qos}
        if topic.type_hash:
            about["topic_type_hash"] = topic.type_hash
        self._channels[topic.name] = self._writer.register_channel(topic.name, "cdr", self._schemas[topic.type], about)
        self._counts[topic.name] = 0

    def write(self, topic: str, data: bytes, received: int, published: int) -> None:
        before = self._file.tell()
        self._writer.add_message(self._channels[topic], received, data, published, self._counts[topic])
        self._counts[topic] += 1
        self._pending = self._pending + len(data) if self._file.tell() == before else 0

    def flush(self) -> None:
        self._writer.flush()
        self._pending = 0

    def close(self) -> None:
        """Write the index, without which readers scan the file.

        Raises:
            OSError: the disk is full; what was flushed can be read all the same.
        """
        try:
            self._writer.finish()
        finally:
            self._file.close()


_SQLITE3 = """
CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
  serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL,
  encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,
  data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
INSERT INTO schema(schema_version, ros_distro) VALUES (4, 'hmr_prob_ros');
"""


class Sqlite3File:
    """One sqlite3 file; messages are collected and written in one transaction.

    A process killed within a transaction leaves SQLite's journal beside the file. Whoever opens the file for writing
    takes the transaction back by that (:func:`.bag_reader.mend`, ``sqlite3 FILE .tables``).

    Raises:
        OSError: the file cannot be written.
    """

    suffix = ".db3"

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._topics: dict[str, int] = {}
        self._types: set[str] = set()
        self._pending: list[tuple[int, int, bytes]] = []
        self._pending_bytes = 0
        self._written = 0
        try:
            # No transaction of Python's own, and no waiting for the disk: a power cut is not a killed process.
            self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # Room for a whole transaction: the file is touched when it ends, and not before.
            self._base.executescript(f"PRAGMA synchronous=OFF; PRAGMA cache_size=-32768; BEGIN;{_SQLITE3}COMMIT;")
        except sqlite3.Error as error:
            raise OSError(0, str(error), str(path)) from error

    @property
    def size(self) -> int:
        return self._written + self._pending_bytes

    def add_topic(self, topic: Topic) -> None:
        row = (topic.name, topic.type, "cdr", topic.qos, topic.type_hash if topic.definition else "")
        definition = (topic.type, "ros2msg", topic.definition, row[-1])
        self._topics[topic.name] = len(self._topics) + 1
        try:
            self._base.execute("INSERT INTO topics VALUES(?, ?, ?, ?, ?, ?)", (self._topics[topic.name], *row))
            if topic.definition and topic.type not in self._types:
                self._types.add(topic.type)
                self._base.execute("INSERT INTO message_definitions VALUES(NULL, ?, ?, ?, ?)", definition)
        except sqlite3.Error as error:
            raise OSError(0, str(error), str(self.path)) from error

    def write(self, topic: str, data: bytes, received: int, published: int) -> None:
        self._pending.append((self._topics[topic], received, data))
        self._pending_bytes += len(data) + 40
        if self._pending_bytes > 4 << 20:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        try:
            self._base.execute("BEGIN")
            self._base.executemany("INSERT INTO messages VALUES(NULL, ?, ?, ?)", self._pending)
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            raise OSError(0, str(error), str(self.path)) from error
        self._written += self._pending_bytes
        self._pending, self._pending_bytes = [], 0

    def close(self) -> None:
        """Write what is left.

        Raises:
            OSError: the disk is full; what was flushed can be read all the same.
        """
        try:
            self.flush()
        finally:
            self._base.close()


STORAGES: dict[str, type[McapFile] | type[Sqlite3File]] = {"mcap": McapFile, "sqlite3": Sqlite3File}
"""By the name that rosbag2 gives them."""
