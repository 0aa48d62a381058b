"""Evaluation sets: what a detector saw of K people, and what was true. The format is told in ``docs/set_format.md``."""

from __future__ import annotations

__all__ = ["PoseSet", "SetError"]

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from .camera import Camera
from .skeleton import NUM_JOINTS, NUM_KEYPOINTS

FORMAT = "hmr_prob_ros/set"
VERSION = 1

# name: (shape after K, dtype kind, may hold NaN)
_FIELDS: dict[str, tuple[tuple[int, ...], type, bool]] = {
    "keypoints": ((NUM_KEYPOINTS, 3), np.float32, False),
    "intrinsics": ((4,), np.float32, False),
    "image_size": ((2,), np.int32, False),
    "joints": ((NUM_JOINTS, 3), np.float32, True),
    "keypoints3d": ((NUM_KEYPOINTS, 3), np.float32, True),
    "visible": ((NUM_JOINTS,), np.bool_, False),
    "take": ((), np.str_, False),
    "rotations": ((NUM_JOINTS, 3, 3), np.float32, True),
    "betas": ((10,), np.float32, True),
    "translation": ((3,), np.float32, True),
}
_FARTHEST = 200.0  # metres; a person who stands farther away is given in another unit
_NEEDED = ("keypoints", "intrinsics", "image_size", "joints")


class SetError(ValueError):
    """A set cannot be used; the text names the file, the field and the mend."""


@dataclass(frozen=True)
class PoseSet:
    """K people as a detector saw them, with their true bodies.

    Positions are in metres in the optical frame (x right, y down, z forward); NaN marks what is not known.

    Args:
        keypoints: (K, 23, 3) pixels and confidence, as a detector gives them.
        intrinsics: (K, 4) fx, fy, cx, cy in pixels.
        image_size: (K, 2) width and height in pixels.
        joints: (K, 24, 3) true joints.
        keypoints3d: (K, 23, 3) true surface keypoints, NaN where unknown.
        visible: (K, 24) whether a joint can be seen in the picture.
        take: (K,) name of the recording that an example is from.
        rotations: (K, 24, 3, 3) true local rotations, or None; needed for the negative log-likelihood.
        betas: (K, 10) true shape, or None.
        translation: (K, 3) true SMPL translation, or None.
        body: hash of the body that rotations and betas belong to, "" where there are none.
        note: free text: how the set was made.

    Raises:
        SetError: a shape does not fit or a number that must be known is not finite.
    """

    keypoints: np.ndarray
    intrinsics: np.ndarray
    image_size: np.ndarray
    joints: np.ndarray
    keypoints3d: np.ndarray
    visible: np.ndarray
    take: np.ndarray
    rotations: np.ndarray | None = None
    betas: np.ndarray | None = None
    translation: np.ndarray | None = None
    body: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        count = len(np.asarray(self.keypoints))
        if count == 0:
            raise SetError("the set is empty: it needs at least one example")
        for name, (shape, kind, nan) in _FIELDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value).astype(kind)
            if value.shape != (count, *shape):
                raise SetError(
                    f"{name} has shape {value.shape}, but with {count} examples it must be {(count, *shape)}"
                )
            if not nan and value.dtype.kind == "f" and not np.isfinite(value).all():
                bad = int(np.argmin(np.isfinite(value).reshape(count, -1).all(axis=1)))
                raise SetError(
                    f"{name} of example {bad} holds a number that is not finite: give a confidence of 0 instead"
                )
            object.__setattr__(self, name, value)
        if (self.intrinsics[:, :2] <= 0).any() or (self.image_size <= 0).any():
            raise SetError("intrinsics need focal lengths above 0 and image_size numbers above 0")
        known = np.where(np.isfinite(self.joints), self.joints, 0.0)
        if count and (size := float(np.abs(known).max())) > _FARTHEST:
            raise SetError(f"joints lie up to {size:.0f} m from the camera: give metres, not millimetres")

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, index: slice | np.ndarray) -> PoseSet:
        """The examples of a slice or an index array."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PoseSet(**{k: v[index] if k in _FIELDS and v is not None else v for k, v in values.items()})

    def camera(self, index: int) -> Camera:
        """Camera of one example."""
        width, height = (int(v) for v in self.image_size[index])
        fx, fy, cx, cy = (float(v) for v in self.intrinsics[index])
        return Camera(width, height, fx, fy, cx, cy)

    def save(self, path: str | Path) -> None:
        """Write the set as a compressed ``.npz`` (exactly at ``path``)."""
        values = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}
        header = {
            "format": np.array(FORMAT),
            "version": np.array(VERSION),
            "body": np.array(self.body),
            "note": np.array(self.note),
        }
        try:
            with open(path, "wb") as file:
                np.savez_compressed(file, **header, **values)
        except OSError as error:
            raise SetError(f"cannot write the set {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> PoseSet:
        """Read and check a set.

        Raises:
            SetError: the file is missing, is no set, is of a newer version, or lacks a field.
        """
        path = Path(path)
        mend = "make one with `hmr-prob make-set`, or see docs/set_format.md"
        if not path.is_file():
            raise SetError(f"there is no set {path}: {mend}")
        try:
            with np.load(path, allow_pickle=False) as data:
                values = {name: data[name] for name in data.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, AttributeError, TypeError) as error:
            raise SetError(f"{path} is not an evaluation set (truncated, or not an npz: {error}): {mend}") from error
        if str(values.get("format", "")) != FORMAT:
            raise SetError(f"{path} is not an evaluation set (its `format` is not {FORMAT!r}): {mend}")
        try:
            version = int(values.get("version", 0))
        except (TypeError, ValueError) as error:
            raise SetError(f"{path}: its version is {str(values['version'])!r}, no number: write {VERSION}") from error
        if not 1 <= version <= VERSION:
            raise SetError(f"{path} has version {version}, this program reads up to {VERSION}: update hmr_prob_ros")
        missing = [name for name in _NEEDED if name not in values]
        if missing:
            raise SetError(f"{path} lacks {', '.join(missing)}: {mend}")
        count = len(values["keypoints"])
        values.setdefault("keypoints3d", np.full((count, NUM_KEYPOINTS, 3), np.nan, np.float32))
        values.setdefault("visible", np.isfinite(values["joints"]).all(axis=-1))
        values.setdefault("take", np.full(count, "", dtype=np.str_))
        try:
            return cls(
                **{name: values[name] for name in _FIELDS if name in values},
                body=str(values.get("body", "")),
                note=str(values.get("note", "")),
            )
        except SetError as error:
            raise SetError(f"{path}: {error}") from error
        except (TypeError, ValueError) as error:
            raise SetError(f"{path} holds a field of the wrong type ({error}): {mend}") from error
