"""Reads bags: the folder of ``hmr-prob record`` or ``ros2 bag record``, or one of its files, also unfinished ones."""

from __future__ import annotations

import heapq
import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import yaml
from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Channel, DataEnd, Message, Schema
from mcap.stream_reader import StreamReader

from .bag import BagError
from .bag_folder import METADATA
from .bag_storage import Topic

__all__ = ["BagReader", "RawMessage", "mend"]


_LARGEST = 1 << 30  # bytes of a record; a damaged length must not fill the memory


class RawMessage(NamedTuple):
    """One message of a bag as it came."""

    topic: str
    time: int
    """Of its reception, ns."""
    data: bytes


def mend(path: Path) -> None:
    """Have SQLite take back the transaction in which a recorder was killed. Does nothing to a file without a journal.

    Raises:
        BagError: the file may not be written.
    """
    if not path.with_name(path.name + "-journal").exists():
        return
    try:
        with closing(sqlite3.connect(path)) as base:
            base.execute("SELECT count(*) FROM topics").fetchone()
    except sqlite3.Error as error:
        raise BagError(
            f"cannot mend {path}, which was left in the middle ({error}): copy it to a disk to write on"
        ) from error


class _Mcap:
    """An mcap file; without an index it is read from end to end, and up to where it was cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                summary = SeekingReader(file, record_size_limit=_LARGEST).get_summary()
            except (McapError, struct.error):
                summary = None
        self.indexed = summary is not None and bool(summary.chunk_indexes)
        if summary is not None and self.indexed:
            self.topics = [_topic(c, summary.schemas.get(c.schema_id)) for c in summary.channels.values()]
            stats = summary.statistics
            self.first = stats.message_start_time if stats else min(c.message_start_time for c in summary.chunk_indexes)
            self.last = stats.message_end_time if stats else max(c.message_end_time for c in summary.chunk_indexes)
            return
        found: dict[str, Topic] = {}
        self.first = self.last = 0
        for topic, time, _ in self._scan():
            found.setdefault(topic.name, topic)
            self.first = min(self.first or time, time)
            self.last = max(self.last, time)
        self.topics = list(found.values())

    def _scan(self) -> Iterator[tuple[Topic, int, bytes]]:
        schemas: dict[int, Schema] = {}
        topics: dict[int, Topic] = {}
        with self.path.open("rb") as file:
            try:
                for record in StreamReader(file, record_size_limit=_LARGEST).records:
                    if isinstance(record, Schema):
                        schemas[record.id] = record
                    elif isinstance(record, Channel):
                        topics[record.id] = _topic(record, schemas.get(record.schema_id))
                    elif isinstance(record, Message):
                        yield topics[record.channel_id], record.log_time, record.data
                    elif isinstance(record, DataEnd):
                        return
            except (McapError, struct.error, ValueError) as error:  # cut off: the library raises what it stumbles over
                if not topics:
                    raise BagError(f"cannot read the bag {self.path}: {error or 'it is no mcap file'}") from error

    def messages(self, wanted: Collection[str], start: int) -> Iterator[RawMessage]:
        if not self.indexed:
            for topic, time, data in self._scan():
                if topic.name in wanted and time >= start:
                    yield RawMessage(topic.name, time, data)
            return
        with self.path.open("rb") as file:
            for _, channel, message in SeekingReader(file, record_size_limit=_LARGEST).iter_messages(
                topics=list(wanted), start_time=start
            ):
                yield RawMessage(channel.topic, message.log_time, message.data)


def _topic(channel: Channel, schema: Schema | None) -> Topic:
    text = schema.data.decode(errors="replace") if schema is not None and schema.encoding == "ros2msg" else ""
    about = channel.metadata
    kind = schema.name if schema is not None else ""
    return Topic(channel.topic, kind, text, about.get("topic_type_hash", ""), about.get("offered_qos_profiles", ""))


class _Sqlite3:
    def __init__(self, path: Path) -> None:
        self.path = path
        mend(path)
        with closing(self._connect()) as base:
            columns = {row[1] for row in base.execute("PRAGMA table_info(topics)")}
            if not columns:
                raise BagError(f"{path} is not a bag: it has no table of topics")
            qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"  # not there before Foxy
            kind = "type_description_hash" if "type_description_hash" in columns else "''"  # not there before Iron
            texts: dict[str, str] = {}
            if base.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_definitions'").fetchone():
                texts = dict(base.execute("SELECT topic_type, encoded_message_definition FROM message_definitions"))
            rows = base.execute(f"SELECT name, type, {kind}, {qos} FROM topics ORDER BY id").fetchall()
            self.topics = [
                Topic(name, type, texts.get(type, ""), digest, offered) for name, type, digest, offered in rows
            ]
            first, last = base.execute("SELECT min(timestamp), max(timestamp) FROM messages").fetchone()
        self.first, self.last = first or 0, last or 0

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)

    def messages(self, wanted: Collection[str], start: int) -> Iterator[RawMessage]:
        names = list(wanted)
        query = (
            "SELECT topics.name, timestamp, data FROM messages JOIN topics ON topics.id = topic_id "
            f"WHERE timestamp >= ? AND topics.name IN ({','.join('?' * len(names))}) ORDER BY timestamp, messages.id"
        )
        with closing(self._connect()) as base:
            for row in base.execute(query, (start, *names)):
                yield RawMessage(*row)


class BagReader:
    """A bag of one or several files.

    Args:
        path: the folder of a bag (with or without its ``metadata.yaml``), or an mcap or db3 file.

    Raises:
        BagError: it is missing, compressed as a file, or no bag; the text says which.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._files = [_Mcap(f) if f.suffix == ".mcap" else _Sqlite3(f) for f in self._paths()]
        except (OSError, sqlite3.Error, McapError) as error:
            raise BagError(f"cannot read the bag {path}: {error}; record it again") from error
        self.topics: dict[str, Topic] = {}
        for file in self._files:
            for topic in file.topics:
                self.topics.setdefault(topic.name, topic)
        filled = [f for f in self._files if f.last]
        self.first = min((f.first for f in filled), default=0)
        """Time of the first message, ns; 0 for an empty bag."""
        self.last = max((f.last for f in filled), default=0)

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            if self.path.suffix not in (".mcap", ".db3"):
                raise BagError(f"{self.path} is no bag: give its folder, or a file that ends in .mcap or .db3")
            return [self.path]
        files = sorted((*self.path.glob("*.mcap"), *self.path.glob("*.db3")))
        description = self.path / METADATA
        if description.is_file():
            try:
                about = yaml.safe_load(description.read_text())["rosbag2_bagfile_information"]
                mode = str(about.get("compression_mode") or "none").lower()
                files = [self.path / Path(name).name for name in about["relative_file_paths"]]
            except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
                raise BagError(
                    f"{description} is damaged ({error}): remove it, the files are read without it"
                ) from error
            if mode != "none":
                raise BagError(f"{self.path} is compressed by {mode}: `ros2 bag convert` it without compression")
        if not files:
            raise BagError(f"no bag in {self.path}: there is neither an .mcap nor a .db3 file")
        return files

    def messages(self, topics: Collection[str] | None = None, start: int = 0) -> Iterator[RawMessage]:
        """Messages in order of reception, from the time ``start`` in ns on.

        Raises:
            BagError: the bag is damaged.
        """
        wanted = set(self.topics if topics is None else topics)
        try:
            # The files follow one another; where two recorders' files lie in one folder they are merged.
            streams = [f.messages(wanted, start) for f in self._files if f.last >= start]
            follow = all(a.last <= b.first for a, b in zip(self._files, self._files[1:]))
            if follow:
                for stream in streams:
                    yield from stream
            else:
                yield from heapq.merge(*streams, key=lambda m: m.time)
        except (OSError, sqlite3.Error, McapError) as error:
            raise BagError(f"the bag {self.path} is damaged: {error}") from error
