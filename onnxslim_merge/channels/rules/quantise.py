"""Quantisers: numbers change their type, channels stay what they are."""

from __future__ import annotations

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def quantise(c: Scope) -> None:
    """Every axis passes; scales and zero points per channel are sliced with theirs. Scales per block freeze."""
    if c.attr("block_size", 0) or len(c.shape(1)) > 1:
        return c.freeze_all("scales per block of channels")
    c.give(list(c.labels(0)))
    if max(_length(c, 1), _length(c, 2)) == 1:
        # one function for all channels: a step function, or linear but for the zero point
        return c.flow("same", [0], degree=Degree.OTHER)
    axis = int(c.attr("axis", 1)) % len(c.shape(0))
    parts = [(0, axis), *((s, 0) for s in (1, 2) if _length(c, s) > 1)]
    found = [(slot, c.axis_labels(slot, a)) for slot, a in parts]
    c.unite([(slot, [] if ids is None else [ids], True) for slot, ids in found], axis)
    return c.flow("private", [0])


def _length(c: Scope, slot: int) -> int:
    return c.shape(slot)[0] if c.has(slot) and c.shape(slot) else 1


@rule("DynamicQuantizeLinear")
def dynamic_quantise(c: Scope) -> None:
    """Freezes: scale and zero point come from the range of all channels."""
    c.freeze_all("the scale comes from the range of all channels")
