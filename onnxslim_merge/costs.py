"""Parameters and multiply-accumulates (MACs) of a graph, counted the same way before and after."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.errors import InternalError

Shape = tuple[int, ...]

# Inputs that are no weights even if they are floating-point constants: quantisation scales and zero points, resize
# scales and regions, clip bounds, padding values, ratios.
NOT_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "OneHot": (2,),
    "Pad": (2,),
    "QGemm": (1, 2, 4, 5, 7, 8),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), (1, 2, 4, 5, 6, 7)),
    **dict.fromkeys(
        ("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"),
        (1, 2, 3, 4),
    ),
    "QLinearConcat": (0, 1, *(slot for slot in range(3, 1000) if slot % 3 != 2)),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}
# Inputs whose integers stand for real numbers. The int32 bias of QLinearConv is one of them.
QUANTISED: dict[str, tuple[int, ...]] = {
    "ConvInteger": (0, 1),
    "DequantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "QGemm": (0, 3, 6),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
}
# Quantised weights may be moved before they are dequantised (an int8 table read by Gather).
MOVES = ("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
CONV_WEIGHT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
MATMULS = ("MatMul", "MatMulInteger", "QLinearMatMul")
FLOATS = ("float", "bfloat", "double")


@dataclass(frozen=True, slots=True)
class Costs:
    """parameters: elements of weight constants. macs: multiply-accumulates of one sample."""

    parameters: int
    macs: int


def count(graph: gs.Graph, shapes: Mapping[str, Shape], *, batch: int) -> Costs:
    """Count a graph whose tensors have `shapes` (name -> sizes) when it runs on `batch` samples.

    Parameters: elements of floating-point or quantised constants that an output depends on, each constant once, those
    of If/Loop/Scan bodies included; no shapes, indices, scales or zero points. MACs: Conv, ConvTranspose, Gemm, MatMul
    (and their quantised forms) and Einsum outside of such bodies. Values are never read. Raises InternalError if a
    needed shape is missing.
    """
    nodes = _reachable(graph)
    weights: dict[int, int] = {}
    _collect_weights(nodes, weights)
    for output in graph.outputs:
        _add_weight(output, False, weights)
    macs = sum(_macs(node, shapes) for node in nodes)
    return Costs(sum(weights.values()), round(macs / batch))


def _reachable(graph: gs.Graph) -> list[gs.Node]:
    """The graph's own nodes that an output depends on, consumers before producers; by identity, as names may repeat."""
    own = {id(node) for node in graph.nodes}  # not those of bodies, which are reached through what they capture
    order: list[gs.Node] = []
    seen: set[int] = set()
    stack = [(node, False) for tensor in graph.outputs for node in tensor.inputs]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) in own and id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((producer, False) for tensor in _reads(node) for producer in tensor.inputs)
    return order[::-1]


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Inputs of a node, and every tensor that its bodies use, captured ones among them."""
    yield from node.inputs
    for body in _bodies(node):
        for inner in body.nodes:
            yield from _reads(inner)
        yield from body.outputs


def _bodies(node: gs.Node) -> Iterator[gs.Graph]:
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield value


def _collect_weights(nodes: Iterable[gs.Node], weights: dict[int, int]) -> None:
    """Add id -> elements of every weight that `nodes` (consumers first) read."""
    quantised: set[int] = set()  # ids of tensors whose integers stand for real numbers
    for node in nodes:
        moves = node.op in MOVES and any(id(tensor) in quantised for tensor in node.outputs)
        slots = (0,) if moves else QUANTISED.get(node.op, ())
        quantised.update(id(node.inputs[slot]) for slot in slots if slot < len(node.inputs))
        for slot, tensor in enumerate(node.inputs):
            if slot not in NOT_WEIGHTS.get(node.op, ()):
                _add_weight(tensor, slot in slots, weights)
        for body in _bodies(node):
            _collect_weights(reversed(body.nodes), weights)
            for output in body.outputs:
                _add_weight(output, False, weights)


def _add_weight(tensor: gs.Tensor, quantised: bool, weights: dict[int, int]) -> None:
    constant = _constant(tensor)
    if constant is None:
        return
    kind = _kind(constant.dtype)
    if kind.startswith(FLOATS) or (quantised and kind != "bool"):
        weights[id(constant)] = math.prod(constant.shape)


def _constant(tensor: gs.Tensor) -> Any:
    """The values (with .shape and .dtype) if `tensor` is an initializer or comes from a Constant node, else None."""
    if isinstance(tensor, gs.Constant):
        return tensor
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant":
        value = tensor.inputs[0].attrs.get("value")
        return value if hasattr(value, "dtype") else None
    return None


def _kind(dtype: Any) -> str:
    """Lower-case name of a numpy dtype, or of the TensorProto number that graph-surgeon keeps for bfloat16, float8."""
    if isinstance(dtype, int):
        return str(onnx.TensorProto.DataType.Name(dtype)).lower()
    return str(getattr(dtype, "name", dtype))


def _macs(node: gs.Node, shapes: Mapping[str, Shape]) -> int:
    def shape(tensor: gs.Tensor) -> Shape:
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.shape)
        if tensor.name not in shapes:
            raise InternalError(f"no shape is known for tensor {tensor.name} of node {node.name or node.op}")
        return tuple(shapes[tensor.name])

    inputs = node.inputs
    macs = 0
    if node.op in CONV_WEIGHT:  # (M, C/group, kernel...) at each output element
        macs = math.prod(shape(node.outputs[0])) * math.prod(shape(inputs[CONV_WEIGHT[node.op]])[1:])
    elif node.op == "ConvTranspose":  # (C, M/group, kernel...) at each input element
        macs = math.prod(shape(inputs[0])) * math.prod(shape(inputs[1])[1:])
    elif node.op in ("Gemm", "QGemm"):
        macs = math.prod(shape(node.outputs[0])) * shape(inputs[0])[0 if node.attrs.get("transA") else 1]
    elif node.op in MATMULS:
        macs = math.prod(shape(node.outputs[0])) * shape(inputs[0])[-1]
    elif node.op == "Einsum":
        macs = einsum_macs(node.attrs["equation"], [shape(tensor) for tensor in inputs])
    return macs


def einsum_macs(equation: str, shapes: list[Shape]) -> int:
    """Size of the whole index space times the multiplications at each point; an ellipsis broadcasts."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    letters: dict[str, int] = {}
    ellipsis: dict[int, int] = {}
    for term, sizes in zip(terms, shapes, strict=True):
        head, dots, tail = term.partition("...")
        hidden = len(sizes) - len(head) - len(tail)
        names = [*head, *range(-hidden, 0), *tail] if dots else list(head)
        for name, size in zip(names, sizes, strict=True):
            table: dict[Any, int] = ellipsis if isinstance(name, int) else letters
            table[name] = max(table.get(name, 1), size)
    return math.prod(letters.values()) * math.prod(ellipsis.values()) * (len(shapes) - 1)
