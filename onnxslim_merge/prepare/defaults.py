"""Default attributes written out, so that no rule has to know them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import defs, helper

from onnxslim_merge.model_io import Source
from onnxslim_merge.model_io.importing import graphs_in, unportable

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
_POOLS = frozenset({"AveragePool", "MaxPool", "LpPool"})
_WEIGHT_SLOT = {"QLinearConv": 3}


def write_defaults(graph: gs.Graph, source: Source) -> None:
    """Write the defaults of the standard operators' schemas, and those that Conv and pools take from their rank."""
    opset = max((e.version for e in source.proto.opset_import if e.domain in ("", "ai.onnx")), default=1)
    known: dict[str, tuple[dict[str, Any], frozenset[str]]] = {}
    for body in graphs_in(graph):
        for node in body.nodes:
            if node.domain is not None:
                continue
            if node.op not in known:
                known[node.op] = _schema_defaults(node.op, opset)
            defaults, allowed = known[node.op]
            for name, value in defaults.items():
                if name not in node.attrs:
                    node.attrs[name] = list(value) if isinstance(value, list) else value
            _write_spatial(node, allowed)
            if node.op == "Split":
                _write_sizes(node, opset)


def _schema_defaults(op: str, opset: int) -> tuple[dict[str, Any], frozenset[str]]:
    """The defaults of an operator, and the names of all its attributes."""
    try:
        schema = defs.get_schema(op, opset, "")
    except defs.SchemaError:
        return {}, frozenset()
    found: dict[str, Any] = {}
    for name, attribute in sorted(schema.attributes.items()):
        default = attribute.default_value
        if default.type != onnx.AttributeProto.UNDEFINED and not unportable(default):
            value = helper.get_attribute_value(default)
            found[name] = value.decode() if isinstance(value, bytes) else _as_list(value)
    return found, frozenset(schema.attributes)


def _as_list(value: Any) -> Any:
    if isinstance(value, (int, float, str)):
        return value
    return [item.decode() if isinstance(item, bytes) else item for item in value]


def _write_sizes(node: gs.Node, opset: int) -> None:
    """The sizes of a Split that leaves them to be equal; the last of `num_outputs` takes what is left."""
    shape, axis, parts = node.inputs[0].shape, node.attrs.get("axis", 0), len(node.outputs)
    given = len(node.inputs) > 1 and not node.inputs[1].is_empty()
    if given or "split" in node.attrs or shape is None or not isinstance(shape[axis], int):
        return
    most = -(-shape[axis] // parts)
    sizes = [most] * (parts - 1) + [shape[axis] - most * (parts - 1)]
    if min(sizes) < 0:
        return
    node.attrs.pop("num_outputs", None)
    if opset < 13:
        node.attrs["split"] = sizes
    else:
        constant = gs.Constant(f"{node.name}.sizes", np.array(sizes, np.int64))
        if len(node.inputs) > 1:
            node.inputs[1] = constant
        else:
            node.inputs.append(constant)


def _write_spatial(node: gs.Node, allowed: frozenset[str]) -> None:
    """kernel_shape, strides, dilations and pads, whose defaults depend on the number of spatial axes."""
    if node.op in _CONVOLUTIONS:
        weight = node.inputs[_WEIGHT_SLOT.get(node.op, 1)]
        if "kernel_shape" not in node.attrs and weight.shape and all(isinstance(d, int) for d in weight.shape[2:]):
            node.attrs["kernel_shape"] = [int(size) for size in weight.shape[2:]]
    elif node.op not in _POOLS:
        return
    rank = len(node.attrs.get("kernel_shape", ()))
    if not rank:
        return
    for name in sorted({"strides", "dilations"} & allowed):
        node.attrs.setdefault(name, [1] * rank)
    if node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in node.attrs:
        node.attrs.setdefault("pads", [0] * (2 * rank))
