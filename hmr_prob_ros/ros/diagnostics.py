"""The state of the node as ``diagnostic_msgs``: how bad it is, what to do, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from ..estimator import Estimator
from .parameters import Settings
from .statistics import STATUS_NAME, Second

__all__ = ["Condition", "about", "detector_name", "diagnostics_msg", "judge", "status_name"]

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def status_name(node: str) -> str:
    """Name of the status of a node, which is told by its full name: several cameras have one each."""
    return STATUS_NAME if node == "/human_estimator" else f"{STATUS_NAME} {node}"


@dataclass
class Condition:
    """What the frames do not tell about a node."""

    state: str
    """Of its lifecycle: ``unconfigured``, ``inactive``, ``active``, ``finalized``."""
    error: str = ""
    """Why the last transition failed."""
    hung: str = ""
    """What gave no answer, while it is being loaded anew."""
    calibration: str = ""
    """What is wrong with the camera info."""
    focal_length: str = ""
    """``known``, ``field of view`` or ``guessed``; empty before the first frame."""
    inputs: tuple[str, ...] = ()
    """Topics that frames come on."""
    publishers: int = 0
    """Of those topics."""
    twins: int = 0
    """Other nodes of the same name."""
    about: dict[str, str] = field(default_factory=dict)
    """More that is told as it is."""


def detector_name(estimator: Estimator) -> str:
    """Of the detector in use, ``topic`` where keypoints come from another node."""
    return "topic" if estimator.detector is None else estimator.detector.name


def about(estimator: Estimator, frame_id: str) -> dict[str, str]:
    """What is loaded, and the frame of the latest picture."""
    return {
        "detector": detector_name(estimator),
        "engine": estimator.engine.name,
        "bundle": estimator.bundle.name,
        "body_hash": estimator.bundle.body_hash,
        "samples": str(estimator.samples),
        "modes": str(estimator.modes),
        "frame_id": frame_id,
    }


def judge(second: Second, condition: Condition, settings: Settings) -> tuple[bytes, str]:
    """Level of a ``DiagnosticStatus`` and its text: everything that is as bad as the worst."""
    found: list[tuple[bytes, str]] = []
    if condition.error:
        found.append((ERROR, condition.error))
    if condition.hung:
        found.append((ERROR, condition.hung))
    if condition.state == "active":
        found += _judge_frames(second, condition, settings)
    if condition.twins:
        found.append((WARN, f"{condition.twins + 1} nodes have this name: start one of them with -r __node:=NAME"))
    if not found:
        people = f"{second.people} {'person' if second.people == 1 else 'people'}"
        return OK, people if condition.state == "active" else condition.state
    worst = max(level for level, _ in found)
    return worst, "; ".join(dict.fromkeys(text for level, text in found if level == worst))


def _judge_frames(second: Second, condition: Condition, settings: Settings) -> list[tuple[bytes, str]]:
    new, found = second.new, []
    if new["failed"]:
        found.append((ERROR, f"{new['failed']} of {new['received']} frames failed: {second.error}"))
    elif new["problems"]:
        found.append((ERROR, second.error))
    if new["received"] == 0:
        topics = " and ".join(condition.inputs)
        mend = "look at the camera" if condition.publishers else "nobody publishes there: check the name of the topic"
        found.append((WARN, f"no frame on {topics} for {second.silent:.0f} s, {mend}"))
    elif new["dropped_stale"] == new["received"]:
        found.append((WARN, "all frames are older than max_age: check the camera's clock and use_sim_time"))
    elif new["processed"] == 0:
        found.append((WARN, "frames come in but none was finished in the last second"))
    rate, drops = new["processed"] / second.seconds, new["dropped"] - new["dropped_period"]
    if new["received"] and rate < settings.warn_rate:
        found.append((WARN, f"{rate:.1f} frames a second are below warn_rate ({settings.warn_rate:g})"))
    if new["received"] and drops > settings.warn_drops * new["received"]:
        found.append(
            (
                WARN,
                f"{drops} of {new['received']} frames dropped: lower the camera's rate, or set max_rate, "
                "fewer samples or max_people",
            )
        )
    if new["missed"] > settings.warn_drops * (new["missed"] + new["received"]):
        found.append(
            (
                WARN,
                f"{new['missed']} of {new['missed'] + new['received']} frames were lost on the way: start camera and "
                "node with the Fast DDS profile config/fastdds_images.xml, or send compressed images",
            )
        )
    if len(second.latency_ms) and new["processed"]:
        p99 = 1e-3 * float(np.percentile(second.latency_ms, 99))
        if 0 < settings.warn_latency < p99:
            found.append(
                (
                    WARN,
                    f"one frame in a hundred takes {p99:.2f} s from its stamp (warn_latency is "
                    f"{settings.warn_latency:g}): check the load, the camera's clock and use_sim_time",
                )
            )
        if float(np.median(second.latency_ms)) < -1.0:
            found.append((WARN, "image stamps lie in the future: check the camera's clock and use_sim_time"))
    if condition.calibration:
        found.append((WARN, condition.calibration))
    elif condition.focal_length == "guessed":
        found.append((WARN, "the focal length is guessed: publish camera info or set camera_fov"))
    return found


def diagnostics_msg(
    name: str, header: Header, second: Second, condition: Condition, settings: Settings
) -> DiagnosticArray:
    """The message of one second for the node with the full name ``name``."""
    level, text = judge(second, condition, settings)
    values: dict[str, str] = {
        "state": condition.state,
        **condition.about,
        "focal_length": condition.focal_length or "unknown",
        "calibration": condition.calibration or ("valid" if condition.focal_length == "known" else "none"),
        "people": str(second.people),
        "rate_in_hz": f"{second.new['received'] / second.seconds:.1f}",
        "rate_out_hz": f"{second.new['processed'] / second.seconds:.1f}",
        **{f"frames_{name}": str(count) for name, count in second.total.items()},
        **_times(second),
    }
    status = DiagnosticStatus(
        level=level,
        name=status_name(name),
        message=text,
        hardware_id=condition.about.get("frame_id", ""),
        values=[KeyValue(key=k, value=v) for k, v in values.items()],
    )
    return DiagnosticArray(header=header, status=[status])


def _times(second: Second) -> Mapping[str, str]:
    values = {}
    if len(second.latency_ms):
        for percent, value in zip((50, 90, 99), np.percentile(second.latency_ms, (50, 90, 99)), strict=True):
            values[f"latency_p{percent}_ms"] = f"{value:.2f}"
    values.update({f"stage_{name}_ms": f"{value:.3f}" for name, value in second.stages_ms.items()})
    return values
