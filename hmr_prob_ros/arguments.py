"""What command lines share: kinds of arguments, the error that is one line on stderr, results as JSON."""

from __future__ import annotations

__all__ = ["CommandError", "natural", "positive", "positive_number", "write_json"]

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """What was asked cannot be done; printed as one line on stderr, exit code 2."""


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def natural(text: str) -> int:
    """An argument that is a whole number, 0 or above."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive_number(text: str) -> float:
    """An argument that is a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def write_json(value: Any, path: str | Path) -> None:
    """Write ``value`` to a file, or to stdout for ``-``; numbers that are not finite become null.

    Raises:
        CommandError: the file cannot be written.
    """
    text = json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
