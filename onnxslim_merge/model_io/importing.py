"""ModelProto -> graph-surgeon graph, without its traps: nothing aliases the source, no value is converted wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxslim_merge.errors import InputError, UnsupportedError
from onnxslim_merge.model_io.protos import dense, graphs_of, shell, to_array
from onnxslim_merge.model_io.reading import Source
from onnxslim_merge.runtime import one_line

_SCALARS = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64, "value_string": TensorProto.STRING}
_LISTS = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64, "value_strings": TensorProto.STRING}
# Attribute types that graph-surgeon drops with a warning.
_DROPPED = {
    AttributeProto.TYPE_PROTO,
    AttributeProto.TYPE_PROTOS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TENSORS,
    AttributeProto.GRAPHS,
}


def to_graph(model: Source | onnx.ModelProto, folder: Path = Path()) -> gs.Graph:
    """Import a model. Constant nodes become initializers, local functions are inlined, every constant is an ndarray.

    External tensors are read-only memory maps of files in the source's folder (`folder` for a ModelProto). The graph
    shares nothing that can be edited with the model. Initializers that are also graph inputs become constants; `build`
    lists them again. Attributes that graph-surgeon cannot hold are left out; `build` puts them back by output name.
    Raises InputError if local functions cannot be inlined, UnsupportedError if one holds such an attribute.
    """
    proto = model.proto if isinstance(model, Source) else model
    folder = model.folder if isinstance(model, Source) else folder
    copy = inlined(shell(proto))
    lift_constants(copy.graph, folder)
    _densify(copy.graph, folder)
    known = {name for graph in graphs_of(proto.graph) for node in graph.node for name in node.output}
    for body in graphs_of(copy.graph):
        for node in body.node:
            _strip_attributes(node, known)
    with G_LOGGER.suppress(G_LOGGER.ERROR):  # its warnings go to stdout, and none of them is news to us
        graph = gs.import_onnx(copy)
    payload = {tensor.name: tensor for tensor in proto.graph.initializer}
    for tensor in attribute_tensors(graph):
        _load_values(tensor, {}, folder)
    for tensor in constants_of(graph):
        _load_values(tensor, payload, folder)
    return graph


def _load_values(tensor: gs.Constant, payload: dict[str, TensorProto], folder: Path) -> None:
    if isinstance(tensor._values, LazyValues):
        tensor._values = to_array(payload.get(tensor.name, tensor._values.tensor), folder)
    tensor.data_location = None  # else an edited tensor would be written as an external one without a file


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions. Raises InputError if they cannot be inlined."""
    if not model.functions:
        return model
    try:
        result = onnx.inliner.inline_local_functions(model)
        if result.functions:  # those whose opset differs from the model's are left in place, without a word
            result = onnx.inliner.inline_local_functions(_typed(result), convert_version=True)
    except Exception as error:  # C++: RuntimeError and its relatives, by cause
        raise InputError(f"the model's local functions cannot be inlined: {one_line(error)}") from error
    if result.functions:
        names = ", ".join(sorted(f"{f.domain}:{f.name}" for f in result.functions))
        raise UnsupportedError(f"local functions remain after inlining: {names}")
    return result


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a type for every tensor: the inliner's conversion aborts on initializers without value_info."""
    known = {value.name for value in [*model.graph.input, *model.graph.value_info]}
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.value_info.append(info)
    return onnx.shape_inference.infer_shapes(model)


def lift_constants(graph: onnx.GraphProto, folder: Path) -> None:
    """Turn Constant nodes into initializers, in all bodies. Those that feed an output of their own graph stay nodes."""
    for body in graphs_of(graph):
        outputs = {output.name for output in body.output}
        kept = []
        for node in body.node:
            tensor = None
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.output[0] not in outputs:
                tensor = _constant_value(node, folder)
            if tensor is None:
                kept.append(node)
            else:
                body.initializer.append(tensor)
        if len(kept) < len(body.node):
            copies = [_copied(node) for node in kept]
            del body.node[:]
            body.node.extend(copies)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _constant_value(node: onnx.NodeProto, folder: Path) -> TensorProto | None:
    name = node.output[0]
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = name
            return tensor
        if attribute.name == "sparse_value":
            return onnx.numpy_helper.from_array(dense(value, folder), name)
        if attribute.name in _SCALARS:
            return onnx.helper.make_tensor(name, _SCALARS[attribute.name], [], [value])
        if attribute.name in _LISTS:
            return onnx.helper.make_tensor(name, _LISTS[attribute.name], [len(value)], list(value))
    return None


def _densify(graph: onnx.GraphProto, folder: Path) -> None:
    for body in graphs_of(graph):
        for sparse in body.sparse_initializer:
            body.initializer.append(onnx.numpy_helper.from_array(dense(sparse, folder), sparse.values.name))
        del body.sparse_initializer[:]


def unportable(attribute: AttributeProto) -> bool:
    """Whether graph-surgeon drops the attribute, or fails on it at import or export."""
    if attribute.type in _DROPPED:
        return True
    is_list = attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
    if is_list and not (attribute.ints or attribute.floats or attribute.strings):
        return True
    return any(not _is_text(text) for text in [attribute.s, *attribute.strings])


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _strip_attributes(node: onnx.NodeProto, known: set[str]) -> None:
    kept = [attribute for attribute in node.attribute if not unportable(attribute)]
    if len(kept) == len(node.attribute):
        return
    if not node.output or node.output[0] not in known:
        raise UnsupportedError(f"node {node.name!r} ({node.op_type}) of a local function has an unsupported attribute")
    copies = []
    for attribute in kept:
        copy = AttributeProto()
        copy.CopyFrom(attribute)
        copies.append(copy)
    del node.attribute[:]
    node.attribute.extend(copies)


def graphs_in(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yield the graph and all bodies below it, parents first."""
    yield graph
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from graphs_in(value)


def constants_of(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield each constant once: node inputs and graph outputs of all bodies."""
    seen: set[int] = set()
    for body in graphs_in(graph):
        for tensor in [t for node in body.nodes for t in node.inputs] + list(body.outputs):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def attribute_tensors(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield the tensors that are attributes of nodes, in all bodies."""
    for body in graphs_in(graph):
        for node in body.nodes:
            yield from (value for value in node.attrs.values() if isinstance(value, gs.Constant))
