"""Shards: training examples with what a real 2D detector saw, a few hundred in one npz file.

    examples = read_examples(["shards/test"])  # all at once
    batch = Shard.load("shards/train/shard_00000.npz").examples()  # of one file

``streams.ShardSource`` deals them out in batches for training.

A shard holds the fields of ``Examples`` (``pose6d`` follows from ``rotations``), pictures as JPEG, masks as packed bits
and heatmap samples in half precision: about 14 kB an example with its picture, 5 kB without.
"""

from __future__ import annotations

__all__ = ["FORMAT", "VERSION", "Shard", "ShardError", "read_examples", "shard_paths"]

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hmr_prob_ros.skeleton import NUM_JOINTS, NUM_KEYPOINTS

from ..rotations import matrix_to_rotation6d
from .examples import Examples

FORMAT, VERSION = "hmr_prob_ros/shard", 1
_J, _K = NUM_JOINTS, NUM_KEYPOINTS
# Kind as stored, then the shape without the examples' axis; letters stand for sizes that the shard chooses.
_NEEDED: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "keypoints": ("f4", (_K, 3)),
    "box": ("f4", (3,)),
    "rotations": ("f4", (_J, 3, 3)),
    "betas": ("f4", (10,)),
    "translation": ("f4", (3,)),
    "joints": ("f4", (_J, 3)),
    "keypoints3d": ("f4", (_K, 3)),
    "state": ("i1", (_K,)),
    "detected": ("f4", (_K, 3)),
    "intrinsics": ("f4", (4,)),
    "size": ("f4", (2,)),
    "index": ("i8", ()),
    "take": ("U", ()),
}
_OPTIONAL: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "heatmap": ("f2", ("T", _K, 2)),
    "heatmap_peak": ("f4", (_K,)),
    "mask": ("b1", ("H", "W")),
    "occluded": ("b1", ()),
    "true_keypoints": ("f4", (_K, 3)),
    "has_pose": ("b1", ()),
    "has_betas": ("b1", ()),
    "has_joints": ("b1", (_J,)),
    "has_translation": ("b1", ()),
}
_REMAKE = "delete it and run `hmr-prob make-shards` again"


class ShardError(ValueError):
    """A shard cannot be used; the text names file, field and mend."""


