"""Shapes that a graph computes once and uses in several places: each user gets numbers of its own.

Exporters and ONNX Runtime share equal targets, such as (batch, tokens, heads, width) of all layers. Once one layer
loses heads and another does not, they have to differ. ONNX Runtime shares again what is still equal.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

# Inputs that are shapes or bounds, and what is cheap enough to be computed twice. What reads a shape stays shared.
SHAPES = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2), "Split": (1,), "Pad": (1,), "Resize": (3,)}
ARITHMETIC = frozenset({"Concat", "Unsqueeze", "Squeeze", "Mul", "Div", "Cast", "Reshape", "Where"})


def own_shapes(graph: gs.Graph) -> None:
    """Copy the arithmetic behind every shape that several nodes use, if a constant above 1 takes part in it."""
    exposed = {id(tensor) for tensor in graph.outputs}
    copies: dict[int, list[gs.Node]] = {}
    for node in list(graph.nodes):
        for slot in SHAPES.get(node.op, ()):
            if slot < len(node.inputs):
                _own(node, slot, copies, exposed)
    graph.nodes = [node for original in graph.nodes for node in (original, *copies.get(id(original), ()))]


def _own(user: gs.Node, slot: int, copies: dict[int, list[gs.Node]], exposed: set[int]) -> None:
    tensor = user.inputs[slot]
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op not in ARITHMETIC or maker.domain not in (None, "") or not _counts(maker):
        return
    if len(tensor.outputs) > 1 or id(tensor) in exposed:
        original, count = maker, len(copies.setdefault(id(maker), []))
        own = gs.Variable(f"{tensor.name}.own.{count}", dtype=tensor.dtype, shape=tensor.shape)
        maker = gs.Node(original.op, f"{original.name}.own.{count}", dict(original.attrs), list(original.inputs), [own])
        copies[id(original)].append(maker)
        user.inputs[slot] = own
    for index in range(len(maker.inputs)):
        _own(maker, index, copies, exposed)


def _counts(node: gs.Node, depth: int = 0) -> bool:
    """Whether a constant above 1 is among what a node computes with: no other can count channels."""
    for tensor in node.inputs:
        if isinstance(tensor, gs.Constant):
            if np.dtype(tensor.dtype).kind in "iu" and tensor.values.size and int(tensor.values.max()) > 1:
                return True
        elif depth < 8 and tensor.inputs and tensor.inputs[0].op in ARITHMETIC and _counts(tensor.inputs[0], depth + 1):
            return True
    return False
