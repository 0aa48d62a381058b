"""The whole line as separate processes on ROS 2: camera player, estimator node and recorder."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .fastdds import fastdds_environment, remove_broken_segments

__all__ = ["DemoError", "default_inputs", "demo_environment", "format_summary", "run_demo"]

CAMERA_SECONDS = 15.0
"""How long a live camera is recorded when nothing else is asked for."""

_ASSETS = Path(__file__).resolve().parents[1] / "assets"


class DemoError(RuntimeError):
    """A process of the demo failed; the text holds the end of its log.

    ``exit_code`` is 2 for something that was asked for and cannot be had (an input, a bundle), else 1.
    """

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


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


def demo_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of the demo's processes: the profile for images and a ROS domain of their own.

    Raises:
        DemoError: the profile is not installed.
    """
    try:
        result = fastdds_environment(environment)
    except FileNotFoundError as error:
        raise DemoError(str(error)) from error
    # Domains up to 101 use ports below Linux' ephemeral ones; those from 30 on are rarely anybody's.
    result["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(30, 101))
    result.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # Humble does not know it and looks further
    result["PYTHONUNBUFFERED"] = "1"
    # The children find the same package, also when it runs from a source tree that is not installed.
    root = str(Path(__file__).resolve().parents[2])
    result["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in [result.get("PYTHONPATH", ""), root] if p))
    return result


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG: a killed demo leaves no node behind. Linux only, and nothing is lost where it fails.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class _Process:
    """One child process, its log file, and how to end it."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, show: bool
    ) -> None:
        self.name = name
        self.log = log
        self._file: BinaryIO = log.open("wb")
        # A session of its own: Ctrl-C reaches the demo only, which then ends the children in order.
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"hmr_prob_ros.ros.{name}", *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=None if show else self._file,  # progress bars
            stderr=self._file,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self, seconds: float) -> int:
        """Ask the process to finish, wait, and return its exit code; it is killed when it does not."""
        if self.running():
            self.process.send_signal(signal.SIGINT)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        if self.running():
            self.process.kill()
        code = self.process.wait()
        self._file.close()
        return code

    def fail(self, code: int) -> DemoError:
        text = self.log.read_text(errors="replace").strip().splitlines() if self.log.is_file() else []
        return DemoError("\n".join([f"{self.name} ended with exit code {code}", *text[-15:]]), 2 if code == 2 else 1)


@contextlib.contextmanager
def _processes() -> Iterator[list[_Process]]:
    children: list[_Process] = []
    try:
        yield children
    finally:
        # Asked first: a process killed while it makes shared memory leaves a segment that hangs whoever opens it next.
        for child in children:
            if child.running():
                child.process.send_signal(signal.SIGTERM)
        for child in reversed(children):
            child.wait(10)
            child.kill()


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
    except DemoError as error:
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
    environment = demo_environment()
    remove_broken_segments()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot make the folder {out}: {error.strerror}; choose another one", 2) from error
    for name in ("demo.mp4", "demo.mcap", "demo.json"):  # nothing of an earlier run may pass for this one's
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="hmr_prob_demo_") as folder, _processes() as children:
        logs = Path(folder)
        environment["ROS_LOG_DIR"] = str(logs)
        say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
        say(f"starting camera player, estimator node and recorder (ROS_DOMAIN_ID={environment['ROS_DOMAIN_ID']})")
        started = [
            _Process("recorder", recorder, environment, logs / "recorder.log", show=not quiet),
            _Process("estimator_node", node, environment, logs / "node.log", show=False),
            _Process("camera_player", player, environment, logs / "player.log", show=not quiet),
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


def _repeat_warnings(child: _Process, say: Callable[[str], None]) -> None:
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
