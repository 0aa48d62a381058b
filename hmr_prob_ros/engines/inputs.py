"""What every engine checks before it runs: names, types and shapes of what it is given."""

from __future__ import annotations

__all__ = ["Signature", "checked_inputs", "checked_outputs"]

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import EngineError

Signature = Mapping[str, tuple[Sequence[int | str], np.dtype | None]]
"""Input -> its shape, with names for the dynamic sizes, and its type (None: not known)."""


def checked_outputs(path: Path, known: Sequence[str], outputs: Sequence[str] | None) -> list[str]:
    """The names of the outputs asked for, all where None.

    Raises:
        EngineError: the graph has no such output.
    """
    wanted = list(known) if outputs is None else list(outputs)
    for name in wanted:
        if name not in known:
            raise EngineError(f"{path} has no output {name!r}: it has {', '.join(known)}")
    return wanted


def checked_inputs(path: Path, signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs in the order of the graph, contiguous.

    Raises:
        EngineError: one is unknown or missing, has a wrong type or shape, or sizes of one name differ.
    """
    unknown = [name for name in inputs if name not in signature]
    if unknown:
        raise EngineError(f"{path} has no input {', '.join(unknown)}: it takes {', '.join(signature)}")
    feeds: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for name, (shape, kind) in signature.items():
        if name not in inputs:
            raise EngineError(f"input {name!r} of {path} is missing: it takes {', '.join(signature)}")
        value = inputs[name]
        if not isinstance(value, np.ndarray):
            raise EngineError(f"input {name!r} must be a numpy array, not {type(value).__name__}")
        declared = ", ".join(str(size) for size in shape)
        if kind is not None and value.dtype != kind:
            raise EngineError(f"input {name!r} must be {kind}, not {value.dtype}: use .astype(np.{kind})")
        if value.ndim != len(shape):
            raise EngineError(f"input {name!r} must have shape ({declared}), not {value.shape}")
        for size, wanted in zip(value.shape, shape, strict=True):
            if isinstance(wanted, int):
                if size != wanted:
                    raise EngineError(f"input {name!r} must have shape ({declared}), not {value.shape}")
            elif size == 0:
                raise EngineError(f"input {name!r} is empty: its shape is {value.shape}")
            elif sizes.setdefault(wanted, (size, name))[0] != size:
                raise EngineError(
                    f"input {name!r} has {wanted} = {size}, but {sizes[wanted][1]!r} has {wanted} = {sizes[wanted][0]}"
                )
        feeds[name] = np.ascontiguousarray(value)
    return feeds
