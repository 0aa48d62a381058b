"""Half precision written into a graph: what TensorRT 11 asks for, and any other runtime can run too.

Only linear layers of neural networks that run once per sample are halved: nearly all of the work. What runs once per
person (the condition's encoder, the heads) stays in float32, since its error would reach every sample, and so does the
arithmetic of the flow itself (scales, shifts, log-determinants, linear maps of the latents), rotations, kinematics,
translation and modes.
"""

from __future__ import annotations

__all__ = ["half_networks", "linear_layers"]

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from . import EngineError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_ENDS = frozenset({"Relu", "LayerNormalization"})
_PASS = frozenset({"Add", "Cast", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_LARGEST = float(np.finfo(np.float16).max)


def linear_layers(model: ModelProto) -> list[NodeProto]:
    """The products with constant weights that are layers of a network run per sample, in the order of the graph.

    A layer has a ReLU, a layer normalisation or another layer before or behind it, with nothing between but sums and
    changes of shape. A flow's linear map and the sums of the kinematics have none. It runs per sample if what it is
    given depends on an input with two dynamic axes; in a graph without such an input every layer counts.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    constants = {value.name for value in model.graph.initializer}
    sampled = _of_samples(model)
    data: dict[str, str] = {}  # result of a product with constant weights -> its other factor
    products = []
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            factors = [name for name in node.input[:2] if name not in constants]
            if len(factors) == 1 and (not sampled or factors[0] in sampled):
                products.append(node)
                data[node.output[0]] = factors[0]

    def meets_end(node: NodeProto) -> bool:
        waiting = list(users[node.output[0]])
        while waiting:
            follower = waiting.pop()
            if follower.op_type in _ENDS:
                return True
            if follower.op_type in _PASS:
                waiting += users[follower.output[0]]
        return False

    def comes_from(node: NodeProto, known: set[str]) -> bool:
        waiting = [data[node.output[0]]]
        while waiting:
            name = waiting.pop()
            maker = makers.get(name)
            if maker is None:
                continue
            if maker.op_type in _ENDS or name in known:
                return True
            if maker.op_type in _PASS:
                waiting += maker.input
        return False

    found: set[str] = set()
    for node in products:  # a graph is sorted, so the layers before a layer are known
        if meets_end(node) or comes_from(node, found):
            found.add(node.output[0])
    return [node for node in products if node.output[0] in found]


def _of_samples(model: ModelProto) -> set[str]:
    """Values that depend on an input with two or more dynamic axes: those of persons and of samples."""
    found = {
        value.name
        for value in model.graph.input
        if sum(not axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim) > 1
    }
    for node in model.graph.node:
        # The shape of the samples says nothing about them.
        if node.op_type not in ("Shape", "Size") and not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def half_networks(model: ModelProto) -> ModelProto:
    """A copy whose :func:`linear_layers` work in float16, with casts round them; inputs and outputs stay as they are.

    A ReLU between two layers works in float16 as well (rounding and ReLU commute), everything else in float32. A graph
    that gives nothing but a log-density (``density.onnx``) stays in float32 as a whole: it is there to measure with.

    Raises:
        EngineError: a weight is too large for float16.
    """
    import onnx

    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    if [value.name for value in graph.output] == ["log_density"]:
        return half
    layers = {node.output[0] for node in linear_layers(half)}
    arrays = {value.name: value for value in graph.initializer}
    nodes: list[NodeProto] = []
    in_half: dict[str, str] = {}  # float32 value -> its name in float16
    from_half: set[str] = set()  # float32 values that are only widened float16 ones

    def narrowed(name: str) -> str:
        """The name of a value in float16, which is made where there is none."""
        if name in in_half:
            return in_half[name]
        new = name + "::half"
        if name in arrays:
            graph.initializer.append(_half_tensor(arrays[name], new))
        else:
            nodes.append(onnx.helper.make_node("Cast", [name], [new], new, to=onnx.TensorProto.FLOAT16))
        in_half[name] = new
        return new

    def widened(name: str) -> None:
        """Make float32 of the float16 result that has the name of ``name`` with ``::half``."""
        short = name + "::half"
        nodes.append(onnx.helper.make_node("Cast", [short], [name], name + "::cast", to=onnx.TensorProto.FLOAT))
        in_half[name] = short
        from_half.add(name)

    for node in graph.node:
        output = node.output[0] if node.output else ""
        if output in layers or (node.op_type == "Relu" and node.input[0] in from_half):
            names = [narrowed(name) if name else name for name in node.input]
            node.input[:], node.output[:] = names, [output + "::half"]
            nodes.append(node)
            widened(output)
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type != "Cast" or node.output[0] in used]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]  # before the field is emptied
    tensors = [value for value in graph.initializer if value.name in used]
    tensors = [onnx.TensorProto.FromString(value.SerializeToString()) for value in tensors]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    onnx.checker.check_model(half)
    return half


def _half_tensor(tensor: Any, name: str) -> Any:
    import onnx

    values = onnx.numpy_helper.to_array(tensor)
    if values.size and np.abs(values).max() > _LARGEST:
        raise EngineError(
            f"the weight {tensor.name} has numbers up to {np.abs(values).max():.3g}, float16 ends at {_LARGEST:.0f}: "
            "use the precision fp32 or tf32"
        )
    return onnx.numpy_helper.from_array(values.astype(np.float16), name)
