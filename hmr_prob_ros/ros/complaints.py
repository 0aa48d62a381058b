"""Log lines that come at the camera's rate, said once in a while; and the log of the other rooms, handed on to ROS."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Complaints", "hand_on_logs", "listening"]

_NUMBERS = re.compile(r"\d+(\.\d+)?")


class Complaints:
    """Says a text, but one that differs from an earlier one in its numbers only not before ``pause`` seconds went by.

    At most ``most`` different texts come through in that time, whatever a broken camera sends. Safe to call from any
    thread.

    Args:
        say: takes what is said.
        pause: seconds.
        most: number of texts.
    """

    def __init__(self, say: Callable[[str], object], pause: float = 5.0, most: int = 20) -> None:
        self._say, self._pause, self._most = say, pause, most
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}  # when, and how often it was kept back since

    def __call__(self, text: str) -> None:
        now, kind = time.monotonic(), _NUMBERS.sub("#", text)
        with self._lock:
            if kind not in self._said:
                old = [k for k, (said, _) in self._said.items() if now - said >= self._pause]
                if len(self._said) - len(old) >= self._most:
                    return
                if len(self._said) >= self._most:
                    for k in old:
                        del self._said[k]
            said, kept_back = self._said.get(kind, (-self._pause, 0))
            if now - said < self._pause:
                self._said[kind] = (said, kept_back + 1)
                return
            self._said[kind] = (now, 0)
        self._say(f"{text} (and {kept_back} more like it)" if kept_back else text)


_listener: ContextVar[Callable[[int, str], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[int, str], None]) -> Iterator[None]:
    """What this thread logs through ``logging`` meanwhile goes to ``listener(level, text)``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class _HandOn(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        listener = _listener.get()
        if listener is not None:
            listener(record.levelno, record.getMessage())
        elif not logging.getLogger().handlers:  # as logging does where nobody set it up
            print(record.getMessage(), file=sys.stderr)


def hand_on_logs() -> None:
    """From now on the package's warnings and errors go to whoever :func:`listening` names for the thread."""
    logger = logging.getLogger("hmr_prob_ros")
    if not any(isinstance(handler, _HandOn) for handler in logger.handlers):
        logger.addHandler(_HandOn(logging.WARNING))
