"""Parameters of the estimator node: declared with descriptions and ranges, read into a dataclass, changed together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from .outputs import OUTPUTS

__all__ = ["PARAMETERS", "Parameter", "ParameterError", "Settings", "changed", "declare"]


_PACED = ("blazepose", "rtmlib")
"""Detectors that can look for people at a lower rate."""


class ParameterError(ValueError):
    """A parameter has a value that the node cannot start with; the text names it and the mend."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter.

    Args:
        low, high: bounds of a number.
        change: when it may be set: ``live`` at any time; ``configure`` while the node is unconfigured, because it says
            what is loaded; ``start`` at the start of the process only.
    """

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    change: Literal["live", "configure", "start"] = "configure"

    def descriptor(self) -> ParameterDescriptor:
        """The ROS descriptor with text and range."""
        result = ParameterDescriptor(name=self.name, description=self.description, read_only=self.change == "start")
        if self.change == "configure":
            result.additional_constraints = "set it while the node is unconfigured"
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                result.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)]
            else:
                result.floating_point_range = [
                    FloatingPointRange(from_value=float(self.low), to_value=float(self.high), step=0.0)
                ]
        return result


@dataclass(frozen=True)
class Settings:
    """Values of all parameters; the fields are :data:`PARAMETERS`."""

    autostart: bool
    image_topic: str
    compressed_topic: str
    camera_info_topic: str
    keypoints_topic: str
    transport: str
    bundle: str
    detector: str
    detector_options: str
    detect_every: int
    detect_seconds: float
    engine: str
    precision: str
    engine_threads: int
    samples: int
    modes: int
    seed: int
    max_people: int
    identity_memory: float
    identity_by_clothes: bool
    min_score: float
    max_rate: float
    max_age: float
    pipeline: bool
    camera_fov: float
    publish_uncertainty: bool
    publish_markers: bool
    publish_overlay: bool
    marker_lifetime: float
    outputs: str
    mesh_rate: float
    time_limit: float
    warn_rate: float
    warn_latency: float
    warn_drops: float

    def options(self) -> dict[str, Any]:
        """``detector_options`` as a dict, with what other parameters say of the detector.

        Raises:
            ParameterError: it is not a YAML mapping.
        """
        try:
            # A few anchors within each other make gigabytes of a hundred bytes as soon as somebody prints them.
            if any(isinstance(token, yaml.AnchorToken) for token in yaml.scan(self.detector_options)):
                raise ParameterError("detector_options has an anchor (&): write each value where it belongs")
            options = yaml.safe_load(self.detector_options or "{}")
        except (yaml.YAMLError, RecursionError) as error:
            raise ParameterError(f"detector_options is not YAML: {error}") from error
        if not isinstance(options, dict):
            raise ParameterError(
                f"detector_options must be a YAML mapping like '{{min_detection: 0.5}}', got {self.detector_options!r}"
            )
        if self.detect_every:
            options.setdefault("every", self.detect_every)
        if self.detect_seconds:
            options.setdefault("seconds", self.detect_seconds)
        return options

    def check(self) -> None:
        """Check what ranges cannot tell.

        Raises:
            ParameterError: unknown transport, more modes than samples, a number that is none, or options that are no
                mapping.
        """
        for parameter in PARAMETERS:
            value = getattr(self, parameter.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ParameterError(f"{parameter.name} is {value}: set it to a number")
        if self.transport not in ("auto", "raw", "compressed"):
            raise ParameterError(f"transport is {self.transport!r}: set it to auto, raw or compressed")
        if self.modes > self.samples:
            raise ParameterError(
                f"modes is {self.modes} but samples is {self.samples}: a mode is one of the samples, "
                "so lower modes or raise samples"
            )
        self.options()
        if (self.detect_every or self.detect_seconds) and self.detector not in _PACED:
            raise ParameterError(
                f"detect_every and detect_seconds are for {' and '.join(_PACED)}: set both to 0 for {self.detector}"
            )
        if self.outputs != "auto" and (unknown := set(self.output_names()) - set(OUTPUTS)):
            raise ParameterError(
                f"outputs names {', '.join(sorted(unknown))}: set it to auto, or to some of {', '.join(OUTPUTS)}"
            )

    def output_names(self) -> list[str]:
        """Names in ``outputs``, which may stand apart by commas or spaces; all of them for ``auto``."""
        return list(OUTPUTS) if self.outputs == "auto" else self.outputs.replace(",", " ").split()

    @property
    def latents(self) -> tuple[int, int, int]:
        """What an estimator's latents are drawn for: another value needs others."""
        return self.samples, self.modes, self.seed

    def topics(self) -> tuple[str, str, str]:
        """Names of the raw image, compressed image and camera info topics, the empty ones derived from the first."""
        base = self.image_topic.rsplit("/", 1)[0] if "/" in self.image_topic else ""
        info = self.camera_info_topic or (f"{base}/camera_info" if base or "/" in self.image_topic else "camera_info")
        return self.image_topic, self.compressed_topic or f"{self.image_topic}/compressed", info


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "autostart",
        True,
        "Configure and activate at the start; false: leave both to a lifecycle manager.",
        change="start",
    ),
    Parameter("image_topic", "camera/image_raw", "Topic of the raw camera image (sensor_msgs/Image)."),
    Parameter(
        "compressed_topic",
        "",
        "Topic of the compressed image (sensor_msgs/CompressedImage); empty: image_topic with /compressed.",
    ),
    Parameter("camera_info_topic", "", "Topic of the camera info; empty: camera_info beside the image topic."),
    Parameter(
        "keypoints_topic",
        "human/keypoints2d",
        "Topic of 2D keypoints (hmr_prob_ros/PoseKeypointsArray) from another node; used with detector=topic.",
    ),
    Parameter(
        "transport",
        "auto",
        "Which image to subscribe to: raw, compressed, or auto (both; the same frame is used once). "
        "raw or compressed saves the cost of the other one.",
    ),
    Parameter("bundle", "", "Folder of the model bundle (model.onnx and model.yaml); empty: the one in the package."),
    Parameter(
        "detector",
        "blazepose",
        "2D detector: blazepose, mediapipe (the same, one person), rtmlib, or topic (keypoints from another node).",
    ),
    Parameter(
        "detector_options", "{}", "Options of the detector as a YAML mapping, for example '{min_detection: 0.5}'."
    ),
    Parameter(
        "detect_every",
        0,
        "Look for people in the whole picture every so many frames and follow them in between; 0: the detector's own "
        "choice (blazepose 10, rtmlib 1).",
        0,
        100000,
    ),
    Parameter(
        "detect_seconds",
        0.0,
        "The same in seconds, in place of detect_every; 0: count frames.",
        0.0,
        3600.0,
    ),
    Parameter(
        "engine",
        "onnxruntime",
        "What runs the model: onnxruntime (CPU), onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, or auto (tensorrt "
        "where it can run); where it cannot run, the CPU does, and the log says why.",
    ),
    Parameter("precision", "fp32", "What the engine computes in: fp32, or on a GPU tf32 or fp16."),
    Parameter("engine_threads", 0, "Threads of the engine; 0: its own choice.", 0, 64),
    Parameter("samples", 100, "Bodies drawn from the posterior of every person.", 1, 4096, "live"),
    Parameter("modes", 10, "Weighted bodies that the samples are reduced to and that are published.", 1, 100, "live"),
    Parameter(
        "seed",
        0,
        "Seed of the samples: with the same seed the same frame gives the same hypotheses.",
        0,
        2**31 - 1,
        "live",
    ),
    Parameter("max_people", 8, "Largest number of people in a frame; the nearest ones are kept.", 1, 64, "live"),
    Parameter("identity_memory", 3.0, "Seconds for which somebody hidden keeps the identity.", 0.0, 60.0, "live"),
    Parameter("identity_by_clothes", True, "Tell people by the colours of their clothes, too.", change="live"),
    Parameter("min_score", 0.2, "People with a lower detection score are left out, 0 to 1.", 0.0, 1.0, "live"),
    Parameter("max_rate", 0.0, "Largest number of frames a second that are worked on; 0: all.", 0.0, 1000.0, "live"),
    Parameter(
        "max_age",
        0.0,
        "Seconds since its stamp after which a frame is dropped rather than worked on, by the node's clock; 0: never.",
        0.0,
        3600.0,
        "live",
    ),
    Parameter(
        "pipeline",
        True,
        "Detect in one frame while the hypotheses of the frame before are made; false: one after the other.",
    ),
    Parameter(
        "camera_fov",
        0.0,
        "Horizontal field of view in degrees, used where no camera info comes; "
        "0: guess the focal length as the diagonal of the image in pixels.",
        0.0,
        175.0,
        "live",
    ),
    Parameter("publish_uncertainty", True, "Publish human/uncertainty.", change="live"),
    Parameter(
        "publish_markers", True, "Publish human/markers for RViz while somebody subscribes to it.", change="live"
    ),
    Parameter("publish_overlay", True, "Publish human/overlay while somebody subscribes to it.", change="live"),
    Parameter(
        "marker_lifetime",
        0.5,
        "Seconds after which a marker vanishes if no newer one comes; 0: never.",
        0.0,
        60.0,
        "live",
    ),
    Parameter(
        "outputs",
        "auto",
        f"Outputs in the messages of other packages: {', '.join(OUTPUTS)}, some of them, or auto: all whose packages "
        "are installed.",
    ),
    Parameter("mesh_rate", 2.0, "Meshes a second of each person on human/mesh.", 0.1, 30.0),
    Parameter(
        "time_limit",
        5.0,
        "Seconds after which a detector or an engine that gives no answer is given up and loaded anew; 0: never.",
        0.0,
        600.0,
        "live",
    ),
    Parameter(
        "warn_rate", 0.0, "Frames a second below which /diagnostics warns; 0: whatever comes.", 0.0, 1000.0, "live"
    ),
    Parameter(
        "warn_latency",
        0.5,
        "Seconds from the image's stamp to its hypotheses above which, for one frame in a hundred, /diagnostics "
        "warns; 0: never.",
        0.0,
        3600.0,
        "live",
    ),
    Parameter(
        "warn_drops",
        0.5,
        "Share of the frames of the last second, 0 to 1, above which dropped ones make /diagnostics warn; those over "
        "max_rate do not count.",
        0.0,
        1.0,
        "live",
    ),
)
_CHANGE = {p.name: p.change for p in PARAMETERS}


