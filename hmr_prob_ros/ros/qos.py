"""Quality of service to the YAML that rosbag2 stores it as, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, TypeVar

import yaml
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

__all__ = ["offered_by", "profiles_to_yaml", "serve_all", "take_from_all"]

_DEPTH = 100  # images and small messages alike: what comes while a file is being written
Policy = TypeVar("Policy", bound=IntEnum)


def _time(duration: Duration) -> dict[str, int]:
    seconds, nanoseconds = divmod(duration.nanoseconds, 10**9)
    return {"sec": seconds, "nsec": nanoseconds}


def profiles_to_yaml(profiles: Iterable[QoSProfile]) -> str:
    """The list of profiles as rosbag2 writes it up to version 8 of its metadata, which all read; equal ones once."""
    rows: list[dict[str, Any]] = []
    for profile in profiles:
        row = {
            "history": int(profile.history),
            "depth": profile.depth,
            "reliability": int(profile.reliability),
            "durability": int(profile.durability),
            "deadline": _time(profile.deadline),
            "lifespan": _time(profile.lifespan),
            "liveliness": int(profile.liveliness),
            "liveliness_lease_duration": _time(profile.liveliness_lease_duration),
            "avoid_ros_namespace_conventions": profile.avoid_ros_namespace_conventions,
        }
        if row not in rows:
            rows.append(row)
    return yaml.safe_dump(rows, sort_keys=False).strip() if rows else ""


def _policy(kind: type[Policy], value: Any, default: Policy) -> Policy:
    """A policy by its name or, up to version 8, its number; whatever cannot be asked for is the default."""
    try:
        found = kind[value.upper()] if isinstance(value, str) else kind(value)
    except (KeyError, ValueError):
        return default
    return default if found.name in ("UNKNOWN", "SYSTEM_DEFAULT", "BEST_AVAILABLE") else found


def offered_by(text: str) -> list[QoSProfile]:
    """The profiles in a bag's YAML. Deadlines and leases are promises of the publisher of that time, and left out.

    Raises:
        ValueError: the text is not such a list.
    """
    try:
        rows = yaml.safe_load(text) or []
        return [
            QoSProfile(
                history=_policy(HistoryPolicy, row["history"], HistoryPolicy.KEEP_LAST),
                depth=int(row["depth"]) or 10,
                reliability=_policy(ReliabilityPolicy, row["reliability"], ReliabilityPolicy.RELIABLE),
                durability=_policy(DurabilityPolicy, row["durability"], DurabilityPolicy.VOLATILE),
                liveliness=LivelinessPolicy.AUTOMATIC,
            )
            for row in rows
        ]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"the bag's QoS cannot be read: {error}") from error


def take_from_all(profiles: Sequence[QoSProfile]) -> QoSProfile:
    """A subscription's profile that fits all of these publishers, and asks for what all of them offer."""
    reliable = bool(profiles) and all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
    latched = bool(profiles) and all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
    return QoSProfile(
        depth=_DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def serve_all(profiles: Sequence[QoSProfile]) -> QoSProfile:
    """A publisher's profile that offers what the recorded publishers did: the strongest of each, reliable without any.

    Discovery tells no depth, and a replay sends what several publishers sent: at least ten messages are kept.
    """
    weak = bool(profiles) and all(p.reliability == ReliabilityPolicy.BEST_EFFORT for p in profiles)
    latched = any(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
    depth = max([10, *(p.depth for p in profiles)])
    return QoSProfile(
        depth=max(depth, _DEPTH) if latched else depth,
        reliability=ReliabilityPolicy.BEST_EFFORT if weak else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
