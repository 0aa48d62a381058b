"""Fields of a data set's file by name, with shapes checked; nothing in the file is run."""

from __future__ import annotations

__all__ = ["Fields"]

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hmr_prob_ros._unpickle import Shell, load_pickle, load_stream

from ..annotations import AnnotationError

_AGAIN = "copy the file again, or write it anew as docs/datasets.md says"


class Fields:
    """Named values of an npz or a pickle.

    Object arrays in an npz (``np.savez`` of ragged lists makes them) go through the restricted unpickler.

    Example:
        >>> with Fields.open("h36m_train.npz") as data:  # doctest: +SKIP
        ...     pose = data.array("pose", None, 72)
    """

    def __init__(self, path: Path, values: Any, inside: str = "") -> None:
        self.path, self._values, self._inside = path, values, inside

    @classmethod
    def open(cls, path: str | Path) -> Fields:
        """Raises `AnnotationError` for a file that is missing, broken or refused."""
        path = Path(path)
        if not path.is_file():
            raise AnnotationError(f"{path}: there is no such file: see docs/datasets.md for where it comes from")
        if path.suffix.lower() in (".pkl", ".pickle"):
            try:
                values = load_pickle(path)
            except pickle.UnpicklingError as error:
                raise AnnotationError(f"{path}: is refused as a pickle: {error}; {_AGAIN}") from error
            if not isinstance(values, dict):
                raise AnnotationError(f"{path}: holds a {type(values).__name__}, not named fields: {_AGAIN}")
            return cls(path, values)
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise AnnotationError(f"{path}: is not an npz or is cut short ({error}): {_AGAIN}") from error
        if not isinstance(values, np.lib.npyio.NpzFile):
            raise AnnotationError(f"{path}: holds one array without a name: give the .npz of the data set")
        return cls(path, values)

    def __enter__(self) -> Fields:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._values, np.lib.npyio.NpzFile):
            self._values.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _called(self, name: str) -> str:
        return f"{self._inside}{name}"

    def error(self, name: str, what: str, mend: str = _AGAIN) -> AnnotationError:
        """An error about a field, for the caller to raise."""
        return AnnotationError(f"{self.path}: field {self._called(name)!r} {what}: {mend}")

    def raw(self, name: str) -> Any:
        """The value of a field as it is in the file.

        Raises:
            AnnotationError: the file lacks it, or it is broken or refused.
        """
        if name not in self._values:
            raise self.error(name, "is missing")
        try:
            return self._values[name]
        except ValueError as error:
            if "allow_pickle" in str(error) or "Object arrays" in str(error):
                return self._objects(name)
            raise self.error(name, f"is broken ({error})") from error
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise self.error(name, f"is broken ({error})") from error

    def _objects(self, name: str) -> Any:
        """An object array, whose pickle stands behind the header of the npy format."""
        with self._values.zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            read(file)
            try:
                return load_stream(file)
            except pickle.UnpicklingError as error:
                raise self.error(name, f"is refused: {error}", "save it as a plain array") from error

    def array(self, name: str, *shape: int | None) -> np.ndarray:
        """A field as float64 of the given shape; None stands for any length.

        Raises:
            AnnotationError: the field is missing, of another shape, or holds no numbers.
        """
        return self._numbers(self.raw(name), name, shape)

    def array_of(self, name: str, person: int, *shape: int | None) -> np.ndarray:
        """The same of one entry of a field that is a list with one entry a person."""
        return self._numbers(self.each(name)[person], f"{name}[{person}]", shape)

    def _numbers(self, value: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        if isinstance(value, Shell):
            raise self.error(name, "is an object, not numbers", "save it as a plain array")
        try:
            if isinstance(value, np.ndarray) and value.dtype == object:
                value = value.tolist()
            out = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.error(name, f"holds no numbers or rows of several lengths ({error})") from error
        wanted = "(" + ", ".join("K" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        if out.ndim != len(shape) or any(n is not None and n != have for n, have in zip(shape, out.shape)):
            raise self.error(name, f"is {out.shape}, not {wanted}")
        return out

    def text(self, name: str) -> np.ndarray:
        """A field (K,) of texts; bytes are read as UTF-8. Raises `AnnotationError` as `array`."""
        values = np.atleast_1d(np.asarray(self.raw(name)))
        if values.ndim != 1:
            raise self.error(name, f"is {values.shape}, not (K,)")
        return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()], dtype=np.str_)

    def inner(self, name: str) -> Fields:
        """The fields of a dictionary in this one."""
        value = self.raw(name)
        if not isinstance(value, dict):
            raise self.error(name, f"is a {type(value).__name__}, not named fields")
        return Fields(self.path, value, f"{self._called(name)}.")

    def each(self, name: str) -> list[Any]:
        """A field that is a list with one entry a person."""
        value = self.raw(name)
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise self.error(name, f"is a {type(value).__name__}, not a list of people")
        return list(value)
