"""The cache of built engines: stamps, damaged files, folders that cannot be written, and two processes at once.

What builds and what loads an engine is handed in, so a builder of a few bytes stands for TensorRT here.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hmr_prob_ros.engines import EngineError
from hmr_prob_ros.engines import tensorrt_cache as cache
from hmr_prob_ros.engines.tensorrt import engine_key
from hmr_prob_ros.engines.tensorrt_build import Limits

STAMP = cache.Stamp("a" * 64, "10.3.0", "Orin", "8.7", "fp16", Limits().ranges())


def _load(data: bytes) -> str:
    """Stands for TensorRT: takes what :class:`Builder` makes."""
    if not data.startswith(b"plan"):
        raise cache.UnusableEngine("the magic tag does not match")
    return data.decode()


class Builder:
    """Stands for TensorRT's builder: numbered engines."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return f"plan {self.count}".encode()


def _get(folder: Path | None, build: Callable[[], bytes], stamp: cache.Stamp = STAMP, force: bool = False) -> Any:
    return cache.load_or_build(folder, "model-fp16", stamp, build, _load, force)


def test_an_engine_is_built_once_and_then_loaded(tmp_path: Path) -> None:
    build, folder = Builder(), tmp_path / "deep" / "cache"
    first = _get(folder, build)
    assert (first.engine, first.reason, first.path) == ("plan 1", "there is none yet", folder / "model-fp16.engine")
    again = _get(folder, build)
    assert (again.engine, again.reason, again.seconds, build.count) == ("plan 1", "", pytest.approx(0, abs=0.2), 1)
    forced = _get(folder, build, force=True)
    assert (forced.engine, forced.reason) == ("plan 2", "a new one was asked for")
    assert _get(folder, build).engine == "plan 2"
    stamp = json.loads((folder / "model-fp16.json").read_text())
    assert stamp["engine"] == hashlib.sha256(b"plan 2").hexdigest()
    assert stamp["profile"] == {"persons": [1, 1, 8], "samples": [1, 100, 4096]}
    assert {path.suffix for path in folder.iterdir()} == {".engine", ".json", ".lock"}  # no leftovers


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("model", "b" * 64, "the model changed"),
        ("tensorrt", "11.1.0", "TensorRT was 10.3.0, now it is 11.1.0"),
        ("gpu", "Thor", "GPU was Orin, now it is Thor"),
        ("capability", "11.0", "compute capability was 8.7, now it is 11.0"),
        ("precision", "fp32", "precision was fp16, now it is fp32"),
        ("profile", Limits(persons=2).ranges(), "profile was .*8.*, now it is .*2"),
        ("format", 99, "format was 1, now it is 99"),
    ],
)
def test_every_mismatch_is_named_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, value: Any, text: str
) -> None:
    build = Builder()
    _get(tmp_path, build)
    other = replace(STAMP, **{field: value})
    caplog.clear()
    found = _get(tmp_path, build, other)
    assert found.engine == "plan 2"
    assert len(caplog.messages) == 1
    for said in (found.reason, caplog.messages[0]):
        assert re.search(text, said), said
    assert _get(tmp_path, build, other).reason == ""


def _foreign(path: Path) -> None:
    """An engine of somebody else, with a stamp that fits."""
    path.write_bytes(b"alien")
    stamp = path.with_suffix(".json")
    text = json.loads(stamp.read_text()) | {"engine": hashlib.sha256(b"alien").hexdigest()}
    stamp.write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.with_suffix(".json").unlink(), "no stamp"),
        (lambda path: path.with_suffix(".json").write_text("{"), "stamp is damaged"),
        (lambda path: path.with_suffix(".json").write_text("[1]"), "stamp is damaged"),
        (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"), "stamp is damaged"),
        (lambda path: path.with_suffix(".json").write_text('{"engine": "x", "seconds": 1}'), "the model changed"),
        (_foreign, "TensorRT does not take it .the magic tag does not match"),
        (lambda path: path.unlink(), "there is none yet"),
    ],
)
def test_damaged_and_foreign_files_are_rebuilt(tmp_path: Path, spoil: Callable[[Path], Any], text: str) -> None:
    build = Builder()
    spoil(_get(tmp_path, build).path)
    found = _get(tmp_path, build)
    assert text in found.reason.replace("(", ".")
    assert found.engine == "plan 2"
    assert _get(tmp_path, build).reason == ""


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    build, folder = Builder(), tmp_path / "file" / "cache"
    found = [_get(folder, build) for _ in range(2)]
    assert [(one.engine, one.path) for one in found] == [("plan 1", None), ("plan 2", None)]
    said = [text for text in caplog.messages if "cannot be written" in text]
    assert len(said) == 1
    assert "kept in memory" in said[0]
    assert "--cache" in said[0]
    assert _get(None, build).path is None


def test_a_full_disk_does_not_lose_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    found = _get(tmp_path, Builder())
    assert (found.engine, found.path) == ("plan 1", None)
    assert [path.name for path in tmp_path.iterdir()] == ["model-fp16.lock"]


def test_a_failed_build_leaves_the_old_engine(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise EngineError("no memory")

    _get(tmp_path, Builder())
    with pytest.raises(EngineError, match="no memory"):
        _get(tmp_path, fail, force=True)
    assert _get(tmp_path, fail).engine == "plan 1"


PROCESS = """
import sys, time
from pathlib import Path
from hmr_prob_ros.engines import tensorrt_cache as cache
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
def build():
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(1.0)
    return b"plan 1"
stamp = cache.Stamp("a" * 64, "10.3.0", "Orin", "8.7", "fp16", {})
found = cache.load_or_build(folder, "model-fp16", stamp, build, bytes.decode)
print(found.engine, found.path is not None)
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), str(tmp_path / "log")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [out for out, _ in said] == ["plan 1 True\n"] * 2, said
    assert (tmp_path / "log").read_text() == "built\n"


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "hmr_prob_ros" / "engines"
    assert cache.cache_folder(tmp_path / "own") == tmp_path / "own"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "hmr_prob_ros" / "engines"


def test_stored_limits(tmp_path: Path) -> None:
    assert Limits.read(cache.stored_profile(tmp_path, "model-fp16")) is None
    assert cache.stored_profile(None, "model-fp16") is None
    own = Limits(persons=2, samples=200, typical=50)
    _get(tmp_path, Builder(), replace(STAMP, profile=own.ranges()))
    assert Limits.read(cache.stored_profile(tmp_path, "model-fp16")) == own
    assert Limits.read({"persons": [1, 1, 8]}) is None
    assert Limits.read({"persons": [1, 1, 0], "samples": [1, 1, 1]}) is None


def test_one_engine_for_each_file_and_precision(tmp_path: Path) -> None:
    paths = [tmp_path / name / "model.onnx" for name in ("one", "two")]
    keys = {engine_key(path, precision) for path in paths for precision in ("fp32", "fp16")}
    assert len(keys) == 4
    assert all(key.startswith(("one-model-", "two-model-")) for key in keys)