def _check(name: str, value: Any, kind: str, shape: tuple[int | str, ...], count: int, where: str) -> np.ndarray:
    value = np.asarray(value)
    wanted = (count, *shape)
    fits = value.ndim == len(wanted) and all(
        size > 0 if isinstance(w, str) else size == w for size, w in zip(value.shape, wanted, strict=True)
    )
    if not fits:
        raise ShardError(f"{where}: {name} has shape {value.shape}, but it must be {wanted}: {_REMAKE}")
    if kind == "U":
        return value.astype(str)
    if value.dtype.kind not in "fiub" or (kind == "b1" and value.dtype.kind == "f"):
        raise ShardError(f"{where}: {name} holds {value.dtype}, but numbers of kind {kind} are needed: {_REMAKE}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        row = int(np.argwhere(~np.isfinite(value))[0][0])
        raise ShardError(
            f"{where}: {name} of example {row} holds NaN or infinity: store zeros and say so in has_*, or {_REMAKE}"
        )
    return value.astype("f4" if kind == "f2" else kind)


@dataclass(frozen=True)
class Shard:
    """Examples as a file holds them.

    Args:
        fields: arrays by the names of ``Examples``, and ``take`` (K,), the recording of each.
        body: hash of the body that joints and keypoints come from.
        jpeg: pictures of the crops, RGB, or None.
        note: how the shard was made.
        where: the file, for error texts.

    Raises:
        ShardError: no examples, a field is missing, unknown or of another form, or a number is not finite.
    """

    fields: dict[str, np.ndarray]
    body: str
    jpeg: tuple[bytes, ...] | None = None
    note: str = ""
    where: str = "shard"

    def __post_init__(self) -> None:
        missing = [name for name in _NEEDED if name not in self.fields]
        if missing:
            raise ShardError(f"{self.where} lacks {', '.join(missing)}: {_REMAKE}")
        unknown = sorted(set(self.fields) - set(_NEEDED) - set(_OPTIONAL))
        if unknown:
            raise ShardError(f"{self.where} holds unknown fields {', '.join(unknown)}: it is of a newer version")
        count = len(np.atleast_1d(self.fields["keypoints"]))
        if count == 0:
            raise ShardError(f"{self.where} holds no examples: {_REMAKE}")
        known = {**_NEEDED, **_OPTIONAL}
        checked = {name: _check(name, v, *known[name], count, self.where) for name, v in self.fields.items()}
        object.__setattr__(self, "fields", checked)
        if self.jpeg is not None and len(self.jpeg) != count:
            raise ShardError(f"{self.where}: {len(self.jpeg)} pictures for {count} examples: {_REMAKE}")
        if ((checked["state"] < 0) | (checked["state"] > 3)).any():
            raise ShardError(f"{self.where}: state holds values that are not 0 to 3: {_REMAKE}")
        for name in ("keypoints", "detected"):
            confidence = checked[name][..., 2]
            if (confidence < 0).any() or (confidence > 1).any():
                raise ShardError(f"{self.where}: the confidence in {name} is not in [0, 1]: {_REMAKE}")

    def __len__(self) -> int:
        return len(self.fields["keypoints"])

    @property
    def take(self) -> np.ndarray:
        """(K,) names of the recordings."""
        return self.fields["take"]

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], body: str, note: str = "", where: str = "shard") -> Shard:
        """Stack examples; each holds the fields without the first axis, and ``jpeg`` (bytes) if it has a picture."""
        if not rows:
            raise ShardError(f"{where} would hold no examples: nobody was seen; look at the pictures and the detector")
        for name in rows[0]:
            if any(name not in row for row in rows):
                raise ShardError(f"{where}: some examples lack {name}: give it to all or to none")
        jpeg = tuple(row["jpeg"] for row in rows) if "jpeg" in rows[0] else None
        fields = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0] if name != "jpeg"}
        return cls(fields, body, jpeg, note, where)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all; equal shards give equal files."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {"format": np.asarray(FORMAT), "version": np.asarray(VERSION)}
        arrays |= {"body": np.asarray(self.body), "note": np.asarray(self.note)}
        for name, value in self.fields.items():
            kind = {**_NEEDED, **_OPTIONAL}[name][0]
            if name == "mask":
                arrays["mask_size"] = np.array(value.shape[1:])
                value = np.packbits(value.reshape(len(self), -1), axis=1)
            arrays[name] = value.astype("f2") if kind == "f2" else value
        if self.jpeg is not None:
            arrays["jpeg"] = np.frombuffer(b"".join(self.jpeg), dtype=np.uint8)
            arrays["jpeg_end"] = np.cumsum([len(picture) for picture in self.jpeg])
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as stream:
                np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Shard:
        """Read and check a file.

        Raises:
            ShardError: no file, truncated, another format or version, or what :class:`Shard` refuses.
        """
        where = str(path)
        if not Path(path).is_file():
            raise ShardError(f"there is no shard at {where}: `hmr-prob make-shards` writes them")
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ShardError(f"{where} cannot be read ({error}): it is truncated or no shard; {_REMAKE}") from error
        if str(arrays.pop("format", "")) != FORMAT:
            raise ShardError(
                f"{where} is no shard (its format is not {FORMAT!r}): give files of `hmr-prob make-shards`"
            )
        version = int(arrays.pop("version", 0))
        if version != VERSION:
            raise ShardError(f"{where} is a shard of version {version}, this package reads {VERSION}: {_REMAKE}")
        body, note = str(arrays.pop("body", "")), str(arrays.pop("note", ""))
        jpeg = None
        if "jpeg" in arrays or "jpeg_end" in arrays:
            packed, ends = arrays.pop("jpeg", np.zeros(0, np.uint8)), arrays.pop("jpeg_end", np.zeros(0, int))
            ends = [0, *np.atleast_1d(ends).astype(int).tolist()]
            if packed.dtype != np.uint8 or ends != sorted(ends) or ends[-1] != packed.size:
                raise ShardError(f"{where}: jpeg and jpeg_end do not fit together: {_REMAKE}")
            whole = packed.tobytes()
            jpeg = tuple(whole[a:b] for a, b in pairwise(ends))
        if "mask" in arrays:
            size = tuple(int(v) for v in np.atleast_1d(arrays.pop("mask_size", 0)))
            cells = int(np.prod(size))
            bits = arrays["mask"]
            if len(size) != 2 or bits.dtype != np.uint8 or bits.ndim != 2 or bits.shape[1] != -(-cells // 8):
                raise ShardError(f"{where}: mask and mask_size do not fit together: {_REMAKE}")
            arrays["mask"] = np.unpackbits(bits, axis=1, count=cells).reshape(-1, *size).astype(bool)
        return cls(arrays, body, jpeg, note, where)

    def examples(self, rows: np.ndarray | slice | None = None, images: bool = False) -> Examples:
        """Some or all examples; pictures only where asked for, (B, 3, H, W) from 0 to 1.

        Raises:
            ShardError: pictures are asked for and there are none, or one cannot be decoded.
        """
        rows = slice(None) if rows is None else rows
        values = {n: torch.from_numpy(np.ascontiguousarray(v[rows])) for n, v in self.fields.items() if n != "take"}
        values["index"] = values["index"].long()
        values["state"] = values["state"].long()
        values["pose6d"] = matrix_to_rotation6d(values["rotations"]).flatten(1)
        if images:
            values["image"] = torch.from_numpy(self.pictures(rows).transpose(0, 3, 1, 2).copy()).float() / 255
        return Examples(**values)

    def pictures(self, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """(B, H, W, 3) uint8 RGB crops."""
        if self.jpeg is None:
            raise ShardError(
                f"{self.where} holds no pictures: make it without --no-images, or train without an image backbone"
            )
        chosen = np.arange(len(self))[slice(None) if rows is None else rows]
        out = []
        for row in chosen:
            picture = cv2.imdecode(np.frombuffer(self.jpeg[row], np.uint8), cv2.IMREAD_COLOR)
            if picture is None or (out and picture.shape != out[0].shape):
                raise ShardError(f"{self.where}: the picture of example {row} cannot be decoded: {_REMAKE}")
            out.append(picture[..., ::-1])
        return np.stack(out)


def shard_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files among ``paths``: files as they are, and the ``.npz`` files of folders in alphabetical order.

    Raises:
        ShardError: a path does not exist, or there is no shard at all.
    """
    found: list[Path] = []
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    for path in map(Path, given):
        if path.is_dir():
            found += sorted(p for p in path.glob("*.npz") if not p.name.startswith("."))
        elif path.is_file():
            found.append(path)
        else:
            raise ShardError(f"there is no shard or folder of shards at {path}: `hmr-prob make-shards` writes them")
    if not found:
        raise ShardError(f"no shards (.npz) in {', '.join(map(str, given))}: `hmr-prob make-shards` writes them")
    return found


def _load(path: Path, body: str | None) -> Shard:
    shard = Shard.load(path)
    if body is not None and shard.body != body:
        raise ShardError(
            f"{path} was made with the body {shard.body[:12]}, not {body[:12]}: make the shards again with that --body"
        )
    return shard


def read_examples(paths: str | Path | Sequence[str | Path], images: bool = False, body: str | None = None) -> Examples:
    """All examples of files or folders at once; a field that some shards lack is left out.

    Args:
        body: hash that the shards' body must have; None for any.

    Raises:
        ShardError: see :meth:`Shard.load` and :func:`shard_paths`.
    """
    return Examples.cat([_load(path, body).examples(images=images) for path in shard_paths(paths)])
