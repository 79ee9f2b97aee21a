"""The steps to the canonical form, in order. Each works in place on the graph, and leaves its function unchanged."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.errors import UnsupportedError
from onnxslim_merge.model_io import Source, fill_shapes, to_graph
from onnxslim_merge.model_io.importing import constants_of, graphs_in
from onnxslim_merge.prepare.defaults import write_defaults
from onnxslim_merge.prepare.fold import fold
from onnxslim_merge.prepare.optimizer import optimized
from onnxslim_merge.prepare.shapes import own_shapes
from onnxslim_merge.prepare.types import fill_types

# Shape constants above this length are data (index tables), not bounds or sizes: they stay shared.
_OWN_ELEMENTS = 1024


def prepare(source: Source, *, custom_ops: Iterable[Path] = ()) -> gs.Graph:
    """The source as a graph in canonical form, equal to it to 1e-5 relative; see the package's docstring.

    Graph inputs and outputs, opsets, IR version and the names of kept nodes and tensors are the source's; dynamic axes
    stay dynamic. Variables carry dtype and shape where inference knows them (a dimension: int, name or None).
    Bodies of If, Loop and Scan are kept as they are, but for folded constants.
    Raises UnsupportedError if the graph has a cycle; what to_graph raises.
    """
    graph = to_graph(source)
    name_nodes(graph)  # first: graph-surgeon takes unnamed twins for one node
    sort_nodes(graph)
    name_casts(graph, source)
    smaller = optimized(graph, source, tuple(custom_ops))
    if smaller is not None:
        smaller.import_domains = graph.import_domains  # without those that ONNX Runtime adds
        graph = smaller
    fold(graph, source)
    drop_copies(graph, source)
    graph.cleanup()
    own_shapes(graph)
    name_nodes(graph)
    own_constants(graph)
    _normalise(graph, source)
    fill_shapes(graph, source)
    fill_types(graph, source, tuple(custom_ops))
    write_defaults(graph, source)
    return graph


def name_casts(graph: gs.Graph, source: Source) -> None:
    """Make a Cast of every CastLike whose type is known: a constant that takes over a type can then be folded."""
    alike = [node for body in graphs_in(graph) for node in body.nodes if node.op == "CastLike" and not node.domain]
    if any(node.inputs[1].dtype is None for node in alike):
        fill_shapes(graph, source)
    for node in alike:
        kind = node.inputs[1].dtype
        if kind is not None:  # graph-surgeon has a number of onnx where numpy has no type
            to = kind if isinstance(kind, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            node.op, node.inputs, node.attrs["to"] = "Cast", node.inputs[:1], int(to)


def name_nodes(graph: gs.Graph) -> None:
    """Give every node a name of its own: its old one, else operator and first output; later twins get a suffix."""
    nodes = [node for body in graphs_in(graph) for node in body.nodes]
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            first = next((tensor.name for tensor in node.outputs if not tensor.is_empty()), "")
            node.name = _free(node.name or f"{node.op}_{first}", taken)
            taken.add(node.name)
        seen.add(node.name)


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"


def sort_nodes(graph: gs.Graph) -> None:
    """Put producers before consumers, keeping the order where it is right already.

    Not graph-surgeon's toposort: it reorders sorted graphs and recurses once per node of a chain.
    Raises UnsupportedError if there is a cycle.
    """
    for body in graphs_in(graph):
        place = {id(node): index for index, node in enumerate(body.nodes)}
        users: list[list[int]] = [[] for _ in body.nodes]
        missing = []
        for index, node in enumerate(body.nodes):
            needed = {place[id(producer)] for producer in _producers(node) if id(producer) in place}
            missing.append(len(needed))
            for producer in needed:
                users[producer].append(index)
        ready = [index for index, count in enumerate(missing) if count == 0]
        ordered = []
        while ready:
            index = heapq.heappop(ready)
            ordered.append(body.nodes[index])
            for user in users[index]:
                missing[user] -= 1
                if missing[user] == 0:
                    heapq.heappush(ready, user)
        if len(ordered) < len(body.nodes):
            stuck = next(node for node, count in zip(body.nodes, missing, strict=True) if count)
            raise UnsupportedError(f"the graph has a cycle through node {stuck.name!r}")
        body.nodes = ordered


def _producers(node: gs.Node) -> Iterable[gs.Node]:
    """The nodes that the node, or a body of it, takes tensors from."""
    bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
    inner = [user for body in bodies for part in graphs_in(body) for user in part.nodes]
    outputs = [tensor for body in bodies for part in graphs_in(body) for tensor in part.outputs]
    tensors = [tensor for user in [node, *inner] for tensor in user.inputs] + outputs
    return [producer for tensor in tensors for producer in tensor.inputs]


def drop_copies(graph: gs.Graph, source: Source) -> None:
    """Remove Identity and inference Dropout from the main graph; the graph's inputs and outputs keep their names."""
    opset = opset_of(source)
    gone = set()
    for node in graph.nodes:
        if not _is_copy(node, opset) or any(extra is output for extra in node.outputs[1:] for output in graph.outputs):
            continue
        value, copy = node.inputs[0], node.outputs[0]
        if not any(copy is output for output in graph.outputs):
            _redirect(copy, value, graph)
        elif _can_rename(value, graph):
            _take_name(value, copy)
        else:
            continue
        node.inputs.clear()
        node.outputs.clear()
        gone.add(id(node))
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]


