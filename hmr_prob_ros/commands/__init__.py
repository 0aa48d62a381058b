"""The subcommands of ``hmr-prob``: each module has ``add_arguments(parser)`` and ``run(arguments) -> exit code``."""

from __future__ import annotations

__all__ = [
    "CommandError",
    "add_estimator_arguments",
    "check_modes",
    "make_estimator",
    "natural",
    "natural_number",
    "positive",
    "positive_number",
    "ros_parts",
    "write_json",
]

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import CommandError, natural, positive, positive_number, write_json
from ..engines import CPU, ENGINES, PRECISIONS, engine_or_fallback, usual_threads

if TYPE_CHECKING:
    from ..estimator import Estimator


def natural_number(text: str) -> float:
    """An argument that is a finite number, 0 or above."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


@contextlib.contextmanager
def ros_parts(command: str) -> Iterator[None]:
    """Round the imports of a command that needs ROS: a missing package becomes a CommandError with the mend."""
    try:
        yield
    except ImportError as error:
        name = error.name or ""
        if name.startswith("hmr_prob_ros.") and not name.startswith("hmr_prob_ros.msg"):
            raise  # not a missing package but a broken installation
        mend = "pip install 'hmr_prob_ros[demo]'" if name.partition(".")[0] == "mcap" else "see `hmr-prob doctor`"
        raise CommandError(f"`hmr-prob {command}` needs a package that is not here ({error}): {mend}") from error


def add_estimator_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that :func:`make_estimator` reads."""
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle (default: the shipped one)")
    parser.add_argument(
        "--detector", default="blazepose", help="2D detector: blazepose, mediapipe or rtmlib (default: %(default)s)"
    )
    parser.add_argument(
        "--detector-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the detector, may be repeated (values are read as YAML)",
    )
    parser.add_argument(
        "--samples", type=positive, default=100, metavar="N", help="bodies drawn per person (default: %(default)s)"
    )
    parser.add_argument(
        "--modes", type=positive, default=10, metavar="n", help="weighted bodies kept (default: %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the latents (default: %(default)s)")
    parser.add_argument(
        "--engine",
        choices=(*ENGINES, "auto"),
        default=CPU,
        help="what runs the model; where it cannot run, the CPU does (default: %(default)s)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the engine, on a GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=natural, default=0, help="of the engine, 0 for its own choice (default: %(default)s)"
    )


def check_modes(arguments: argparse.Namespace) -> None:
    """Raise CommandError where more modes than samples are asked for."""
    if arguments.modes > arguments.samples:
        raise CommandError(
            f"--modes {arguments.modes} cannot be made from --samples {arguments.samples}: "
            f"lower --modes to {arguments.samples} or raise --samples to {arguments.modes}"
        )


def make_estimator(arguments: argparse.Namespace, **more: Any) -> Estimator:
    """The estimator that the arguments of :func:`add_estimator_arguments` ask for.

    Raises:
        CommandError: samples, modes or a detector option do not fit.
    """
    import yaml

    from ..bundle import Bundle
    from ..detectors import make_detector
    from ..estimator import Estimator

    check_modes(arguments)
    options: dict[str, Any] = {}
    for text in arguments.detector_option:
        name, found, value = text.partition("=")
        if not found or not name:
            raise CommandError(f"--detector-option {text!r} is not NAME=VALUE")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CommandError(f"--detector-option {text!r}: {value!r} is not YAML") from error
    bundle = Bundle.load(arguments.bundle)  # before the detector: it loads faster and fails more often
    detector = make_detector(arguments.detector, **options)
    threads = arguments.threads or usual_threads(arguments.samples)
    engine = engine_or_fallback(arguments.engine, bundle.model_path, threads=threads, precision=arguments.precision)
    return Estimator(
        bundle,
        detector,
        engine,
        samples=arguments.samples,
        modes=arguments.modes,
        seed=arguments.seed,
        **more,
    )
