"""Pools: every channel alone."""

from __future__ import annotations

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def pool(c: Scope) -> None:
    """`n c * -> n c *`; average pools are linear and keep the mean, the others positively homogeneous."""
    if c.outputs() > 1:
        return c.freeze_all("the indices of MaxPool are used")
    c.axes("n c * -> n c *")
    average = c.op.endswith("AveragePool")
    degree = Degree.LINEAR if average else Degree.HOMOGENEOUS
    pads = any(c.attr("pads", ())) or str(c.attr("auto_pad", "NOTSET")).startswith("SAME")
    padded = average and c.attr("count_include_pad", 0) and pads  # zeros enter the average
    keeps = not padded and not c.op.endswith("LpPool")
    return c.flow("same", [0], degree=degree, keeps_mean=average and not padded, equivariant=keeps)
