"""``hmr-prob view``: a bag or a running system in rerun's viewer."""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
from pathlib import Path

from ..ros.signals import stopped_by_signals
from . import positive, ros_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", nargs="?", type=Path, help="folder or file of a bag (default: what is published now)")
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file for rerun's viewer, show nothing")
    parser.add_argument(
        "--web", action="store_true", help="a page for a browser, as where there is no display (default: a window)"
    )
    parser.add_argument(
        "--host", default="localhost", help="name by which the browser reaches this machine (default: %(default)s)"
    )
    parser.add_argument("--web-port", type=positive, default=9090, help="of the page (default: %(default)s)")
    parser.add_argument("--data-port", type=positive, default=9876, help="of its data (default: %(default)s)")
    parser.add_argument("--image-topic", default="/camera/image_raw", help="(default: %(default)s)")
    parser.add_argument("--compressed-topic", default="", help="(default: the image topic with /compressed)")
    parser.add_argument("--camera-info-topic", default="/camera/camera_info", help="(default: %(default)s)")
    parser.add_argument("--hypotheses-topic", default="/human/hypotheses", help="(default: %(default)s)")
    parser.add_argument("--no-ellipsoids", action="store_true", help="skeletons only")


def run(arguments: argparse.Namespace) -> int:
    with stopped_by_signals() as stop:
        with ros_parts("view"):
            from ..ros.fastdds import use_image_profile
            from ..ros.view import ViewOptions, view
        use_image_profile()
        count = view(
            ViewOptions(
                bag=arguments.bag,
                save=arguments.save,
                web=arguments.web,
                host=arguments.host,
                web_port=arguments.web_port,
                data_port=arguments.data_port,
                image_topic=arguments.image_topic,
                compressed_topic=arguments.compressed_topic,
                info_topic=arguments.camera_info_topic,
                hypotheses_topic=arguments.hypotheses_topic,
                ellipsoids=not arguments.no_ellipsoids,
            ),
            stop,
        )
        print(f"{count} messages shown")
    return 0
