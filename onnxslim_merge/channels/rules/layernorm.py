"""LayerNormalization and RMSNormalization as one operator; in single steps, see `reduce`."""

from __future__ import annotations

from onnxslim_merge.channels.patterns import LAYERNORM
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("LayerNormalization", "RMSNormalization")
def layer_normalization(c: Scope) -> None:
    """Freezes the axes that it normalises. With `--allow-inexact layernorm`: `... c, c, c -> ... c` on the last."""
    rank = len(c.shape(0))
    axis = int(c.attr("axis", -1)) % rank
    if c.outputs() > 1:
        return c.freeze_all(f"the statistics of {c.op} are used")
    cuttable = axis == rank - 1 and all(len(c.shape(s)) == 1 for s in (1, 2) if c.has(s))
    if cuttable and LAYERNORM in c.walk.allowed:
        c.contracts((0, axis), kind="rmsnorm" if c.op == "RMSNormalization" else "layernorm")
        c.axes("... c, c, c -> ... c")
        return c.flow("private", [0])
    for frozen in range(axis, rank):
        c.freeze_axis(0, frozen, f"{c.op} works along this axis{' (--allow-inexact layernorm)' if cuttable else ''}")
    for slot in range(1, len(c.node.inputs)):
        c.refuse(c.labels(slot), slot, None, f"parameters of {c.op}, whose axes stay whole")
    c.give([a for a in c.labels(0) if not any(a.shape[x] > 1 for x in range(axis, rank))])
    return c.flow("private", [0])
