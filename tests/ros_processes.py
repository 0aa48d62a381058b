# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""Processes of the package in a ROS domain, and a client that is camera and planner to them; skips without ROS."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from hmr_prob_ros.bundle import Bundle, BundleError
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.msg import HumanHypothesesArray, HumanUncertaintyArray, PoseKeypointsArray
from hmr_prob_ros.ros.fastdds import fastdds_environment
from hmr_prob_ros.ros.images import camera_to_info, rgb_to_image

FRAME = "test_optical_frame"
CAMERA = Camera(512, 512, 600.0, 600.0, 256.0, 256.0)


def bundle_arguments() -> list[str]:
    """Parameters that choose the bundle under test (``HMR_PROB_TEST_BUNDLE``, default: the shipped one)."""
    folder = os.environ.get("HMR_PROB_TEST_BUNDLE")
    try:
        Bundle.load(folder)
    except BundleError as error:
        pytest.skip(f"no bundle to run: {error}")
    return ["-p", f"bundle:={folder}"] if folder else []


def photograph() -> np.ndarray:
    """scikit-image's astronaut (512, 512, 3) RGB."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image for its photograph of a person")
    return np.ascontiguousarray(data.astronaut())


class Process:
    """A module of the package as a child process in a ROS domain, with its output in a file.

    Args:
        script: runs this file instead of the module.
        variables: more of its environment.
    """

    def __init__(
        self,
        folder: Path,
        domain: int,
        *arguments: str,
        module: str = "estimator_node",
        script: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.log = folder / f"{module}_{random.getrandbits(32)}.log"
        environment = {**fastdds_environment(), **(variables or {})}
        root = str(Path(__file__).resolve().parents[1])
        environment.update(
            ROS_DOMAIN_ID=str(domain),
            ROS_LOG_DIR=str(folder),
            PYTHONPATH=os.pathsep.join(p for p in (root, environment.get("PYTHONPATH", "")) if p),
        )
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *([str(script)] if script else ["-m", f"hmr_prob_ros.ros.{module}"]), *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while words not in self.text:
            assert self.process.poll() is None, f"the process ended: {self.text}"
            assert time.monotonic() < end, f"{words!r} did not come within {timeout} s: {self.text}"
            time.sleep(0.05)

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Client:
    """What a camera and a planner do: publishes pictures, collects what the estimator says."""

    def __init__(self, domain: int) -> None:
        os.environ.update({k: v for k, v in fastdds_environment().items() if k.endswith("PROFILES_FILE")})
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("test_client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.image = self.node.create_publisher(Image, "/camera/image_raw", QoSProfile(depth=4))
        self.compressed = self.node.create_publisher(
            CompressedImage, "/camera/image_raw/compressed", QoSProfile(depth=4)
        )
        self.info = self.node.create_publisher(CameraInfo, "/camera/camera_info", QoSProfile(depth=4))
        self.keypoints = self.node.create_publisher(PoseKeypointsArray, "/human/keypoints2d", QoSProfile(depth=4))
        self.got: dict[str, list[Any]] = {
            "hypotheses": [],
            "uncertainty": [],
            "markers": [],
            "overlay": [],
            "diagnostics": [],
        }
        self.listen(HumanHypothesesArray, "/human/hypotheses", "hypotheses")
        self.listen(HumanUncertaintyArray, "/human/uncertainty", "uncertainty")
        self.listen(DiagnosticArray, "/diagnostics", "diagnostics")
        self.seconds = 1_000_000

    def listen(self, kind: type, topic: str, name: str, qos: QoSProfile | None = None) -> Any:
        return self.node.create_subscription(kind, topic, self.got[name].append, qos or QoSProfile(depth=10))

    def spin_until(self, done: Callable[[], Any], timeout: float = 20) -> bool:
        end = time.monotonic() + timeout
        while not (found := done()) and (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(0.05, left))
        return bool(found)

    def header(self) -> Header:
        """A header with a stamp of its own, one second after the last."""
        self.seconds += 1
        return Header(stamp=Time(sec=self.seconds, nanosec=123_456_789), frame_id=FRAME)

    def send_info(self, header: Header, camera: Camera = CAMERA) -> None:
        msg = camera_to_info(camera, CameraInfo(header=header))
        self.info.publish(msg)

    def send(self, image: np.ndarray, header: Header | None = None) -> Header:
        header = header or self.header()
        self.image.publish(rgb_to_image(image, Image(header=header)))
        return header

    def answers(self, header: Header, name: str = "hypotheses") -> list[Any]:
        return [m for m in self.got[name] if m.header.stamp == header.stamp]

    def answer(self, header: Header, name: str = "hypotheses", timeout: float = 20) -> Any:
        assert self.spin_until(lambda: self.answers(header, name), timeout), f"no {name} for {header.stamp}"
        return self.answers(header, name)[0]

    def call(self, kind: Any, service: str, request: Any, node: str = "/human_estimator", timeout: float = 20) -> Any:
        """Call a service of a node and give its answer."""
        caller = self.node.create_client(kind, f"{node}/{service}")
        assert self.spin_until(caller.service_is_ready, timeout), f"no service {node}/{service}"
        future = caller.call_async(request)
        assert self.spin_until(future.done, timeout), f"no answer of {node}/{service}"
        self.node.destroy_client(caller)
        return future.result()

    def set_parameters(
        self, values: dict[str, Any], node: str = "/human_estimator", *, at_once: bool = False
    ) -> list[str]:
        """Set parameters one by one, or atomically; the reasons why they were refused, "" where they were not."""
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        if at_once:
            request = SetParametersAtomically.Request(parameters=parameters)
            results = [self.call(SetParametersAtomically, "set_parameters_atomically", request, node).result]
        else:
            results = self.call(
                SetParameters, "set_parameters", SetParameters.Request(parameters=parameters), node
            ).results
        return ["" if r.successful else r.reason or "refused" for r in results]

    def change_state(self, transition: str, node: str = "/human_estimator", timeout: float = 30) -> bool:
        """Take a managed node through a transition; whether it went well."""
        request = ChangeState.Request(transition=Transition(label=transition))
        return bool(self.call(ChangeState, "change_state", request, node, timeout).success)

    def state(self, node: str = "/human_estimator") -> str:
        return str(self.call(GetState, "get_state", GetState.Request(), node).current_state.label)

    def diagnosis(
        self, done: Callable[[Any], Any] = lambda status: True, timeout: float = 20, since: int | None = None
    ) -> tuple[Any, dict]:
        """The next status of the estimator for which ``done`` holds, and its values.

        Args:
            since: number of diagnostics that had come before what they are to tell of; None for now.
        """
        start = len(self.got["diagnostics"]) if since is None else since

        def found() -> list[Any]:
            return [s for m in self.got["diagnostics"][start:] for s in m.status if done(s)]

        assert self.spin_until(found, timeout), [
            (s.level, s.message) for m in self.got["diagnostics"][start:] for s in m.status
        ]
        return found()[0], {v.key: v.value for v in found()[0].values}

    def wait_for_node(self, seconds: float = 0.5) -> None:
        """Until the node and this client see each other."""
        connected = self.spin_until(
            lambda: (
                self.image.get_subscription_count()
                and self.info.get_subscription_count()
                and self.node.count_publishers("/human/hypotheses")
            ),
            30,
        )
        assert connected, "the node was not discovered"
        self.spin_until(lambda: False, seconds)  # discovery of the other direction

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@contextmanager
def running_node(client: Client, folder: Path) -> Iterator[Process]:
    """The estimator, answering already; afterwards it must end well."""
    process = Process(folder, client.context.get_domain_id(), "--ros-args", *bundle_arguments())
    try:
        client.wait_for_node()
        client.answer(client.send(photograph()))
        yield process
        assert process.end(signal.SIGTERM) == 0, process.text
        assert "Traceback" not in process.text
    finally:
        process.end(signal.SIGKILL)
