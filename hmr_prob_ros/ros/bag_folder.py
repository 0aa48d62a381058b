"""The folder of a rosbag2 bag: one or several files and ``metadata.yaml``, as ``ros2 bag`` makes and reads them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .bag import BagError
from .bag_storage import STORAGES, McapFile, Sqlite3File, Topic

__all__ = ["METADATA", "BagFolder"]

METADATA = "metadata.yaml"
_VERSION = 8
_REWRITE = 5.0  # seconds; the counts in it may be old, nobody relies on them


@dataclass
class _Part:
    """One file of the bag; times in nanoseconds."""

    name: str
    first: int = 0
    last: int = 0
    count: int = 0

    def row(self) -> dict[str, Any]:
        return {
            "path": self.name,
            "starting_time": {"nanoseconds_since_epoch": self.first},
            "duration": {"nanoseconds": self.last - self.first},
            "message_count": self.count,
        }


class BagFolder:
    """Writes a bag, in several files where it gets large.

    ``metadata.yaml`` names every topic and file before they hold a message, so that a bag whose recorder was killed
    opens as a folder too.

    Args:
        path: the folder, which must not be there or be empty.
        storage: ``mcap`` or ``sqlite3``.
        split_bytes: a new file is begun when one has this size; 0: never.

    Raises:
        BagError: the folder holds something or cannot be made.
    """

    def __init__(self, path: str | Path, storage: str = "mcap", split_bytes: int = 0) -> None:
        if storage not in STORAGES:
            raise BagError(f"storage {storage!r} is unknown: choose one of {', '.join(STORAGES)}")
        self.path = Path(path)
        self.storage = storage
        self._split = split_bytes
        self._topics: dict[str, Topic] = {}
        self._counts: dict[str, int] = {}
        self._parts: list[_Part] = []
        self._written = 0.0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise BagError(f"{self.path} is not empty: choose another folder for the bag, or remove it")
            self._file = self._open()
        except OSError as error:
            raise BagError(f"cannot write the bag {self.path} ({error.strerror}): choose another folder") from error

    @property
    def count(self) -> int:
        """Messages so far."""
        return sum(self._counts.values())

    def _open(self) -> McapFile | Sqlite3File:
        kind = STORAGES[self.storage]
        part = _Part(f"{self.path.absolute().name}_{len(self._parts)}{kind.suffix}")
        file = kind(self.path / part.name)
        for topic in self._topics.values():
            file.add_topic(topic)
        self._parts.append(part)
        self._describe()
        return file

    def add_topic(self, topic: Topic) -> None:
        """A topic that messages will come for."""
        self._topics[topic.name] = topic
        self._counts[topic.name] = 0
        self._describe()
        self._file.add_topic(topic)

    def write(self, topic: str, data: bytes, received: int, published: int) -> None:
        """Add a serialised message; both times in nanoseconds."""
        part = self._parts[-1]
        if self._split and part.count and self._file.size + len(data) > self._split:
            self._file.close()
            self._file = self._open()
            part = self._parts[-1]
        self._file.write(topic, data, received, published)
        self._counts[topic] += 1
        part.first = received if part.count == 0 else min(part.first, received)
        part.last = max(part.last, received)
        part.count += 1

    def flush(self) -> None:
        """Whatever was added is in the file."""
        self._file.flush()
        if time.monotonic() - self._written > _REWRITE:
            self._describe()

    def close(self) -> None:
        """Complete the last file and the description."""
        self._file.close()
        self._describe()

    def _describe(self) -> None:
        used = [p for p in self._parts if p.count]
        first = min((p.first for p in used), default=0)
        last = max((p.last for p in used), default=0)
        about = {
            "version": _VERSION,
            "storage_identifier": self.storage,
            "relative_file_paths": [p.name for p in self._parts],
            "duration": {"nanoseconds": last - first},
            "starting_time": {"nanoseconds_since_epoch": first},
            "message_count": self.count,
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": topic.name,
                        "type": topic.type,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": topic.qos,
                        "type_description_hash": topic.type_hash if topic.definition else "",
                    },
                    "message_count": self._counts[topic.name],
                }
                for topic in self._topics.values()
            ],
            "compression_format": "",
            "compression_mode": "",
            "files": [p.row() for p in self._parts],
            "custom_data": None,
            "ros_distro": "hmr_prob_ros",
        }
        text = yaml.safe_dump({"rosbag2_bagfile_information": about}, sort_keys=False, width=1000)
        new = self.path / f"{METADATA}.new"
        new.write_text(text)
        new.replace(self.path / METADATA)  # whole or not at all
        self._written = time.monotonic()
