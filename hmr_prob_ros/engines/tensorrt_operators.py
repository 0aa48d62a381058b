"""The ONNX operators that TensorRT's parser takes, and with which types: facts that a graph is checked against.

Read from ``docs/operators.md`` of github.com/onnx/onnx-tensorrt: the page of the 11.1 release for 11, and for 10.3
that of 10.1, whose operators and types the project's change log leaves as they are up to 10.3 (10.2 names none, 10.3
only lifts the limit on the axes of ``Slice``). Later 10.x releases take what 10.3 takes.
"""

from __future__ import annotations

__all__ = ["CONSTANT", "OPERATORS", "OPSETS", "listed_version", "unsupported"]

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_FLOAT = "FP32 FP16 BF16"
_NUMBER = f"{_FLOAT} INT32 INT64"
_ANY = f"{_NUMBER} BOOL"

_IN_BOTH: dict[str, str] = {  # types of the data: operators
    _NUMBER: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul Neg
        Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
    """,
    _FLOAT: """
        Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh
        CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM
        LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
        PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike
        Reciprocal Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
        ThresholdedRelu Upsample
    """,
    "BOOL": "And Not Or Xor",
    f"{_ANY} UINT8": "Cast CastLike",
    _ANY: """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
    """,
    "FP32 FP16": "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign",
    "INT8 FP8 INT4": "DequantizeLinear",
    f"{_NUMBER} INT8": "Gelu",
    f"{_NUMBER} FP8": "Mean",
}
_IN_11: dict[str, str] = {
    _NUMBER: "Pow",
    _FLOAT: "RMSNormalization RotaryEmbedding Swish",
    f"{_FLOAT} INT8 FP8": "Attention",
    f"{_FLOAT} INT32": "TensorScatter",
    f"{_ANY} FP8 FP4 INT4": "Constant ConstantOfShape",
    "INT8 FP8 FP4 INT4": "DequantizeLinear",
    "FP32 FP16": "BlackmanWindow HammingWindow HannWindow",
    "FP32": "STFT",
}


def _table(*parts: dict[str, str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(types.split()) for part in parts for types, names in part.items() for name in names.split()}


OPERATORS: dict[str, dict[str, frozenset[str]]] = {"10.3": _table(_IN_BOTH), "11": _table(_IN_BOTH, _IN_11)}
"""Version -> operator -> types of its data."""

OPSETS: dict[str, tuple[int, int]] = {"10.3": (9, 20), "11": (9, 24)}
"""Version -> oldest and newest opset."""

_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_ALWAYS = {"CumSum": 1, "Squeeze": 1, "Unsqueeze": 1, **{"Reduce" + name: 1 for name in _REDUCTIONS.split()}}
CONSTANT: dict[str, dict[str, int]] = {"10.3": {**_ALWAYS, "Pad": 3}, "11": _ALWAYS}
"""Version -> operator -> number of the input (its axes) that must be a constant of the graph."""

_TYPES = {  # numbers of onnx.TensorProto.DataType
    **{1: "FP32", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FP16", 11: "FP64", 16: "BF16"},
    **{17: "FP8", 22: "INT4", 23: "FP4"},
}
_DATA = {"Where": 1}  # number of the input that is the data, where it is not the first


def listed_version(version: str) -> str:
    """The newest version of the list that is not newer than TensorRT's ``version``.

    >>> listed_version("10.7.0"), listed_version("11.1.0.106")
    ('10.3', '11')
    """
    own = _numbers(version)
    return [known for known in OPERATORS if _numbers(known) <= own or known == "10.3"][-1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def unsupported(model: ModelProto, version: str) -> list[str]:
    """What TensorRT's parser of this version would not take: a line for each node, with operator and type.

    Args:
        model: a graph of plain nodes, without functions of its own.
        version: of TensorRT, ``"10.3.0"``.
    """
    import onnx

    known = listed_version(version)
    operators, constant_inputs, (oldest, newest) = OPERATORS[known], CONSTANT[known], OPSETS[known]
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    found = [] if oldest <= opset <= newest else [f"opset {opset}: TensorRT {known} reads {oldest} to {newest}"]
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {value.name: value.data_type for value in graph.initializer}
    constants = {value.name for value in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        where = f"{node.op_type} ({node.name or node.output[0]})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in operators:
            found.append(f"{where}: TensorRT {known} does not take this operator")
            continue
        if any(attribute.type in (5, 10) for attribute in node.attribute):  # GRAPH, GRAPHS
            found.append(f"{where}: it holds a graph of its own, which is not checked")
        for name in _data(node):
            kind = _TYPES.get(types.get(name, 0), "an unknown type")
            if kind not in operators[node.op_type]:
                allowed = ", ".join(sorted(operators[node.op_type]))
                found.append(f"{where}: its data {name} is {kind}, TensorRT {known} takes {allowed}")
        index = constant_inputs.get(node.op_type, len(node.input))
        if index < len(node.input) and node.input[index] and node.input[index] not in constants:
            found.append(f"{where}: input {node.input[index]} must be a constant for TensorRT {known}")
        if node.op_type == "LayerNormalization" and any(node.output[1:]):
            found.append(f"{where}: TensorRT {known} gives its first output only")
    return found


def _data(node: NodeProto) -> list[str]:
    """The values whose type an operator's row of the list is about."""
    if node.op_type in ("Constant", "ConstantOfShape", "Range"):
        return list(node.output[:1])
    main = node.input[_DATA.get(node.op_type, 0)]
    return [main, node.output[0]] if node.op_type in ("Cast", "CastLike") else [main]
