"""``hmr-prob replay``: publish a bag again."""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
from pathlib import Path

from ..ros.signals import stopped_by_signals
from . import natural_number, positive_number, ros_parts


def _remap(text: str) -> tuple[str, str]:
    source, found, target = text.partition(":=")
    if not found or not source or not target:
        raise argparse.ArgumentTypeError(f"{text!r} is not FROM:=TO, like /camera/image_raw:=/image")
    return (source if source.startswith("/") else f"/{source}"), target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="folder of a bag, or an .mcap or .db3 file")
    parser.add_argument("--rate", type=positive_number, default=1.0, help="times as fast (default: %(default)s)")
    parser.add_argument("--loop", action="store_true", help="begin again at the end, until Ctrl-C")
    parser.add_argument("--start", type=natural_number, default=0.0, metavar="S", help="leave out the first S seconds")
    parser.add_argument("--seconds", type=positive_number, metavar="S", help="of the bag to play (default: all)")
    parser.add_argument("--topics", nargs="+", default=[], metavar="TOPIC", help="only these (default: all)")
    parser.add_argument(
        "--remap", type=_remap, nargs="+", default=[], metavar="FROM:=TO", help="publish a topic by another name"
    )
    parser.add_argument(
        "--clock",
        type=positive_number,
        nargs="?",
        const=100.0,
        default=0.0,
        metavar="HZ",
        help="publish the bag's time on /clock, for nodes with use_sim_time (default: no; alone: 100 a second)",
    )
    parser.add_argument(
        "--wait",
        type=natural_number,
        default=2.0,
        metavar="S",
        help="wait at most so long until somebody subscribes to every topic (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    with stopped_by_signals() as stop:
        with ros_parts("replay"):
            from ..ros.fastdds import use_image_profile
            from ..ros.player import ReplayOptions, replay
        use_image_profile()
        count = replay(
            ReplayOptions(
                arguments.bag,
                rate=arguments.rate,
                loop=arguments.loop,
                start=arguments.start,
                seconds=arguments.seconds,
                topics=arguments.topics,
                remap=dict(arguments.remap),
                clock=arguments.clock,
                wait=arguments.wait,
            ),
            stop,
        )
        print(f"{count} messages of {arguments.bag}")
    return 0
