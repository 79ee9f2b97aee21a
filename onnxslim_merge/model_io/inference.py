"""Shape inference on a message whose weights are stubs, cleared of what onnx invents."""

from __future__ import annotations

from typing import Any

import onnx


def infer_value_info(model: onnx.ModelProto) -> None:
    """Fill value_info of the main graph by shape inference, without the dimension names that inference invents."""
    interface = [*model.graph.input, *model.graph.output]
    declared = {dim.dim_param for value in interface for dim in _dims(value)}
    query = onnx.ModelProto()
    query.CopyFrom(model)
    for value in [*query.graph.input, *query.graph.output]:
        for dim in _dims(value):
            if dim.dim_value < 0:  # some exporters write -1 for "any"; inference would calculate with it
                dim.ClearField("dim_value")
    listed = {value.name for value in query.graph.input}
    if any(tensor.name not in listed for tensor in query.graph.initializer):
        query.ir_version = max(query.ir_version, 4)  # below, inference does not see initializers that are no inputs
    try:
        inferred = onnx.shape_inference.infer_shapes(query, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return  # a model that runtimes accept and inference does not: no value_info is better than a wrong one
    taken = {t.name for group in (model.graph.initializer, model.graph.input, model.graph.output) for t in group}
    for value in inferred.graph.value_info:
        if value.name in taken:
            continue
        for dim in _dims(value):
            if dim.dim_param.startswith("unk__") and dim.dim_param not in declared:
                dim.ClearField("dim_param")
        model.graph.value_info.append(value)


def _dims(value: onnx.ValueInfoProto) -> list[Any]:
    return list(value.type.tensor_type.shape.dim) if value.type.HasField("tensor_type") else []
