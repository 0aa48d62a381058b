"""``hmr-prob record``: all topics into a bag."""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import time
from pathlib import Path

from ..ros.signals import stopped_by_signals
from . import CommandError, natural, positive_number, ros_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", nargs="?", type=Path, help="folder of the bag (default: bag_ and the time)")
    parser.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="kind of file (default: %(default)s)"
    )
    parser.add_argument("--topics", nargs="+", default=[], metavar="TOPIC", help="only these (default: all)")
    parser.add_argument("--regex", default="", help="topics whose whole name matches, besides --topics")
    parser.add_argument("--exclude", default="", metavar="REGEX", help="topics to leave out whatever else is asked for")
    parser.add_argument("--hidden", action="store_true", help="topics of services and actions too")
    parser.add_argument("--seconds", type=positive_number, metavar="S", help="end by itself (default: at Ctrl-C)")
    parser.add_argument(
        "--split", type=natural, default=0, metavar="MB", help="begin a new file at this size (default: never)"
    )


def run(arguments: argparse.Namespace) -> int:
    with stopped_by_signals() as stop:
        with ros_parts("record"):
            from ..ros.bag_recorder import RecordOptions, record
            from ..ros.fastdds import use_image_profile
        try:
            options = RecordOptions(
                arguments.out or Path(time.strftime("bag_%Y_%m_%d-%H_%M_%S")),
                storage=arguments.storage,
                topics=arguments.topics,
                regex=arguments.regex,
                exclude=arguments.exclude,
                seconds=arguments.seconds,
                split_bytes=arguments.split * 1_000_000,
                hidden=arguments.hidden,
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        use_image_profile()
        counts = record(options, stop)
        width = max(map(len, counts), default=0)
        for topic, count in sorted(counts.items()):
            print(f"{topic:<{width}}  {count}")
        print(f"{sum(counts.values())} messages in {options.out}")
    return 0
