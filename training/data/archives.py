"""Where recordings lie: indexed archives and folders, folders of files, single files of any format that is read."""

from __future__ import annotations

__all__ = ["Files", "Item", "collect"]

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .amass import is_amass, read_amass
from .asfamc import read_amc
from .bvh import RestPose, read_bvh, read_rest_row
from .deepmimic import read_amp, read_deepmimic
from .expmap import read_expmap
from .retarget import Clip, MocapError, Motion


@dataclass
class Item:
    """One recording to read: names, what it is about, and a function that reads it."""

    name: str
    take: str
    source: str
    about: str
    read: Callable[[], Clip | Motion]
    stamp: str
    glitches: tuple[int, ...] = ()


class Files:
    """The files of an archive or a folder by their path inside it; an archive is unpacked in memory when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members: dict[str, bytes] | None = None

    def read(self, name: str) -> bytes:
        if self.path.is_dir():
            file = self.path / name
            if not file.is_file():
                raise MocapError(f"{file} is named by the index but is not there")
            return file.read_bytes()
        if self._members is None:
            try:
                with tarfile.open(self.path) as tar:
                    pairs = ((m.name, tar.extractfile(m)) for m in tar.getmembers() if m.isfile())
                    self._members = {Path(n).name: f.read() for n, f in pairs if f is not None}
            except (tarfile.TarError, OSError, EOFError) as error:
                raise MocapError(f"{self.path} cannot be unpacked ({error}): fetch it again") from error
        if name not in self._members:
            raise MocapError(f"{self.path} lacks {name}, which the index names")
        return self._members[name]

    def text(self, name: str) -> str:
        return self.read(name).decode("utf-8", errors="replace")


def _read_entry(entry: dict[str, Any], files: Files, rest: dict[str, RestPose | None], siblings: list[dict]) -> Clip:
    """Read one entry of an index by its format; BVH without a rest row borrows that of a sibling, kept in `rest`."""
    name, fps, form = entry["id"], float(entry["fps"]), entry["format"]
    has_rest = bool(entry.get("first_row_is_rest_pose", False))
    if form == "ASF/AMC":
        return read_amc(files.text(entry["file"]), files.text(entry["skeleton"]), fps, name)
    if form == "expmap text":
        return read_expmap(files.text(entry["file"]), json.loads(files.text(entry["skeleton"])), fps, has_rest, name)
    if form == "DeepMimic JSON":
        clip = read_deepmimic(files.text(entry["file"]), json.loads(files.text(entry["skeleton"])), name)
        return replace(clip, fps=fps)
    if form.startswith("poselib"):
        return replace(read_amp(io.BytesIO(files.read(entry["file"])), name), fps=fps)
    if form == "BVH":
        if entry["archive"] not in rest:
            donor = next((e for e in siblings if e.get("first_row_is_rest_pose")), None)
            rest[entry["archive"]] = read_rest_row(files.text(donor["file"]), donor["id"]) if donor else None
        return read_bvh(files.text(entry["file"]), name, has_rest, rest[entry["archive"]], fps=fps)
    raise MocapError(f"{name}: the format {form!r} has no reader")


def _from_index(index: Path, only: str | None = None) -> list[Item]:
    """Items of an index.json whose archives, or folders of the same name, lie beside it; `only` names one archive."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        by_archive: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            by_archive.setdefault(entry["archive"], []).append(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise MocapError(f"{index} is not an index of motions ({error!r})") from error
    items = []
    rest: dict[str, RestPose | None] = {}
    for archive, members in by_archive.items():
        if only is not None and archive != only:
            continue
        folder = index.parent / archive.split(".")[0]
        path = folder if folder.is_dir() else index.parent / archive
        if not path.exists():
            continue  # not every source has to be there
        files = Files(path)
        size = path.stat().st_size if path.is_file() else -1
        for entry in members:
            # In flips and kicks limbs really are that fast; elsewhere such a step is a glitch of the solver.
            trusted = entry["format"].startswith(("DeepMimic", "poselib"))
            steps = () if trusted else tuple(int(s[0]) for s in entry.get("suspect_steps", ()))
            items.append(
                Item(
                    entry["id"],
                    entry["take"],
                    archive.split(".")[0],
                    entry.get("description", ""),
                    lambda e=entry, f=files, m=members: _read_entry(e, f, rest, m),
                    f"{archive}/{entry['file']}/{size}/{entry['frames']}",
                    steps,
                )
            )
    if not items:
        raise MocapError(f"none of the archives that {index} names lies beside it: put the .tar.xz or folders there")
    return items


