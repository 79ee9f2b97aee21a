"""Operators on integers: scales and zero points are sliced with weights; what is removed reads as its zero point."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.claims import BiasSlot, Consumer, Degree, Producer
from onnxslim_merge.channels.derived import dequantised, integer_bias
from onnxslim_merge.channels.labels import along, on_axis, varying
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

MICROSOFT = "com.microsoft"
CONV_BIAS = 8


@rule("QLinearConv")
def qlinear_conv(c: Scope) -> None:
    """As Conv, depthwise included, with scales per output channel. Other groups freeze."""
    if not _fixed(c, (2, 3, 4, 5)) or (c.has(8) and not c.is_constant(8)):
        return c.freeze_all("the weight, its scales or a zero point are not constants")
    group, per = c.attr("group", 1), [_vector(c, slot) for slot in range(9)]
    if group == 1:
        c.axes(f"n i *, , , o i *, {per[4]}, {per[5]}, , , {per[8]} -> n o *")
        return _contracts(c, 1, (3, 1, 0), CONV_BIAS)
    if c.shape(3)[1] != 1 or c.shape(0)[1] != group or c.shape(3)[0] != group:
        return c.freeze_all(f"grouped QLinearConv ({group} groups)")
    c.axes(f"n o *, , , o * , {per[4]}, {per[5]}, , , {per[8]} -> n o *")
    if (ids := c.axis_labels(3, 0)) is not None:
        c.counts_attribute("group", [along(ids, 0, 1)], 0)
    return c.flow("private", [0])


@rule("QLinearMatMul")
@rule("QGemm", domain=MICROSOFT)
def qlinear_matmul(c: Scope) -> None:
    """`... k, k n -> ... n` on integers, with a constant matrix and scales per column; QGemm's may be transposed."""
    if not _fixed(c, (2, 3, 4, 5)) or len(c.shape(3)) != 2 or c.attr("transA", 0):
        return c.freeze_all("the weight, its scales or a zero point are not constants, or the weight is no matrix")
    turned, per = bool(c.attr("transB", 0)), [_vector(c, slot, "n") for slot in range(len(c.node.inputs))]
    bias = f", {per[6]}" if c.op == "QGemm" and c.has(6) else ""
    if bias and (len(c.shape(6)) > 1 or not c.is_constant(6)):
        return c.freeze_all("the bias is no constant vector")
    c.axes(f"... k, , , {'n k' if turned else 'k n'}, {per[4]}, {per[5]}{bias} -> ... n")
    gain = float(c.attr("alpha", 1.0))
    return _contracts(c, len(c.shape(0)) - 1, (3, 1, 0) if turned else (3, 0, 1), 6 if bias else None, gain)


def _fixed(c: Scope, slots: tuple[int, ...]) -> bool:
    return all(c.is_constant(slot) for slot in slots)


def _vector(c: Scope, slot: int, letter: str = "o") -> str:
    """The letter of a parameter that has one number for each output, or none."""
    return letter if c.has(slot) and len(c.shape(slot)) == 1 and c.shape(slot)[0] > 1 else ""


def _contracts(c: Scope, x_axis: int, weight: tuple[int, int, int], bias: int | None, alpha: float = 1.0) -> None:
    """Claim the integers at weight = (slot, axis, out_axis), with their scale and zero point in the next two slots.

    bias: the slot of an int32 vector, in steps of the scales of x and weight.
    """
    slot, axis, out_axis = weight
    name = dequantised(c.walk.constants, c.name, [c.tensor(s) for s in (slot, slot + 1, slot + 2)], out_axis)
    out_rank, made, read = len(c.out_shape()), c.axis_labels(slot, out_axis), c.axis_labels(0, x_axis)
    place = 1 if bias == CONV_BIAS else out_rank - 1
    gain = alpha * (float(c.constant(1).ravel()[0]) if c.is_constant(1) else 1.0)
    inside = BiasSlot(c.name, None, place, out_rank, c.output())
    if bias is not None and c.has(bias) and c.is_constant(1):
        inside = BiasSlot(c.name, bias, place, out_rank, c.output(), vector=True)
        held = integer_bias(c.walk.constants, (c.name, bias), c.tensor(bias), gain * c.constant(slot + 1).ravel())
        c.walk.stand_ins[c.name, bias] = held
    labels = np.empty(0, np.int64) if made is None else made
    c.walk.producers.append(Producer(c.name, c.op, name, slot, out_axis, labels, c.output(), inside))
    c.walk.reads[c.name, slot] = axis
    if read is not None:
        zero = float(c.constant(2).ravel()[0])
        c.walk.consumers.append(
            Consumer(
                c.name,
                c.op,
                c.tensor(0),
                0,
                x_axis,
                name,
                slot,
                axis,
                out_axis,
                read,
                c.output(),
                inside if inside.slot else None,
                gain,
                fill=zero,
            )
        )


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_arithmetic(c: Scope) -> None:
    """Element-wise on two tensors of integers, each with one scale."""
    c.joins([0, 3])
    c.give(c.elementwise([0, 3]))
    return c.flow("private", [s for s in (0, 3) if not c.is_constant(s) and c.labels(s)])


@rule("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearAveragePool", domain=MICROSOFT)
def qlinear_unary(c: Scope) -> None:
    """Every number, or in `n c *` every channel, alone; pools with channels last freeze."""
    if c.attr("channels_last", 0):
        return c.freeze_all(f"{c.op} with channels last")
    if c.op.endswith("Pool"):
        c.axes("n c * -> n c *")
    else:
        c.give(list(c.labels(0)))
    return c.flow("same", [0], degree=Degree.OTHER)


@rule("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(c: Scope) -> None:
    """Labels stand one behind the other if each input has one vector of them along the axis; otherwise all freeze."""
    rank, slots = len(c.out_shape()), range(2, len(c.node.inputs), 3)
    axis = int(c.attr("axis")) % rank
    vectors = [on_axis(c.labels(s), axis) for s in slots]
    if any(len(found) != 1 or varying(found[0]) != (axis,) or len(c.labels(s)) != 1 for s, found in
           zip(slots, vectors, strict=True)):  # fmt: skip
        return c.freeze_all("QLinearConcat joins tensors without channels there")
    c.joins(list(slots))
    c.give([along(np.concatenate([found[0].ravel() for found in vectors]), axis, rank)])
    return c.flow("private", list(slots))


@rule("ConvInteger", "MatMulInteger")
@rule("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def integer_product(c: Scope) -> None:
    """Freezes: activations get their scale from all channels at run time, or weights have a scale per block."""
    c.freeze_all(f"{c.op} multiplies integers whose scale comes from all channels, or from a block of them")
