"""``hmr-prob doctor``: what is installed, what is missing, and how to mend it."""

from __future__ import annotations

__all__ = ["Check", "add_arguments", "examine", "run"]

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from ..engines import CPU, ENGINES, EngineError, unavailable
from . import write_json

MAIN, ROS, OPTIONAL = "main", "ros", "optional"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: ``needed`` for the main job, for ROS alone, or optional; ``mend`` is "" when ok."""

    name: str
    ok: bool
    detail: str
    mend: str
    needed: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--without-ros", action="store_true", help="do not count missing ROS parts as faults")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="OUT.JSON", help="write what was found; without a file, to stdout"
    )


def _try(name: str, needed: str, mend: str, look: Callable[[], str]) -> Check:
    """Run a look; whatever it raises is the finding (a broken native library raises all sorts of things)."""
    try:
        return Check(name, True, look(), "", needed)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        # Our own errors name their mend already.
        own = type(error).__module__.startswith("hmr_prob_ros")
        return Check(name, False, text[:300], "" if own else mend, needed)


def _package(module: str, distribution: str | None = None) -> Callable[[], str]:
    def look() -> str:
        imported = importlib.import_module(module)
        try:
            version = metadata.version(distribution or module)
        except metadata.PackageNotFoundError:
            version = str(getattr(imported, "__version__", "version unknown"))
        return version

    return look


def _found(module: str, distribution: str | None = None) -> Callable[[], str]:
    """Like :func:`_package` without the import, for packages that take seconds to load."""

    def look() -> str:
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"No module named {module!r}")
        return _version(distribution or module)

    return look


def _python() -> str:
    text = f"{platform.python_version()} on {platform.platform()}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise RuntimeError(f"{text}: 3.10, 3.11 or 3.12 is needed")
    return text


def _onnxruntime() -> str:
    import onnxruntime

    return f"{onnxruntime.__version__} ({', '.join(onnxruntime.get_available_providers())})"


def _body() -> str:
    from ..body import Body

    body = Body.load()
    return f"{body.name}, {len(body.v_template)} vertices, hash {body.hash[:12]}"


def _bundle() -> str:
    from ..body import Body
    from ..bundle import Bundle, BundleError

    bundle = Bundle.load()
    if bundle.body_hash and bundle.body_hash != Body.load().hash:
        raise BundleError(
            f"{bundle.path} was made for another body ({bundle.body_hash[:12]}) than the shipped one: "
            "export it again with `hmr-prob export`, or give the node its body file"
        )
    return f"{bundle.name}, latents {bundle.latent_size}, {bundle.num_modes} modes, {bundle.path}"


def _posterior() -> str:
    import numpy as np

    from ..camera import Camera
    from ..estimator import Estimator
    from ..hypotheses import Person2D

    estimator = Estimator(detector=None)
    standing = np.zeros((23, 3), np.float32)
    # A person who stands straight in front of a 640x480 camera; enough to see the graph run.
    standing[:17] = [
        *(
            (320, 100, 1),
            (325, 95, 1),
            (315, 95, 1),
            (332, 98, 1),
            (308, 98, 1),
            (350, 140, 1),
            (290, 140, 1),
            (360, 190, 1),
            (280, 190, 1),
        ),
        *(
            (362, 235, 1),
            (278, 235, 1),
            (338, 240, 1),
            (302, 240, 1),
            (338, 320, 1),
            (302, 320, 1),
            (338, 395, 1),
            (302, 395, 1),
        ),
    ]
    person = Person2D(np.array([270, 80, 370, 410]), 1.0, standing)
    found = estimator.infer([person], Camera.guess(640, 480))
    if not found:
        raise RuntimeError("the bundle gave no hypotheses for a person who stands in full view")
    milliseconds = estimator.timings["infer"]
    return f"{estimator.engine.name}: {len(found[0])} modes of {estimator.samples} samples, {milliseconds:.1f} ms"


def _detector(name: str) -> Callable[[], str]:
    def look() -> str:
        from ..detectors import make_detector

        options = {} if name in ("mediapipe", "blazepose") else {"warm_up": False}
        try:
            detector = make_detector(name, **options)
        except Exception:
            if not options:
                raise
            detector = make_detector(name)
        detector.close()
        return f"up to {detector.max_people} {'person' if detector.max_people == 1 else 'people'}"

    return look


def _messages() -> str:
    msg = importlib.import_module("hmr_prob_ros.msg")
    importlib.import_module("hmr_prob_ros.ros.conversions").load_type_support(msg.HumanHypothesesArray)
    return "compiled, type support loads"


def _rclpy() -> str:
    importlib.import_module("rclpy")
    used = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp (default)")
    return f"{_version('rclpy', 'ros-rclpy')}, distribution {os.environ.get('ROS_DISTRO', 'from PyPI')}, {used}"


def _version(*names: str) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "version unknown"


def _program(name: str) -> Callable[[], str]:
    def look() -> str:
        path = shutil.which(name)
        if path is None:
            raise FileNotFoundError("not on the PATH")
        return path

    return look


def _shared_memory() -> str:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        raise RuntimeError("no /dev/shm: ROS will send images over the network stack")
    free = shutil.disk_usage(folder).free / 2**20
    if free < 64:
        raise RuntimeError(f"only {free:.0f} MiB free in /dev/shm: images between processes will be lost")
    return f"{free:.0f} MiB free in /dev/shm"


def examine(without_ros: bool = False) -> list[Check]:
    """Look at everything; nothing is changed."""
    ros = OPTIONAL if without_ros else ROS
    from_pypi = (
        "pip install . (x86-64 Linux gets ROS from PyPI), or source an apt-installed ROS 2 and run `colcon build`"
    )
    reinstall = "reinstall the package: pip install --force-reinstall --no-deps ."
    opencv = "apt install libgl1 libglib2.0-0; or pip install --force-reinstall 'opencv-contrib-python<4.12'"
    checks = [
        _try("python", MAIN, "install Python 3.11", _python),
        _try("numpy", MAIN, "pip install 'numpy<2'", _package("numpy")),
        _try("opencv", MAIN, opencv, _package("cv2", "opencv-contrib-python")),
        _try("yaml", MAIN, "pip install pyyaml", _package("yaml", "pyyaml")),
        _try("onnxruntime", MAIN, "pip install onnxruntime", _onnxruntime),
        _try("body", MAIN, reinstall, _body),
        _try("bundle", MAIN, reinstall, _bundle),
        _try("posterior", MAIN, reinstall, _posterior),
        _try("detector blazepose", MAIN, "pip install 'hmr_prob_ros[blazepose]'", _detector("blazepose")),
        _try("detector mediapipe", OPTIONAL, "pip install 'hmr_prob_ros[mediapipe]'", _detector("mediapipe")),
        _try("detector rtmlib", OPTIONAL, "pip install 'hmr_prob_ros[rtmlib]'", _found("rtmlib")),
        _try("rclpy", ros, from_pypi, _rclpy),
        _try("messages", ros, from_pypi, _messages),
        _try("shared memory", OPTIONAL, "containers: run with --shm-size=256m or --ipc=host", _shared_memory),
        _try("av (H.264 video)", OPTIONAL, "pip install 'hmr_prob_ros[demo]'", _package("av")),
        _try("mcap", OPTIONAL, "pip install 'hmr_prob_ros[demo]'", _package("mcap")),
        _try(
            "scikit-image (demo picture)",
            OPTIONAL,
            "pip install 'hmr_prob_ros[demo]'",
            _found("skimage", "scikit-image"),
        ),
        _try(
            "ffmpeg",
            OPTIONAL,
            "apt install ffmpeg (only to convert videos that OpenCV cannot read)",
            _program("ffmpeg"),
        ),
        _try("torch (training)", OPTIONAL, "pip install 'hmr_prob_ros[train]'", _found("torch")),
        _try("EGL (training renders)", OPTIONAL, "apt install libegl1 libgl1-mesa-dri", _egl),
        *(_try(f"engine {name}", OPTIONAL, "", _engine(name)) for name in ENGINES),
    ]
    return checks


def _engine(name: str) -> Callable[[], str]:
    def look() -> str:
        if reason := unavailable(name):
            raise EngineError(reason)
        return "can run" if name == CPU else "its packages are there; `hmr-prob bench --engine` tells whether it runs"

    return look


def _egl() -> str:
    import ctypes.util

    path = ctypes.util.find_library("EGL")
    if path is None:
        raise FileNotFoundError("libEGL is not installed")
    return path


def run(arguments: argparse.Namespace) -> int:
    checks = examine(arguments.without_ros)
    broken = [c for c in checks if not c.ok and c.needed in (MAIN, ROS)]
    lines = []
    for check in checks:
        state = "ok" if check.ok else ("MISSING" if check.needed in (MAIN, ROS) else "absent")
        lines.append(f"{state:8} {check.name:28} {check.detail}")
        if check.mend:
            lines.append(f"{'':37} -> {check.mend}")
    if not broken:
        lines.append("\nEverything for the main job is there" + (" (ROS left out)." if arguments.without_ros else "."))
    elif all(c.needed == ROS for c in broken):
        lines.append("\n`hmr-prob estimate` works, the ROS node does not: mend the lines with MISSING.")
    else:
        lines.append("\nThe main job cannot run: mend the lines with MISSING.")
    print("\n".join(lines), file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json is not None:
        write_json({"ok": not broken, "checks": [asdict(c) for c in checks]}, arguments.json)
    return 1 if broken else 0
