"""The estimator node (``hmr-prob-node``): camera images in, hypotheses out.

The executor's thread only stores the newest frame. One thread finds the people in it, another one makes their
hypotheses and publishes them, so that both work at the same time; a slow frame makes the node drop frames and never
lag behind the camera.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from hmr_prob_ros.msg import HumanHypothesesArray, HumanUncertaintyArray, PoseKeypointsArray

from ..bundle import Bundle
from ..camera import Camera, CameraError
from ..detectors import make_detector
from ..drawing import draw_overlay
from ..engines import EngineError, engine_or_fallback, usual_threads
from ..estimator import Estimator
from ..hypotheses import HypothesisError, HypothesisSet, Person2D
from .cameras import CameraInfos
from .cdr import peek_stamp, read_image, serialize_people
from .conversions import people_from_msg, people_to_msgs, plain_cdr_trouble, stamp_to_nanoseconds
from .fastdds import remove_broken_segments
from .images import CameraInfoError, ImageError, compressed_to_rgb, image_to_rgb, rgb_to_image
from .markers import MarkerBuilder
from .parameters import LIVE, PARAMETERS, Settings, declare
from .pipeline import Pipeline
from .statistics import Statistics

__all__ = ["EstimatorNode", "main"]

_SAY_AGAIN = 5.0  # seconds between two equal complaints
_JUMP_BACK = 100_000_000  # ns: a stamp this far back is a new run of the clip, a smaller step back is disorder
_EXPECTED = (ImageError, HypothesisError, CameraError, CameraInfoError, EngineError)


class _Arrival(NamedTuple):
    """What came from a camera or from a detector in another node."""

    stamp: int
    """Nanoseconds."""
    message: bytes | Image | CompressedImage | PoseKeypointsArray


@dataclass
class _Frame:
    """What the first stage hands to the second one."""

    header: Header
    stamp: int
    image: np.ndarray | None
    camera: Camera
    people: list[Person2D]
    stages: dict[str, float]
    """Milliseconds."""
    started: float
    passed_on: float


class EstimatorNode(Node):
    """Subscribes to images (raw and compressed) or keypoints and to camera info; publishes below ``/human``.

    Args:
        estimator: a ready estimator; None makes one from the parameters.

    Raises:
        ParameterError, BundleError, DetectorError, EngineError: the node cannot start; the text names the mend.
    """

    def __init__(self, estimator: Estimator | None = None, **kwargs: Any) -> None:
        super().__init__("human_estimator", **kwargs)
        self.settings = declare(self)
        self.estimator = estimator or self._make_estimator(self.settings)
        self._from_keypoints = self.estimator.detector is None
        self._warm_up()

        self._statistics = Statistics()
        self._said: dict[str, float] = {}
        self._infos = CameraInfos(self.settings.topics()[2], self._complain, self.get_logger().warning)
        self._last_stamp: int | None = None
        self._frame_id = ""
        self._shape: tuple[int, ...] | None = None
        self._closing = False
        trouble = plain_cdr_trouble()
        if trouble:
            self.get_logger().info(f"messages go through Python objects, about a millisecond a frame: {trouble}")
        self._plain_cdr = not trouble
        self._builder = MarkerBuilder(self.settings.marker_lifetime)

        reliable = QoSProfile(depth=10)
        self._hypotheses_pub = self.create_publisher(HumanHypothesesArray, "human/hypotheses", reliable)
        self._uncertainty_pub = self.create_publisher(HumanUncertaintyArray, "human/uncertainty", reliable)
        self._markers_pub = self.create_publisher(MarkerArray, "human/markers", reliable)
        self._overlay_pub = self.create_publisher(Image, "human/overlay", qos_profile_sensor_data)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, "/diagnostics", reliable)
        self.create_timer(1.0, self._diagnose)
        self._subscribe()
        self.add_on_set_parameters_callback(self._set_parameters)
        # What lives now lives for good: without it a full collection in the middle of a frame costs up to 50 ms.
        gc.collect()
        gc.freeze()
        # Whatever remembers earlier frames (tracker, detector, order of stamps) belongs to the first stage alone, so
        # resets need not travel; the second stage gets its frames in the order of the first.
        self._pipeline: Pipeline[_Arrival, _Frame] = Pipeline(
            self._detect,
            self._infer,
            failed=self._failed,
            dropped=self._statistics.drop,
            refuse=_is_twin,
            period=self._period,
            names=("detect", "infer"),
            threads=2 if self.settings.pipeline else 1,
        )

    def _make_estimator(self, settings: Settings) -> Estimator:
        options = settings.options()
        if settings.detector in ("blazepose", "rtmlib"):
            options.setdefault("max_people", settings.max_people)  # each person costs it a run of its network
        bundle = Bundle.load(settings.bundle or None)  # before the detector: it loads faster and fails more often
        detector = None if settings.detector == "topic" else make_detector(settings.detector, **options)
        # An engine that has to be built is built here, and none is ever built for a frame.
        engine = engine_or_fallback(
            settings.engine,
            bundle.model_path,
            self.get_logger().warning,
            threads=settings.engine_threads or usual_threads(settings.samples),
            precision=settings.precision,
        )
        return Estimator(
            bundle,
            detector=detector,
            engine=engine,
            samples=settings.samples,
            modes=settings.modes,
            seed=settings.seed,
        )

    def _warm_up(self) -> None:
        """The first frame of a detector loads its weights: done before the first image comes."""
        if not self._from_keypoints:
            self.estimator(np.zeros((480, 640, 3), np.uint8), Camera.guess(640, 480))
            self.estimator.reset()

    def _subscribe(self) -> None:
        # Newest frame only: best effort takes what any camera driver offers, depth 1 keeps no queue.
        newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        raw, compressed, info = self.settings.topics()
        self.create_subscription(CameraInfo, info, self._infos.add, qos_profile_sensor_data)
        if self._from_keypoints:
            inputs = [self.settings.keypoints_topic]
            self.create_subscription(PoseKeypointsArray, inputs[0], self._store, newest)
        else:
            inputs = []
            if self.settings.transport in ("auto", "raw"):
                inputs.append(raw)
                take = self._store_bytes if self._plain_cdr else self._store
                self.create_subscription(Image, raw, take, newest, raw=self._plain_cdr)
            if self.settings.transport in ("auto", "compressed"):
                inputs.append(compressed)
                self.create_subscription(CompressedImage, compressed, self._store, newest)
        bundle = self.estimator.bundle
        self.get_logger().info(
            f"ready: {self._detector_name()} on {' and '.join(inputs)}, {info}; bundle {bundle.name}, "
            f"{self.estimator.engine.name}, {self.estimator.samples} samples, {self.estimator.modes} modes"
        )

    def _detector_name(self) -> str:
        return "topic" if self.estimator.detector is None else self.estimator.detector.name

    # executor's thread ------------------------------------------------------------------------------------------

    def _store(self, msg: Any) -> None:
        self._put(_Arrival(stamp_to_nanoseconds(msg.header.stamp), msg))

    def _store_bytes(self, data: bytes) -> None:
        try:
            stamp = stamp_to_nanoseconds(peek_stamp(data))
        except ImageError as error:
            self._statistics.count("received")
            self._failed(error)
        else:
            self._put(_Arrival(stamp, data))

    def _put(self, arrival: _Arrival) -> None:
        if self._pipeline.put(arrival):
            self._statistics.count("received")

    def _diagnose(self) -> None:
        about = {
            "detector": self._detector_name(),
            "engine": self.estimator.engine.name,
            "bundle": self.estimator.bundle.name,
            "samples": str(self.estimator.samples),
            "modes": str(self.estimator.modes),
            "frame_id": self._frame_id,
        }
        header = Header(stamp=self.get_clock().now().to_msg())
        self._diagnostics_pub.publish(self._statistics.message(header, 1.0, about))

    def _set_parameters(self, parameters: Sequence[Any]) -> SetParametersResult:
        # Read-only parameters are refused by rclpy itself.
        for parameter in parameters:
            if parameter.name in LIVE:
                setattr(self.settings, parameter.name, parameter.value)
        return SetParametersResult(successful=True)

    # thread of either stage -------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        """A frame is lost, and only that."""
        if self._closing or not self.context.ok():
            return
        text = str(error) if isinstance(error, _EXPECTED) else f"frame dropped, {type(error).__name__}: {error}"
        self._statistics.fail(text)
        self._complain(text)

    def _complain(self, text: str) -> None:
        """Log an error, but the same one not more often than every five seconds."""
        now = time.monotonic()
        if now - self._said.get(text, -_SAY_AGAIN) >= _SAY_AGAIN:
            if len(self._said) > 100:
                self._said.clear()
            self._said[text] = now
            self.get_logger().error(text)

    # thread of the first stage ----------------------------------------------------------------------------------

    def _detect(self, arrival: _Arrival) -> _Frame | None:
        """Picture or keypoints -> the people in the frame and its camera; None for a frame that comes late."""
        started = time.perf_counter()
        stamp, msg = arrival
        if not self._in_order(stamp):
            return None
        stages: dict[str, float] = {}
        image = None
        if isinstance(msg, PoseKeypointsArray):
            header = msg.header
            camera = self._camera(stamp, 0, 0)
            people = sorted(people_from_msg(msg), key=lambda p: -p.score)[: self.settings.max_people]
            if any(p.id < 0 for p in people):
                people = self.estimator.tracker.update(people)
            stages["convert"] = 1e3 * (time.perf_counter() - started)
        else:
            header, image = _picture(msg)
            if image.shape != self._shape:
                if self._shape is not None:  # another camera or clip: nobody in it is where somebody was before
                    self.estimator.reset()
                self._shape = image.shape
            camera = self._camera(stamp, image.shape[1], image.shape[0])
            stages["convert"] = 1e3 * (time.perf_counter() - started)
            people = self.estimator.detect(image, camera, stages)
        self._frame_id = header.frame_id
        return _Frame(header, stamp, image, camera, people, stages, started, time.perf_counter())

    def _period(self) -> float:
        rate = self.settings.max_rate
        return 1 / rate if rate > 0 else 0.0

    def _in_order(self, stamp: int) -> bool:
        """False for a frame that was seen already or came late; a long way back begins a new run."""
        last = self._last_stamp
        if last is not None and stamp and stamp <= last:
            if last - stamp < _JUMP_BACK:
                if stamp != last:
                    self._statistics.count("dropped")
                return False
            self.get_logger().warning(
                f"the image stamp went back by {(last - stamp) * 1e-9:.1f} s: a new run begins, tracks are forgotten"
            )
            self.estimator.reset()
        self._last_stamp = stamp
        return True

    def _camera(self, stamp: int, width: int, height: int) -> Camera:
        return self._infos.camera(stamp, width, height, self.settings.camera_fov)

    # thread of the second stage ---------------------------------------------------------------------------------

    def _infer(self, frame: _Frame) -> None:
        """The people of a frame -> their hypotheses, published."""
        stages = frame.stages
        stages["wait"] = 1e3 * (time.perf_counter() - frame.passed_on)
        sure = [person for person in frame.people if person.score >= self.settings.min_score]
        found = self.estimator.infer(sure, frame.camera, stages)
        found = sorted(found, key=lambda p: -p.score)[: self.settings.max_people]
        before = time.perf_counter()
        latency = self._publish(found, frame)
        stages["publish"] = 1e3 * (time.perf_counter() - before)
        self._show(frame.image, found, frame.camera, frame.header)
        stages["total"] = 1e3 * (time.perf_counter() - frame.started)
        self._statistics.frame(latency, stages, len(found))

    def _publish(self, found: list[HypothesisSet], frame: _Frame) -> float:
        """Publish the hypotheses, then the uncertainty; milliseconds from the frame's stamp to between the two."""
        known, bundle = not frame.camera.guessed, self.estimator.bundle
        write = serialize_people if self._plain_cdr else people_to_msgs
        hypotheses, uncertainty = write(
            found, frame.header, camera_known=known, bundle=bundle.name, body_hash=bundle.body_hash
        )
        self._hypotheses_pub.publish(hypotheses)
        latency = (self.get_clock().now().nanoseconds - frame.stamp) * 1e-6
        if self.settings.publish_uncertainty:
            self._uncertainty_pub.publish(uncertainty)
        return latency

    def _show(self, image: np.ndarray | None, found: list[HypothesisSet], camera: Camera, header: Header) -> None:
        """Pictures for people, made only while somebody looks."""
        if self.settings.publish_markers and self._markers_pub.get_subscription_count():
            self._markers_pub.publish(self._builder.build(found, header))
        if image is not None and self.settings.publish_overlay and self._overlay_pub.get_subscription_count():
            picture = rgb_to_image(draw_overlay(image, found, camera), Image(header=header))
            self._overlay_pub.publish(picture)

    def close(self) -> None:
        """End both stages and give the detector back; call it before ``destroy_node``."""
        self._closing = True
        self._pipeline.close()
        self.estimator.close()


