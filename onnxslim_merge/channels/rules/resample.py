"""Operators that change the size of axes: channels pass along those that keep theirs, or sit on several places."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.channels.labels import Arrays, along, lift, on_axis, reshape, varying
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("Resize", "Upsample")
def resize(c: Scope) -> None:
    """An axis of scale 1, or whose entry of `sizes` counts its channels, passes; others, and all of a crop, freeze."""
    if c.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return c.freeze_all("Resize crops, and may fill in, along every axis")
    rank, slots = len(c.shape(0)), len(c.node.inputs)
    for slot in (s for s in range(1, slots) if c.has(s) and not c.is_constant(s)):
        c.refuse(c.labels(slot), slot, None, f"they steer {c.op}")
    by_sizes = slots > 3 and c.has(3) and c.shape(3) != (0,)
    scales = [] if by_sizes else _scales(c, 2 if slots > 2 else 1)
    stretches = c.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    lost: set[int] = set()
    for i, axis in enumerate(int(a) % rank for a in c.attr("axes", range(rank))):
        found = on_axis(c.labels(0), axis)
        if by_sizes and stretches:
            passes = _sized(c, 3, i, axis)
        else:
            passes = not by_sizes and scales[i] == 1
            c.refuse(found if not passes else [], 0, axis, f"{c.op} works along this axis")
            c.refuse(c.read(3, i), 0, axis, "their number sizes another tensor")
        lost |= set() if passes else {axis}
    c.give([a for a in c.labels(0) if not lost & set(varying(a))])
    return c.flow("same", [0], keeps_mean=_repeats(c), equivariant=True)


def _scales(c: Scope, slot: int) -> list[float | None]:
    """The scale of each axis; None where it is computed, be it beside constants in one Concat."""
    if "scales" in c.node.attrs:
        return list(c.attr("scales"))
    maker = c.node.inputs[slot].inputs
    parts = maker[0].inputs if maker and maker[0].op == "Concat" else [c.node.inputs[slot]]
    found: list[float | None] = []
    for part in parts:
        constant = c.walk.constants.get(part.name)
        found += [None] * int(np.prod(c.walk.shapes[part.name])) if constant is None else list(constant.values)
    return found


def _repeats(c: Scope) -> bool:
    """Whether every number shows equally often in the output."""
    pairs = list(zip(c.shape(0), c.out_shape(), strict=True))
    if c.attr("mode", "nearest") != "nearest" or any(before == 0 or after % before for before, after in pairs):
        return False
    where, rounds = c.attr("coordinate_transformation_mode", "half_pixel"), str(c.attr("nearest_mode", "round"))
    centred = where in ("half_pixel", "pytorch_half_pixel") and rounds.startswith("round")
    return c.opset < 11 or centred or (where == "asymmetric" and rounds == "floor")


def _sized(c: Scope, slot: int, index: int, axis: int) -> bool:
    """Whether `axis` keeps its size, of which element `index` of input `slot` says how large it becomes.

    What cannot be claimed freezes.
    """
    found, reads = on_axis(c.labels(0), axis), c.read(slot, index)
    if not found:
        if reads and not c.counts_element(slot, index, [], axis):
            c.refuse(reads, 0, axis, "their number sizes another tensor")
        return True
    if c.shape(0)[axis] != c.out_shape()[axis]:
        c.refuse(found + reads, 0, axis, f"{c.op} works along this axis")
        return False
    if not c.counts_element(slot, index, found, axis):
        c.refuse(found + reads, 0, axis, f"the sizes of {c.op} cannot be rewritten")
    return True


@rule("CenterCropPad")
def center_crop_pad(c: Scope) -> None:
    """An axis that keeps its size passes, and the number is a count; what is cropped or padded freezes."""
    rank = len(c.shape(0))
    axes = [int(a) % rank for a in c.attr("axes", range(rank))]
    lost = {axis for i, axis in enumerate(axes) if not _sized(c, 1, i, axis)}
    c.give([a for a in c.labels(0) if not lost & set(varying(a))])
    c.flow("move", [0])


@rule("DepthToSpace")
def depth_to_space(c: Scope) -> None:
    """A reshape, a transpose, a reshape (DCR or CRD): the channels that make one output channel leave together."""
    n, channels, h, w = c.shape(0)
    b = int(c.attr("blocksize"))
    if c.attr("mode", "DCR") == "CRD":
        split, places, perm = (n, channels // b**2, b, b, h, w), (2, 3), (0, 1, 4, 2, 5, 3)
    else:
        split, places, perm = (n, b, b, channels // b**2, h, w), (1, 2), (0, 3, 4, 1, 5, 2)
    given: Arrays = []
    for array in c.labels(0):
        parts = reshape(array, c.shape(0), split)
        corner = parts[tuple(slice(0, 1 if axis in places else None) for axis in range(6))]
        c.space.unite(parts, corner)
        c.refuse([corner] if array.shape[1] > 1 and channels == b**2 else [], 0, 1, "they make a single channel")
        moved = c.space.collapse(parts).transpose(perm)
        given.append(reshape(moved, [split[p] for p in perm], c.out_shape()))
    c.give(given)
    c.flow("move", [0])


@rule("SpaceToDepth")
def space_to_depth(c: Scope) -> None:
    """A reshape, a transpose, a reshape: every channel sits on blocksize^2 places; height and width freeze."""
    n, channels, h, w = c.shape(0)
    b, perm = int(c.attr("blocksize")), (0, 3, 5, 1, 2, 4)
    if c.attr("mode", "DCR") == "CRD":  # since opset 28: the places within a block come behind the channels
        perm = (0, 1, 3, 5, 2, 4)
    split = (n, channels, h // b, b, w // b, b)
    for axis in (2, 3):
        c.freeze_axis(0, axis, "SpaceToDepth mixes this axis")
    left = [a for a in c.labels(0) if not {2, 3} & set(varying(a))]
    moved = [reshape(a, c.shape(0), split).transpose(perm) for a in left]
    c.give([reshape(a, [split[p] for p in perm], c.out_shape()) for a in moved])
    c.flow("move", [0])


@rule("Expand")
def expand(c: Scope) -> None:
    """Axes pass, and their numbers in the target are counts.

    A single channel expanded to as many as another tensor has carries the labels of those.
    """
    rank, target = len(c.out_shape()), c.integers(1)
    arrays = [lift(a, rank) for a in c.labels(0)]
    sizes = (1,) * (rank - len(c.shape(0))) + c.shape(0)
    if target is None:
        c.refuse(arrays, 0, None, "the target shape of Expand is not known")
    for place, number in enumerate(target or ()):
        axis = place + rank - len(target or ())
        found, reads = on_axis(arrays, axis), c.read(1, place)
        length = (c.element(1, place) or ("",))[0] == "dim"
        if length and sizes[axis] == 1 and len(reads) == 1 and len(varying(reads[0])) == 1:
            arrays.append(along(reads[0].ravel(), axis, rank))
        elif (reads or (found and number != 1)) and not c.counts_element(1, place, found, axis):
            c.refuse(found + reads, 0, axis, "the target shape of Expand cannot be rewritten")
    c.give(arrays)
    c.flow("move" if len(arrays) == len(c.labels(0)) else "private", [0])


@rule("Tile")
def tile(c: Scope) -> None:
    """The labels of a repeated axis repeat; where the repeats are computed, it freezes."""
    arrays = list(c.labels(0))
    for axis, (before, after) in enumerate(zip(c.shape(0), c.out_shape(), strict=True)):
        found, element = on_axis(arrays, axis), c.element(1, axis)
        c.refuse(c.read(1, axis), 0, axis, "their number repeats another tensor")
        if found and (element is None or element[0] != "const"):
            c.refuse(found, 0, axis, "the repeats of Tile are computed")
            arrays = [a for a in arrays if a.shape[axis] == 1]
        elif found:
            counts = [after // before if x == axis else 1 for x in range(len(c.shape(0)))]
            arrays = [np.tile(a, counts) if a.shape[axis] > 1 else a for a in arrays]
    c.give(arrays)
    c.flow("move", [0])


@rule("GridSample", "RoiAlign", "MaxRoiPool")
def sampled(c: Scope) -> None:
    """`n c * -> m c *`: every channel alone, at the same places; all other axes, and what says where, freeze."""
    for axis in (a for a in range(len(c.shape(0))) if a != 1):
        c.freeze_axis(0, axis, f"{c.op} works along this axis")
    for slot in range(1, len(c.node.inputs)):
        c.refuse(c.labels(slot), slot, None, f"they say where {c.op} reads")
    c.give([a for a in c.labels(0) if varying(a) == (1,)])
    linear = c.op == "GridSample" or (c.op == "RoiAlign" and c.attr("mode", "avg") == "avg")
    inside = c.op == "GridSample" and c.attr("padding_mode", "zeros") != "zeros"
    c.flow("same", [0], degree=Degree.LINEAR if linear else Degree.HOMOGENEOUS, equivariant=inside)


@rule("AffineGrid")
def affine_grid(c: Scope) -> None:
    """Makes places, not channels: freezes what it reads."""
    c.freeze_all("AffineGrid computes places from them")
