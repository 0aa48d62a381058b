"""``hmr-prob make-set`` and ``hmr-prob evaluate``: make an evaluation set, and measure a bundle on one."""

from __future__ import annotations

__all__ = ["add_evaluate_arguments", "add_make_set_arguments", "run_evaluate", "run_make_set"]

import argparse
import os
import sys
from pathlib import Path

from . import CommandError, natural, positive, write_json

OCCLUSIONS = ("none", "biggs", "truncation")


def add_make_set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mocap",
        nargs="+",
        required=True,
        type=Path,
        metavar="PATH",
        help="motion capture: folders, archives or files (BVH, ASF/AMC, AMASS npz)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="SET.NPZ", help="the set to write")
    parser.add_argument("--count", type=positive, required=True, metavar="K", help="number of examples")
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="S", help="of everything that is drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--occlusion",
        choices=OCCLUSIONS,
        default="none",
        help="biggs hides arms and head, legs, or head; truncation cuts the picture (default: %(default)s)",
    )
    parser.add_argument("--body", type=Path, metavar="FILE", help="SMPL file (default: the shipped body)")
    parser.add_argument(
        "--noise",
        default="blazepose",
        help="detector whose errors are drawn: blazepose, tinypose, none or a table's path",
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="takes to use (default: test where there is an index, else all)",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FILE.NPZ", help="keeps the motion capture, so that the next set is made faster"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run_make_set(arguments: argparse.Namespace) -> int:
    for path in arguments.mocap:
        if not path.exists():
            raise CommandError(f"there is no motion capture at {path}: give folders, archives or files that exist")
    parent = arguments.out.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write to {parent}: {error.strerror}") from error
    if not os.access(parent, os.W_OK) or arguments.out.is_dir():
        raise CommandError(f"cannot write {arguments.out}: give a file in a folder that may be written to")
    try:
        from ..training.data.noise import DetectorNoise
        from ..training.data.retarget import MocapError
        from ..training.make_set import make_set
    except ImportError as error:
        if (error.name or "").startswith("hmr_prob_ros"):
            raise  # not a missing package but a broken installation
        raise CommandError(f"make-set needs the training half ({error}): pip install 'hmr_prob_ros[train]'") from error
    if arguments.noise != "none":
        try:
            DetectorNoise.load(arguments.noise)
        except ValueError as error:
            raise CommandError(f"--noise: {error}") from error
    try:
        data = make_set(
            arguments.mocap,
            count=arguments.count,
            seed=arguments.seed,
            occlusion=arguments.occlusion,
            body=arguments.body,
            noise=arguments.noise,
            split=arguments.split,
            cache=arguments.cache,
            progress=not arguments.quiet,
        )
    except MocapError as error:
        raise CommandError(str(error)) from error
    data.save(arguments.out)
    print(f"{arguments.out}: {len(data)} examples from {len(set(data.take.tolist()))} takes", file=sys.stderr)
    return 0


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", type=Path, required=True, metavar="SET.NPZ", help="a set of `hmr-prob make-set`, or your own"
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle (default: the shipped one)")
    parser.add_argument("--json", metavar="OUT.JSON", help="write the figures; - for stdout")
    parser.add_argument(
        "--regressor",
        type=Path,
        metavar="PATH",
        help="regressor.onnx to compare with (inputs keypoints and box, output joints)",
    )
    parser.add_argument("--limit", type=positive, metavar="K", help="only the first K examples")
    parser.add_argument("--batch", type=positive, default=16, help="people per engine call (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0, help="of the latents (default: %(default)s)")
    parser.add_argument(
        "--threads", type=natural, default=0, help="of the engine, 0 for its own choice (default: %(default)s)"
    )
    parser.add_argument("--per-joint", action="store_true", help="also print a table by joint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")


def run_evaluate(arguments: argparse.Namespace) -> int:
    from ..evaluate import evaluate, format_table
    from ..setfile import PoseSet

    data = PoseSet.load(arguments.set)
    if arguments.limit is not None:
        data = data[: arguments.limit]
    result = evaluate(
        data,
        arguments.bundle,
        regressor=arguments.regressor,
        batch=arguments.batch,
        seed=arguments.seed,
        threads=arguments.threads,
        progress=not arguments.quiet,
    )
    result["set"] = arguments.set.name
    if not arguments.quiet:
        print(format_table(result, arguments.per_joint), file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json is not None:
        write_json(result, arguments.json)
    return 0
