"""Half precision: what is computed in fp16 or bf16 is checked, and measured, in fp32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.model_io.importing import graphs_in
from onnxslim_merge.model_io.protos import shell
from onnxslim_merge.model_io.reading import Source

HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def to_float32(graph: gs.Graph, source: Source) -> tuple[gs.Graph, Source]:
    """Copies that compute in fp32 what `graph` computes in fp16 or bf16: tensors, constants, Casts, interface."""
    copy, proto = graph.copy(), shell(source.proto)
    for body in graphs_in(copy):
        for tensor in body.tensors().values():
            if isinstance(tensor, gs.Constant) and _is_half(tensor.dtype):
                tensor.values = np.asarray(tensor.values).astype(np.float32)
            elif _is_half(tensor.dtype):
                tensor.dtype = np.dtype(np.float32)
        for node in body.nodes:
            node.attrs = {name: _attribute_in_float32(name, value) for name, value in node.attrs.items()}
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.type.tensor_type.elem_type in HALF:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return copy, replace(source, proto=proto)


def _attribute_in_float32(name: str, value: Any) -> Any:
    """Types named by `to` (Cast) and `dtype` (random and filling operators), and tensors such as a fill value."""
    if isinstance(value, gs.Constant) and _is_half(value.dtype):
        return gs.Constant(value.name, np.asarray(value.values).astype(np.float32))
    return onnx.TensorProto.FLOAT if name in ("to", "dtype") and value in HALF else value


def _is_half(dtype: object) -> bool:
    try:
        found = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError:
        return False
    return bool(found == np.float16 or str(found) == "bfloat16")


def is_half_precision(graph: gs.Graph) -> bool:
    """Whether any tensor is fp16 or bf16."""
    return any(_is_half(t.dtype) for t in graph.tensors().values())
