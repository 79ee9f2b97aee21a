"""Small tools on protobuf messages: walks through bodies, copies without the weights, tensors to arrays and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

# Below this size a tensor always travels with the graph: shape inference reads constants such as Reshape targets, and
# they are never this long. At and above it, copies of a graph hold a stub only.
STUB_BYTES = 4096


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and every body of If, Loop, Scan ... below it, parents first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)
            for body in attribute.graphs:
                yield from graphs_of(body)


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of the model: initializers and attributes, in all bodies and functions."""
    for graph in graphs_of(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)
            for attribute in node.attribute:
                for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                    for inner in graphs_of(body):
                        yield from inner.initializer


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy of `model` whose big initializers are stubs: name, type and dims, no data.

    Fields are copied one by one: CopyFrom followed by a deletion would keep the weights in the copy's memory.
    """
    copy = onnx.ModelProto()
    _copy_fields(copy, model, skip={"graph"})
    _copy_fields(copy.graph, model.graph, skip={"initializer"})
    for tensor in model.graph.initializer:
        copy.graph.initializer.append(stub(tensor) if _is_big(tensor) else tensor)
    return copy


def _copy_fields(target: Any, source: Any, skip: set[str]) -> None:
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _is_big(tensor: TensorProto) -> bool:
    return is_external(tensor) or (tensor.data_type != TensorProto.STRING and tensor.ByteSize() >= STUB_BYTES)


def stub(tensor: TensorProto) -> TensorProto:
    """A copy of the tensor without its data."""
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def external_path(tensor: TensorProto, folder: Path) -> Path:
    """The file that an external tensor's data lies in."""
    return folder / external_data_helper.ExternalDataInfo(tensor).location


def to_array(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The tensor's values; external data of whole-byte types as a read-only memory map."""
    if not is_external(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    info = external_data_helper.ExternalDataInfo(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    shape = tuple(tensor.dims)
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.zeros(shape, dtype)
    path, offset = folder / info.location, info.offset or 0
    if is_packed(tensor.data_type):
        inline = stub(tensor)
        with open(path, "rb") as file:
            file.seek(offset)
            inline.raw_data = file.read(info.length or -1)
        return np.asarray(numpy_helper.to_array(inline))
    raw = np.memmap(path, np.uint8, "r", offset, (count * dtype.itemsize,))
    return raw.view(dtype).reshape(shape)


def is_packed(data_type: int) -> bool:
    """Types of less than a byte: several values share a byte, so an array cannot map them."""
    name = TensorProto.DataType.Name(data_type)
    return name in {"INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2"}


def dense(sparse: onnx.SparseTensorProto, folder: Path) -> np.ndarray:
    """The full array of a sparse tensor (graph-surgeon's own conversion reads raw_data as zeros)."""
    values = to_array(sparse.values, folder)
    indices = to_array(sparse.indices, folder)
    result = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        result.reshape(-1)[indices] = values
    else:
        result[tuple(indices.T)] = values
    return result


def data_type_of(array: np.ndarray) -> int:
    """The ONNX element type of an array (ml_dtypes included)."""
    return TensorProto.STRING if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype)


def from_array(array: np.ndarray, name: str) -> TensorProto:
    """A TensorProto holding the array."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
