"""Normalisation with known statistics, and operators that normalise along an axis."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

LAYERNORM = "layernorm"


@rule("BatchNormalization")
def batch_normalization(c: Scope) -> None:
    """`n c *, c, c, c, c -> n c *`: affine per channel at inference; beta and |gamma| are its mean and spread."""
    if c.attr("training_mode", 0) or c.outputs() > 1:
        return c.freeze_all("BatchNormalization in training mode")
    c.axes("n c *, c, c, c, c -> n c *")
    if not all(c.is_constant(s) for s in range(1, 5)):
        return c.flow("private", [0])
    shape = (1, -1) + (1,) * (len(c.out_shape()) - 2)
    gamma, beta, mean, variance = (c.constant(s) for s in range(1, 5))
    scale = gamma / np.sqrt(variance + float(c.attr("epsilon", 1e-5)))
    return c.flow(
        "affine",
        [0],
        scale=scale.reshape(shape),
        offset=(beta - mean * scale).reshape(shape),
        moments=(beta.reshape(shape), np.abs(gamma).reshape(shape)),
    )


@rule("LayerNormalization", "RMSNormalization")
def layer_normalization(c: Scope) -> None:
    """Freezes the axes that it normalises. With `--allow-inexact layernorm`: `... c, c, c -> ... c` on the last."""
    rank = len(c.shape(0))
    axis = int(c.attr("axis", -1)) % rank
    if c.outputs() > 1:
        return c.freeze_all(f"the statistics of {c.op} are used")
    if axis == rank - 1 and LAYERNORM in c.walk.allowed:
        c.contracts((0, axis), kind="rmsnorm" if c.op == "RMSNormalization" else "layernorm")
        c.axes("... c, c, c -> ... c")
        return c.flow("private", [0])
    for frozen in range(axis, rank):
        c.freeze_axis(0, frozen, f"{c.op} works along this axis (--allow-inexact layernorm)")
    for slot in range(1, len(c.node.inputs)):
        c.refuse(c.labels(slot), slot, None, f"parameters of {c.op}, whose axes stay whole")
    c.give([a for a in c.labels(0) if not any(a.shape[x] > 1 for x in range(axis, rank))])
    return c.flow("private", [0])


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(c: Scope) -> None:
    """Freezes the axis that it normalises (before opset 13: that axis and all behind it); the others pass."""
    rank = len(c.shape(0))
    axis = int(c.attr("axis", -1 if c.opset >= 13 else 1)) % max(rank, 1)
    for frozen in range(axis, rank if c.opset < 13 else axis + 1):
        c.freeze_axis(0, frozen, f"{c.op} normalises along this axis")
    c.give(list(c.labels(0)))
    return c.flow("private", [0])
