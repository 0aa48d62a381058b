"""Parameters of the estimator node: declared with descriptions and ranges, read into a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

__all__ = ["LIVE", "PARAMETERS", "Parameter", "ParameterError", "Settings", "declare"]


class ParameterError(ValueError):
    """A parameter has a value that the node cannot start with; the text names it and the mend."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter; ``low`` and ``high`` bound numbers, ``live`` ones may be set while the node runs."""

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    live: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """The ROS descriptor with text and range."""
        result = ParameterDescriptor(name=self.name, description=self.description, read_only=not self.live)
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                result.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)]
            else:
                result.floating_point_range = [
                    FloatingPointRange(from_value=float(self.low), to_value=float(self.high), step=0.0)
                ]
        return result


@dataclass
class Settings:
    """Values of all parameters; the fields are :data:`PARAMETERS`."""

    image_topic: str
    compressed_topic: str
    camera_info_topic: str
    keypoints_topic: str
    transport: str
    bundle: str
    detector: str
    detector_options: str
    engine: str
    precision: str
    engine_threads: int
    samples: int
    modes: int
    seed: int
    max_people: int
    min_score: float
    max_rate: float
    pipeline: bool
    camera_fov: float
    publish_uncertainty: bool
    publish_markers: bool
    publish_overlay: bool
    marker_lifetime: float

    def options(self) -> dict[str, Any]:
        """``detector_options`` as a dict.

        Raises:
            ParameterError: it is not a YAML mapping.
        """
        try:
            options = yaml.safe_load(self.detector_options or "{}")
        except yaml.YAMLError as error:
            raise ParameterError(f"detector_options is not YAML: {error}") from error
        if not isinstance(options, dict):
            raise ParameterError(
                f"detector_options must be a YAML mapping like '{{min_detection: 0.5}}', got {self.detector_options!r}"
            )
        return options

    def check(self) -> None:
        """Check what ranges cannot tell.

        Raises:
            ParameterError: unknown transport, or more modes than samples.
        """
        if self.transport not in ("auto", "raw", "compressed"):
            raise ParameterError(f"transport is {self.transport!r}: set it to auto, raw or compressed")
        if self.modes > self.samples:
            raise ParameterError(
                f"modes is {self.modes} but samples is {self.samples}: a mode is one of the samples, "
                "so lower modes or raise samples"
            )
        self.options()

    def topics(self) -> tuple[str, str, str]:
        """Names of the raw image, compressed image and camera info topics, the empty ones derived from the first."""
        base = self.image_topic.rsplit("/", 1)[0] if "/" in self.image_topic else ""
        info = self.camera_info_topic or (f"{base}/camera_info" if base or "/" in self.image_topic else "camera_info")
        return self.image_topic, self.compressed_topic or f"{self.image_topic}/compressed", info


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("image_topic", "/camera/image_raw", "Topic of the raw camera image (sensor_msgs/Image)."),
    Parameter(
        "compressed_topic",
        "",
        "Topic of the compressed image (sensor_msgs/CompressedImage); empty: image_topic with /compressed.",
    ),
    Parameter("camera_info_topic", "", "Topic of the camera info; empty: camera_info beside the image topic."),
    Parameter(
        "keypoints_topic",
        "/human/keypoints2d",
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
        "engine",
        "onnxruntime",
        "What runs the model: onnxruntime (CPU), onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, or auto (tensorrt "
        "where it can run); where it cannot run, the CPU does, and the log says why.",
    ),
    Parameter("precision", "fp32", "What the engine computes in: fp32, or on a GPU tf32 or fp16."),
    Parameter("engine_threads", 0, "Threads of the engine; 0: its own choice.", 0, 64),
    Parameter("samples", 100, "Bodies drawn from the posterior of every person.", 1, 4096),
    Parameter("modes", 10, "Weighted bodies that the samples are reduced to and that are published.", 1, 100),
    Parameter(
        "seed", 0, "Seed of the samples: with the same seed the same frame gives the same hypotheses.", 0, 2**31 - 1
    ),
    Parameter("max_people", 8, "Largest number of people in a frame; the surest ones are kept.", 1, 64, live=True),
    Parameter("min_score", 0.2, "People with a lower detection score are left out, 0 to 1.", 0.0, 1.0, live=True),
    Parameter("max_rate", 0.0, "Largest number of frames a second that are worked on; 0: all.", 0.0, 1000.0, live=True),
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
        live=True,
    ),
    Parameter("publish_uncertainty", True, "Publish /human/uncertainty.", live=True),
    Parameter("publish_markers", True, "Publish /human/markers for RViz while somebody subscribes to it.", live=True),
    Parameter("publish_overlay", True, "Publish /human/overlay while somebody subscribes to it.", live=True),
    Parameter(
        "marker_lifetime", 0.5, "Seconds after which a marker vanishes if no newer one comes; 0: never.", 0.0, 60.0
    ),
)
LIVE: frozenset[str] = frozenset(p.name for p in PARAMETERS if p.live)
"""Names of the parameters that may be set while the node runs."""


def declare(node: Node) -> Settings:
    """Declare all parameters on a node and read their values.

    Raises:
        ParameterError: a value of the wrong type or outside its range, or values that do not go together.
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
    settings = Settings(**values)
    settings.check()
    return settings
