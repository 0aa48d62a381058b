"""The whole line as separate processes on ROS 2: camera player, estimator node and recorder."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .fastdds import remove_broken_segments
from .processes import ChildProcess, ProcessError, child_processes, private_environment

__all__ = ["DemoError", "default_inputs", "format_summary", "run_demo"]

CAMERA_SECONDS = 15.0
"""How long a live camera is recorded when nothing else is asked for."""

_ASSETS = Path(__file__).resolve().parents[1] / "assets"


class DemoError(ProcessError):
    """The demo cannot begin."""


def default_inputs() -> list[str]:
    """scikit-image's photograph of an astronaut, whose legs are outside the picture, then the bundled clip.

    Raises:
        DemoError: scikit-image or the clip is missing.
    """
    clip = _ASSETS / "demo_clip.mp4"
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DemoError("the demo without an input needs scikit-image: pip install scikit-image, or give an input", 2)
    picture = Path(found.origin).parent / "data" / "astronaut.png"
    missing = [str(p) for p in (picture, clip) if not p.is_file()]
    if missing:
        raise DemoError(
            f"{' and '.join(missing)} not found: install the package again, or give an input of your own", 2
        )
    return [str(picture), str(clip)]


def run_demo(
    input: str | Path | Sequence[str | Path] | None = None,
    out: str | Path = "out",
    *,
    seconds: float | None = None,
    rate: float | None = None,
    max_size: int = 640,
    still_seconds: float = 4.0,
    detector: str = "blazepose",
    detector_options: str = "",
    bundle: str | Path | None = None,
    camera: str | Path | None = None,
    samples: int = 100,
    modes: int = 10,
    video: bool = True,
    quiet: bool = False,
) -> int:
    """Play an input through the node and leave ``demo.mcap``, ``demo.mp4`` and ``demo.json`` in a folder.

    Args:
        input: video, picture, folder of pictures, ``/dev/videoN``, or several; None plays :func:`default_inputs`.
        out: folder for the files, made if it is not there.
        seconds: end each input after so many seconds; a live camera ends after 15 by itself.
        rate: frames a second instead of the input's own.
        max_size: longest side of the played frames in pixels, 0 for the input's own.
        still_seconds: how long a single picture is shown.
        detector, detector_options, bundle, samples, modes: parameters of the node.
        camera: camera_info yaml of the input; None guesses the focal length.
        video: draw ``demo.mp4``.
        quiet: no progress and no summary.

    Returns:
        0 when everything went well, 1 when a process failed, 2 when an input or the bundle cannot be opened, and 130
        after Ctrl-C.
    """
    try:
        inputs = default_inputs() if input is None else [input] if isinstance(input, str | Path) else list(input)
        options = {
            "samples": samples,
            "modes": modes,
            "detector": detector,
            "bundle": bundle and Path(bundle).resolve(),
            "detector_options": detector_options and json.dumps(detector_options),
        }
        player = [str(i) for i in inputs] + [f"--max-size={max_size}", f"--still-seconds={still_seconds}", "--wait=2"]
        player.append("--wait-seconds=180")  # loading takes seconds, on a busy machine many
        if seconds is None and any(str(i).startswith("/dev/") or "://" in str(i) for i in inputs):
            seconds = CAMERA_SECONDS
        player += [f"--{k}={v}" for k, v in (("seconds", seconds), ("rate", rate), ("camera", camera)) if v is not None]
        node = ["--ros-args", *(a for k, v in options.items() if v for a in ("-p", f"{k}:={v}"))]
        recorder = [f"--out={out}"] + ["--no-video"] * (not video)
        if quiet:
            player, recorder = [*player, "--quiet"], [*recorder, "--quiet"]
        summary = _run(player, node, recorder, Path(out), quiet)
    except ProcessError as error:
        print(f"hmr-prob demo: {error}", file=sys.stderr)
        if not (Path(out) / "demo.json").is_file():  # half a bag cannot be read
            (Path(out) / "demo.mcap").unlink(missing_ok=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("hmr-prob demo: interrupted", file=sys.stderr)
        return 130
    if not quiet:
        print(format_summary(summary))
        for name in ("demo.mp4", "demo.mcap", "demo.json"):
            if (Path(out) / name).is_file():
                print(f"  {Path(out) / name}")
    return 0


def _run(player: list[str], node: list[str], recorder: list[str], out: Path, quiet: bool) -> dict[str, Any]:
    environment = private_environment()
    remove_broken_segments()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot make the folder {out}: {error.strerror}; choose another one", 2) from error
    for name in ("demo.mp4", "demo.mcap", "demo.json"):  # nothing of an earlier run may pass for this one's
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="hmr_prob_demo_") as folder, child_processes() as children:
        logs = Path(folder)
        environment["ROS_LOG_DIR"] = str(logs)
        say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
        say(f"starting camera player, estimator node and recorder (ROS_DOMAIN_ID={environment['ROS_DOMAIN_ID']})")
        started = [
            ChildProcess("recorder", recorder, environment, logs / "recorder.log", show=not quiet),
            ChildProcess("estimator_node", node, environment, logs / "node.log", show=False),
            ChildProcess("camera_player", player, environment, logs / "player.log", show=not quiet),
        ]
        children += started
        recording, estimating, playing = started
        try:
            while playing.running():
                for child in (recording, estimating):
                    if not child.running():
                        raise child.fail(child.process.returncode)
                time.sleep(0.05)
        except KeyboardInterrupt:  # stop the camera, keep what was recorded
            playing.end(5)
        if code := playing.process.returncode:
            raise playing.fail(code)
        time.sleep(0.7)  # the last frame's hypotheses
        if recording.running():
            recording.process.send_signal(signal.SIGINT)
        if code := estimating.end(10):
            raise estimating.fail(code)
        for child in (playing, estimating):
            _repeat_warnings(child, say)
        if code := recording.wait(3600):
            raise recording.fail(code)
    return json.loads((out / "demo.json").read_text())


def _repeat_warnings(child: ChildProcess, say: Callable[[str], None]) -> None:
    """What a node had to complain about, once each."""
    lines = child.log.read_text(errors="replace").splitlines()
    told = dict.fromkeys(line.partition("]: ")[2] for line in lines if "[WARN]" in line or "[ERROR]" in line)
    for text in list(told)[:10]:
        say(f"{child.name}: {text}")


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table that the demo prints."""
    latency = summary["latency_ms"]
    rows = [
        ("frames in / out", f"{summary['frames_in']} / {summary['frames_out']}"),
        ("frames with people", f"{summary['frames_with_people']} (at most {summary['people']} at once)"),
        ("hypotheses per person", f"{summary['hypotheses_per_person']} of {summary['samples']} samples"),
        ("image to hypotheses", f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"),
        *((f"  {name}", f"{value:.2f} ms") for name, value in summary["stages_ms"].items()),
        ("detector, engine", f"{summary['detector']}, {summary['engine']}"),
        ("bundle", summary["bundle"]),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
