"""Built engines on disk: each with a stamp that says what it was built from, and rebuilt when anything of that changed.

Nothing here knows TensorRT: what builds an engine and what loads it is handed in.
"""

from __future__ import annotations

__all__ = ["FORMAT", "Built", "Stamp", "UnusableEngine", "cache_folder", "load_or_build", "sha256", "stored_profile"]

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the stamp and of how an engine is built: raised when an older engine must not be used any more."""

_WORDS = {
    "model": "model",
    "tensorrt": "TensorRT",
    "gpu": "GPU",
    "capability": "compute capability",
    "precision": "precision",
    "profile": "profile",
    "format": "format",
}
_warned: set[str] = set()
Loaded = TypeVar("Loaded")


class UnusableEngine(Exception):
    """TensorRT does not take an engine file; the text says why."""


@dataclass(frozen=True)
class Stamp:
    """Everything that an engine depends on.

    Attributes:
        model: SHA-256 of the ONNX file.
        tensorrt: version.
        gpu: name of the GPU.
        capability: its compute capability, ``"8.7"``.
        precision: ``fp32``, ``tf32`` or ``fp16``.
        profile: smallest, typical and largest number of persons and samples.
        format: ``FORMAT``.
    """

    model: str
    tensorrt: str
    gpu: str
    capability: str
    precision: str
    profile: dict[str, list[int]]
    format: int = FORMAT

    def difference(self, found: dict[str, Any]) -> str:
        """What a stamp that was read says differently, in words; "" where it says the same."""
        parts = []
        for field in fields(self):
            wanted, value = getattr(self, field.name), found.get(field.name)
            if value != wanted:
                if field.name == "model":  # hashes tell nobody anything
                    parts.append("the model changed")
                else:
                    parts.append(f"{_WORDS[field.name]} was {_plain(value)}, now it is {_plain(wanted)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Built(Generic[Loaded]):
    """An engine that was loaded: ``path`` None where it is in memory only, ``reason`` why it was built ("" if not),
    ``seconds`` the build took, ``size`` in bytes."""

    engine: Loaded
    path: Path | None
    reason: str
    seconds: float
    size: int


def sha256(path: Path) -> str:
    """Of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder(folder: str | Path | None = None) -> Path | None:
    """``folder``, or ``$XDG_CACHE_HOME/hmr_prob_ros/engines``, or the same below ``~/.cache``; None without a home."""
    if folder is not None:
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification asks to ignore others
        return Path(base) / "hmr_prob_ros" / "engines"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "hmr_prob_ros" / "engines"
    return None


def stored_profile(folder: Path | None, key: str) -> dict[str, list[int]] | None:
    """The profile of the engine in the cache, None where there is none that can be read."""
    if folder is None:
        return None
    try:
        return dict(json.loads((folder / f"{key}.json").read_bytes())["profile"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_or_build(
    folder: Path | None,
    key: str,
    stamp: Stamp,
    build: Callable[[], bytes],
    load: Callable[[bytes], Loaded],
    force: bool = False,
) -> Built[Loaded]:
    """The engine of ``key``, from the cache where its stamp fits, else built and stored.

    Two processes that want the same engine build it once: the second waits and loads it.

    Args:
        folder: of the cache; None, or one that cannot be written: the engine is kept in memory, which is said once.
        key: name of the files, without ending.
        stamp: what the engine must be built from.
        build: makes the engine's bytes; its errors are passed on.
        load: makes the engine of bytes; raises UnusableEngine for those that are no engine for this machine.
        force: build even if there is a fitting one.
    """

    def built(reason: str) -> tuple[bytes, Loaded, float]:
        logger.warning("building the engine %s, which takes minutes: %s", key, reason)
        start = time.perf_counter()
        data = build()
        return data, load(data), time.perf_counter() - start

    if folder is None:
        _warn_once("", "there is no home folder for a cache: the engine is kept in memory and built at every start")
        data, engine, seconds = built("no cache")
        return Built(engine, None, "no cache", seconds, len(data))
    path, reason = folder / f"{key}.engine", "a new one was asked for"
    if not force:
        found, reason = _read(path, stamp, load)
        if found is not None:
            return found
    try:
        with _locked(folder / f"{key}.lock"):
            if not force:
                found, reason = _read(path, stamp, load)  # another process may have built it meanwhile
                if found is not None:
                    return found
            data, engine, seconds = built(reason)
            stored = _write(path, stamp, data, seconds)
    except _NoLockError as error:
        _warn_once(str(folder), _unwritable(folder, error))
        data, engine, seconds = built(reason)
        stored = False
    return Built(engine, path if stored else None, reason, seconds, len(data))


def _read(path: Path, stamp: Stamp, load: Callable[[bytes], Loaded]) -> tuple[Built[Loaded] | None, str]:
    """The stored engine, or why there is none that can be used."""
    try:
        text = path.with_suffix(".json").read_bytes()
        data = path.read_bytes()
    except FileNotFoundError:
        return None, "there is none yet" if not path.exists() else "it has no stamp"
    except OSError as error:
        return None, f"it cannot be read ({error.strerror})"
    try:
        found = json.loads(text)
        digest, seconds = str(found["engine"]), float(found["seconds"])
    except (ValueError, TypeError, KeyError):
        return None, "its stamp is damaged"
    if different := stamp.difference(found):
        return None, different
    if hashlib.sha256(data).hexdigest() != digest:
        return None, "the file is damaged or not the one that its stamp tells of"
    try:
        return Built(load(data), path, "", seconds, len(data)), ""
    except UnusableEngine as error:
        return None, f"TensorRT does not take it ({error})"


def _write(path: Path, stamp: Stamp, data: bytes, seconds: float) -> bool:
    """Stores engine and stamp, each whole or not at all; False where that is not possible."""
    record = {**asdict(stamp), "engine": hashlib.sha256(data).hexdigest(), "seconds": round(seconds, 1)}
    try:
        # The stamp last: whoever reads between the two finds a stamp that does not fit, never a wrong engine.
        _replace(path, data)
        _replace(path.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        _warn_once(str(path.parent), _unwritable(path.parent, error))
        return False
    return True


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


class _NoLockError(OSError):
    """The cache folder cannot be made or written."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of ``path``, which ends with the process at the latest; raises _NoLockError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise _NoLockError(error.errno, error.strerror) from error
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("another process builds %s: waiting for it", path.with_suffix(".engine"))
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: writing is atomic anyway, so at worst both build
            logger.debug("%s cannot be locked", path)
        yield


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"{folder} cannot be written ({error.strerror}): the engine is kept in memory and built at every start; "
        "make the folder writable, or choose another with --cache or $XDG_CACHE_HOME"
    )


def _warn_once(key: str, text: str) -> None:
    if key not in _warned:
        _warned.add(key)
        logger.warning(text)


def _plain(value: Any) -> str:
    return "not told" if value is None else str(value)
