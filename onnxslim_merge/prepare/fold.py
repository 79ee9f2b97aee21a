"""Constant folding one node at a time, where ONNX Runtime's optimizer cannot be used: half precision, new opsets.

graph-surgeon's `fold_constants` is not used: it computes Cast chains in the wrong type, turns `value_float` constants
into float64 and folds random numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxslim_merge.errors import VerifyError
from onnxslim_merge.model_io import Source, fill_shapes
from onnxslim_merge.model_io.exporting import node_proto
from onnxslim_merge.model_io.protos import from_array
from onnxslim_merge.runtime import Runner

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# An IR version that every supported ONNX Runtime loads; nothing of a later one is needed to compute constants.
_IR_VERSION = 10
# Results above this are left to be computed at run time, unless they are no bigger than what they are made from.
_MAX_BYTES = 1 << 20
_MAX_SHARED = 1 << 14
_MOVES = frozenset({"Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def fold(graph: gs.Graph, source: Source) -> None:
    """Fold the constants and static shapes of the main graph in place until nothing changes."""
    while True:
        fill_shapes(graph, source)
        changed = [node for node in list(graph.nodes) if _fold_node(node, graph, source)]
        if not changed:
            return
        gone = {id(node) for node in changed}
        graph.nodes = [node for node in graph.nodes if id(node) not in gone]


def foldable(graph: gs.Graph) -> set[int]:
    """The ids of the main graph's nodes whose value does not depend on a graph input, quantisers aside."""
    found: set[int] = set()
    for node in graph.nodes:
        if _is_pure(node) and all(_is_known(tensor, found) for tensor in node.inputs):
            found.add(id(node))
    return found


def _is_pure(node: gs.Node) -> bool:
    if node.domain not in (None, "", "ai.onnx") or node.op in QUANTIZERS or node.op in _RANDOM:
        return False
    return not any(isinstance(value, gs.Graph) for value in node.attrs.values())


def _is_known(tensor: gs.Tensor, found: set[int]) -> bool:
    if tensor.is_empty() or isinstance(tensor, gs.Constant):
        return True
    return any(id(producer) in found for producer in tensor.inputs)


def _fold_node(node: gs.Node, graph: gs.Graph, source: Source) -> bool:
    """Turn the node's outputs into constants, if they are known. An output of the graph keeps its node."""
    outputs = _outputs(node)
    if not outputs or any(tensor is other for tensor in outputs for other in graph.outputs):
        return False
    if node.op == "Constant" or not _is_pure(node):
        return False
    values = _static_shape(node)
    if values is None:
        if not all(tensor.is_empty() or isinstance(tensor, gs.Constant) for tensor in node.inputs):
            return False
        values = evaluate(node, source)
    if values is None or not _fits(values, node):
        return False
    node.inputs.clear()
    for tensor, value in zip(outputs, values, strict=True):
        tensor.inputs.clear()
        tensor.to_constant(value)
    return True


def _fits(values: list[np.ndarray], node: gs.Node) -> bool:
    made = sum(value.nbytes for value in values)
    if node.op in _MOVES:  # a weight behind one of them should be found, whatever its size, but no big one be doubled
        return len(node.inputs[0].outputs) == 1 or made <= _MAX_SHARED
    given = sum(int(tensor.values.nbytes) for tensor in node.inputs if isinstance(tensor, gs.Constant))
    return made <= max(_MAX_BYTES, given)


def _static_shape(node: gs.Node) -> list[np.ndarray] | None:
    """The value of Shape, or of Gather or Slice of a Shape, where every dimension that it takes is known."""
    if node.op == "Shape":
        dims = _dims(node)
        return [np.array(dims, np.int64)] if dims is not None and all(isinstance(d, int) for d in dims) else None
    if node.op not in ("Gather", "Slice") or not node.inputs or not node.inputs[0].inputs:
        return None
    shape = node.inputs[0].inputs[0]
    dims = _dims(shape) if shape.op == "Shape" else None
    rest = node.inputs[1:]
    if dims is None or not all(t.is_empty() or isinstance(t, gs.Constant) for t in rest):
        return None
    taken = _taken(node, np.arange(len(dims)))
    if taken is None or not all(isinstance(dims[i], int) for i in taken.reshape(-1)):
        return None
    return [np.array([dims[i] for i in taken.reshape(-1)], np.int64).reshape(taken.shape)]


def _dims(shape: gs.Node) -> list[int | str | None] | None:
    """The dimensions that a Shape node gives, with its start and end."""
    dims = shape.inputs[0].shape
    if dims is None:
        return None
    return list(dims)[slice(shape.attrs.get("start", 0), shape.attrs.get("end"))]


def _taken(node: gs.Node, positions: np.ndarray) -> np.ndarray | None:
    """Which positions of a one-dimensional tensor Gather or Slice takes."""
    if node.op == "Gather":
        index = np.asarray(node.inputs[1].values)
        inside = (index >= -len(positions)) & (index < len(positions))
        return np.asarray(positions[index]) if inside.all() else None
    if len(node.inputs) < 3:  # before opset 10 the bounds are attributes
        starts, ends = node.attrs.get("starts"), node.attrs.get("ends")
        step = 1
    else:
        starts, ends = node.inputs[1].values.tolist(), node.inputs[2].values.tolist()
        step = int(node.inputs[4].values[0]) if len(node.inputs) > 4 and not node.inputs[4].is_empty() else 1
    if not starts or not ends or step < 1:
        return None
    return positions[int(starts[0]) : int(ends[0]) : step]


def evaluate(node: gs.Node, source: Source) -> list[np.ndarray] | None:
    """The node's outputs, all inputs being constants: by ONNX Runtime, else by onnx's reference, else None."""
    inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
    proto = node_proto(node)
    names = [name for name in proto.output if name]
    model = helper.make_model(
        helper.make_graph(
            [proto],
            "fold",
            [],
            [helper.make_empty_tensor_value_info(name) for name in names],
            [from_array(tensor.values, tensor.name) for tensor in {t.name: t for t in inputs}.values()],
        ),
        opset_imports=list(source.proto.opset_import),
        ir_version=min(max(source.proto.ir_version, 4), _IR_VERSION),
    )
    try:
        found = Runner(model, optimize=False).run({})
        values = [found[name] for name in names]
    except VerifyError:
        try:
            values = list(ReferenceEvaluator(model).run(None, {}))
        except Exception:  # whatever the reference kernels raise: the node then stays as it is
            return None
    return values if all(_is_right(t, v) for t, v in zip(_outputs(node), values, strict=True)) else None


def _outputs(node: gs.Node) -> list[gs.Tensor]:
    return [tensor for tensor in node.outputs if not tensor.is_empty()]


def _is_right(tensor: gs.Tensor, value: object) -> bool:
    """Evaluators return bfloat16 and its like as other types, and sequences as lists."""
    return isinstance(value, np.ndarray) and tensor.dtype is not None and value.dtype == tensor.dtype
