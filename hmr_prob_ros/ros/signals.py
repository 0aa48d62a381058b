"""An end on SIGINT and SIGTERM that comes where the program looks for it, and nowhere else."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["stopped_by_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set instead of interrupting what is being done, also when they come again.

    They stay ignored when the block has ended: in the last steps of a process Python would end it by the
    signal, and not with its exit code. rclpy must be started with ``SignalHandlerOptions.NO`` within. For the main
    thread.
    """
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        _ignore()
        stop.set()

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        _ignore()


def _ignore() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
