"""Operators that pick entries by index: a constant list of channels is claimed, everything else freezes its axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxslim_merge.channels.claims import Count, Indices
from onnxslim_merge.channels.labels import on_axis, rows, varying
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import STRETCHES, Scope


@rule("Gather")
def gather(c: Scope) -> None:
    """Constant indices take the labels that they pick, and are renumbered; others freeze the axis they pick from.

    Of a constant matrix, an embedding: `v c -> * c`; a row of it is a product with a one-hot vector.
    """
    if _whole(c):
        return
    axis, table = int(c.attr("axis", 0)) % len(c.shape(0)), c.is_constant(0) and len(c.shape(0)) == 2
    _pick(c, axis, c.shape(1))
    if table and axis == 0 and not c.is_constant(1):
        c.produces(0, 1, c.bias(None, len(c.out_shape()) - 1))


def _whole(c: Scope) -> bool:
    """Whether all of x is picked in its own order: Reshape (x, -1) at Range x stride + (0 .. stride - 1).

    So the newer exporter of torch writes as_strided behind an average pool of channels-last images. The stride counts
    the elements of a sample, and the list behind it names them.
    """
    flat, total = (t.inputs[0] if t.inputs else None for t in c.node.inputs[:2])
    if flat is None or total is None or (flat.op, total.op) != ("Reshape", "Add") or c.attr("axis", 0):
        return False
    x, offsets = flat.inputs[0].name, _parts(c, total)
    steps = offsets[1].inputs[0] if offsets and offsets[1].inputs else None
    scaled = (
        steps.inputs[0].inputs[0] if steps is not None and steps.op == "Unsqueeze" and steps.inputs[0].inputs else None
    )
    stride = _parts(c, scaled) if scaled is not None and scaled.op == "Mul" else None
    shape, start = c.walk.shapes.get(x, ()), stride[1].inputs[0] if stride and stride[1].inputs else None
    if not offsets or not stride or start is None or start.op != "Range" or shape != c.out_shape():
        return False
    if any(len(node.outputs[0].outputs) > 1 for node in (total, steps, scaled) if node):
        return False  # the numbers are used elsewhere too
    counted, listed = (c.walk.constants[t].values for t in (stride[0], offsets[0]))
    bounds = [c.walk.constants.get(start.inputs[s].name) for s in (0, 2)]
    size = int(np.prod(shape[1:]))
    if (
        any(b is None or b.values.size != 1 for b in bounds)
        or [int(b.values.ravel()[0]) for b in bounds if b is not None] != [0, 1]
        or listed.shape[1:] != shape[1:]
        or counted.size != 1
        or int(counted.ravel()[0]) != size
        or not np.array_equal(listed.ravel(), np.arange(size))
    ):
        return False
    arrays = [c.space.collapse(a) for a in c.walk.labels.get(x, [])]
    lines = tuple(
        np.broadcast_to(a[:1], (1, *shape[1:])).reshape(-1, 1) for a in arrays if any(v > 0 for v in varying(a))
    )
    if lines:
        c.walk.counts += [Count("", stride[0], 0, lines), Indices("", offsets[0], None, lines)]
    c.give(arrays)
    c.flow("move", [0])
    return True


def _parts(c: Scope, node: Any) -> tuple[str, Any] | None:
    """The constant input of a node with two inputs, and the other one."""
    names = [t.name for t in node.inputs]
    constant = [s for s in (0, 1) if names[s] in c.walk.constants]
    return (names[constant[0]], node.inputs[1 - constant[0]]) if len(constant) == 1 else None


@rule("GatherND")
def gather_nd(c: Scope) -> None:
    """With indices of length 1 a Gather from axis 0; otherwise batch and picked axes freeze, those behind them pass."""
    if c.shape(1)[-1] == 1 and not c.attr("batch_dims", 0):
        return _pick(c, 0, c.shape(1)[:-1])
    lead, depth = len(c.shape(1)) - 1, int(c.attr("batch_dims", 0)) + c.shape(1)[-1]
    c.refuse(c.labels(1), 1, None, "indices of GatherND")
    for axis in range(depth):
        c.freeze_axis(0, axis, "GatherND picks from this axis")
    left = [a for a in c.labels(0) if all(axis >= depth for axis in varying(a))]
    c.give([a.reshape((1,) * lead + a.shape[depth:]) for a in left])
    return c.flow("move", [0])


def _pick(c: Scope, axis: int, shape: tuple[int, ...]) -> None:
    """`axis` gives way to axes of `shape`, that of the indices."""
    c.refuse(c.labels(1), 1, None, f"indices of {c.op}")
    places = np.array(c.integers(1), np.int64).reshape(shape) % max(c.shape(0)[axis], 1) if c.is_constant(1) else None
    alone = places is not None and places.size == 1
    arrays = [c.whole_slices(a, axis) if alone else a for a in c.labels(0)]
    found = on_axis(arrays, axis)
    given = [a.reshape(a.shape[:axis] + (1,) * len(shape) + a.shape[axis + 1 :]) for a in arrays if a.shape[axis] == 1]
    if places is None:
        c.refuse(found, 0, axis, f"{c.op} picks from this axis")
    elif c.stretches(0, axis):
        c.refuse(found, 0, axis, STRETCHES)
    elif len(c.node.inputs[1].outputs) > 1 or c.tensor(1) in c.walk.exposed:
        c.refuse(found, 0, axis, f"the indices of {c.op} are also used elsewhere")
    elif found:
        c.walk.counts.append(Indices("", c.tensor(1), None, rows(found, axis)))
        picked = [c.space.collapse(np.take(a, places, axis)) for a in found]
        c.refuse(picked if alone else [], 0, axis, f"{c.op} takes a single channel")
        given += [] if alone else picked
    c.give(given)
    c.flow("move", [0])


@rule("GatherElements", "ScatterElements")
def by_element(c: Scope) -> None:
    """Freezes the axis that the indices count along; along others data, indices and updates unite, if equally long."""
    rank, slots = len(c.shape(0)), list(range(len(c.node.inputs)))
    axis = int(c.attr("axis", 0)) % rank
    others = {c.shape(s)[:axis] + c.shape(s)[axis + 1 :] for s in slots}
    if len(others) > 1:
        return c.freeze_all(f"{c.op} treats a part of the data only")
    for slot in slots:
        c.freeze_axis(slot, axis, f"{c.op} works along this axis")
    c.joins(slots)
    c.give(c.elementwise(slots, without=[axis]))
    return c.flow("private", slots)


@rule("TopK", "Compress", "ReverseSequence", "Trilu")
def along_an_axis(c: Scope) -> None:
    """Freezes the axis that it works along (Trilu, ReverseSequence: two, Compress without axis: all); others pass."""
    rank = len(c.shape(0))
    work = {
        "TopK": [c.attr("axis", -1)],
        "Compress": range(rank) if c.attr("axis") is None else [c.attr("axis")],
        "ReverseSequence": [c.attr("time_axis", 0), c.attr("batch_axis", 1)],
        "Trilu": [-2, -1],
    }[c.op]
    axes = {int(axis) % rank for axis in work}
    for slot in range(1, len(c.node.inputs)):
        c.refuse(c.labels(slot), slot, None, f"they steer {c.op}")
    for axis in axes:
        c.freeze_axis(0, axis, f"{c.op} works along this axis")
    left = [a for a in c.labels(0) if not axes & set(varying(a))]
    for index in (i for i, tensor in enumerate(c.node.outputs) if tensor.name):
        c.give(left if len(c.out_shape(index)) == rank else [], index)
        c.flow("private", [0], index)


@rule(
    "ScatterND", "OneHot", "NonZero", "Unique", "NonMaxSuppression", "EyeLike", "Range", "ConstantOfShape", "Scatter",
)  # fmt: skip
def makes_no_channels(c: Scope) -> None:
    """Freezes what it reads: positions, counts, or slices written at positions."""
    c.freeze_all(f"{c.op} reads every channel")
