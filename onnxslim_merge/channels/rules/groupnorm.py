"""Normalisation by the statistics of the input itself, over channels, groups or places."""

from __future__ import annotations

from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("InstanceNormalization")
def instance_normalization(c: Scope) -> None:
    """`n c *, c, c -> n c *`: every channel alone; where axis 1 holds groups of channels, whole groups leave."""
    c.keep_axis(0, 1)
    c.axes("n c *, c, c -> n c *")
    c.flow("private", [0])


@rule("GroupNormalization")
def group_normalization(c: Scope) -> None:
    """`n c *, c, c -> n c *`: whole groups leave, and their number is a count."""
    channels = c.axis_labels(0, 1)
    c.axes("n c *, c, c -> n c *")
    c.flow("private", [0])
    if channels is None:
        return
    members = channels.reshape(int(c.attr("num_groups")), -1)
    if len(members) == 1:
        c.refuse([channels], 0, 1, "GroupNormalization normalises all channels together")
    c.space.unite(members, members[:, :1])
    c.counts_attribute("num_groups", [members], 0)


@rule("LRN", "MeanVarianceNormalization", "LpNormalization")
def normalised_axes(c: Scope) -> None:
    """Freezes the axes that it normalises: channels (LRN), `axes` (MeanVariance), `axis` (Lp); the others pass."""
    rank = len(c.shape(0))
    axes = {"LRN": [1], "LpNormalization": [c.attr("axis", -1)]}.get(c.op) or c.attr("axes", [0, 2, 3])
    for axis in axes:
        c.freeze_axis(0, int(axis) % rank, f"{c.op} normalises along this axis")
    c.give(list(c.labels(0)))
    c.flow("private", [0])
