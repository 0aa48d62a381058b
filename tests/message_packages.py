"""Message packages that PyPI does not carry, generated in a temporary folder, and compiled there.

The packages hold the messages that this project publishes, with the fields of their released versions (vision_msgs 4,
hri_msgs 2, tf2_msgs), so that converters are tested with real classes and, compiled, over the middleware.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["PACKAGES", "build_package", "generate_classes"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES: dict[str, dict[str, str]] = {
    "tf2_msgs": {"TFMessage": "geometry_msgs/TransformStamped[] transforms"},
    "vision_msgs": {
        "ObjectHypothesis": "string class_id\nfloat64 score",
        "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
        "BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size",
        "Detection3D": ("std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox3D bbox\nstring id"),
        "Detection3DArray": "std_msgs/Header header\nDetection3D[] detections",
    },
    "hri_msgs": {
        "IdsList": "std_msgs/Header header\nstring[] ids",
        "NormalizedPointOfInterest2D": "float32 x\nfloat32 y\nfloat32 c",
        "Skeleton2D": "std_msgs/Header header\nNormalizedPointOfInterest2D[18] skeleton",
    },
}


def generate_classes(folder: Path) -> Path:
    """The Python classes of all packages, without their compiled halves; returns the path for ``sys.path``.

    They check what is assigned to them as the compiled ones do, but cannot be sent. It takes a second, in a process of
    its own: the generator's template engine takes stdout over.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, __file__, str(folder)], text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return folder / "python"


def _generate(folder: Path) -> None:
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_py import generate_py

    share = next(p for p in _prefixes() if (p / "share" / "rosidl_generator_py").is_dir()) / "share"
    for name, messages in PACKAGES.items():
        source = folder / "source" / name
        (source / "msg").mkdir(parents=True)
        for message, text in messages.items():
            (source / "msg" / f"{message}.msg").write_text(text + "\n")
            convert_msg_to_idl(source, name, Path("msg") / f"{message}.msg", source / "msg")
        arguments = {
            "package_name": name,
            "idl_tuples": [f"{source}:msg/{message}.idl" for message in messages],
            "output_dir": str(folder / "python" / name),
            "template_dir": str(share / "rosidl_generator_py" / "resource"),
            "target_dependencies": [],
        }
        (source / "arguments.json").write_text(json.dumps(arguments))
        generate_py(str(source / "arguments.json"), ["rosidl_typesupport_c"])


def _prefixes() -> list[Path]:
    return [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p] or [Path(sys.prefix)]


def build_package(name: str, folder: Path) -> Path:
    """Compile one of :data:`PACKAGES` below ``folder``; returns the path for ``sys.path``. In about twenty seconds.

    Raises:
        RuntimeError: it cannot be built; the text holds the compiler's words.
    """
    source, build, stage = folder / name, folder / f"{name}_build", folder / "stage"
    (source / "msg").mkdir(parents=True)
    for message, text in PACKAGES[name].items():
        (source / "msg" / f"{message}.msg").write_text(text + "\n")
    depends = ("std_msgs", "geometry_msgs")
    files = "\n  ".join(f"msg/{m}.msg" for m in PACKAGES[name])
    (source / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.20)\nproject({name} LANGUAGES C CXX)\n"
        "find_package(ament_cmake REQUIRED)\nfind_package(rosidl_default_generators REQUIRED)\n"
        + "".join(f"find_package({d} REQUIRED)\n" for d in depends)
        + f"rosidl_generate_interfaces(${{PROJECT_NAME}}\n  {files}\n  DEPENDENCIES {' '.join(depends)})\n"
        "ament_package()\n"
    )
    (source / "package.xml").write_text(
        f'<package format="3"><name>{name}</name><version>0.0.0</version><description>for tests</description>'
        '<maintainer email="nobody@users.noreply.github.com">nobody</maintainer><license>Apache-2.0</license>'
        "<buildtool_depend>ament_cmake</buildtool_depend>"
        "<buildtool_depend>rosidl_default_generators</buildtool_depend>"
        + "".join(f"<depend>{d}</depend>" for d in depends)
        + "<member_of_group>rosidl_interface_packages</member_of_group>"
        "<export><build_type>ament_cmake</build_type></export></package>"
    )
    prefixes = [str(p) for p in _prefixes()]
    environment = dict(os.environ, AMENT_PREFIX_PATH=os.pathsep.join(prefixes))
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    for variable in ("CFLAGS", "CXXFLAGS"):
        environment[variable] = "-O0"  # compiled once, run for a second
    configure = [
        "cmake",
        f"-S{source}",
        f"-B{build}",
        f"-DCMAKE_INSTALL_PREFIX={stage}",
        f"-DCMAKE_PREFIX_PATH={';'.join(prefixes)}",
        f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'cmake' / 'ros_wheels.cmake'}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DBUILD_TESTING=OFF",
        *(["-GNinja"] if shutil.which("ninja", path=environment["PATH"]) else []),
    ]
    for command in (configure, ["cmake", "--build", str(build), "--target", "install", "--parallel", "1"]):
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(done.stdout[-4000:])
    return next(stage.rglob(f"{name}/msg/__init__.py")).parents[2]


if __name__ == "__main__":
    _generate(Path(sys.argv[1]))
