# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""The files of bags: what a killed process, a full disk or another writer leaves, read by us and by rosbags."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("mcap", reason="needs the extra [demo]: pip install mcap")
highlevel = pytest.importorskip("rosbags.highlevel", reason="needs rosbags: pip install rosbags")

from bag_processes import ROOT, STRING, both_storages, read, text
from mcap.reader import make_reader

from hmr_prob_ros.ros.bag import BagThread
from hmr_prob_ros.ros.bag_folder import BagFolder
from hmr_prob_ros.ros.bag_reader import BagReader
from hmr_prob_ros.ros.bag_recorder import RecordOptions
from hmr_prob_ros.ros.bag_storage import McapFile, Sqlite3File, Topic


def test_mcap_is_complete_after_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever system call a process is killed after, rosbags reads what was flushed before, and never less."""
    path = tmp_path / "x.mcap"
    counts: list[int] = []
    for name in ("pwrite", "ftruncate"):
        real = getattr(os, name)

        def look(*arguments: Any, real: Any = real) -> Any:
            done = real(*arguments)
            counts.append(len(read(path)[0].get("/text", [])))
            return done

        monkeypatch.setattr(os, name, look)
    rng = random.Random(1)
    file = McapFile(path)
    file.add_topic(STRING)
    flushed = []
    for number in range(80):
        # Random letters do not get smaller, so that records end everywhere within a page.
        file.write("/text", text("".join(rng.choices("abcdefgh", k=rng.randrange(2500)))), number + 1, number + 1)
        if rng.random() < 0.5:
            file.flush()
            flushed.append(number + 1)
            assert counts[-1] == number + 1
    file.close()
    assert counts == sorted(counts)
    assert len(counts) > 2 * len(flushed)
    assert counts[-1] == 80
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        assert reader.get_summary().statistics.message_count == 80
        assert len(list(reader.iter_messages())) == 80


def test_mcap_cut_off_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    """Other recorders' files end in the middle; ours does after a power cut."""
    path = tmp_path / "x.mcap"
    file = McapFile(path)
    file.add_topic(STRING)
    for number in range(20):
        file.write("/text", text(str(number)), number + 1, number + 1)
        file.flush()
    file.close()
    data = path.read_bytes()
    counts = []
    for size in range(600, len(data) - 1, 97):
        path.write_bytes(data[:size])
        found = [m.data for m in BagReader(path).messages()]
        assert found == [text(str(n)) for n in range(len(found))]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[-1] == 20


def test_sqlite3_killed_within_a_transaction(tmp_path: Path) -> None:
    """SQLite's pages are half written; its journal takes them back."""
    path = tmp_path / "x.db3"
    file = Sqlite3File(path)
    file.add_topic(STRING)
    for number in range(50):
        file.write("/text", text(f"{number}" * 500), number + 1, number + 1)
    file.flush()
    base = file._base
    base.execute("PRAGMA cache_size=2")  # pages go to the disk before the transaction ends
    base.execute("BEGIN")
    base.executemany("INSERT INTO messages VALUES(NULL, 1, ?, ?)", [(60 + n, text("n" * 9000)) for n in range(50)])
    for name in ("x.db3", "x.db3-journal"):
        shutil.copy(tmp_path / name, tmp_path / f"killed_{name}")
    base.execute("ROLLBACK")
    file.close()
    killed = tmp_path / "killed_x.db3"
    assert killed.stat().st_size > path.stat().st_size
    assert [m.data for m in BagReader(killed).messages()] == [text(f"{n}" * 500) for n in range(50)]
    assert sqlite3.connect(killed).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(read(killed)[0]["/text"]) == 50


@both_storages
def test_split(tmp_path: Path, storage: str) -> None:
    bag = BagFolder(tmp_path / "bag", storage, split_bytes=100_000)
    bag.add_topic(STRING)
    rng = random.Random(0)
    wanted = ["".join(rng.choices("abcdefghijklmnop", k=20_000)) for _ in range(20)]
    for number, data in enumerate(wanted):
        bag.write("/text", text(data), number + 1, number + 1)
    bag.close()
    files = sorted(p for p in bag.path.iterdir() if p.suffix != ".yaml")
    assert len(files) >= 4
    assert max(f.stat().st_size for f in files) < 150_000
    assert [d for _, d in read(bag.path)[0]["/text"]] == [text(w) for w in wanted]
    assert [m.data for m in BagReader(bag.path).messages(start=5)] == [text(w) for w in wanted[4:]]
    (bag.path / "metadata.yaml").unlink()
    assert len(list(BagReader(bag.path).messages())) == 20


