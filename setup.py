"""Builds the ROS messages with CMake and puts them beside the python half, so that ``pip install .`` is enough.

``colcon build`` does not come here: it runs CMakeLists.txt by itself. This route configures and installs the same
CMake project into a staging folder and moves the result where pip wants it: ``hmr_prob_ros/msg`` and the extension
modules into the package (in place for ``pip install -e .``), ``share/`` and ``lib/`` into the environment's prefix.

``HMR_PROB_MESSAGES`` decides whether messages are built: ``auto`` (default: yes where ROS is sourced or can come from
PyPI, that is x86-64 Linux), ``on``, ``off``. Without them everything but ``hmr_prob_ros.ros`` and
``hmr_prob_ros.msg`` works.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
NAME = "hmr_prob_ros"

NO_MESSAGES = """\
raise ImportError(
    "hmr_prob_ros was installed without its ROS messages ({reason}). "
    "On a robot source ROS and run `colcon build`; on x86-64 Linux run `HMR_PROB_MESSAGES=on pip install .`."
)
"""


class MessageBuildError(BaseError):
    """The ROS messages cannot be built; the text says what is missing and how to get it."""


def sourced_ros() -> list[Path]:
    """Prefixes of a sourced ROS installation that can generate messages; empty without one."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    return prefixes if any((p / "share" / "rosidl_default_generators").is_dir() for p in prefixes) else []


def wheel_ros() -> list[Path]:
    """Prefix that the ROS wheels of PyPI were installed to, also within pip's isolated build; empty without them."""
    try:
        import ament_package
    except ImportError:
        return []
    parents = Path(ament_package.__file__).resolve().parents
    return [p for p in parents if (p / "share" / "rosidl_default_generators").is_dir()][:1]


def why_no_messages() -> str:
    """Reason for which no messages are to be built; empty when they are."""
    wanted = os.environ.get("HMR_PROB_MESSAGES", "auto")
    if wanted not in ("auto", "on", "off"):
        raise MessageBuildError(f"HMR_PROB_MESSAGES is {wanted!r}: set it to auto, on or off")
    if wanted == "off":
        return "HMR_PROB_MESSAGES=off"
    machine = f"{platform.system()} {platform.machine()}"
    if wanted == "auto" and machine != "Linux x86_64" and not sourced_ros():
        return f"PyPI has no ROS wheels for {machine} and no ROS installation is sourced"
    return ""


def check_tools() -> None:
    """Raise MessageBuildError with the command that mends it when a build tool is missing."""
    missing = []
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        missing.append("a C++ compiler (Debian, Ubuntu: apt install g++)")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        missing.append(f"Python.h of python {version} (Debian, Ubuntu: apt install python{version}-dev)")
    if not shutil.which("cmake"):
        missing.append("cmake (pip install cmake)")
    if missing:
        raise MessageBuildError("building the ROS messages needs " + ", and ".join(missing))