def changed(settings: Settings, values: Mapping[str, Any], *, configured: bool) -> Settings:
    """The settings with other values, checked together; names that are none of :data:`PARAMETERS` are left out.

    Args:
        configured: whether the node has loaded what ``configure`` parameters say.

    Raises:
        ParameterError: the values do not go together, one is taken away, or one cannot be changed now.
    """
    values = {name: value for name, value in values.items() if name in _CHANGE}
    for name, value in values.items():
        if value is None:
            raise ParameterError(f"{name} cannot be unset: set it to a value")
        if configured and _CHANGE[name] == "configure" and value != getattr(settings, name):
            raise ParameterError(
                f"{name} says what is loaded, so it can be set only while the node is unconfigured: clean up, set it "
                "and configure again"
            )
    result = replace(settings, **values)
    result.check()
    return result


def declare(node: Node) -> Settings:
    """Declare all parameters on a node and read their values; :meth:`Settings.check` is left to the caller.

    Raises:
        ParameterError: a value of the wrong type or outside its range.
    """
    values = {}
    for parameter in PARAMETERS:
        try:
            values[parameter.name] = node.declare_parameter(
                parameter.name, parameter.default, parameter.descriptor()
            ).value
        except Exception as error:  # rclpy raises several types here, none with the parameter's range in its text
            bounds = "" if parameter.low is None else f" between {parameter.low:g} and {parameter.high:g}"
            kind = type(parameter.default).__name__
            if kind == "float":
                kind = "float (10.0, not 10)"
            raise ParameterError(f"parameter {parameter.name} must be {kind}{bounds}: {error}") from error
    return Settings(**values)
