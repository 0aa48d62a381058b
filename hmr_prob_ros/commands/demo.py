"""``hmr-prob demo``: camera player, estimator node and recorder as processes on ROS 2."""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
from pathlib import Path

from . import CommandError, check_modes, positive, positive_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", nargs="*", help="videos, pictures, folders or /dev/videoN (default: a photograph and a clip)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="folder for demo.mp4, .mcap, .json"
    )
    parser.add_argument("--seconds", type=positive_number, metavar="S", help="end each input after so many seconds")
    parser.add_argument(
        "--rate", type=positive_number, metavar="FPS", help="frames a second instead of the input's own"
    )
    parser.add_argument(
        "--max-size", type=positive, default=640, metavar="PX", help="longest side (default: %(default)s)"
    )
    parser.add_argument("--detector", default="blazepose", help="2D detector (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle (default: the shipped one)")
    parser.add_argument("--camera", type=Path, metavar="YAML", help="camera_info yaml of the input")
    parser.add_argument(
        "--samples", type=positive, default=100, metavar="N", help="bodies drawn (default: %(default)s)"
    )
    parser.add_argument("--modes", type=positive, default=10, metavar="n", help="bodies kept (default: %(default)s)")
    parser.add_argument("--no-video", action="store_true", help="do not draw demo.mp4")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no table")


def run(arguments: argparse.Namespace) -> int:
    check_modes(arguments)
    try:
        from ..ros.demo import run_demo
    except ImportError as error:
        if (error.name or "").startswith("hmr_prob_ros."):
            raise  # not a missing package but a broken installation
        raise CommandError(
            f"the demo needs rclpy and this package's messages ({error}): `hmr-prob doctor` tells how to get them"
        ) from error
    names = ("seconds", "rate", "max_size", "detector", "bundle", "camera", "samples", "modes", "quiet")
    options = {name: getattr(arguments, name) for name in names}
    return run_demo(arguments.input or None, arguments.out, video=not arguments.no_video, **options)
