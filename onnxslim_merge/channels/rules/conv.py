"""Convolutions, any number of spatial axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxslim_merge.channels.claims import Balance, Ragged, Window
from onnxslim_merge.channels.derived import stored_name
from onnxslim_merge.channels.labels import along
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("Conv")
def conv(c: Scope) -> None:
    """`n i *, o i *, o -> n o *`; depthwise: `n c *, c . *, c -> n c *`, a carrier; other groups keep equally many."""
    if not c.is_constant(1) or (c.has(2) and not c.is_constant(2)):
        return c.freeze_all("the weight or the bias is not a constant")
    group = c.attr("group", 1)
    if group == 1:
        bias = c.bias(2, 1, vector=True)
        c.axes("n i *, o i *, o -> n o *")
        c.produces(1, 0, bias)
        return c.consumes((0, 1), (1, 1, 0), bias, window=_window(c))
    if c.shape(1)[1] == 1 and c.shape(0)[1] == group:
        c.carries(1, 0, c.bias(2, 1, vector=True))
        return _depthwise(c)
    return _grouped(c, group)


def _grouped(c: Scope, group: int) -> None:
    """Row o of the weight has labels of its own along axis 1: those of the inputs that its group reads."""
    weight = stored_name(c.walk.constants, c.tensor(1), 1)
    if weight is None or len(c.node.inputs[1].outputs) != 1:
        return c.freeze_all("the weight of a grouped Conv is shared, or behind more than scales of its outputs")
    inputs, outputs = c.axis_labels(0, 1), c.axis_labels(1, 0)
    if c.has(2) and outputs is not None and (bias := c.axis_labels(2, 0)) is not None:
        c.space.unite(outputs, bias)
    for slot in (0, 1):
        for axis in (a for a in range(len(c.shape(slot))) if a > 1 or (a == 0 and slot == 0)):
            c.freeze_axis(slot, axis, "Conv mixes this axis")
    own = [] if outputs is None else [along(outputs, 0, len(c.shape(1)))]
    c.walk.labels.update({weight: own, c.tensor(1): own})
    c.give([] if outputs is None else [along(outputs, 1, len(c.out_shape()))])
    bias_slot = c.bias(2, 1, vector=True)
    c.produces(1, 0, bias_slot, groups=group)
    for ids in (v for v in (inputs, outputs) if v is not None):
        c.walk.balances.append(Balance(c.name, c.op, ids.reshape(group, -1)))
    if inputs is not None:
        each = np.repeat(inputs.reshape(group, -1), c.shape(1)[0] // group, 0)
        c.walk.ragged[weight] = Ragged(weight, 1, 0, each)
        c.consumes((0, 1), (1, 1, 0), bias_slot, groups=group, window=_window(c))
    return None


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
    """`n i *, i o *, o -> n o *`; a stride spreads the taps. Depthwise as in Conv; other groups keep their outputs."""
    if not c.is_constant(1) or (c.has(2) and not c.is_constant(2)):
        return c.freeze_all("the weight or the bias is not a constant")
    group, bias = c.attr("group", 1), c.bias(2, 1, vector=True)
    if group > 1 and c.shape(1)[1] == 1 and c.shape(0)[1] == group:
        c.carries(1, 0, bias)
        return _depthwise(c)
    if group > 1:
        return _grouped_transpose(c, group)
    c.axes("n i *, i o *, o -> n o *")
    c.produces(1, 1, bias)
    return c.consumes((0, 1), (1, 0, 1), bias, tap_gain=_share_of_taps(c), window=_window(c, transposed=True))


def _window(c: Scope, *, transposed: bool = False) -> Window:
    """Kernel, strides and padding; where the output's size is given instead, ONNX spreads the padding evenly."""
    kernel = tuple(c.shape(1)[2:])
    ones = [1] * len(kernel)
    strides, dilations = (tuple(int(n) for n in c.attr(name, ones)) for name in ("strides", "dilations"))
    automatic = str(c.attr("auto_pad", "NOTSET"))
    begin: Any = tuple(int(n) for n in c.attr("pads", [0] * 2 * len(kernel))[: len(kernel)])
    if automatic.startswith("SAME") or (transposed and c.attr("output_shape")):
        begin = "lower" if (automatic != "SAME_UPPER" and transposed) or automatic == "SAME_LOWER" else "upper"
    elif automatic == "VALID":
        begin = tuple(0 for _ in kernel)
    return Window(kernel, strides, dilations, begin, transposed)


def _share_of_taps(c: Scope) -> float:
    """What share of the taps an output position of a ConvTranspose meets, on average."""
    return 1 / float(np.prod(c.attr("strides", [1])))


def _grouped_transpose(c: Scope, group: int) -> None:
    reason = f"output of a grouped ConvTranspose ({group} groups)"
    c.freeze_axis(0, 0, reason)
    for axis in range(2, len(c.shape(0))):
        c.freeze_axis(0, axis, "ConvTranspose mixes this axis")
    for axis in range(1, len(c.shape(1))):
        c.freeze_axis(1, axis, reason)
    if c.has(2):
        c.freeze_axis(2, 0, reason)
    inputs, rows = c.axis_labels(0, 1), c.axis_labels(1, 0)
    c.give([])
    if inputs is None or rows is None:
        return c.freeze_all("grouped ConvTranspose on an axis without channels")
    c.space.unite(inputs, rows)
    c.walk.balances.append(Balance(c.name, c.op, inputs.reshape(group, -1)))
    bias = c.bias(2, 1, vector=True)
    window = _window(c, transposed=True)
    return c.consumes((0, 1), (1, 0, 1), bias, tap_gain=_share_of_taps(c), groups=group, window=window)
