"""Nodes as child processes in a ROS domain of their own, which end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from .fastdds import fastdds_environment

__all__ = ["ChildProcess", "ProcessError", "child_processes", "die_with_parent", "private_environment"]


class ProcessError(RuntimeError):
    """A process failed; the text holds the end of its log.

    ``exit_code`` is 2 for something that was asked for and cannot be had (an input, a bundle), else 1.
    """

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def private_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of processes that belong together: the profile for images and a ROS domain of their own.

    Raises:
        ProcessError: the profile is not installed.
    """
    try:
        result = fastdds_environment(environment)
    except FileNotFoundError as error:
        raise ProcessError(str(error)) from error
    # Domains up to 101 use ports below Linux' ephemeral ones; those from 30 on are rarely anybody's.
    result["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(30, 101))
    result.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # Humble does not know it and looks further
    result["PYTHONUNBUFFERED"] = "1"
    # The children find the same package, also when it runs from a source tree that is not installed.
    root = str(Path(__file__).resolve().parents[2])
    result["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in [result.get("PYTHONPATH", ""), root] if p))
    return result


def die_with_parent() -> None:
    """For ``preexec_fn``: a parent that is killed leaves no process behind. Linux only."""
    # PR_SET_PDEATHSIG; nothing is lost where it fails.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class ChildProcess:
    """One module of :mod:`hmr_prob_ros.ros` as a process, its log file, and how to end it.

    Args:
        name: of the module.
        arguments: of its command line.
        environment: all of it.
        log: file for what it says.
        show: its standard output goes where the parent's goes.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, show: bool
    ) -> None:
        self.name = name
        self.log = log
        self._file: BinaryIO = log.open("wb")
        # A session of its own: Ctrl-C reaches the parent only, which then ends the children in order.
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"hmr_prob_ros.ros.{name}", *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=None if show else self._file,  # progress bars
            stderr=self._file,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def end(self, seconds: float) -> int:
        """Ask the process to finish, wait, and return its exit code; it is killed when it does not."""
        if self.running():
            self.process.send_signal(signal.SIGINT)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """Wait, and return its exit code; it is killed when it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once, close its log and return its exit code."""
        if self.running():
            self.process.kill()
        code = self.process.wait()
        self._file.close()
        return code

    def fail(self, code: int) -> ProcessError:
        """What to raise where it ended with this code."""
        text = self.log.read_text(errors="replace").strip().splitlines() if self.log.is_file() else []
        return ProcessError("\n".join([f"{self.name} ended with exit code {code}", *text[-15:]]), 2 if code == 2 else 1)


@contextlib.contextmanager
def child_processes() -> Iterator[list[ChildProcess]]:
    """A list for processes, all of which are ended afterwards."""
    children: list[ChildProcess] = []
    try:
        yield children
    finally:
        # Asked first: a process killed while it makes shared memory leaves a segment that hangs whoever opens it next.
        for child in children:
            if child.running():
                child.process.send_signal(signal.SIGTERM)
        for child in reversed(children):
            child.wait(10)
            child.kill()
