"""Operators that join tensors along an axis or take parts of one."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.claims import Refusal
from onnxslim_merge.channels.labels import Arrays, Ids, along, on_axis, varying
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import STRETCHES, Scope


@rule("Concat")
def concat(c: Scope) -> None:
    """Labels of the joined axis stand one behind the other; along every other axis the inputs unite."""
    rank = len(c.out_shape())
    axis = int(c.attr("axis")) % rank
    slots = [s for s in range(len(c.node.inputs)) if c.has(s)]
    joined = [_vector(c, s, axis) for s in slots]
    for array in [a for s in slots for a in c.labels(s) if a.shape[axis] > 1 and len(varying(a)) > 1]:
        c.refuse([array], None, axis, "a rectangle of channels is joined")
    others = c.elementwise(slots, without=[axis])
    labelled = [ids for ids in joined if ids is not None]
    if not labelled:
        return c.give(others)
    c.joins(slots)
    filled = [_filler(c, s, axis) if ids is None else ids for s, ids in zip(slots, joined, strict=True)]
    c.give([*others, along(np.concatenate(filled), axis, rank)])
    return c.flow("move", [s for s, ids in zip(slots, joined, strict=True) if ids is not None])


def _vector(c: Scope, slot: int, axis: int) -> Ids | None:
    """The one factor along the joined axis; rectangles are refused by the caller."""
    found = on_axis(c.labels(slot), axis)
    return c.axis_labels(slot, axis) if all(len(varying(a)) == 1 for a in found) else None


def _filler(c: Scope, slot: int, axis: int) -> Ids:
    """Labels, frozen, for an input that has none."""
    ids = c.space.fresh(c.shape(slot)[axis])
    c.walk.refuse([ids], Refusal(c.tensor(slot), axis, c.name, c.op, "joined from a tensor without channels here"))
    return ids


@rule("Split")
def split(c: Scope) -> None:
    """Each part takes its stretch of the labels; the sizes are counts."""
    axis = int(c.attr("axis", 0)) % len(c.shape(0))
    start, arrays = 0, list(c.labels(0))
    if any(c.out_shape(index)[axis] == 1 for index in range(len(c.node.outputs))):
        arrays = [c.whole_slices(a, axis) for a in arrays]
    for index in range(len(c.node.outputs)):
        size = c.out_shape(index)[axis]
        found = on_axis(arrays, axis) if size else []  # an empty part carries none
        part = [np.take(a, range(start, start + size), axis) for a in found]
        _lone(c, part, axis)
        c.give([a for a in arrays if a.shape[axis] == 1] + part, index)
        c.flow("move", [0], index)
        start += size
        reads = c.read(1, index)
        if not part:
            c.refuse(reads, 0, axis, "their number splits another tensor")
            continue
        if c.stretches(0, axis):
            c.refuse(part + reads, 0, axis, STRETCHES)
        if not c.has(1) and "split" in c.node.attrs:
            c.counts_attribute("split", part, axis, index)
        elif not (c.has(1) and c.counts_element(1, index, part, axis)):
            c.refuse(part + reads, 0, axis, "the sizes of Split cannot be rewritten")


@rule("Slice")
def slice_rule(c: Scope) -> None:
    """Takes a stretch of the labels; bounds on a labelled axis are counts, steps other than 1 freeze it."""
    rank = len(c.shape(0))
    starts, ends, axes, steps = _bounds(c)
    if axes is None:
        return c.freeze_all("the axes of Slice are not known")
    arrays = list(c.labels(0))
    if starts is None or ends is None or steps is None:
        for axis in (int(a) % rank for a in axes):
            c.freeze_axis(0, axis, "the bounds of Slice are not known")
        return c.give([a for a in arrays if not any(a.shape[int(x) % rank] > 1 for x in axes)])
    for i, axis in enumerate(int(a) % rank for a in axes):
        size, reads = c.shape(0)[axis], c.read(1, i) + c.read(2, i)
        start, end, step = slice(starts[i], ends[i], steps[i]).indices(size)
        if end - start == 1:
            arrays = [c.whole_slices(a, axis) for a in arrays]
        if not (found := on_axis(arrays, axis)):
            c.refuse(reads, 0, axis, "their number cuts another tensor")
            continue
        if step != 1:
            c.refuse(found + reads, 0, axis, f"Slice takes every {step}th channel")
        elif c.stretches(0, axis):
            c.refuse(found + reads, 0, axis, STRETCHES)
        elif not all(
            _bound(c, k, name, i, found, axis, to) for k, name, to in ((1, "starts", start), (2, "ends", end))
        ):
            c.refuse(found + reads, 0, axis, "the bounds of Slice cannot be rewritten")
        _lone(c, [np.take(a, range(start, end, step), axis) for a in found], axis)
        arrays = [np.take(a, range(start, end, step), axis) if a.shape[axis] > 1 else a for a in arrays]
    c.give(arrays)
    return c.flow("move", [0])


def _lone(c: Scope, part: Arrays, axis: int) -> None:
    """Freeze what is cut out alone: an axis of length 1 carries no labels further."""
    c.refuse([a for a in part if a.shape[axis] == 1], 0, axis, f"{c.op} takes a single channel")


def _bounds(c: Scope) -> list[list[int] | None]:
    """Starts, ends, axes, steps, from attributes (before opset 10) or inputs."""
    if "starts" in c.node.attrs:
        starts = list(c.attr("starts"))
        return [starts, list(c.attr("ends")), list(c.attr("axes", range(len(starts)))), [1] * len(starts)]
    found = [c.integers(s) if c.has(s) else [] for s in range(1, 5)]
    count = c.shape(1)[0]
    return [found[0], found[1], found[2] if c.has(3) else list(range(count)), found[3] if c.has(4) else [1] * count]


def _bound(c: Scope, slot: int, name: str, index: int, found: Arrays, axis: int, to: int) -> bool:
    """Claim that a bound counts the channels before it; 0 and the end stay as they are."""
    if to == 0 or to == c.shape(0)[axis]:
        return not c.read(slot, index)
    before = [np.take(a, range(to), axis) for a in found]
    if name in c.node.attrs:
        c.counts_attribute(name, before, axis, index)
        return True
    return c.counts_element(slot, index, before, axis)


@rule("Pad")
def pad(c: Scope) -> None:
    """Padding with a constant inserts fresh labels, whose numbers are the pads; cropping channels freezes them."""
    rank = len(c.shape(0))
    pads = list(c.attr("pads")) if "pads" in c.node.attrs else c.integers(1)
    axes = (c.integers(3) if c.has(3) else None) or list(range(rank))
    if pads is None:
        return c.freeze_all("the pads are not known")
    for place in range(len(pads)):
        c.refuse(c.read(1, place), None, None, "their number pads another tensor")
    arrays = list(c.labels(0))
    for i, axis in enumerate(int(a) % rank for a in axes):
        ends = (pads[i], pads[len(axes) + i])
        if any(ends) and on_axis(arrays, axis):
            arrays = _pad_axis(c, arrays, axis, ends, (i, len(axes) + i))
    c.give(arrays)
    # zeros are what `values.py` takes a padded channel for
    zero = c.attr("value", 0.0) == 0 and (not c.has(2) or (c.is_constant(2) and not c.constant(2).any()))
    return c.flow("move" if zero else "private", [0])


def _pad_axis(c: Scope, arrays: Arrays, axis: int, ends: tuple[int, int], places: tuple[int, int]) -> Arrays:
    """`arrays` with `axis` padded by fresh labels; what cannot be claimed freezes."""
    found, rank = on_axis(arrays, axis), len(c.shape(0))
    extra = [c.space.fresh(max(n, 0)) for n in ends]
    padded = along(np.concatenate([extra[0], found[0].ravel(), extra[1]]), axis, rank) if len(found) == 1 else None
    if padded is None or padded.size != c.out_shape()[axis] or c.attr("mode", "constant") != "constant":
        c.refuse(found, 0, axis, "channels are padded in a way that cannot be rewritten")
        return [a for a in arrays if a.shape[axis] == 1]
    for ids, place in zip(extra, places, strict=True):
        if not ids.size:
            continue
        block = [along(ids, axis, rank)]
        if "pads" in c.node.attrs:
            c.counts_attribute("pads", block, axis, place)
        elif not c.counts_element(1, place, block, axis):
            c.refuse([padded], 0, axis, "the pads cannot be rewritten")
    return [a for a in arrays if a.shape[axis] == 1] + [padded]
