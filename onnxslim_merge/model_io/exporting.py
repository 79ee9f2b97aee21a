"""graph-surgeon graph -> ModelProto: weights are stubs until its shapes are inferred, and filled in last.

graph-surgeon's own exporter is not used: it edits the protos that it was imported from, mistakes float8 e4m3fnuz for
e4m3fn, cannot write 4-bit or string arrays, and fails on optional inputs and outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxslim_merge.errors import InternalError, OutputError, UnsupportedError, VerifyError
from onnxslim_merge.model_io.carry import carry_over
from onnxslim_merge.model_io.importing import constants_of, graphs_in
from onnxslim_merge.model_io.inference import infer_value_info
from onnxslim_merge.model_io.protos import STUB_BYTES, data_type_of, from_array
from onnxslim_merge.model_io.reading import Source
from onnxslim_merge.model_io.stores import FileStore, InlineStore, Store
from onnxslim_merge.runtime import one_line

# Protobuf messages end at 2 GiB; the margin below it is for the graph and its names.
INLINE_BYTES = 2_000_000_000
# ONNX Runtime gets a message up to this size: it copies the weights, and so does the serialization.
RUN_INLINE_BYTES = 1_500_000_000
_EXTERNAL_BYTES = 1024


def build(graph: gs.Graph, source: Source, *, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Export the graph with everything that belongs to its source: see carry.py. Neither argument is edited.

    `metadata` is added to the model's metadata_props. Shapes in value_info are freshly inferred.
    Raises UnsupportedError above 2 GB (use `staged_output`), InternalError if the interface is not the source's.
    """
    if constant_bytes(graph) > INLINE_BYTES:
        raise UnsupportedError("the model is above 2 GB: it can only be written with external data")
    return assemble(graph, source, InlineStore(), metadata=metadata)


def assemble(
    graph: gs.Graph,
    source: Source,
    store: Store,
    *,
    metadata: Mapping[str, str] | None = None,
    min_bytes: int = STUB_BYTES,
    list_initializers: bool = True,
) -> onnx.ModelProto:
    """Export the graph; the data of tensors of at least `min_bytes` goes to `store`, in order of first use.

    list_initializers: list those that were graph inputs in the source again (the caller of the model may override
    them, so that runtimes do not fold them).
    """
    exporter = _Exporter(graph, source.proto.ir_version, min_bytes)
    model = onnx.ModelProto()
    exporter.fill_graph(model.graph, graph)
    if [t.name for t in graph.inputs] != [t.name for t in source_inputs(source.proto)]:
        raise InternalError("the graph's inputs are not those of the model that it was made from: please report this")
    if [t.name for t in graph.outputs] != [t.name for t in source.proto.graph.output]:
        raise InternalError("the graph's outputs are not those of the model that it was made from: please report this")
    carry_over(model, source.proto, metadata or {}, list_initializers)
    _add_missing_domains(model, graph)
    infer_value_info(model)
    protos = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, array in exporter.delayed.items():
        store.put(protos[name], array)
    return model


def source_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph inputs that are not initializers."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def constant_bytes(graph: gs.Graph) -> int:
    """The bytes of all constants of the graph."""
    return sum(int(tensor.values.nbytes) for tensor in constants_of(graph))


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """One node alone, bodies included; constants that it takes are inputs by name."""
    graph = gs.Graph(nodes=[node], inputs=[], outputs=[])
    proto = onnx.GraphProto()
    _Exporter(graph, ir_version=4, min_bytes=1 << 62).fill_graph(proto, graph)
    result: onnx.NodeProto = proto.node[0]
    return result


class _Exporter:
    """One export. A constant goes into the body that uses it, or into the main graph if several do.

    Before IR 4 every initializer must be a graph input, which a body cannot have: then all go into the main graph.
    """

    def __init__(self, graph: gs.Graph, ir_version: int, min_bytes: int) -> None:
        self.min_bytes = min_bytes
        self.delayed: dict[str, np.ndarray] = {}
        self.main = graph
        self.home: dict[int, gs.Graph] = {}
        for body in graphs_in(graph):
            for tensor in _local_constants(body):
                moved = ir_version < 4 or self.home.get(id(tensor), body) is not body
                self.home[id(tensor)] = graph if moved else body

    def fill_graph(self, proto: onnx.GraphProto, graph: gs.Graph) -> None:
        proto.name = graph.name or "graph"
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        for node in graph.nodes:
            self._add_node(proto, node)
        for tensors, target in ((graph.inputs, proto.input), (graph.outputs, proto.output)):
            for tensor in tensors:
                target.append(_value_info(tensor))
        for tensor in constants_of(graph) if graph is self.main else _local_constants(graph):
            if self.home[id(tensor)] is graph:
                proto.initializer.append(self._tensor(tensor, delay=graph is self.main))

    def _add_node(self, proto: onnx.GraphProto, node: gs.Node) -> None:
        inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
        result = proto.node.add(op_type=node.op, input=inputs, output=outputs)
        if node.name:
            result.name = node.name
        if node.domain:
            result.domain = node.domain
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                attribute = result.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
                self.fill_graph(attribute.g, value)
            elif isinstance(value, gs.Constant):
                result.attribute.add(name=name, type=onnx.AttributeProto.TENSOR, t=self._tensor(value, delay=False))
            else:
                result.attribute.extend(OnnxExporter.export_attributes({name: _plain(value)}))

    def _tensor(self, tensor: gs.Constant, delay: bool) -> TensorProto:
        array = tensor.values
        if not delay or array.nbytes < self.min_bytes or array.dtype == object:
            return from_array(array, tensor.name)
        self.delayed[tensor.name] = array
        return TensorProto(name=tensor.name, data_type=data_type_of(array), dims=array.shape)


