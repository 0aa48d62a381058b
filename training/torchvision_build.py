"""Makes a torchvision of another build than torch's importable.

PyPI's torchvision for Linux is built for CUDA. Beside a CPU build of torch its operators cannot be loaded, and then it
does not even import: it declares how two of them behave, and they do not exist. That takes Lightning and timm with it,
which look for torchvision and use none of its operators.
"""

from __future__ import annotations

__all__ = ["mend"]

import importlib.util
import re
from pathlib import Path

import torch
from torch import library

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def mend() -> bool:
    """Declares the operators where torchvision is built for CUDA and torch is not; returns whether it did."""
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, _OPERATORS[0]):
        return False
    found = importlib.util.find_spec("torchvision")
    version = None if found is None or found.origin is None else Path(found.origin).with_name("version.py")
    if version is None or not version.is_file():
        return False
    if not re.search(r"__version__ = '[^']*\+cu\d+'", version.read_text()):
        return False
    for name in _OPERATORS:
        library.define(f"torchvision::{name}", _SCHEMA)
    return True
