"""Convolutions, any number of spatial axes."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.labels import along
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("Conv")
def conv(c: Scope) -> None:
    """`n i *, o i *, o -> n o *`; depthwise: `n c *, c . *, c -> n c *`, a carrier. Other groups freeze."""
    if not c.is_constant(1) or (c.has(2) and not c.is_constant(2)):
        return c.freeze_all("the weight or the bias is not a constant")
    group = c.attr("group", 1)
    if group == 1:
        bias = c.bias(2, 1, vector=True)
        c.axes("n i *, o i *, o -> n o *")
        c.produces(1, 0, bias)
        return c.consumes((0, 1), (1, 1, 0), bias)
    c.carries(1, 0, c.bias(2, 1, vector=True))
    if c.shape(1)[1] == 1 and c.shape(0)[1] == group:
        return _depthwise(c)
    return c.freeze_all(f"grouped Conv ({group} groups)")


def _depthwise(c: Scope) -> None:
    """Input channel i sits on m rows of the weight; `group` counts input channels. Exact: no channel is mixed."""
    c.freeze_axis(0, 0, "batch")
    channels, rows = c.axis_labels(0, 1), c.axis_labels(1, 0)
    if channels is None or rows is None:
        return c.freeze_all("depthwise Conv on an axis without channels")
    spread = np.repeat(channels, c.shape(1)[0] // channels.size)
    c.space.unite(spread, rows)
    if (bias := c.axis_labels(2, 0) if c.has(2) else None) is not None:
        c.space.unite(spread, bias)
    for slot in (0, 1):
        for axis in range(2, len(c.shape(slot))):
            c.freeze_axis(slot, axis, "Conv mixes this axis")
    c.give([along(spread, 1, len(c.out_shape()))])
    c.counts_attribute("group", [along(channels, 0, 1)], 0)
    return c.flow("private", [0])


@rule("ConvTranspose")
def conv_transpose(c: Scope) -> None:
    """`n i *, i o *, o -> n o *`; a stride spreads the taps over the outputs. Groups freeze."""
    if not c.is_constant(1) or (c.has(2) and not c.is_constant(2)):
        return c.freeze_all("the weight or the bias is not a constant")
    if c.attr("group", 1) != 1:
        return c.freeze_all(f"grouped ConvTranspose ({c.attr('group')} groups)")
    bias = c.bias(2, 1, vector=True)
    c.axes("n i *, i o *, o -> n o *")
    c.produces(1, 1, bias)
    return c.consumes((0, 1), (1, 0, 1), bias, tap_gain=1 / float(np.prod(c.attr("strides", [1]))))
