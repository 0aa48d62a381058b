"""Why ROS' own security (SROS 2) keeps a program from starting, in one line with the mend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["RosStartError", "start_trouble", "starting"]


class RosStartError(RuntimeError):
    """ROS lets no program start; the text names the mend."""


@contextmanager
def starting() -> Iterator[None]:
    """Round ``rclpy.init`` and a program's first node.

    Raises:
        RosStartError: in place of what rclpy raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith("rclpy"):
            raise
        raise RosStartError(start_trouble(error)) from error


def start_trouble(error: BaseException) -> str:
    """What was raised while a program started, in one line; with the mend where it is for the lack of keys."""
    text = " ".join(str(error).split()) or type(error).__name__
    if os.environ.get("ROS_SECURITY_ENABLE") != "true":
        return text
    keystore = os.environ.get("ROS_SECURITY_KEYSTORE", "")
    if "security libraries" in text:
        mend = "this Fast DDS is built without security, as that of PyPI is: use ROS from apt"
    elif not keystore and os.environ.get("ROS_SECURITY_STRATEGY") == "Enforce":  # ROS says nothing then
        mend = "ROS_SECURITY_KEYSTORE names no keystore: make one with `ros2 security create_keystore`"
    elif "security" in text.lower():
        mend = (
            f"make them with `ros2 security create_enclave {keystore or 'KEYSTORE'} ENCLAVE` and start with "
            "--ros-args --enclave ENCLAVE"
        )
    else:
        return text
    return f"ROS_SECURITY_ENABLE is set, but no keys can be used: {mend}, or unset it; see docs/security.md ({text})"
