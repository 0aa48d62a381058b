"""Measures what the package costs beside what it could cost: one command.

    python benchmarks/latency/run.py --out runs/latency --set SET.npz --checkpoint model.pt

Each section is kept in OUT/sections; calling again goes on where it stopped, and measures anew only sections whose
options changed. ``latency.json``, ``latency.md`` and plots are written after each of them.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Before numpy and torch are there: two threads are all that is compared.
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).parent))

import report
import yaml
from common import Bench, Skipped

from hmr_prob_ros.arguments import CommandError, write_json
from hmr_prob_ros.benchmark.measure import load_warning, machine

SECTIONS = {
    "stages": "growth:measure_stages",
    "growth": "growth:measure_growth",
    "peak": "growth:measure_peak",
    "sampler": "sampler:compare_sampler",
    "modes": "modes:compare_modes",
    "latents": "latents:compare_latents",
    "variants": "variants:compare_variants",
    "processes": "processes:measure_processes",
    "four": "people:four_people",
    "sustained": "processes:sustained",
}
"""Section -> module:function of a Bench."""

_COSMETIC = {"out", "only", "quick"}
_PROCESSES = frozenset({"processes", "four", "sustained"})
_OF = {
    "bundles": {"variants"},
    "detectors": {"stages"},
    "rtmlib": {"stages", "four"},
    "node": _PROCESSES,
    "people": {"growth"},
    "seconds": {"processes", "four"},
    "starts": {"processes"},
    "minutes": {"sustained"},
    "seeds": {"latents"},
    "drawn": {"latents"},
    "people_of_latents": {"latents"},
    "people_of_modes": {"modes"},
    "width": {"sampler"},
}
"""Options that only these sections depend on; all others matter to all."""


def _pair(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is not YAML") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results; call again to go on")
    add(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS)
    )
    add("--quick", action="store_true", help="few rounds, small sweeps, short runs: a look, a few minutes")
    add("--bundle", type=Path, help="bundle under test (default: that of the checkpoint, else the shipped one)")
    add("--bundles", type=Path, nargs="+", default=[], help="others, e.g. of other widths, for the table of variants")
    add("--checkpoint", type=Path, help="its model is compared with the plain sampler (default: random weights)")
    add("--width", type=int, default=256, help="of the model with random weights (default: 256)")
    add("--set", type=Path, help="evaluation set of test takes: errors beside the times")
    add("--examples", type=int, default=500, help="of the set, at most (default: 500)")
    clip = Path(importlib.import_module("hmr_prob_ros").__file__).parent / "assets" / "demo_clip.mp4"
    add("--clip", type=Path, default=clip, help="video with one person (default: the bundled rendered clip)")
    add("--detector", default="blazepose")
    add("--detectors", nargs="+", default=[], help="of the section stages (default: that of --detector)")
    add("--detector-option", dest="detector_options", type=_pair, nargs="+", default=[], metavar="NAME=VALUE")
    add("--rtmlib", type=_pair, nargs="+", default=[], metavar="NAME=VALUE", help="options of rtmlib, e.g. its weights")
    add("--node", type=_pair, nargs="+", default=[], metavar="NAME=VALUE", help="more parameters of the node")
    add("--engine", default="onnxruntime")
    add("--precision", default="fp32")
    add("--threads", type=int, default=1, help="of the engine (default: 1, as for up to 256 samples)")
    add("--samples", type=int, default=100, help="N where it is not varied (default: 100)")
    add("--modes", type=int, default=10, help="n where it is not varied (default: 10)")
    add("--people", type=int, nargs="+", default=[1, 2, 4])
    add("--sweep-samples", type=int, nargs="+", default=[25, 100, 1024, 4096])
    add("--sweep-modes", type=int, nargs="+", default=[5, 10, 25])
    add("--sweep-threads", type=int, nargs="+", default=[1, 2])
    add("--rounds", type=int, default=100, help="calls of each setting (default: 100)")
    add("--frames", type=int, default=300, help="of the clip (default: 300)")
    add("--seconds", type=float, default=30, help="of each short run across processes (default: 30)")
    add("--starts", type=int, default=3, help="starts of the node with a warm cache (default: 3)")
    add("--minutes", type=float, default=10, help="of the sustained run (default: 10)")
    add("--seeds", type=int, default=8, help="of the comparison of latents (default: 8)")
    add("--drawn", type=int, default=200, help="bodies of the posterior that latents have to find (default: 200)")
    add("--people-of-latents", type=int, default=50, help="people whose posterior they are of (default: 50)")
    add("--people-of-modes", type=int, default=20, help="people whose samples are clustered (default: 20)")
    return parser


_QUICK = {
    "sweep_samples": [25, 100, 1024],
    "rounds": 10,
    "frames": 60,
    "examples": 50,
    "seconds": 5.0,
    "starts": 1,
    "minutes": 0.2,
    "seeds": 2,
    "drawn": 50,
    "people_of_latents": 10,
    "people_of_modes": 4,
}


def _settings(options: argparse.Namespace, section: str) -> dict[str, Any]:
    """What the figures of a section depend on, as JSON."""
    chosen = {k: v for k, v in vars(options).items() if k not in _COSMETIC and section in _OF.get(k, (section,))}
    return json.loads(json.dumps(chosen, default=str))


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _measure(name: str, bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """One section; a part that is missing on this machine skips it with the reason."""
    about = machine(())
    if warning := load_warning(about):
        print(f"WARNING: {warning}", file=sys.stderr)
    began = time.time()
    result: dict[str, Any] = {"settings": settings, "busy_cores": about["busy_cores"]}
    try:
        module, function = SECTIONS[name].split(":")
        result["result"] = getattr(importlib.import_module(module), function)(bench)
    except Skipped as error:
        result["skipped"] = " ".join(str(error).split())
    except ImportError as error:
        result["skipped"] = f"a package is missing ({error}): pip install 'hmr_prob_ros[train,bench]'"
    result["seconds"] = round(time.time() - began, 1)
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's text. Returns 1 where a section failed, 2 for wrong options."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick:  # what was given explicitly stays
        parser.set_defaults(**_QUICK)
        options = parser.parse_args(arguments)
    for name in ("detector_options", "rtmlib", "node"):
        setattr(options, name, dict(getattr(options, name)))
    folder = options.out / "sections"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(options)
        packages = ("hmr_prob_ros", "numpy", "onnxruntime", "torch", "nflows", "scikit-learn", "scipy", "mediapipe")
        about = machine((*packages, "ai-edge-litert", "rtmlib", "ros-rclpy"))
        failed = []
        for name in options.only:
            path, settings = folder / f"{name}.json", _settings(options, name)
            kept = _load(path)
            if kept is not None and kept["settings"] == settings:
                print(f"{name}: kept")
                continue
            print(f"{name}: begins, {time.strftime('%H:%M:%S')}", flush=True)
            try:
                found = _measure(name, bench, settings)
            except (RuntimeError, ValueError) as error:
                if not _ours(error):
                    raise
                lines = [" ".join(line.split()) for line in str(error).strip().splitlines()]
                failed.append(f"{name}: {' ... '.join(dict.fromkeys((lines[0], lines[-1])))}")
                continue
            write_json(found, path)
            report.write(options.out, about, list(SECTIONS))
            print(f"{name}: {found.get('skipped') or 'done'}, {found['seconds']:g} s", flush=True)
    except (CommandError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    if (options.out / "latency.md").is_file():
        print((options.out / "latency.md").read_text())
    return 1 if failed else 0


def _ours(error: Exception) -> bool:
    """Whether an error is of this package, with a text for the user."""
    return type(error).__module__.split(".")[0] == "hmr_prob_ros"


if __name__ == "__main__":
    raise SystemExit(main())
