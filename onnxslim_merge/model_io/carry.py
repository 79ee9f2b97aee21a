"""What graph-surgeon loses between import and export, copied from the source model to the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from onnxslim_merge.model_io.importing import unportable
from onnxslim_merge.model_io.protos import graphs_of

_MODEL_FIELDS = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")


def carry_over(
    model: onnx.ModelProto, source: onnx.ModelProto, metadata: Mapping[str, str], list_initializers: bool
) -> None:
    """Give `model` what it shares with `source`: provenance, interface, opsets, documentation, annotations.

    Not carried: training_info and device configurations, which name nodes and initializers that may be gone.
    """
    for name in _MODEL_FIELDS:
        if source.HasField(name):
            setattr(model, name, getattr(source, name))
    del model.opset_import[:]
    model.opset_import.extend(source.opset_import)
    merged = {entry.key: entry.value for entry in source.metadata_props} | dict(sorted(metadata.items()))
    for key, value in merged.items():
        model.metadata_props.add(key=key, value=value)
    _carry_graph(model.graph, source.graph)
    _carry_nodes(model.graph, source.graph)
    _carry_interface(model, source, list_initializers)


def _carry_graph(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    graph.name = source.name
    if source.doc_string:
        graph.doc_string = source.doc_string
    graph.metadata_props.extend(source.metadata_props)
    documented = {t.name: t for t in source.initializer if t.doc_string or t.metadata_props}
    for tensor in graph.initializer:
        if tensor.name in documented:
            tensor.doc_string = documented[tensor.name].doc_string
            tensor.metadata_props.extend(documented[tensor.name].metadata_props)
    names = {name for node in graph.node for name in [*node.input, *node.output]}
    names |= {value.name for value in [*graph.input, *graph.output]} | {tensor.name for tensor in graph.initializer}
    for annotation in source.quantization_annotation:
        parameters = {entry.value for entry in annotation.quant_parameter_tensor_names}
        if annotation.tensor_name in names and parameters <= names:
            graph.quantization_annotation.append(annotation)


def _carry_nodes(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Nodes are recognised by operator and first output; by operator and name where that output was renamed."""
    by_output: dict[tuple[str, str], onnx.NodeProto | None] = {}
    by_name: dict[tuple[str, str], onnx.NodeProto | None] = {}
    for body in graphs_of(source):
        for node in body.node:
            _index(by_output, (node.op_type, node.output[0] if node.output else ""), node)
            _index(by_name, (node.op_type, node.name), node)
    for body in graphs_of(graph):
        for node in body.node:
            origin = by_output.get((node.op_type, node.output[0] if node.output else ""))
            if origin is None and node.name:
                origin = by_name.get((node.op_type, node.name))
            if origin is not None:
                if origin.doc_string:
                    node.doc_string = origin.doc_string
                node.metadata_props.extend(origin.metadata_props)
                present = {attribute.name for attribute in node.attribute}
                lost = (a for a in origin.attribute if unportable(a) and a.name not in present)
                node.attribute.extend(lost)


def _index(table: dict[tuple[str, str], Any], key: tuple[str, str], node: onnx.NodeProto) -> None:
    """Two nodes under one key make it useless: neither is taken."""
    table[key] = None if key in table else node


def _carry_interface(model: onnx.ModelProto, source: onnx.ModelProto, list_initializers: bool) -> None:
    """Inputs and outputs are the source's own messages: names, types, dimension names, denotations, doc strings.

    Initializers that the source lists as inputs are listed again, with their new shapes; before IR 4, all are.
    """
    graph = model.graph
    fresh = {value.name for value in graph.input}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    del graph.input[:], graph.output[:]
    graph.output.extend(source.graph.output)
    listed = set()
    for value in source.graph.input:
        if value.name in fresh:
            graph.input.append(value)
        elif value.name in initializers and list_initializers:
            graph.input.append(_resized(value, initializers[value.name]))
            listed.add(value.name)
    if list_initializers and source.ir_version < 4:
        for name, tensor in initializers.items():
            if name not in listed:
                graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _resized(value: onnx.ValueInfoProto, tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    dims: Iterable[int] = list(tensor.dims)
    old = list(value.type.tensor_type.shape.dim)
    if [dim.dim_value for dim in old] != dims:
        shape = onnx.helper.make_tensor_type_proto(tensor.data_type, list(dims)).tensor_type
        for new, before in zip(shape.shape.dim, old, strict=False):
            new.denotation = before.denotation
        result.type.tensor_type.CopyFrom(shape)
    return result
