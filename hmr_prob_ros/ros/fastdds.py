"""Where the Fast DDS profile for images lies, the environment that uses it, and broken shared memory."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["fastdds_environment", "remove_broken_segments", "share_file", "use_image_profile"]

logger = logging.getLogger(__name__)

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


def use_image_profile() -> None:
    """Have this process use the profile for images, before it starts rclpy; nothing where the profile is missing."""
    try:
        os.environ.update(fastdds_environment())
    except FileNotFoundError as error:
        logger.warning("large images may get lost: %s", error)


def remove_broken_segments(folder: str | Path = "/dev/shm", age: float = 3.0) -> list[str]:
    """Remove shared memory that a process was killed over while it made it; returns the names.

    Such a segment has size zero for ever, and every process that opens it waits for ever for its maker: one SIGKILL at
    the wrong moment stops all of ROS on a machine until somebody cleans up. A segment in the making has size zero for
    microseconds, so one that is older than ``age`` seconds has lost its maker. Lock files (``_el``) are always empty.
    """
    removed = []
    for file in Path(folder).glob("fast*_*"):
        try:
            state = file.stat()
            broken = state.st_size == 0 and not file.name.endswith("_el") and time.time() - state.st_mtime > age
            if broken:
                file.unlink()
                removed.append(file.name)
        except OSError:  # gone already, or another user's
            continue
    if removed:
        logger.warning("removed shared memory that a killed process left unfinished: %s", ", ".join(removed))
    return removed
