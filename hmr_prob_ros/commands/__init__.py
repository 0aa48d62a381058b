"""The subcommands of ``hmr-prob``: each module has ``add_arguments(parser)`` and ``run(arguments) -> exit code``."""

from __future__ import annotations

__all__ = [
    "CommandError",
    "add_estimator_arguments",
    "check_modes",
    "make_estimator",
    "natural",
    "positive",
    "positive_number",
    "write_json",
]

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import CommandError, natural, positive, positive_number, write_json
from ..engines import CPU, ENGINES, PRECISIONS, engine_or_fallback, usual_threads

if TYPE_CHECKING:
    from ..estimator import Estimator


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