def _find_asf(amc: Path) -> Path:
    """The skeleton of a motion: same stem, else a part of it (CMU's 02_01.amc -> 02.asf), else the only one."""
    parts = amc.stem.split("_")
    for stem in (amc.stem, *parts):
        if (amc.parent / f"{stem}.asf").is_file():
            return amc.parent / f"{stem}.asf"
    found = sorted(amc.parent.glob("*.asf"))
    if len(found) != 1:
        names = " or ".join(f"{stem}.asf" for stem in dict.fromkeys((amc.stem, parts[0])))
        raise MocapError(f"{amc}: no skeleton found; put {names} beside it")
    return found[0]


def _read_bvh_file(path: Path, take: str) -> Clip:
    """A BVH file on its own; where it has no rest pose, that of a T-pose in row 0 of a file beside it."""
    text = path.read_text(errors="replace")
    try:
        return read_bvh(text, take)
    except MocapError as error:
        for other in sorted(path.parent.glob("*.bvh"))[:200]:
            try:
                donor = other.read_text(errors="replace")
                read_bvh(donor, other.name)  # has a rest pose of its own
                return read_bvh(text, take, rest=read_rest_row(donor, other.name))
            except MocapError:
                continue
        raise error


def _named(path: Path, take: str, read: Callable[[], Clip | Motion]) -> Callable[[], Clip | Motion]:
    """`read` with the path, and not only the take, in its errors."""

    def named() -> Clip | Motion:
        try:
            return read()
        except MocapError as error:
            raise MocapError(f"{path}: {str(error).removeprefix(f'{take}: ')}") from error

    return named


def _read_amc_file(path: Path, asf: Path, take: str) -> Clip:
    return read_amc(path.read_text(errors="replace"), asf.read_text(errors="replace"), 120.0, take)


def _from_file(path: Path, take: str) -> Item | None:
    """An item for a single .bvh, .amc or .npz; None for other files, and for npz files that hold no motion."""
    form = path.suffix.lower()
    stamp = f"{take}/{path.stat().st_size}"
    if form == ".bvh":
        return Item(take, take, "bvh", "", _named(path, take, lambda: _read_bvh_file(path, take)), stamp)
    if form == ".amc":
        asf = _find_asf(path)
        return Item(take, take, "asfamc", "", _named(path, take, lambda: _read_amc_file(path, asf, take)), stamp)
    if form == ".npz":
        try:
            with np.load(path, allow_pickle=False) as data:
                names = list(data.files)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None
        if is_amass(names):
            return Item(take, take, "amass", "", _named(path, take, lambda: read_amass(path, take)), stamp)
        if "rotation_xyzw" in names:
            return Item(take, take, "amp", "", _named(path, take, lambda: read_amp(path, take)), stamp)
    return None


def collect(paths: Iterable[str | Path]) -> list[Item]:
    """The recordings under paths: see `load_mocap`. Nothing is read but indices. Raises `MocapError`."""
    items: list[Item] = []
    for path in map(Path, paths):
        if not path.exists():
            raise MocapError(
                f"{path} does not exist: name a folder with index.json, an archive, or .bvh, .amc, .npz files"
            )
        if path.is_dir() and (path / "index.json").is_file():
            items += _from_index(path / "index.json")
        elif path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file())
            found = [_from_file(f, f.relative_to(path).with_suffix("").as_posix()) for f in files]
            items += [item for item in found if item is not None]
        elif path.name.endswith((".tar.xz", ".tar.gz", ".tar")):
            if not (path.parent / "index.json").is_file():
                raise MocapError(f"{path}: no index.json beside it says what it holds; unpack it and name the folder")
            items += _from_index(path.parent / "index.json", path.name)
        elif path.name == "index.json":
            items += _from_index(path)
        else:
            item = _from_file(path, path.stem)
            if item is None:
                raise MocapError(f"{path} is not a motion that can be read: .bvh, .amc with .asf, AMASS .npz")
            items.append(item)
    if not items:
        raise MocapError(f"no motions (.bvh, .amc, AMASS .npz) in {', '.join(str(p) for p in paths)}")
    return items
