"""Recurrent layers: what they read may lose channels, their own state stays whole."""

from __future__ import annotations

from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("LSTM", "GRU", "RNN")
def recurrent(c: Scope) -> None:
    """`s b i, d h i`: the input width can be cut, without room for a mean. The hidden state stays whole."""
    for slot in range(2, len(c.node.inputs)):
        c.refuse(c.labels(slot), slot, None, f"the hidden state of {c.op} stays whole")
    for slot, axis in ((0, 0), (0, 1), (1, 0), (1, 1)):
        c.freeze_axis(slot, axis, f"{c.op} mixes this axis")
    if not c.is_constant(1):
        return c.freeze_all("the weight is not a constant")
    found = [c.axis_labels(slot, 2) for slot in (0, 1)]
    c.unite([(slot, [] if ids is None else [ids], c.shape(slot)[2] > 1) for slot, ids in enumerate(found)], 2)
    # its bias has a part for each direction and gate, and as many zeros: no vector that a mean could be added to
    return c.consumes((0, 2), (1, 2, 1), None)
