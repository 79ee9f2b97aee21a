"""The twin: the original at full size, compensated weights in, removed channels masked where consumers read them.

Its output must equal the small model's. That is exactness tested, not argued.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.model_io import Source
from onnxslim_merge.model_io.importing import graphs_in
from onnxslim_merge.model_io.protos import shell
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.rewrite import edited, position

HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
TOLERANCE = 1e-4  # of max |output| in fp32: sums of a few thousand products, re-ordered, differ by some 1e-6


def build_twin(graph: gs.Graph, plan: SlimPlan) -> gs.Graph:
    """The full-size twin of what `rewrite(graph, plan)` makes. Reads the plan and the original alone."""
    twin = edited(graph, plan)
    nodes = {node.name: node for node in twin.nodes}
    for index, mask in enumerate(plan.masks):
        node = nodes[mask.node]
        source = node.inputs[mask.slot]
        line = np.zeros([mask.size if a == mask.axis else 1 for a in range(mask.rank)], np.dtype(source.dtype))
        line[tuple(list(mask.keep) if a == mask.axis else slice(None) for a in range(mask.rank))] = 1
        masked = gs.Variable(f"twin.masked.{index}", dtype=source.dtype)
        zero = gs.Node(
            "Mul", name=f"twin.mask.{index}", inputs=[source, gs.Constant(f"twin.keep.{index}", line)], outputs=[masked]
        )
        node.inputs[mask.slot] = masked
        twin.nodes.insert(position(twin, node), zero)
    return twin


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
