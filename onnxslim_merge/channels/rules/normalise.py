"""Normalisation with known statistics, and operators that normalise along an axis."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


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


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(c: Scope) -> None:
    """Freezes the axis that it normalises (before opset 13: that axis and all behind it); the others pass."""
    rank = len(c.shape(0))
    axis = int(c.attr("axis", -1 if c.opset >= 13 else 1)) % max(rank, 1)
    for frozen in range(axis, rank if c.opset < 13 else axis + 1):
        c.freeze_axis(0, frozen, f"{c.op} normalises along this axis")
    c.give(list(c.labels(0)))
    return c.flow("private", [0])
