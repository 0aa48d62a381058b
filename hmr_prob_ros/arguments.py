"""What command lines share: kinds of arguments, and the error that is one line on stderr."""

from __future__ import annotations

__all__ = ["CommandError", "natural", "positive", "positive_number"]

import argparse
import math


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
