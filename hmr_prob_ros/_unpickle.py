"""Reads the pickles of licensed body models and data sets without running what is in them.

The official SMPL files are Python 2 pickles that hold `chumpy` and `scipy.sparse` objects. A bare ``pickle.load``
would run any code that such a file names, so this reader admits numpy's array constructors and nothing else; chumpy
and scipy classes become `Shell`, which keeps their state and has no behaviour. Neither package is needed.
"""

from __future__ import annotations

__all__ = ["Shell", "dense", "load_pickle", "load_stream"]

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np


def _from_buffer(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> np.ndarray:
    """An array (a copy) from its bytes, as numpy's own function of that name."""
    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order).copy()


# Array constructors by the names that files give them: numpy moved its private package from `core` to `_core`.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
for _package in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[(_package, "_reconstruct")] = _RECONSTRUCT
    _ADMITTED[(_package, "scalar")] = _SCALAR
# Arrays of pickle protocol 5; numpy itself refuses objects in such a buffer.
for _package in ("numpy.core.numeric", "numpy._core.numeric"):
    _ADMITTED[(_package, "_frombuffer")] = _from_buffer


class Shell:
    """Stands in for an object of a class that is not admitted: it has the object's state and no behaviour."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):  # (attributes, slots)
            state = state[0]
        if isinstance(state, dict):
            self.__dict__.update(state)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` for the one use that pickle makes of it: bytes written by an old protocol."""
    return str(text).encode("latin1")


def _reconstructor(cls: type, base: type, state: Any) -> Any:
    """``copyreg._reconstructor`` for shells (how protocol 0 and 1 make an object)."""
    if cls is not Shell:
        raise pickle.UnpicklingError(f"it rebuilds {cls!r}")
    return Shell()


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[(module, name)]
        if module.split(".")[0] in ("chumpy", "scipy"):
            return Shell
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) == ("copy_reg", "_reconstructor") or (module, name) == ("copyreg", "_reconstructor"):
            return _reconstructor
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return object
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor part of a body model")


def load_pickle(path: Path) -> Any:
    """The object in a pickle of arrays, chumpy objects and sparse matrices.

    :raises pickle.UnpicklingError: the file names anything else, or is no pickle.
    """
    with path.open("rb") as file:
        return load_stream(file)


def load_stream(file: IO[bytes]) -> Any:
    """As `load_pickle`, from an open file."""
    try:
        return _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken stream raises almost anything
        raise pickle.UnpicklingError(f"it is not a readable pickle ({type(error).__name__}: {error})") from error


def dense(value: Any) -> np.ndarray:
    """A plain array from an array, a chumpy object or a sparse matrix in CSC, CSR or COO form.

    :raises ValueError: the value is none of them.
    """
    if not isinstance(value, Shell):
        return np.asarray(value)
    state = value.__dict__
    if "x" in state:  # chumpy.Ch
        return dense(state["x"])
    if "a" in state and "idxs" in state:  # chumpy's Select: entries of another object, flat
        shape = state.get("preferred_shape")
        chosen = dense(state["a"]).ravel()[np.asarray(state["idxs"])]
        return chosen if shape is None else chosen.reshape(shape)
    shape = state.get("_shape", state.get("shape"))
    if shape is None or "data" not in state:
        raise ValueError("an object that is neither an array nor a sparse matrix")
    rows, columns = (int(n) for n in shape)
    data = np.asarray(state["data"])
    out = np.zeros((rows, columns), dtype=data.dtype)
    places = state.get("coords", (state.get("row"), state.get("col")))  # COO, by its newer and its older name
    if places[0] is not None:
        np.add.at(out, tuple(np.asarray(p) for p in places), data)
        return out
    indices, indptr = np.asarray(state["indices"]), np.asarray(state["indptr"])
    major = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    # CSC has one pointer for each column, CSR one for each row; SMPL's regressor is 24 x 6890 and CSC.
    where = (indices, major) if len(indptr) == columns + 1 else (major, indices)
    np.add.at(out, where, data)
    return out
