"""SlimPlan + prepared graph -> graph. Knows no operator: it replaces constants, gathers them, and writes numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.errors import InputError
from onnxslim_merge.plan import Fold, SlimPlan


def rewrite(graph: gs.Graph, plan: SlimPlan, *, fold: bool = True) -> gs.Graph:
    """The slimmed copy of `graph`; with `fold=False` BatchNormalization stays. `graph` is left as it is.

    Raises InputError if the plan names what the graph does not have.
    """
    small = edited(graph, plan)
    constants = _constants(small)
    for gather in plan.gathers:
        tensor = _find(constants, gather.tensor)
        if gather.by is None:
            tensor.values = np.take(tensor.values, gather.keep, axis=gather.axis)
        else:
            tensor.values = _take_by_row(tensor.values, gather.axis, gather.by, gather.rows)
    nodes = {node.name: node for node in small.nodes}
    for number in plan.numbers:
        if number.node:
            _write_attribute(_find(nodes, number.node), number.name, number.index, number.value)
        else:
            tensor = _find(constants, number.name)
            values = np.array(tensor.values)
            values.reshape(-1)[number.index or 0] = number.value
            tensor.values = values
    for renumber in plan.renumbers:
        tensor = _find(constants, renumber.tensor)
        tensor.values = _renumbered(tensor.values, renumber.size, renumber.keep)
    if fold:
        for item in plan.folds:
            _fold(small, nodes, item, plan)
    _forget_shapes(small)
    return small.cleanup()


def _take_by_row(values: NDArray[Any], axis: int, by: int, rows: Sequence[Sequence[int]]) -> NDArray[Any]:
    """Of `axis` the indices in rows[r] at each index r of axis `by`."""
    lines = np.moveaxis(values, (by, axis), (0, 1))
    where = np.array(rows).reshape(len(rows), -1, *[1] * (values.ndim - 2))
    return np.moveaxis(np.take_along_axis(lines, where, 1), (0, 1), (by, axis))


def _renumbered(values: NDArray[Any], size: int, keep: Sequence[int]) -> NDArray[Any]:
    """The positions in `values` that are in `keep`, which is sorted, by their rank there."""
    values, dtype = values % size, values.dtype
    stays = np.isin(values, keep)
    for axis in range(values.ndim):
        line = stays.any(tuple(x for x in range(values.ndim) if x != axis))
        values = np.compress(line, values, axis)
    return np.searchsorted(keep, values).astype(dtype)


def edited(graph: gs.Graph, plan: SlimPlan) -> gs.Graph:
    """A copy of `graph` at full size, with the plan's new weights and biases."""
    copy = graph.copy()
    nodes = {node.name: node for node in copy.nodes}
    for edit in plan.edits:
        put_constant(copy, _find(nodes, edit.node), edit.slot, edit.tensor, plan.arrays[edit.array])
    return copy


def put_constant(graph: gs.Graph, node: gs.Node, slot: int | None, name: str, values: NDArray[Any]) -> None:
    """Make input `slot` of `node` the constant `name`; with slot None, put an Add of it behind output 0."""
    constant = gs.Constant(name, values)
    if slot is None:
        _insert_add(graph, node, constant)
        return
    while len(node.inputs) <= slot:
        node.inputs.append(gs.Variable.empty())
    node.inputs[slot] = constant


def _insert_add(graph: gs.Graph, node: gs.Node, constant: gs.Constant) -> None:
    """The Add takes over the output's name, so that everything behind it, graph outputs too, stays connected."""
    output = node.outputs[0]
    name, taken = f"{output.name}.unbiased", graph.tensors().keys()
    while name in taken:
        name += "_"
    inner = gs.Variable(name, dtype=output.dtype)
    node.outputs[0] = inner
    add = gs.Node("Add", name=constant.name, inputs=[inner, constant], outputs=[output])
    graph.nodes.insert(position(graph, node) + 1, add)


def position(graph: gs.Graph, node: gs.Node) -> int:
    """The index of `node`, by identity (graph-surgeon compares nodes by content)."""
    return next(i for i, other in enumerate(graph.nodes) if other is node)


def _write_attribute(node: gs.Node, name: str, index: int | None, value: int) -> None:
    if index is None or not isinstance(node.attrs.get(name), list):
        node.attrs[name] = value
    else:
        node.attrs[name] = [value if i == index else old for i, old in enumerate(node.attrs[name])]


def _fold(graph: gs.Graph, nodes: dict[str, gs.Node], fold: Fold, plan: SlimPlan) -> None:
    """Weight *= scale along its output axis; bias = scale bias + offset; the BatchNormalization goes."""
    node, norm = _find(nodes, fold.node), _find(nodes, fold.batchnorm)
    holder, slot, axis, rank, gain, vector = fold.bias
    scale, offset = (plan.arrays[name][list(fold.keep)] for name in (fold.scale, fold.offset))
    weight = node.inputs[fold.slot]
    line = scale.reshape([-1 if a == fold.axis else 1 for a in range(len(weight.shape))])
    put_constant(graph, node, fold.slot, fold.weight, _like(weight.values * line, weight))
    owner = _find(nodes, holder)
    bias = owner.inputs[slot] if slot is not None and slot < len(owner.inputs) and owner.inputs[slot].name else None
    trailing = 0 if vector else rank - axis - 1
    scale, offset = (v.reshape((-1,) + (1,) * trailing) for v in (scale, offset))
    values = offset / gain if bias is None else bias.values.astype(np.float64) * scale + offset / gain
    _bypass(graph, norm)
    put_constant(graph, owner, slot, fold.bias_name, _like(values, weight))


def _like(values: NDArray[Any], constant: gs.Constant) -> NDArray[Any]:
    return np.ascontiguousarray(values.astype(np.dtype(constant.dtype)))


def _bypass(graph: gs.Graph, norm: gs.Node) -> None:
    """Drop a node with one data input: whoever made the input makes the output instead."""
    source, target = norm.inputs[0], norm.outputs[0]
    maker = source.inputs[0]
    norm.outputs.clear()
    slot = next(i for i, t in enumerate(maker.outputs) if t is source)
    maker.outputs[slot] = target
    del graph.nodes[position(graph, norm)]


def _forget_shapes(graph: gs.Graph) -> None:
    """Shapes inside the graph are stale now; those of inputs and outputs hold."""
    edge = {id(t) for t in [*graph.inputs, *graph.outputs]}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and id(tensor) not in edge:
            tensor.shape = None


def _constants(graph: gs.Graph) -> dict[str, gs.Constant]:
    return {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}


def _find(table: dict[str, Any], name: str) -> Any:
    try:
        return table[name]
    except KeyError:
        raise InputError(
            f"the plan names {name!r}, which the prepared model does not have: is it another model?"
        ) from None
