"""Plays videos, pictures, folders of pictures or a camera as ``sensor_msgs/Image`` and ``CameraInfo``.

The image is stamped when it is published, after it was decoded, so that stamp to hypothesis is what the estimator
and the transport cost.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, Image
from tqdm import tqdm

from ..camera import Camera, CameraError
from ..sources import FrameSource, SourceError, open_source
from .images import camera_to_info, rgb_to_image
from .security import RosStartError, starting

__all__ = ["CameraPlayer", "main"]


class CameraPlayer(Node):
    """Publishes ``image_raw`` and ``camera_info`` below one topic.

    Args:
        topic: where to publish, for example ``/camera``.
        frame_id: name of the optical frame.
    """

    def __init__(self, topic: str = "/camera", frame_id: str = "camera_optical_frame") -> None:
        super().__init__("camera_player")
        self.frame_id = frame_id
        self.camera: Camera | None = None
        # Reliable serves subscribers of both kinds.
        self._image_pub = self.create_publisher(Image, f"{topic}/image_raw", QoSProfile(depth=4))
        self._info_pub = self.create_publisher(CameraInfo, f"{topic}/camera_info", QoSProfile(depth=4))
        self._info = CameraInfo()
        self._image = Image()

    def wait_for_subscribers(self, count: int, timeout: float) -> int:
        """Wait until ``count`` nodes subscribe to the image, at most ``timeout`` seconds; returns how many do."""
        end = time.monotonic() + timeout
        while (found := self._image_pub.get_subscription_count()) < count and time.monotonic() < end:
            self._check()
            time.sleep(0.05)
        time.sleep(0.3)  # discovery goes both ways: they must know this publisher too
        return found

    def _check(self) -> None:
        if not self.context.ok():
            raise ExternalShutdownException

    def load(self, image: np.ndarray) -> None:
        """Make the message of the next picture (H, W, 3) RGB: everything but its stamp."""
        height, width = image.shape[:2]
        camera_to_info(self.camera.scaled(width, height) if self.camera else Camera.guess(width, height), self._info)
        rgb_to_image(image, self._image)

    def stamp(self) -> Time:
        """Of the next picture: now."""
        return self.get_clock().now().to_msg()

    def send(self) -> None:
        """Publish what :meth:`load` made, stamped now; the camera info goes first, so that the image finds it there."""
        self._check()
        stamp = self.stamp()
        for message in (self._info, self._image):
            message.header.stamp = stamp
            message.header.frame_id = self.frame_id
        self._info_pub.publish(self._info)
        self._image_pub.publish(self._image)

    def flush(self) -> None:
        """Wait until reliable subscribers have everything: what is under way is lost when the process ends."""
        self._image_pub.wait_for_all_acked(Duration(seconds=1))

    def play(
        self,
        images: Iterator[np.ndarray],
        rate: float,
        live: bool,
        camera: Camera | None = None,
        bar: tqdm | None = None,
    ) -> int:
        """Publish pictures at ``rate`` a second, live ones as they come; returns how many.

        ``camera`` is scaled to the pictures; None guesses the focal length.
        """
        self.camera = camera
        count = 0
        due = time.monotonic()
        for image in images:
            self.load(image)
            if not live:
                due = max(due, time.monotonic() - 1 / rate)  # slow machines do not catch up in a burst
                while (wait := due - time.monotonic()) > 0:
                    self._check()
                    time.sleep(min(wait, 0.2))
                due += 1 / rate
            self.send()
            count += 1
            if bar is not None:
                bar.update()
        return count


def _pictures(source: FrameSource, count: int | None) -> Iterator[np.ndarray]:
    """The pictures of a source, or its only one ``count`` times; at most ``count`` of them."""
    if source.kind == "picture" and count is not None:
        image = next(iter(source)).image
        return itertools.repeat(image, count)
    return itertools.islice((frame.image for frame in source), count)


def _camera_of(name: str, source: FrameSource, chosen: Camera | None) -> Camera | None:
    """The camera asked for, else the one in the camera_info yaml that stands beside the input, else None.

    Raises:
        CameraError: the camera's image has another shape than the input.
    """
    beside = Path(name).with_suffix(".yaml")
    camera = chosen
    if camera is None and "://" not in name and source.kind != "camera" and beside.is_file():
        try:
            camera = Camera.from_yaml(beside)
        except CameraError:  # some other yaml
            return None
    if camera is not None and not math.isclose(
        camera.width / camera.height, source.size[0] / source.size[1], rel_tol=0.02
    ):
        raise CameraError(
            f"the camera is for {camera.width}x{camera.height} images, {name} has {source.size[0]}x{source.size[1]}: "
            "give the camera_info yaml of the camera that took it"
        )
    return camera


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hmr-prob-player", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "inputs", nargs="+", help="videos, pictures, folders of pictures or /dev/videoN, one after another"
    )
    parser.add_argument("--rate", type=float, help="frames a second (default: the video's own, 30 for pictures)")
    parser.add_argument("--max-size", type=int, default=640, help="longest side in pixels; 0: as it is")
    parser.add_argument("--still-seconds", type=float, default=4.0, help="how long a single picture is shown")
    parser.add_argument("--seconds", type=float, help="stop each input after this time; cameras need it to end")
    parser.add_argument("--loop", action="store_true", help="begin again at the end, until Ctrl-C")
    parser.add_argument(
        "--camera", type=Path, help="camera_info yaml (default: the one beside the input, else a guess)"
    )
    parser.add_argument("--topic", default="/camera", help="publishes TOPIC/image_raw and TOPIC/camera_info")
    parser.add_argument("--frame-id", default="camera_optical_frame", help="name of the camera's optical frame")
    parser.add_argument("--wait", type=int, default=1, help="wait for this many subscribers before playing")
    parser.add_argument("--wait-seconds", type=float, default=30.0, help="but not longer than this")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _play_all(
    player: CameraPlayer, sources: list[FrameSource], cameras: list[Camera | None], args: argparse.Namespace
) -> None:
    plan = []
    for source, camera in zip(sources, cameras, strict=True):
        rate = args.rate or source.fps
        seconds = args.seconds
        if source.kind == "picture":
            seconds = min(args.still_seconds, seconds or args.still_seconds)
        count = None if seconds is None else max(1, round(seconds * rate))
        known = count if source.kind in ("picture", "camera") else min(x for x in (count, source.count, 10**9) if x)
        plan.append((source, camera, rate, count, known))
    total = None if args.loop else sum(known or 0 for *_, known in plan) or None
    with tqdm(total=total, desc="playing", unit="frame", disable=args.quiet, file=sys.stdout) as bar:
        while True:
            for source, camera, rate, count, _ in plan:
                player.play(_pictures(source, count), rate, source.kind == "camera", camera, bar)
            if not args.loop:
                return


def main(argv: Sequence[str] | None = None) -> int:
    """Play the inputs once; 0 at the end or on SIGINT/SIGTERM, 2 for an input that cannot be opened or played."""
    # One thread decodes a 640x480 video many times faster than it plays; the cores are for the estimator.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = list(sys.argv if argv is None else argv)
    args = _parser().parse_args(remove_ros_args(arguments)[1:])
    sources: list[FrameSource] = []
    try:
        if args.rate is not None and not 0 < args.rate <= 1000:
            raise SourceError(f"--rate is {args.rate:g}: it must be above 0 and at most 1000 frames a second")
        chosen = Camera.from_yaml(args.camera) if args.camera else None
        sources = [open_source(name, max_size=args.max_size or None) for name in args.inputs]
        cameras = [_camera_of(name, source, chosen) for name, source in zip(args.inputs, sources, strict=True)]
        with starting():
            rclpy.init(args=arguments)
            player = CameraPlayer(args.topic, args.frame_id)
        found = player.wait_for_subscribers(args.wait, args.wait_seconds)
        if found < args.wait:
            player.get_logger().warning(f"{found} of {args.wait} subscribers came, playing all the same")
        _play_all(player, sources, cameras, args)
        player.flush()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (SourceError, CameraError, RosStartError) as error:
        print(f"hmr-prob-player: {error}", file=sys.stderr)
        return 2
    finally:
        for source in sources:
            source.close()
        if rclpy.ok():
            rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
