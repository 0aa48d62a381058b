"""Installs what this project needs into the running environment: what ``make`` uses.

    python tools/install.py [--torch-index URL] build base blazepose demo

The requirements are those of pyproject.toml (``build`` = [build-system] requires, ``base`` = dependencies, any other
word an extra), but what pip would take literally is made lighter, so that a bare machine is ready in a minute or two:

* OpenCV's headless build instead of the one with windows. It is the same version and needs no libGL or glib.
* mediapipe, LiteRT, rtmlib and scikit-image without their dependencies, of which few are used (no jax, no second
  OpenCV).
* no byte-compilation of modules that nobody may ever import.
* torch first and alone, so that nothing else chooses its version.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

__all__ = ["main", "plan"]

ROOT = Path(__file__).resolve().parents[1]

REPLACED = {"opencv-contrib-python": ["opencv-contrib-python-headless==4.11.0.86"]}
"""Requirements that others take the place of."""

ALONE = {
    "mediapipe": ["absl-py", "attrs>=19.1", "flatbuffers>=2", "matplotlib", "protobuf>=4.25.3,<5"],
    "rtmlib": [],
    "ai-edge-litert": [],  # its interpreter asks for numpy only
    "scikit-image": [],  # only its photograph is looked at
}
"""Requirements that are installed without their dependencies, and those they cannot do without."""


def name_of(requirement: str) -> str:
    """Distribution name in a requirement, normalised.

    >>> name_of("ros_rclpy[fastrtps]~=9.1; sys_platform == 'linux'")
    'ros-rclpy'
    """
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if not match:
        raise ValueError(f"pyproject.toml: {requirement!r} is no requirement")
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def plan(project: dict, groups: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Requirements to install first (torch and torchvision), then together, then without dependencies."""
    wanted: list[str] = []
    extras = project["project"]["optional-dependencies"]
    for group in groups:
        if group == "build":
            wanted += project["build-system"]["requires"]
        elif group == "base":
            wanted += project["project"]["dependencies"]
        elif group in extras:
            wanted += extras[group]
        else:
            raise ValueError(f"pyproject.toml has no extra {group!r}: choose build, base or one of {', '.join(extras)}")
    # The tests compare with scikit-image's own functions.
    light = {name: needs for name, needs in ALONE.items() if name != "scikit-image" or "dev" not in groups}
    first, together, alone = [], [], []
    for requirement in dict.fromkeys(wanted):
        name = name_of(requirement)
        if name in ("torch", "torchvision"):  # of one build, or torchvision does not load
            first.append(requirement)
        elif name in light:
            alone.append(requirement)
            together += light[name]
        else:
            together += REPLACED.get(name, [requirement])
    return first, list(dict.fromkeys(together)), alone


def pip(*arguments: str) -> None:
    """Run ``pip install``, telling in one line what it is at."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *arguments]
    log: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if sys.stdout.isatty() and line.lstrip().startswith(
                ("Collecting", "Downloading", "Building", "Installing")
            ):
                print(f"\r\033[K  {line.strip()[:100]}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if process.returncode:
        print("".join(log[-40:]), file=sys.stderr)
        raise SystemExit(f"pip failed (is the network there?). The command was\n  {' '.join(command)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Install the requirements of parts of this project.")
    parser.add_argument("groups", nargs="+", help="build, base or an extra of pyproject.toml")
    parser.add_argument("--torch-index", default="", metavar="URL", help="package index to take torch from")
    arguments = parser.parse_args(argv)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    first, together, alone = plan(project, arguments.groups)
    start = time.monotonic()
    print(f"installing {', '.join(arguments.groups)} (a minute or two)", flush=True)
    if first:
        pip(*(["--index-url", arguments.torch_index] if arguments.torch_index else []), *first)
    pip(*together, *first)
    if alone:
        pip("--no-deps", *alone)
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