def _is_copy(node: gs.Node, opset: int) -> bool:
    if node.domain not in (None, "", "ai.onnx"):
        return False
    if node.op == "Identity":
        return True
    if node.op != "Dropout" or any(not t.is_empty() and t.outputs for t in node.outputs[1:]):
        return False
    if opset >= 12 and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        training = node.inputs[2]
        return isinstance(training, gs.Constant) and not bool(training.values)
    return True  # before opset 12 too, whatever `is_test` says: runtimes for inference never drop


def _redirect(old: gs.Tensor, new: gs.Tensor, graph: gs.Graph) -> None:
    for user in {id(user): user for user in old.outputs}.values():
        for slot, tensor in enumerate(user.inputs):
            if tensor is old:
                user.inputs[slot] = new
    for body in graphs_in(graph):
        if body is not graph:
            body.outputs = [new if tensor is old else tensor for tensor in body.outputs]


def _can_rename(value: gs.Tensor, graph: gs.Graph) -> bool:
    """Whether a graph output can take the place of the tensor: it must be made by a node, and be no output itself."""
    made = isinstance(value, gs.Variable) and len(value.inputs) == 1
    return made and not any(value is tensor for body in graphs_in(graph) for tensor in body.outputs)


def _take_name(value: gs.Tensor, output: gs.Tensor) -> None:
    """Let the producer of `value`, and its other users, use the graph output `output` instead."""
    producer = value.inputs[0]
    output.inputs.clear()
    for slot, tensor in enumerate(producer.outputs):
        if tensor is value:
            producer.outputs[slot] = output
    for user in {id(user): user for user in value.outputs}.values():
        for slot, tensor in enumerate(user.inputs):
            if tensor is value:
                user.inputs[slot] = output


def own_constants(graph: gs.Graph) -> None:
    """Give each slot its own copy of a shared small constant: the first keeps the name, the others get a suffix.

    Small: at most one axis longer than 1 (biases, scales, scalars), or int32/int64 of at most 1024 elements (sizes,
    bounds, pads). Weights stay shared, since their users are tied.
    """
    taken = {tensor.name for body in graphs_in(graph) for tensor in [*body.inputs, *body.outputs]}
    for body in graphs_in(graph):
        taken |= {tensor.name for node in body.nodes for tensor in [*node.inputs, *node.outputs]}
    used = {id(tensor) for body in graphs_in(graph) for tensor in body.outputs}
    for body in graphs_in(graph):
        for node in body.nodes:
            for slot, tensor in enumerate(node.inputs):
                if not isinstance(tensor, gs.Constant) or not _is_small(tensor):
                    continue
                if id(tensor) not in used:
                    used.add(id(tensor))
                    continue
                copy = gs.Constant(_free(f"{tensor.name}_copy", taken), tensor.values)
                taken.add(copy.name)
                used.add(id(copy))
                node.inputs[slot] = copy


def _is_small(tensor: gs.Constant) -> bool:
    array = tensor.values
    if sum(size > 1 for size in array.shape) <= 1:
        return True
    return array.dtype in ("int32", "int64") and array.size <= _OWN_ELEMENTS


def _normalise(graph: gs.Graph, source: Source) -> None:
    """Opsets and IR version as in the source; the standard domain is always None."""
    graph.ir_version = source.proto.ir_version
    graph.opset = opset_of(source)
    for body in graphs_in(graph):
        body.opset, body.import_domains = graph.opset, graph.import_domains
        for node in body.nodes:
            node.domain = None if node.domain in ("", "ai.onnx") else node.domain
    for tensor in constants_of(graph):
        tensor.data_location = None


def opset_of(source: Source) -> int:
    """The version of the standard operators that the model imports (1 if it imports none)."""
    versions: Sequence[int] = [e.version for e in source.proto.opset_import if e.domain in ("", "ai.onnx")]
    return versions[0] if versions else 1