def _local_constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    seen: set[int] = set()
    for tensor in [t for node in graph.nodes for t in node.inputs] + list(graph.outputs):
        if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _plain(value: Any) -> Any:
    """Numpy scalars and tuples as Python ones: onnx.helper guesses the attribute's type from the class."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, bool) else value


def _value_info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """Input or output of a body (those of the main graph are replaced by the source's own)."""
    if tensor.dtype is None or (isinstance(tensor, gs.Variable) and tensor.type == "optional_type"):
        return helper.make_empty_tensor_value_info(tensor.name)
    if isinstance(tensor, gs.Constant):
        return helper.make_tensor_value_info(tensor.name, data_type_of(tensor.values), tensor.shape)
    info: onnx.ValueInfoProto = OnnxExporter.export_value_info_proto(tensor, do_type_check=False)
    return info


def _add_missing_domains(model: onnx.ModelProto, graph: gs.Graph) -> None:
    """Domains that the source does not import: only a local function did, or the runtime knows them anyway."""
    known = {"", "ai.onnx", *(entry.domain for entry in model.opset_import)}
    used = {node.domain or "" for body in graphs_in(graph) for node in body.nodes}
    versions = {entry.domain: entry.version for entry in graph.import_domains or ()}
    for domain in sorted(used - known):
        model.opset_import.add(domain=domain, version=versions.get(domain, 1))


def fill_shapes(graph: gs.Graph, source: Source) -> None:
    """Set dtype and shape of the main graph's variables as inference finds them; what it does not find is cleared.

    A dimension is an int, the name of a dimension, or None where it is unknown. Inputs and outputs keep what the
    source says of them.
    """
    model = assemble(graph, source, _NoStore(), list_initializers=False)
    found = {value.name: value for value in model.graph.value_info}
    fixed = {id(tensor) for tensor in [*graph.inputs, *graph.outputs]}
    for tensor in [*graph.inputs, *graph.outputs]:
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = [None if isinstance(size, int) and size < 0 else size for size in tensor.shape]
    for node in graph.nodes:
        for tensor in node.outputs:
            if id(tensor) in fixed or tensor.is_empty():
                continue
            value = found.get(tensor.name)
            tensor.dtype, tensor.shape = None, None
            if value is not None and value.type.HasField("tensor_type"):
                kind = value.type.tensor_type
                tensor.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else None
                if kind.HasField("shape"):
                    tensor.shape = [_dim_value(dim) for dim in kind.shape.dim]


def _dim_value(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


class _NoStore:
    """Shapes need no weights."""

    def put(self, proto: TensorProto, array: np.ndarray) -> None:
        """Leave the stub empty."""


def full_check(model: onnx.ModelProto | Path) -> None:
    """onnx.checker with shape inference. Raises VerifyError with its message."""
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, and what C++ adds when it parses
        raise VerifyError(f"onnx.checker refuses the model: {one_line(error)}") from error


@contextmanager
def runnable(graph: gs.Graph, source: Source) -> Iterator[onnx.ModelProto | Path]:
    """Yield what Runner accepts: a ModelProto, or above 1.5 GB the path of a temporary file, removed afterwards.

    Overridable initializers are not listed as inputs, so that the runtime may optimise. Raises OutputError if the
    temporary folder cannot hold the model.
    """
    if constant_bytes(graph) <= RUN_INLINE_BYTES:
        yield assemble(graph, source, InlineStore(), list_initializers=False)
        return
    with tempfile.TemporaryDirectory(prefix="onnxslim_merge.") as folder:
        path = Path(folder) / "model.onnx"
        try:
            write_external(graph, source, path, list_initializers=False)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"the temporary folder {folder} cannot hold the model: {reason}; set TMPDIR") from error
        yield path


def write_external(
    graph: gs.Graph,
    source: Source,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    list_initializers: bool = True,
) -> list[Path]:
    """Write the model and its data file; returns both paths, the data's first. Raises OSError."""
    data = path.with_name(path.name + ".data")
    with open(data, "wb") as stream:
        store = FileStore(stream, data.name)
        model = assemble(
            graph, source, store, metadata=metadata, min_bytes=_EXTERNAL_BYTES, list_initializers=list_initializers
        )
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [data, path]