@both_storages
def test_bags_of_rosbags(tmp_path: Path, storage: str) -> None:
    """The bags of another writer, that of the library that reads ours."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    with Writer(tmp_path / "bag", version=9, storage_plugin=plugin) as writer:
        connection = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
        for number in range(10):
            writer.write(connection, 10 - number, text(str(number)))
    bag = BagReader(tmp_path / "bag")
    assert bag.topics["/text"].type == "std_msgs/msg/String"
    assert (bag.first, bag.last) == (1, 10)
    assert [m.data for m in bag.messages()] == [text(str(n)) for n in range(9, -1, -1)]


def test_slow_disk_drops_and_counts() -> None:
    gate = threading.Event()

    class Slow:
        path = Path("slow")

        def __init__(self) -> None:
            self.got: Counter[str] = Counter()

        def add_topic(self, topic: Topic) -> None: ...

        def write(self, topic: str, data: bytes, received: int, published: int) -> None:
            gate.wait(10)
            self.got[topic] += 1

        def flush(self) -> None: ...

        def close(self) -> None: ...

    sink = Slow()
    bag = BagThread(sink, limit=10_000)
    taken = [bag.add("/a", bytes(1000), n, n) for n in range(50)]
    gate.set()
    bag.close()
    assert 10 <= sum(taken) <= 12
    assert bag.dropped == 50 - sum(taken)
    assert sink.got["/a"] == sum(taken)


FULL = """
import resource, sys
from hmr_prob_ros.ros.bag import BagError, BagThread
from hmr_prob_ros.ros.bag_folder import BagFolder
from hmr_prob_ros.ros.bag_storage import Topic
import random
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))
bag = BagThread(BagFolder(sys.argv[1], sys.argv[2]))
bag.add_topic(Topic("/text", "std_msgs/msg/String", "string data\\n"))
for number in range(300):
    data = bytes(random.choices(range(97, 123), k=50_000))
    bag.add("/text", b"\\0\\1\\0\\0" + (50_001).to_bytes(4, "little") + data + b"\\0", number + 1, number + 1)
try:
    bag.close()
except BagError as error:
    print(error)
"""


@both_storages
def test_full_disk_is_told_and_leaves_a_readable_bag(tmp_path: Path, storage: str) -> None:
    """A limit on the size of files stands for a full disk: writing fails in the middle of a record."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", FULL.replace("\\\\", "\\"), str(tmp_path / "bag"), storage]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60)
    assert "is not complete" in done.stdout, done.stdout + done.stderr
    assert "make room on the disk" in done.stdout
    assert done.stderr == ""
    messages = read(tmp_path / "bag")[0].get("/text", [])
    assert [when for when, _ in messages] == list(range(1, len(messages) + 1))
    assert 50 < len(messages) < 300


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["/a", "/a/b", "/rosout"]),
        ({"hidden": True}, ["/a", "/a/_hidden", "/a/b", "/rosout"]),
        ({"topics": ["a"]}, ["/a"]),
        ({"topics": ["/a/_hidden"]}, ["/a/_hidden"]),
        ({"regex": "/a.*"}, ["/a", "/a/_hidden", "/a/b"]),
        ({"topics": ["/rosout"], "regex": "/a/b"}, ["/a/b", "/rosout"]),
        ({"exclude": "/a.*"}, ["/rosout"]),
    ],
)
def test_chosen_topics(options: dict[str, Any], wanted: list[str]) -> None:
    chosen = RecordOptions(Path("x"), **options)
    assert [t for t in ("/a", "/a/_hidden", "/a/b", "/rosout") if chosen.wants(t)] == wanted


def test_bytes_of_a_serialised_string() -> None:
    """What these tests call text is what a publisher sends."""
    assert text("ab") == b"\0\1\0\0" + struct.pack("<I", 3) + b"ab\0"
