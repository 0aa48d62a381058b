"""``hmr-prob train``, ``export`` and the like: the work of the training half, which needs torch."""

from __future__ import annotations

__all__ = ["HANDED_ON", "add_export_arguments", "run_export", "run_handed_on", "training_module"]

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import CommandError, positive

HANDED_ON = {
    "train": ("train", "train any method, from motion capture or shards to a bundle"),
    "make-shards": ("make_shards", "render people, or take annotated pictures, and store what a detector sees of them"),
    "evaluate-model": ("evaluate_command", "measure a checkpoint of any method on sets or shards"),
}
"""Commands of the training half, which read their own arguments: module and summary."""


def training_module(name: str, command: str) -> ModuleType:
    """Import ``hmr_prob_ros.training.<name>``.

    Raises:
        CommandError: a package of the training half is not installed.
    """
    try:
        return importlib.import_module(f"hmr_prob_ros.training.{name}")
    except ImportError as error:
        if (error.name or "").startswith("hmr_prob_ros."):
            raise  # not a missing package but a broken installation
        raise CommandError(f"{command} needs the training half ({error}): pip install 'hmr_prob_ros[train]'") from error


def run_handed_on(command: str, arguments: Sequence[str]) -> int:
    """Hand the arguments of one of ``HANDED_ON`` on to the training half."""
    name, summary = HANDED_ON[command]
    try:
        module = training_module(name, command)
    except CommandError as error:
        if {"-h", "--help"} & set(arguments):
            print(f"usage: hmr-prob {command} ...\n\n{summary[0].upper()}{summary[1:]}.\n\n{error}")
            return 0
        raise
    try:
        return int(module.main(list(arguments)) or 0)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise CommandError(f"{command}: {error}") from error  # a value that does not fit


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint that `hmr-prob train` wrote (model.pt)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    parser.add_argument(
        "--body", type=Path, metavar="FILE", help="body that it was trained with (default: the shipped one)"
    )
    parser.add_argument("--name", help="of the bundle (default: the checkpoint's)")
    parser.add_argument(
        "--samples", type=positive, default=100, metavar="N", help="that a runtime draws (default: 100)"
    )
    parser.add_argument("--modes", type=positive, default=10, metavar="n", help="fixed in the graph (default: 10)")
    parser.add_argument(
        "--regressor",
        action="store_true",
        help="the checkpoint is a regressor: write DIR/regressor.onnx for `evaluate`",
    )


def run_export(arguments: argparse.Namespace) -> int:
    if not arguments.checkpoint.is_file():
        raise CommandError(f"there is no checkpoint {arguments.checkpoint}: `hmr-prob train` writes one")
    module = training_module("export", "export")
    if arguments.regressor:
        print(module.export_regressor(arguments.checkpoint, arguments.out / "regressor.onnx", arguments.body))
        return 0
    bundle = module.export(
        arguments.checkpoint,
        arguments.out,
        arguments.body,
        name=arguments.name,
        samples=arguments.samples,
        modes=arguments.modes,
    )
    print(f"{bundle.path}: {bundle.name}, latents {bundle.latent_size}, {bundle.num_modes} modes")
    return 0
