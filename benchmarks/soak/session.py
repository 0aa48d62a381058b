"""The processes of the soak, what they are told to do, and what they write down."""

from __future__ import annotations

__all__ = ["Soak", "SoakError", "Status"]

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from figures import ACCOUNTED, Log

from hmr_prob_ros.ros.fastdds import remove_broken_segments
from hmr_prob_ros.ros.processes import ChildProcess, child_processes, die_with_parent, private_environment
from launch import usage_of

_HERE = Path(__file__).parent


class SoakError(RuntimeError):
    """The run cannot go on; the text says why."""


class Status(NamedTuple):
    """What the node said about itself in one second."""

    level: int
    message: str
    values: dict[str, str]


class Soak:
    """Camera, node and observer as processes in a ROS domain of their own; for a ``with`` block.

    Whatever they write lies in ``folder``: ``sent.i64``, ``answers.i64``, ``people.f64``, ``usage.f64`` (time, CPU
    seconds so far and resident bytes of the node, once a second), ``diagnostics.jsonl`` and logs.

    Args:
        folder: of the run.
        clip: what the camera plays.
        camera: camera_info yaml of the clip.
        parameters: of the node.
        rate: of the camera.

    Raises:
        ProcessError, SoakError: a process did not start, or ended before its time.
    """

    def __init__(
        self, folder: Path, clip: Path, camera: Path | None, parameters: Mapping[str, Any], rate: float
    ) -> None:
        self.folder, self.rate = folder, rate
        self.last = Status(0, "", {})
        """What the node said last about itself."""
        self._clip, self._camera, self._parameters = clip, camera, parameters
        self._stack = contextlib.ExitStack()
        self._heard = 0
        self._next_sample = 0.0

    def __enter__(self) -> Soak:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        environment = private_environment()
        environment["ROS_LOG_DIR"] = str(self.folder)
        os.environ.update(environment)  # this process listens to the same domain
        remove_broken_segments()
        self._join()
        self._usage = self._stack.enter_context((self.folder / "usage.f64").open("wb", buffering=0))
        self._said = self._stack.enter_context((self.folder / "diagnostics.jsonl").open("w", buffering=1))
        children = self._stack.enter_context(child_processes())
        self._scripts = {"observer": self._script("observer.py", f"--out={self.folder}")}
        options = [f"--log={self.folder / 'sent.i64'}", f"--rate={self.rate}"]
        options += [] if self._camera is None else [f"--camera={self._camera}"]
        self._scripts["camera"] = self._script("camera.py", str(self._clip), *options)
        arguments = ["--ros-args", *(part for k, v in self._parameters.items() for part in ("-p", f"{k}:={v}"))]
        self.node = ChildProcess("estimator_node", arguments, environment, self.folder / "node.log", show=False)
        children.append(self.node)
        if not self.until(lambda: b"ready:" in self.node.log.read_bytes(), 180):
            raise SoakError("the node was not ready within 180 s")
        if not self.until(lambda: self._control.count_subscribers("/human/hypotheses") > 0, 30):
            raise SoakError("the observer did not come within 30 s")
        self.tell("play")
        if not self.until(lambda: len(self.log().answers) > 0, 30):
            raise SoakError(f"no answer came within 30 s of the camera's start: see {self.folder}")

    def _join(self) -> None:
        """Be a node of the domain: it hears diagnostics, sets parameters and changes the state."""
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lifecycle_msgs.srv import ChangeState
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.executors import SingleThreadedExecutor

        rclpy.init()
        self._stack.callback(rclpy.try_shutdown)
        self._control = rclpy.create_node("soak_control")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._control)
        self._control.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._services = {
            kind: self._control.create_client(kind, f"/human_estimator/{name}")
            for kind, name in ((SetParametersAtomically, "set_parameters_atomically"), (ChangeState, "change_state"))
        }

    def _script(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.folder / f"{Path(name).stem}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, str(_HERE / name), *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._stack.callback(_end, process)
        return process

    # while it runs ----------------------------------------------------------------------------------------------

    def until(self, done: Callable[[], Any], timeout: float) -> bool:
        """Listen until ``done``, at most ``timeout`` seconds; whether it was done."""
        end = time.monotonic() + timeout
        while True:
            self._look()
            if done():
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._executor.spin_once(timeout_sec=min(0.1, left))

    def wait(self, seconds: float) -> None:
        """Listen for so long."""
        self.until(lambda: False, seconds)

    def tell(self, command: str) -> None:
        """Give the camera a command."""
        stdin = self._scripts["camera"].stdin
        assert stdin is not None
        stdin.write(f"{command}\n".encode())
        stdin.flush()

    def log(self) -> Log:
        """What was written so far."""
        return Log.read(self.folder)

    def status(self, timeout: float = 5.0) -> Status:
        """What the node says next about itself.

        Raises:
            SoakError: it says nothing.
        """
        before = self._heard
        # The first one may have been on its way already.
        if not self.until(lambda: self._heard >= before + 2, timeout):
            raise SoakError(f"no diagnostics came for {timeout:g} s")
        return self.last

    def counts(self) -> dict[str, int]:
        """What became of the frames since the node's start, by its diagnostics."""
        values = self.status().values
        return {name: int(values[f"frames_{name}"]) for name in ("received", "processed", *ACCOUNTED)}

    def settled(self) -> tuple[int, int, dict[str, int]]:
        """Frames sent, answers heard and the node's counts, with nothing under way; the camera pauses after it."""
        self.tell("pause")
        self.wait(1.0)
        self.tell("once")  # what was lost right before it is missed now
        self.wait(1.0)
        counts, log = self.counts(), self.log()
        return len(log.sent), len(log.answers), counts

    def set_parameters(self, values: Mapping[str, Any], timeout: float = 10.0) -> str | None:
        """Set parameters at once; "" where they were taken, else the reason; None where no answer came."""
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        request = SetParametersAtomically.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        )
        answer = self._call(SetParametersAtomically, request, timeout)
        if answer is None:
            return None
        return "" if answer.result.successful else answer.result.reason or "refused"

    def change_state(self, transition: str, timeout: float = 30.0) -> bool:
        """Take the node through a transition; whether it went well."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(label=transition))
        answer = self._call(ChangeState, request, timeout)
        return answer is not None and bool(answer.success)

    def end(self) -> tuple[int, bool]:
        """End the node with SIGINT: its exit code, and whether its log is free of tracebacks."""
        code = self.node.end(15)
        return code, "Traceback" not in self.node_log()

    def node_log(self) -> str:
        """What the node has logged, without colours."""
        return re.sub(r"\x1b\[\d*m", "", self.node.log.read_text(errors="replace"))

    def _call(self, kind: Any, request: Any, timeout: float) -> Any:
        client = self._services[kind]
        if not self.until(client.service_is_ready, timeout):
            return None
        future = client.call_async(request)
        if not self.until(future.done, timeout):
            client.remove_pending_request(future)
            return None
        return future.result()

    def _on_diagnostics(self, message: Any) -> None:
        for one in message.status:
            if one.name.startswith("hmr_prob_ros: estimator"):
                level = int.from_bytes(one.level, "little") if isinstance(one.level, bytes) else int(one.level)
                self.last = Status(level, one.message, {value.key: value.value for value in one.values})
                self._heard += 1
                self._said.write(json.dumps({"time": time.time(), **self.last._asdict()}) + "\n")

    def _look(self) -> None:
        """Once a second: what the node costs, and whether everybody lives."""
        if time.monotonic() < self._next_sample or not hasattr(self, "node"):
            return
        self._next_sample = time.monotonic() + 1.0
        if not self.node.running():
            raise self.node.fail(self.node.process.returncode)
        for name, process in self._scripts.items():
            if process.poll() is not None:
                raise SoakError(f"the {name} ended: see {self.folder / name}.log")
        usage = usage_of(self.node.process.pid)
        if usage is not None:
            self._usage.write(np.array(usage, np.float64).tobytes())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
