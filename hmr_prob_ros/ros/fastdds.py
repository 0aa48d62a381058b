"""Where the Fast DDS profile for images lies, and the environment that uses it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["fastdds_environment", "share_file"]

_OLD = ("foxy", "galactic", "humble", "iron")  # their Fast DDS knows the older name only; newer ones complain about it


def share_file(name: str) -> Path:
    """A file of the package's share folder, for example ``config/estimator.yaml``.

    Looks in the sourced ROS workspaces, then in the Python environment, then beside the source tree.

    Raises:
        FileNotFoundError: the file is in none of them.
    """
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [p / "share" / "hmr_prob_ros" for p in (*prefixes, Path(sys.prefix))]
    folders += [parent / "share" / "hmr_prob_ros" for parent in Path(__file__).resolve().parents[2:6]]
    folders.append(Path(__file__).resolve().parents[2])
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is not in the share folder of hmr_prob_ros: install the package again")


def fastdds_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment with the profile for images, unless the user already chose one."""
    result = dict(os.environ if environment is None else environment)
    chosen = result.get("FASTDDS_DEFAULT_PROFILES_FILE") or result.get("FASTRTPS_DEFAULT_PROFILES_FILE")
    profile = chosen or str(share_file("config/fastdds_images.xml"))
    result["FASTDDS_DEFAULT_PROFILES_FILE"] = profile
    if result.get("ROS_DISTRO") in _OLD:
        result["FASTRTPS_DEFAULT_PROFILES_FILE"] = profile
    return result
