"""Operators that rearrange one tensor: run on the label array itself, so every layout comes out exact."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.labels import on_axis, reshape, varying
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("Transpose")
def transpose(c: Scope) -> None:
    """Axes change place."""
    perm = c.attr("perm", list(range(len(c.shape(0))))[::-1])
    for array in c.labels(0):
        axes = varying(array)
        if len(axes) == 2 and perm.index(axes[0]) > perm.index(axes[1]):  # a channel shuffle
            c.walk.swapped.append((array, axes[1]))
    c.give([a.transpose(perm) for a in c.labels(0)])
    c.flow("move", [0])


@rule("Flatten", "Squeeze", "Unsqueeze")
def refold(c: Scope) -> None:
    """A reshape whose target follows from the input's shape; Squeeze without axes freezes."""
    if c.op == "Squeeze" and not c.has(1) and "axes" not in c.node.attrs:
        c.refuse(c.labels(0), 0, None, "Squeeze without axes would also drop a single channel that is left")
    c.give([c.space.collapse(reshape(a, c.shape(0), c.out_shape())) for a in c.labels(0)])
    c.flow("move", [0])


@rule("Reshape")
def reshape_rule(c: Scope) -> None:
    """A reshape with a target: -1 and 0 follow by themselves, a number that counts channels is claimed."""
    before, after = c.shape(0), c.out_shape()
    arrays = [c.space.collapse(reshape(a, before, after)) for a in c.labels(0)] if np.prod(before) else []
    c.give(arrays)
    c.flow("move", [0])
    target = c.integers(1)
    if target is None:
        return c.refuse(c.labels(0), 0, None, "the target shape of Reshape is not known")
    for axis, number in enumerate(target):
        mine, read = on_axis(arrays, axis), c.read(1, axis)
        if not mine and not read:
            continue
        follows = number == -1 or (number == 0 and not c.attr("allowzero", 0) and _same_axis(c, axis))
        if not (follows and not read) and not c.counts_element(1, axis, mine, axis):
            c.refuse(mine + read, 0, axis, "the target shape of Reshape cannot be rewritten")
    return None


def _same_axis(c: Scope, axis: int) -> bool:
    """Whether the same channels lie on `axis` before and after, so that a 0 in the target follows."""
    pair = (on_axis(c.labels(0), axis), on_axis(c.walk.labels[c.output()], axis))
    return (
        all(len(x) == 1 for x in pair)
        and pair[0][0].size == pair[1][0].size
        and bool((c.space.find(pair[0][0].ravel()) == c.space.find(pair[1][0].ravel())).all())
    )


@rule("Shape")
def shape_of(c: Scope) -> None:
    """Numbers without channels: what is done with them is traced element by element (`channels/elements.py`)."""
    c.give([])
