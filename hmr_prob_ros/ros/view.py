"""``hmr-prob view``: people, their uncertainty and the image in rerun's viewer, for machines without RViz.

The world is the camera's optical frame (x right, y down, z forward). Rerun's viewer comes with its wheel, as a program
and as a web page that needs nothing from the network.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from hmr_prob_ros.msg import HumanHypothesesArray

from ..camera import Camera, CameraError
from ..hypotheses import HypothesisError, HypothesisSet
from ..skeleton import BONES, JOINT_NAMES, KEYPOINT_BONES
from .bag_reader import BagReader
from .conversions import hypotheses_from_msg, stamp_to_nanoseconds
from .images import CameraInfoError, ImageError, camera_from_info, compressed_to_rgb, image_to_rgb
from .markers import ellipsoids, mode_colours
from .security import starting

__all__ = ["Scene", "ViewError", "ViewOptions", "view"]

_JPEG = 80  # quality of the images that the viewer gets
_SURE = 0.3  # confidence from which a detected keypoint is drawn


class ViewError(RuntimeError):
    """Nothing can be shown; the text names the mend."""


def _rerun() -> Any:
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise ViewError(f"the viewer is not installed ({error}): pip install 'hmr_prob_ros[view]'") from error
    return rerun


@dataclass(frozen=True)
class ViewOptions:
    """What to show and where.

    Args:
        bag: folder or file; None: the topics of a running system.
        save: write a file for rerun's viewer instead of showing anything.
        web: a page for a browser (``--web-port``) instead of a window.
        host: name by which the browser reaches this machine.
        web_port, data_port: of the page and of its data.
        image_topic, compressed_topic, info_topic, hypotheses_topic: what is read.
        ellipsoids: draw the joints' 95 % ellipsoids.
    """

    bag: Path | None = None
    save: Path | None = None
    web: bool = False
    host: str = "localhost"
    web_port: int = 9090
    data_port: int = 9876
    image_topic: str = "/camera/image_raw"
    compressed_topic: str = ""
    info_topic: str = "/camera/camera_info"
    hypotheses_topic: str = "/human/hypotheses"
    ellipsoids: bool = True

    def types(self) -> dict[str, type]:
        """Topic -> message class."""
        return {
            self.image_topic: Image,
            self.compressed_topic or f"{self.image_topic}/compressed": CompressedImage,
            self.info_topic: CameraInfo,
            self.hypotheses_topic: HumanHypothesesArray,
        }


class Scene:
    """Logs messages to a rerun recording.

    Args:
        recording: a ``rerun.RecordingStream``.
        ellipsoids: draw the joints' 95 % ellipsoids.
    """

    def __init__(self, recording: Any, ellipsoids: bool = True) -> None:
        self._rr = _rerun()
        self._recording = recording
        self._ellipsoids = ellipsoids
        self._info: CameraInfo | None = None
        self._camera: Camera | None = None
        self._shown: set[str] = set()
        self._log("world", self._rr.ViewCoordinates.RDF, static=True)

    def _log(self, path: str, what: Any, static: bool = False) -> None:
        self._rr.log(path, what, static=static, recording=self._recording)

    def add(self, message: Any) -> bool:
        """Show an image, camera info or hypotheses; False for an image that cannot be read."""
        if isinstance(message, CameraInfo):
            self._info = message
            return True
        stamp = np.datetime64(stamp_to_nanoseconds(message.header.stamp), "ns")
        self._rr.set_time("stamp", timestamp=stamp, recording=self._recording)
        try:
            if isinstance(message, HumanHypothesesArray):
                self._people(hypotheses_from_msg(message))
            else:
                read = compressed_to_rgb if isinstance(message, CompressedImage) else image_to_rgb
                self._image(read(message))
        except (ImageError, HypothesisError):
            return False
        return True

    def _image(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        try:
            camera = camera_from_info(self._info, width, height) if self._info else Camera.guess(width, height)
        except (CameraError, CameraInfoError):
            camera = Camera.guess(width, height)
        if camera != self._camera:
            self._camera = camera
            pinhole = self._rr.Pinhole(
                resolution=(width, height),
                focal_length=(camera.fx, camera.fy),
                principal_point=(camera.cx, camera.cy),
                camera_xyz=self._rr.ViewCoordinates.RDF,
                image_plane_distance=1.0,
            )
            self._log("world/camera", pinhole)
        self._log("world/camera/image", self._rr.Image(image).compress(jpeg_quality=_JPEG))

    def _people(self, people: list[HypothesisSet]) -> None:
        shown = set()
        for index, person in enumerate(people):
            name = f"person_{person.id if person.id >= 0 else f'_{index}'}"
            shown |= {f"world/{name}", f"world/camera/image/{name}"}
            self._skeletons(person, f"world/{name}/modes")
            if self._ellipsoids:
                self._uncertainty(person, f"world/{name}/uncertainty")
            self._keypoints(person, f"world/camera/image/{name}")
        for path in self._shown - shown:
            self._log(path, self._rr.Clear(recursive=True))
        self._shown = shown

    def _skeletons(self, person: HypothesisSet, path: str) -> None:
        """Every mode as its bones, the heavier the thicker and more solid, the heaviest last and so on top."""
        order = np.argsort(person.weights, kind="stable")
        bones = person.joints[order][:, np.array(BONES)].reshape(-1, 2, 3)
        share = person.weights[order] / person.weights.max()
        colours = np.repeat((255 * mode_colours(share)).astype(np.uint8), len(BONES), axis=0)
        radii = np.repeat(0.004 + 0.008 * share, len(BONES))
        self._log(path, self._rr.LineStrips3D(bones, colors=colours, radii=radii))

    def _uncertainty(self, person: HypothesisSet, path: str) -> None:
        diameters, quaternions = ellipsoids(person.covariance)
        self._log(
            path,
            self._rr.Ellipsoids3D(
                centers=person.mean,
                half_sizes=np.maximum(diameters / 2, 1e-3),
                quaternions=quaternions,
                colors=(50, 200, 130, 70),
                labels=list(JOINT_NAMES),
                show_labels=False,
                fill_mode=self._rr.components.FillMode.MajorWireframe,
                line_radii=0.0015,
            ),
        )

    def _keypoints(self, person: HypothesisSet, path: str) -> None:
        lines = [person.keypoints[[a, b], :2] for a, b in KEYPOINT_BONES if person.keypoints[[a, b], 2].min() >= _SURE]
        self._log(path, self._rr.LineStrips2D(lines, colors=(255, 140, 26), radii=1.5))


def _blueprint(rr: Any) -> Any:
    blueprint = rr.blueprint
    return blueprint.Blueprint(
        blueprint.Horizontal(
            blueprint.Spatial3DView(
                origin="world",
                contents=["world/**", "- world/camera/image/**"],
                name="Bodies by weight, 95 % ellipsoids",
            ),
            blueprint.Spatial2DView(origin="world/camera/image", name="Camera"),
            column_shares=[3, 2],
        ),
        collapse_panels=True,
    )


def _open(options: ViewOptions, rr: Any) -> tuple[Any, bool]:
    """A recording that goes where the options say, and whether it is served from this process."""
    recording = rr.RecordingStream("hmr_prob_ros")
    blueprint = _blueprint(rr)
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    serve = options.save is None and (options.web or not display)
    if options.save is not None:
        try:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            options.save.touch()
        except OSError as error:
            raise ViewError(f"cannot write {options.save}: {error.strerror}") from error
        recording.save(options.save)
    elif serve:
        url = recording.serve_grpc(grpc_port=options.data_port)
        rr.serve_web_viewer(web_port=options.web_port, open_browser=False, connect_to=url)
        data = quote(f"rerun+http://{options.host}:{options.data_port}/proxy", safe="")
        print(f"open http://{options.host}:{options.web_port}/?url={data} in a browser, Ctrl-C ends", flush=True)
    else:
        recording.spawn()
    # Not as the sink's default_blueprint: rerun 0.23 then waits with the GIL for a thread that wants the GIL.
    recording.send_blueprint(blueprint)
    return recording, serve


def _show_bag(bag: BagReader, options: ViewOptions, scene: Scene, stop: threading.Event) -> int:
    types = {topic: kind for topic, kind in options.types().items() if topic in bag.topics}
    if options.hypotheses_topic not in types and options.image_topic not in types:
        raise ViewError(
            f"{bag.path} has neither {options.image_topic} nor {options.hypotheses_topic}: choose of "
            f"{', '.join(sorted(bag.topics))} with --image-topic and --hypotheses-topic"
        )
    count = 0
    for message in bag.messages(types):
        if stop.is_set():
            break
        count += scene.add(deserialize_message(message.data, types[message.topic]))
    return count


def _show_topics(types: Mapping[str, type], scene: Scene, stop: threading.Event) -> int:
    count = 0

    def add(message: Any) -> None:
        nonlocal count
        count += scene.add(message)

    handler: Callable[[Any], None] = add
    try:
        with starting():
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            node = Node("human_view", start_parameter_services=False)
        for topic, kind in types.items():
            # Newest image only: what the viewer cannot take must not queue up here.
            qos = (
                QoSProfile(depth=20)
                if kind is HumanHypothesesArray
                else QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
            )
            node.create_subscription(kind, topic, handler, qos)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)
        executor.shutdown()
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return count


def view(options: ViewOptions, stop: threading.Event) -> int:
    """Show a bag, or the topics of a running system until ``stop`` is set; returns the number of messages shown.

    Raises:
        ViewError: rerun is missing, a file cannot be written, or the bag holds nothing to show.
        BagError: the bag cannot be read.
        RosStartError: ROS does not start.
    """
    rr = _rerun()
    bag = BagReader(options.bag) if options.bag is not None else None
    recording, served = _open(options, rr)
    scene = Scene(recording, options.ellipsoids)
    if bag is None:
        count = _show_topics(options.types(), scene, stop)
    else:
        count = _show_bag(bag, options, scene, stop)
        if served:
            print(f"{count} messages of {bag.path}", file=sys.stderr)
            stop.wait()
    recording.flush(blocking=True)
    recording.disconnect()
    return count
