"""From a checkpoint to a model bundle: one ONNX graph from keypoints to hypotheses, checked against torch.

The graph holds plain operators only (TensorRT's ONNX parser takes them all), nothing random, and is checked in ONNX
Runtime for several numbers of persons and samples before the bundle is written.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..body import Body
from ..bundle import FORMAT, VERSION, Bundle, save_bundle
from ..engines import make_engine
from ..engines.tensorrt_operators import OPERATORS, unsupported
from ..skeleton import JOINT_NAMES, KEYPOINT_NAMES, NUM_KEYPOINTS
from .body import TorchBody
from .graph import OUTPUTS, DensityGraph, PosteriorGraph
from .models import POSE_SIZE, FlowPosterior, JointPosterior, LiftingModel, Regressor, load_checkpoint

__all__ = [
    "PLAIN_OPERATORS",
    "ExportError",
    "RegressorGraph",
    "check_operators",
    "compare",
    "export",
    "export_graph",
    "export_regressor",
]

OPSET = 18
_PREFIX = "output::"
PLAIN_OPERATORS = frozenset(
    """
    Abs Add And ArgMax ArgMin Atan Cast Clip Concat Constant ConstantOfShape Cos CumSum Div Equal Exp Expand Gather Gemm
    Greater GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log MatMul Max Min Mul Neg Not Or Pow Range
    Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Round Shape Sigmoid Sin
    Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Operators that a graph may hold: no data-dependent shapes, no loops, no scatter."""

_TYPICAL, _WORST = 1e-4, 5e-3
"""Largest difference between ONNX Runtime and torch, relative to ``1 + |value|``: of 99.9 % of the numbers, and of all.
The rest leaves room for samples whose 6D columns are nearly parallel, where Gram-Schmidt magnifies the last digit."""


class ExportError(RuntimeError):
    """The model cannot be exported, or its graph does not do what the model does."""


class RegressorGraph(nn.Module):
    """``regressor.onnx``: the baseline's one body."""

    outputs = ("joints", "keypoints3d", "rotations", "betas", "translation")

    def __init__(self, model: Regressor) -> None:
        super().__init__()
        self.model = model

    def forward(self, keypoints: Tensor, box: Tensor) -> tuple[Tensor, ...]:
        """(B, 23, 3), (B, 3) -> the tensors of ``outputs``, (B, ...)."""
        out = self.model(keypoints, box)
        names = ("joints", "keypoints", "rotations", "betas", "translation")
        return tuple(out["sample_" + name][:, 0] for name in names)


def check_operators(model: onnx.ModelProto) -> None:
    """Raises ExportError if a graph holds an operator that is not in ``PLAIN_OPERATORS``, or that TensorRT's parser
    does not take with these types."""
    found = {node.op_type for node in model.graph.node}
    strange = sorted(found - PLAIN_OPERATORS)
    if strange or model.functions:
        raise ExportError(
            f"the graph holds operators that not every runtime takes: {', '.join(strange) or 'local functions'}; "
            "write the model without boolean masks, fancy indexing and data-dependent shapes"
        )
    for version in OPERATORS:
        if missing := unsupported(model, version):
            raise ExportError(f"TensorRT {version} would not take the graph: {'; '.join(missing[:5])}")


def _name_outputs(graph: onnx.GraphProto) -> None:
    """Takes the prefix off the outputs; the exporter names inner values after functions, so ``mean`` may be taken."""
    wanted = {value.name.removeprefix(_PREFIX) for value in graph.output}

    def renamed(name: str) -> str:
        return "inner_" + name if name in wanted else name.removeprefix(_PREFIX)

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for value in (*graph.output, *graph.initializer):
        value.name = renamed(value.name)


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    path: Path,
) -> onnx.ModelProto:
    """Writes one ONNX file.

    Args:
        module: takes ``inputs`` in order and returns a tuple in the order of ``outputs``.
        inputs: example tensors by name; dynamic dimensions at least 2, or the exporter takes them as fixed.
        dynamic: for each input, dimension -> its name.
        path: of the file.

    Raises:
        ExportError: the graph holds operators outside of ``PLAIN_OPERATORS``.
    """
    module = module.eval()
    dims: dict[str, Any] = {}
    shapes = {
        name: {axis: dims.setdefault(dim, torch.export.Dim(dim, min=1)) for axis, dim in dynamic[name].items()}
        for name in inputs
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own internals
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[_PREFIX + name for name in outputs],
            dynamic_shapes=tuple(shapes.values()),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
            optimize=True,
        )
    proto = program.model_proto
    _name_outputs(proto.graph)
    # Shapes inferred before the exporter's own optimisation are stale, and quantisation tools believe them.
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    check_operators(proto)
    onnx.checker.check_model(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))
    return proto


