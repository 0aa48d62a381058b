"""The estimator node (``hmr-prob-node``): camera images in, hypotheses out.

The executor's thread only stores the newest frame; one worker thread takes it, so that a slow frame makes the node
drop frames and never lag behind the camera.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rclpy
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
from ..estimator import Estimator
from ..hypotheses import HypothesisError, HypothesisSet
from .conversions import hypotheses_to_msg, people_from_msg, stamp_to_nanoseconds, uncertainty_to_msg
from .fastdds import remove_broken_segments
from .images import CameraInfoError, ImageError, camera_from_info, compressed_to_rgb, image_to_rgb, rgb_to_image
from .markers import MarkerBuilder
from .parameters import LIVE, PARAMETERS, Settings, declare
from .statistics import Statistics

__all__ = ["EstimatorNode", "main"]

_SAY_AGAIN = 5.0  # seconds between two equal complaints
_JUMP_BACK = 100_000_000  # ns: a stamp this far back is a new run of the clip, a smaller step back is disorder
_INFOS = 16  # camera infos kept to find the one with the image's stamp


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
        self._infos: dict[int, CameraInfo] = {}
        self._info: CameraInfo | None = None
        self._camera_cache: tuple[CameraInfo, tuple[int, int], Camera] | None = None
        self._last_stamp: int | None = None
        self._frame_id = ""
        self._shape: tuple[int, ...] | None = None
        self._slot: Any = None
        self._wake = threading.Condition()
        self._stop = False
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
        self._worker = threading.Thread(target=self._work, name="estimator", daemon=True)
        self._worker.start()

    def _make_estimator(self, settings: Settings) -> Estimator:
        options = settings.options()
        if settings.detector == "rtmlib":
            options.setdefault("max_people", settings.max_people)  # each person costs it a run of its network
        bundle = Bundle.load(settings.bundle or None)  # before the detector: it loads faster and fails more often
        detector = None if settings.detector == "topic" else make_detector(settings.detector, **options)
        return Estimator(
            bundle,
            detector=detector,
            engine=settings.engine,
            samples=settings.samples,
            modes=settings.modes,
            seed=settings.seed,
            threads=settings.engine_threads,
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
        self.create_subscription(CameraInfo, info, self._on_info, qos_profile_sensor_data)
        if self._from_keypoints:
            inputs = [self.settings.keypoints_topic]
            self.create_subscription(PoseKeypointsArray, inputs[0], self._store, newest)
        else:
            inputs = []
            if self.settings.transport in ("auto", "raw"):
                inputs.append(raw)
                self.create_subscription(Image, raw, self._store, newest)
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

    def _on_info(self, info: CameraInfo) -> None:
        self._info = info
        self._infos[stamp_to_nanoseconds(info.header.stamp)] = info
        while len(self._infos) > _INFOS:
            self._infos.pop(next(iter(self._infos)))

    def _store(self, msg: Any) -> None:
        with self._wake:
            if self._slot is not None:
                # The compressed twin of a waiting raw frame is not a frame of its own.
                if type(msg) is not type(self._slot) and msg.header.stamp == self._slot.header.stamp:
                    return
                self._statistics.count("dropped")
            self._statistics.count("received")
            self._slot = msg
            self._wake.notify()

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

    # worker's thread --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        next_due = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._slot is not None or self._stop)
                wait = next_due - time.monotonic()
                if wait > 0 and not self._stop:  # meanwhile a newer frame may take the place of this one
                    self._wake.wait_for(lambda: self._stop, timeout=wait)
                if self._stop:
                    return
                msg, self._slot = self._slot, None
            if self.settings.max_rate > 0:
                next_due = max(next_due, time.monotonic() - 0.5 / self.settings.max_rate) + 1 / self.settings.max_rate
            self._try(msg)

    def _try(self, msg: Any) -> None:
        try:
            self._process(msg)
        except (ImageError, HypothesisError, CameraError, CameraInfoError) as error:
            self._fail(str(error))
        except Exception as error:  # a frame that breaks a library must not end the node
            if not self._stop and self.context.ok():
                self._fail(f"frame dropped, {type(error).__name__}: {error}")

    def _fail(self, text: str) -> None:
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

    def _process(self, msg: Any) -> None:
        start = time.perf_counter()
        stamp = stamp_to_nanoseconds(msg.header.stamp)
        if not self._in_order(stamp):
            return
        self._frame_id = msg.header.frame_id
        image = None
        if isinstance(msg, PoseKeypointsArray):
            camera = self._camera(stamp, 0, 0)
            seen = people_from_msg(msg)
            people = sorted(seen, key=lambda p: -p.score)[: self.settings.max_people]
            if any(p.id < 0 for p in people):
                people = self.estimator.tracker.update(people)
            converted = time.perf_counter()
            found = self.estimator.infer(people, camera)
        else:
            image = compressed_to_rgb(msg) if isinstance(msg, CompressedImage) else image_to_rgb(msg)
            if image.shape != self._shape:
                if self._shape is not None:  # another camera or clip: nobody in it is where somebody was before
                    self.estimator.reset()
                self._shape = image.shape
            camera = self._camera(stamp, image.shape[1], image.shape[0])
            converted = time.perf_counter()
            found = self.estimator(image, camera)
        found = [person for person in found if person.score >= self.settings.min_score]
        found = sorted(found, key=lambda p: -p.score)[: self.settings.max_people]
        stages = {"convert": 1e3 * (converted - start), **self.estimator.timings}
        before = time.perf_counter()
        known = not camera.guessed
        bundle = self.estimator.bundle
        self._hypotheses_pub.publish(
            hypotheses_to_msg(found, msg.header, camera_known=known, bundle=bundle.name, body_hash=bundle.body_hash)
        )
        latency = (self.get_clock().now().nanoseconds - stamp) * 1e-6
        if self.settings.publish_uncertainty:
            self._uncertainty_pub.publish(uncertainty_to_msg(found, msg.header, camera_known=known))
        stages["publish"] = 1e3 * (time.perf_counter() - before)
        self._show(image, found, camera, msg.header)
        stages["total"] = 1e3 * (time.perf_counter() - start)
        self._statistics.frame(latency, stages, len(found))

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
        """The camera of the frame with this stamp: its own camera info, else the newest, else a guess."""
        info = self._infos.get(stamp) or self._info
        if info is not None:
            cached = self._camera_cache
            if cached is not None and cached[1] == (width, height) and _same_optics(cached[0], info):
                return cached[2]
            try:
                camera = camera_from_info(info, width, height)
                self._camera_cache = (info, (width, height), camera)
                return camera
            except (CameraInfoError, CameraError) as error:
                self._complain(str(error))
            width, height = width or info.width, height or info.height
        if not width or not height:
            raise CameraInfoError(
                f"keypoints came but no camera info on {self.settings.topics()[2]}: "
                "without it neither the focal length nor the image size is known"
            )
        guess = Camera.guess(width, height)
        if self.settings.camera_fov > 0:
            return Camera.from_fov(width, height, self.settings.camera_fov)
        if "guess" not in self._said:
            self._said["guess"] = time.monotonic()
            self.get_logger().warning(
                f"no usable camera info on {self.settings.topics()[2]}: "
                f"the focal length is guessed as {guess.fx:.0f} px, so distances are rough; "
                "publish camera info or set the parameter camera_fov"
            )
        return guess

    def _show(self, image: np.ndarray | None, found: list[HypothesisSet], camera: Camera, header: Header) -> None:
        """Pictures for people, made only while somebody looks."""
        if self.settings.publish_markers and self._markers_pub.get_subscription_count():
            self._markers_pub.publish(self._builder.build(found, header))
        if image is not None and self.settings.publish_overlay and self._overlay_pub.get_subscription_count():
            picture = rgb_to_image(draw_overlay(image, found, camera), Image(header=header))
            self._overlay_pub.publish(picture)

    def close(self) -> None:
        """Stop the worker and give the detector back; call it before ``destroy_node``."""
        with self._wake:
            self._stop = True
            self._wake.notify_all()
        self._worker.join(timeout=10)
        self.estimator.close()


def _same_optics(a: CameraInfo, b: CameraInfo) -> bool:
    """Whether two camera infos differ in their stamp only."""
    if a is b:
        return True
    return (
        (a.width, a.height, a.binning_x, a.binning_y, a.distortion_model)
        == (b.width, b.height, b.binning_x, b.binning_y, b.distortion_model)
        and a.roi == b.roi
        and np.array_equal(a.k, b.k)
        and np.array_equal(a.d, b.d)
    )


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