class BuildMessages(build_ext):
    """Generates and compiles ``msg/`` with CMake."""

    def run(self) -> None:
        inplace = bool(self.inplace or getattr(self, "editable_mode", False))
        package = ROOT / NAME if inplace else Path(self.build_lib).resolve() / NAME
        package.mkdir(parents=True, exist_ok=True)
        if inplace:
            self._link_training()
        reason = why_no_messages()
        shutil.rmtree(package / "msg", ignore_errors=True)
        if reason:
            print(f"{NAME}: no ROS messages: {reason}", file=sys.stderr)
            (package / "msg").mkdir()
            (package / "msg" / "__init__.py").write_text(NO_MESSAGES.format(reason=reason))
            return
        stage = self._cmake()
        built = next(stage.rglob(f"{NAME}/msg/__init__.py")).parents[1]
        shutil.copytree(built / "msg", package / "msg", ignore=shutil.ignore_patterns("*.c", "__pycache__"))
        for module in built.glob("*.so"):
            shutil.copy2(module, package / module.name)
        self._add_data_files(stage)

    def _cmake(self) -> Path:
        """Configure, build and install the CMake project; returns the staging folder."""
        check_tools()
        prefixes = sourced_ros() or wheel_ros()
        if not prefixes:
            raise MessageBuildError(
                "building the ROS messages needs ROS: either source an installation "
                "(. /opt/ros/<distribution>/setup.sh) or install the packages of [build-system] requires in "
                "pyproject.toml (pip does it unless it is told --no-build-isolation)"
            )
        # Kept between builds in the source tree, so that a second `pip install -e .` compiles only what changed.
        tag = f"{sys.implementation.cache_tag}-{platform.machine()}"
        build, stage = ROOT / "build" / f"messages-{tag}", ROOT / "build" / f"stage-{tag}"
        shutil.rmtree(stage, ignore_errors=True)
        mark = build / "built-with.txt"
        built_with = "\n".join([sys.executable, str(ROOT), *map(str, prefixes)])
        if not mark.is_file() or mark.read_text() != built_with:
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir(parents=True)
        environment = dict(os.environ)
        environment["AMENT_PREFIX_PATH"] = os.pathsep.join(map(str, prefixes))
        # The generators start with `#!/usr/bin/env python3`, which must be this python.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            f"-DCMAKE_INSTALL_PREFIX={stage}",
            f"-DCMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}",
            f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'cmake' / 'ros_wheels.cmake'}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            *(["-GNinja"] if shutil.which("ninja") else []),
        ]
        for command in (configure, ["cmake", "--build", str(build), "--target", "install", "--parallel"]):
            done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                mark.unlink(missing_ok=True)
                raise MessageBuildError(f"{' '.join(command)}\n{done.stdout[-6000:]}\nbuilding the ROS messages failed")
        mark.write_text(built_with)
        return stage

    def _add_data_files(self, stage: Path) -> None:
        """Have ``share/`` and ``lib/`` (without python's part) installed below the environment's prefix."""
        folders: dict[str, list[str]] = {}
        for path in sorted(stage.rglob("*")):
            place = path.relative_to(stage)
            if path.is_file() and (
                place.parts[0] == "share" or (place.parts[0] == "lib" and "python" not in place.parts[1])
            ):
                folders.setdefault(str(place.parent), []).append(os.path.relpath(path, ROOT))
        self.distribution.data_files = [*(self.distribution.data_files or []), *folders.items()]
        # Editable wheels ask for has_data(), which setuptools does not define, and would leave the files out.
        self.distribution.has_data = self.distribution.has_data_files

    @staticmethod
    def _link_training() -> None:
        """In a source tree ``hmr_prob_ros.training`` is a link, for tools that do not know editable installs."""
        link = ROOT / NAME / "training"
        if not link.exists():
            link.symlink_to(Path("..") / "training", target_is_directory=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / NAME
        return [str(p) for p in [*package.glob("*.so"), *package.glob("msg/*.py")]]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in (ROOT / "msg").glob("*.msg")]


packages = find_packages(include=[NAME, f"{NAME}.*"], exclude=[f"{NAME}.training*", f"{NAME}.msg*"])
training = [f"{NAME}.training", *(f"{NAME}.training.{p}" for p in find_packages("training"))]

setup(
    packages=[*packages, *training],
    package_dir={NAME: NAME, f"{NAME}.training": "training"},
    package_data={
        NAME: ["py.typed", "assets/*", "assets/**/*"],
        **{p: ["*.json", "*.yaml", "*.xml", "*.npz", "configs/*.yaml"] for p in [*packages[1:], *training]},
    },
    include_package_data=False,
    # Never compiled by setuptools; it makes the wheel one of this platform and has build_ext run.
    ext_modules=[Extension(f"{NAME}._messages", sources=[])],
    cmdclass={"build_ext": BuildMessages},
    data_files=[],
)
