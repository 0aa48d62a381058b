"""The ``hmr-prob`` command."""

from __future__ import annotations

__all__ = ["build_parser", "main"]

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata

import cv2

from .commands import bench, build_engine, demo, doctor, estimate, offline, record, replay, sets, view

_COMMANDS = {
    "estimate": (
        estimate.add_arguments,
        estimate.run,
        "video, picture, folder or camera in, hypotheses as JSON lines out",
    ),
    "demo": (demo.add_arguments, demo.run, "the whole line on ROS 2: camera player, estimator node, recorder"),
    "record": (record.add_arguments, record.run, "all ROS topics, or some, into a bag (mcap or sqlite3)"),
    "replay": (replay.add_arguments, replay.run, "publish a bag on ROS again"),
    "view": (view.add_arguments, view.run, "a bag or a running system in rerun's viewer, also in a browser"),
    "bench": (bench.add_arguments, bench.run, "milliseconds of every stage on this machine"),
    "build-engine": (
        build_engine.add_arguments,
        build_engine.run,
        "build the TensorRT engines of a bundle for this machine's GPU",
    ),
    "doctor": (doctor.add_arguments, doctor.run, "what is installed, what is missing, how to mend it"),
    "make-set": (sets.add_make_set_arguments, sets.run_make_set, "make an evaluation set from motion capture"),
    "export": (offline.add_export_arguments, offline.run_export, "export a checkpoint to a model bundle"),
    "evaluate": (sets.add_evaluate_arguments, sets.run_evaluate, "measure a bundle on a set"),
}


def _version() -> str:
    try:
        return metadata.version("hmr_prob_ros")
    except metadata.PackageNotFoundError:
        return "(run from source)"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(prog="hmr-prob", description="Probabilistic 3D human pose for robots.")
    parser.add_argument("--version", action="version", version=f"hmr_prob_ros {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add_arguments, run, summary) in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show where an error comes from")
        sub.set_defaults(run=run)
    for name, (_, summary) in offline.HANDED_ON.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _is_ours(error: Exception) -> bool:
    """Whether the error is of a class of this package: their texts are made for the user and name the mend."""
    return type(error).__module__.split(".")[0] == "hmr_prob_ros"


def _one_line(error: Exception) -> str:
    """The error as one line; the files of the system's errors are named, and the mend."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; give a path that may be read and written"
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, or 2 after an error of the user's input (one line on stderr, no traceback)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # FFmpeg's and OpenCV's own complaints say less than the error that follows.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.setLogLevel(0)
    # Native libraries built with fast-math flush subnormal numbers to zero, which numpy finds worth four lines.
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")
    debug = "--debug" in arguments
    try:
        if arguments and arguments[0] in offline.HANDED_ON:  # their options are the training half's
            return offline.run_handed_on(arguments[0], [a for a in arguments[1:] if a != "--debug"])
        parsed = build_parser().parse_args(arguments)
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hmr-prob estimate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        of_the_system = isinstance(error, OSError) and error.filename is not None
        if debug or not (_is_ours(error) or of_the_system):
            raise
        print(f"hmr-prob: {_one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