def _is_twin(waiting: _Arrival, arrival: _Arrival) -> bool:
    """The compressed twin of a waiting raw frame, or the other way round, is not a frame of its own."""
    return waiting.stamp == arrival.stamp and type(waiting.message) is not type(arrival.message)


def _picture(msg: bytes | Image | CompressedImage) -> tuple[Header, np.ndarray]:
    """Header and (H, W, 3) uint8 RGB picture of an image message, a serialised or a compressed one."""
    if isinstance(msg, CompressedImage):
        return msg.header, compressed_to_rgb(msg)
    if not isinstance(msg, bytes):
        return msg.header, image_to_rgb(msg)
    raw = read_image(msg)
    stamp = Time(sec=raw.header.stamp.sec, nanosec=raw.header.stamp.nanosec)
    return Header(stamp=stamp, frame_id=raw.header.frame_id), image_to_rgb(raw)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 0 then, 2 when it cannot start."""
    arguments = list(sys.argv if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print("usage: hmr-prob-node [--ros-args [-p NAME:=VALUE ...] [--params-file FILE]]\n")
        print("\n".join(f"{p.name:20} {p.default!r:22} {p.description}" for p in PARAMETERS))
        return 0
    node: EstimatorNode | None = None
    # Both signals as KeyboardInterrupt, also while libraries load, before rclpy has its own handlers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        remove_broken_segments()
        rclpy.init(args=arguments)
        node = EstimatorNode()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (ValueError, RuntimeError, OSError, ImportError, InvalidTopicNameException) as error:
        print(f"hmr-prob-node: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        _quietly_close(node)
    return 0


def _quietly_close(node: EstimatorNode | None) -> None:
    try:
        if node is not None:
            node.close()
            node.destroy_node()
        if rclpy.ok():
            rclpy.shutdown()
    except KeyboardInterrupt:  # a second Ctrl-C while closing
        pass


if __name__ == "__main__":
    sys.exit(main())