def _example(persons: int, count: int, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Plausible random inputs: keypoints inside the crop, some unseen, and boxes of people 1 to 8 m away."""
    random = torch.Generator().manual_seed(seed)
    keypoints = torch.rand((persons, NUM_KEYPOINTS, 3), generator=random)
    keypoints[..., :2] = 2 * keypoints[..., :2] - 1
    keypoints = keypoints * (keypoints[..., 2:] > 0.2)
    box = torch.rand((persons, 3), generator=random) * torch.tensor([1.0, 0.6, 1.0]) + torch.tensor([-0.5, -0.3, 0.25])
    latents = torch.randn((persons, count, size), generator=random)
    latents[:, 0] = 0
    return keypoints, box, latents


def compare(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> dict[str, tuple[float, float]]:
    """Differences of ONNX Runtime and torch for each output, relative to ``1 + |value|``: 99.9 % quantile, largest.

    The modes are compared only where both chose the same samples: two nearly equal distances may fall either way.
    """
    with torch.no_grad():
        expected = dict(zip(outputs, (value.numpy() for value in module(*inputs.values())), strict=True))
    engine = make_engine("onnxruntime", path, threads=1)
    given = engine.run({name: value.numpy() for name, value in inputs.items()}, outputs)
    same = (expected["mode_index"] == given["mode_index"]).all(-1) if "mode_index" in expected else None
    difference = {}
    for name, value in expected.items():
        if name == "mode_index":
            continue
        other = given[name]
        if other.shape != value.shape:
            raise ExportError(f"output {name} of {path.name} has shape {other.shape}, torch gives {value.shape}")
        if not np.isfinite(other).all():
            raise ExportError(f"output {name} of {path.name} is not finite: the weights are broken, train again")
        if name.startswith("mode_"):
            other, value = other[same], value[same]
        # A log-density is a sum over all numbers of the pose: its last digit is that of the whole sum's size.
        size = float(POSE_SIZE) if name.endswith("log_density") else 1.0
        gap = np.abs(other - value) / (size + np.abs(value))
        difference[name] = (float(np.quantile(gap, 0.999)), float(gap.max())) if gap.size else (0.0, 0.0)
    return difference


def _require_parity(difference: Mapping[str, tuple[float, float]], path: Path) -> None:
    for name, (typical, worst) in difference.items():
        if typical > _TYPICAL or worst > _WORST:
            raise ExportError(
                f"output {name} of {path.name} differs from torch by {typical:.2g} (99.9 %) and {worst:.2g} (largest), "
                f"the limits are {_TYPICAL:.0e} and {_WORST:.0e}"
            )


def _write_checked(module: PosteriorGraph | DensityGraph, path: Path, modes: int) -> float:
    """Exports one of a bundle's graphs and checks it; returns the worst typical difference."""
    model, dense = module.model, isinstance(module, DensityGraph)
    third, count, outputs = ("pose", "P", ("log_density",)) if dense else ("latents", "N", OUTPUTS)

    @torch.no_grad()
    def example(persons: int, samples: int, seed: int) -> dict[str, Tensor]:
        keypoints, box, values = _example(persons, samples, model.latent_size, seed)
        if dense:  # any 144 numbers are a pose, but far from all poses a density has no digits left
            values = model.sample(values, model.condition(keypoints, box))[0]
        return {"keypoints": keypoints, "box": box, third: values}

    dynamic: dict[str, dict[int, str]] = {"keypoints": {0: "B"}, "box": {0: "B"}, third: {0: "B", 1: count}}
    export_graph(module, example(2, 4 * modes + 3, 0), outputs, dynamic, path)
    worst = 0.0
    for persons, samples in ((1, modes), (1, 100), (3, 4 * modes), (2, 257)):
        difference = compare(module, example(persons, samples, 1), outputs, path)
        _require_parity(difference, path)
        worst = max(worst, *(typical for typical, _ in difference.values()))
    return worst


def _refuse_pictures(model: LiftingModel, checkpoint: str | Path) -> None:
    """Raise ExportError for a model that looks at pictures, which whoever runs the graph does not give it."""
    if model.config.image:
        raise ExportError(
            f"{checkpoint} has the image backbone {model.config.image}, but the robot half gives a model keypoints "
            "alone: train one with model.image=''"
        )


def export(
    checkpoint: str | Path,
    out: str | Path,
    body: str | Path | None = None,
    *,
    name: str | None = None,
    samples: int = 100,
    modes: int = 10,
    extra: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle folder of a trained flow: ``model.onnx``, ``density.onnx``, ``model.yaml``.

    Args:
        checkpoint: written by ``save_checkpoint``.
        out: folder of the bundle; files in it are replaced when all is checked, and not before.
        body: file of the body it was trained with; None: the shipped one.
        name: of the bundle; default: that of the checkpoint's ``meta``, or of the folder.
        samples: how many samples a runtime draws by default.
        modes: n, fixed in the graph.
        extra: more entries of the card (metrics, licence, training data).

    Raises:
        CheckpointError: the checkpoint cannot be used, or was trained with another body.
        ExportError: it holds no flow or wants pictures, or the graph differs from the model.
    """
    if not 1 <= modes <= samples:
        raise ExportError(f"{modes} modes cannot be made of {samples} samples: choose modes between 1 and samples")
    loaded = Body.load(body)
    model, meta = load_checkpoint(checkpoint, TorchBody(loaded, mesh=False))
    if not isinstance(model, FlowPosterior):
        raise ExportError(
            f"{checkpoint} holds a {model.name}, but a bundle needs a flow: joint, flow or prohmr; for a regressor use "
            "`hmr-prob export --regressor`"
        )
    _refuse_pictures(model, checkpoint)
    model.freeze()
    out = Path(out)
    with tempfile.TemporaryDirectory() as folder:
        graph, density = Path(folder) / "model.onnx", Path(folder) / "density.onnx"
        worst = _write_checked(PosteriorGraph(model, modes), graph, modes)
        worst_density = _write_checked(DensityGraph(model), density, modes)
        card = {
            "format": FORMAT,
            "version": VERSION,
            "name": name or meta.get("name") or out.resolve().name,
            "method": model.name,
            "latent_size": model.latent_size,
            "samples": samples,
            "num_modes": modes,
            "nested_modes": isinstance(model, JointPosterior),
            "joint_names": list(JOINT_NAMES),
            "keypoint_names": list(KEYPOINT_NAMES),
            "inputs": {
                "keypoints": "x, y in the square crop scaled to [-1, 1], confidence; zeros where unseen",
                "box": "crop centre x, y and size, each over the focal length",
                "latents": "standard normal, first row zero",
            },
            "body": {"name": loaded.name, "hash": loaded.hash},
            "config": dataclasses.asdict(model.config),
            "opset": OPSET,
            "parity": {"model": float(f"{worst:.2g}"), "density": float(f"{worst_density:.2g}")},
            "training": {key: value for key, value in meta.items() if key not in ("name", "body_hash")},
            **dict(extra or {}),
        }
        return save_bundle(out, card, graph, density)


def export_regressor(checkpoint: str | Path, out: str | Path, body: str | Path | None = None) -> Path:
    """Writes the baseline's ``regressor.onnx`` (``out`` is the file): keypoints, box -> the outputs of RegressorGraph.

    Raises:
        CheckpointError: the checkpoint cannot be used, or was trained with another body.
        ExportError: it holds no regressor or wants pictures, or the graph differs from the model.
    """
    model, _ = load_checkpoint(checkpoint, TorchBody(Body.load(body), mesh=False))
    if not isinstance(model, Regressor):
        raise ExportError(f"{checkpoint} holds a {model.name}, not a regressor: leave --regressor out")
    _refuse_pictures(model, checkpoint)
    path, module = Path(out), RegressorGraph(model)

    def example(persons: int, seed: int) -> dict[str, Tensor]:
        return dict(zip(("keypoints", "box"), _example(persons, 1, 1, seed)[:2], strict=True))

    export_graph(module, example(3, 0), module.outputs, {"keypoints": {0: "B"}, "box": {0: "B"}}, path)
    for persons in (1, 4):
        _require_parity(compare(module, example(persons, 1), module.outputs, path), path)
    return path
