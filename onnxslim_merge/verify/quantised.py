"""Models with quantisers: a last bit may become a step, so equality has a grain there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim_merge.model_io.importing import graphs_in

IDENTICAL = 0.99  # the share of an output's elements that must be the same; the others may be one step apart
QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# A step of the input moves the output by no more than that.
_CALM = frozenset(
    {"Clip", "Concat", "Flatten", "Identity", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Squeeze", "Tanh",
     "Transpose", "Unsqueeze"}
)  # fmt: skip


def has_quantisers(graph: gs.Graph) -> bool:
    """Whether numbers are rounded to integers, or would be once the runtime fuses DequantizeLinear with a product."""
    return any(_rounds(node) for body in graphs_in(graph) for node in body.nodes)


def _rounds(node: gs.Node) -> bool:
    prefixes = ("QLinear", "QGemm", "QAttention", "Dynamic", "MatMulNBits", "MatMulInteger", "ConvInteger")
    return node.op in QUANTISERS or node.op.startswith(prefixes)


def output_steps(graph: gs.Graph) -> dict[str, float]:
    """By output, what one step of the last quantiser before it can do; nothing where that is not known."""
    found = {tensor.name: _step(tensor) for tensor in graph.outputs}
    return {name: step for name, step in found.items() if step is not None}


def _step(tensor: gs.Tensor) -> float | None:
    while not isinstance(tensor, gs.Constant) and tensor.inputs:
        node = tensor.inputs[0]
        if node.op == "QuantizeLinear" or (_rounds(node) and np.dtype(tensor.dtype).kind in "iu"):
            return 1.0
        if node.op == "DequantizeLinear" and isinstance(node.inputs[1], gs.Constant):
            return float(np.asarray(node.inputs[1].values).astype(np.float64).max())
        if node.op not in _CALM or not node.inputs:
            return None
        tensor = node.inputs[0]
    return None


def within_a_step(
    reference: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], name: str, step: float
) -> bool:
    """Whether output `name` is the same in nearly all places, and one step apart in the others."""
    pairs = [(np.asarray(a[name]), np.asarray(b[name])) for a, b in zip(reference, other, strict=True)]
    apart = np.concatenate([np.abs(b.astype(np.float64) - a.astype(np.float64)).ravel() for a, b in pairs])
    largest = max((float(np.abs(a.astype(np.float64)).max(initial=0.0)) for a, _ in pairs), default=0.0)
    noise = 1e-5 * max(largest, step)
    same = np.count_nonzero(apart <= noise)
    return bool(same >= IDENTICAL * apart.size and (apart <= step + noise).all())


def shaken_scales(graph: gs.Graph) -> gs.Graph:
    """`graph` with the last bits of its quantisers' scales changed: what rounding can do to it shows. Edits `graph`."""
    rng, seen = np.random.default_rng(0), set[int]()
    for node in graph.nodes:
        scale = node.inputs[1] if node.op in QUANTISERS else None
        if isinstance(scale, gs.Constant) and id(scale) not in seen:
            seen.add(id(scale))
            values = np.asarray(scale.values)
            factor = 1 + np.finfo(np.float32).eps * rng.choice([-2, 2], values.shape)
            scale.values = np.asarray(values * factor, values.dtype)
    return graph
