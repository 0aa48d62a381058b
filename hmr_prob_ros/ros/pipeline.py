"""Two stages of work in two threads, with room for one item before each: what is newer takes the place of what waits.

A slow stage makes the pipeline drop items and never lag behind. Each stage is one thread and takes its items in the
order in which they came, so that what a stage remembers of earlier items needs no lock. Nothing here knows of ROS.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Pipeline", "Slot", "Watchdog", "Work"]

Item = TypeVar("Item")
Half = TypeVar("Half")


class Work(NamedTuple):
    """What a stage is at."""

    stage: str
    since: float
    """``time.monotonic()``; tells this item from the next one, too."""


class Slot(Generic[Item]):
    """Room for one item between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._stopped = False
        self.held = False
        """Whether the item waits for its time only: whoever takes it is free."""

    def put(self, item: Item, refuse: Callable[[Item, Item], bool] | None = None) -> Item | None:
        """Leave an item and return the one that waited, which is lost.

        Where ``refuse(waiting, item)`` is true the waiting one stays, and ``item`` itself comes back.
        """
        with self._changed:
            waiting = self._item
            if waiting is not None and refuse is not None and refuse(waiting, item):
                return item
            self._item = item
            self._changed.notify()
            return waiting

    def take(self, not_before: float = 0.0) -> Item | None:
        """Wait for an item, and until ``time.monotonic()`` says so, and take it; None once it is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._stopped)
            while not self._stopped and (wait := not_before - time.monotonic()) > 0:
                self.held = True
                self._changed.wait(wait)  # meanwhile a newer item may take the place of this one
            self.held = False
            if self._stopped:
                return None
            item, self._item = self._item, None
            return item

    def stop(self) -> None:
        """No item is given out any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Pipeline(Generic[Item, Half]):
    """Runs ``second(first(item))`` for the newest item, both halves at the same time.

    Args:
        first: the first half; None ends the work on that item.
        second: the second half.
        failed: gets the exception of either half. That item is lost, the next one goes its way.
        dropped: gets the name of the stage in front of which an item was replaced by a newer one; ``period`` where
            that stage was free and only waited for the period to pass.
        refuse: ``refuse(waiting, item)`` is true where an item is not worth the place of the waiting one.
        period: the shortest time between two items in seconds, asked before each.
        names: of the two stages.
        threads: 2, or 1 to do both halves in one thread, one item after the other.
    """

    def __init__(
        self,
        first: Callable[[Item], Half | None],
        second: Callable[[Half], None],
        *,
        failed: Callable[[Exception], None],
        dropped: Callable[[str], None],
        refuse: Callable[[Item, Item], bool] | None = None,
        period: Callable[[], float] = lambda: 0.0,
        names: tuple[str, str] = ("first", "second"),
        threads: int = 2,
    ) -> None:
        if threads not in (1, 2):
            raise ValueError(f"a pipeline of two stages has 1 or 2 threads, not {threads}")
        self._first, self._second = first, second
        self._failed, self._dropped = failed, dropped
        self._refuse, self._period, self._names = refuse, period, names
        self._items: Slot[Item] = Slot()
        self._halves: Slot[Half] = Slot()
        work = [(names[0], self._work_first)] + [(names[1], self._work_second)] * (threads - 1)
        self._pass_on: Callable[[Half], None] = self._hand_over if threads == 2 else self._run_second
        self._work: dict[str, Work | None] = {}
        self._closed = False
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in work]
        for thread in self._threads:
            thread.start()

    @property
    def closed(self) -> bool:
        """Whether :meth:`stop` or :meth:`close` was called: what a half still works on is not wanted any more."""
        return self._closed

    @property
    def alive(self) -> bool:
        """Whether one of its threads still runs."""
        return any(thread.is_alive() for thread in self._threads)

    def work(self) -> list[Work]:
        """What the stages are at."""
        return [work for work in list(self._work.values()) if work is not None]

    def put(self, item: Item) -> bool:
        """Give the first stage an item without waiting; False where it was refused."""
        held = self._items.held
        lost = self._items.put(item, self._refuse)
        if lost is item:
            return False
        if lost is not None:
            self._dropped("period" if held else self._names[0])
        return True

    def stop(self) -> None:
        """Drop the items that wait and end each thread when it has finished its item, without waiting for that."""
        self._closed = True
        self._items.stop()
        self._halves.stop()

    def close(self, timeout: float = 10.0) -> bool:
        """:meth:`stop`, and wait for the threads to end; whether all of them did within ``timeout`` seconds."""
        self.stop()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not self.alive

    def _work_first(self) -> None:
        due = 0.0
        name = self._names[0]
        while (item := self._items.take(due)) is not None:
            now = time.monotonic()
            if (period := self._period()) > 0:
                due = max(due, now - period / 2) + period
            self._work[name] = Work(name, now)
            try:
                half = self._first(item)
                if half is not None and not self._closed:
                    self._pass_on(half)
            except Exception as error:  # an item that breaks a library must not end the pipeline
                self._fail(error)
            self._work[name] = None

    def _hand_over(self, half: Half) -> None:
        if self._halves.put(half) is not None:
            self._dropped(self._names[1])

    def _work_second(self) -> None:
        while (half := self._halves.take()) is not None:
            self._run_second(half)

    def _run_second(self, half: Half) -> None:
        first, second = self._names
        if len(self._threads) == 1:
            self._work[first] = None
        self._work[second] = Work(second, time.monotonic())
        try:
            self._second(half)
        except Exception as error:
            self._fail(error)
        self._work[second] = None

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # nor must what cannot be told
            self._failed(error)


class Watchdog:
    """Tells which stage is late, where it is asked now and then.

    Two looks, at least ``pause`` seconds apart, must find a stage at the same item: where the whole process stood still
    for a while, the first look after that comes too early.
    """

    def __init__(self, pause: float = 0.2) -> None:
        self._pause = pause
        self._suspect: tuple[Work, float] | None = None

    def late(self, work: list[Work], limit: float) -> Work | None:
        """A stage that has been at its item for more than ``limit`` seconds; with 0 none ever is."""
        now = time.monotonic()
        found = [one for one in work if 0 < limit < now - one.since]
        if not found:
            self._suspect = None
        elif self._suspect is None or self._suspect[0] not in found:
            self._suspect = found[0], now
        elif now - self._suspect[1] >= self._pause:
            late, self._suspect = self._suspect[0], None
            return late
        return None
