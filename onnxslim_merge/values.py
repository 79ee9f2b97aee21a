"""How the channels of a cell look at each tensor on their way: rows in, one function, an affine tail.

For Neuron Merging a removed channel i is replaced by s times a kept one at a consumer's input. That is exact where
value_i = a_i f(row_i . input) + c_i with one f for all channels: this module finds row, f's degree, a and c, walking
forward from the producers over the flows that the rules claimed.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Degree, Flow
from onnxslim_merge.views import Floats, Views


@dataclass(frozen=True, slots=True)
class Value:
    """value_i = scale_i f(rows_i . input + bias_i) + offset_i for channel i of the n of a cell.

    rows: blocks (n, d), one for each producer (and, behind a non-linear sum, each bias). private: why no f is common.
    nonlinear: f is not linear; a linear f that does not keep constants (Neg) has the degree of others all the same.
    barred (n,): channels for which it does not hold: a negative scale does not go through MaxPool.
    family (n,): rows of channels of different families read different inputs, as those of a grouped Conv do.
    """

    rows: tuple[Floats, ...]
    bias: Floats
    degree: Degree = Degree.LINEAR
    scale: Floats | None = None
    offset: Floats | None = None
    is_conv: bool = False
    private: str | None = None
    nonlinear: bool = False
    barred: NDArray[np.bool_] | None = None
    family: NDArray[np.int64] | None = None

    @property
    def matrix(self) -> Floats:
        """All blocks side by side, without the bias, (n, sum of d)."""
        return self.rows[0] if len(self.rows) == 1 else np.concatenate(self.rows, axis=1)


def cell_values(views: Views, cell: Cell) -> dict[str, Value]:
    """The value of `cell` at every tensor that holds any of it, by name."""
    analysis, found = views.analysis, dict[str, Value]()
    for index in cell.producers:
        producer = analysis.producers[index]
        rows = views.plain_rows(cell, index)
        value = Value((rows.weight,), rows.bias, is_conv=rows.is_conv, family=families([rows.family]))
        found[producer.output] = value
        if producer.bias.output != producer.output:  # an Add holds the bias: `rows.bias` has it already
            found[producer.bias.output] = value
    for tensor, flow in analysis.flows.items():
        if tensor in found:
            continue
        inputs = [found[name] for name in dict.fromkeys(flow.inputs) if name in found]
        if inputs:
            found[tensor] = _step(views, cell, tensor, flow, inputs, found.keys())
    return found


def _step(views: Views, cell: Cell, tensor: str, flow: Flow, inputs: list[Value], known: Set[str]) -> Value:
    stuck = next((v for v in inputs if v.private), None)
    if stuck is not None:
        return stuck
    if flow.kind == "private":
        return _private(inputs[0], f"{flow.node} treats each channel differently")
    if flow.kind == "product":
        return _product(flow, inputs)
    if flow.kind == "sum":
        absent = [name for name in set(flow.inputs) if name not in known and not _padding(views, cell, name)]
        return _private(inputs[0], _mixed(flow)) if absent else _sum(flow, inputs)
    if len(inputs) > 1:
        return _join(flow, inputs)
    if flow.kind == "same":
        return _same(flow, inputs[0])
    if flow.kind == "affine":
        return _affine(views, cell, tensor, flow, inputs[0])
    return inputs[0]


def _product(flow: Flow, inputs: list[Value]) -> Value:
    """A gate; but x f(x), as SiLU is exported, is one function of one value, the same for all channels."""
    first, *others = inputs
    alike = len(inputs) == len(set(flow.inputs)) and all(v.rows is first.rows and v.bias is first.bias for v in others)
    if alike and all(v.scale is None and v.offset is None for v in inputs):
        return replace(first, degree=Degree.OTHER, nonlinear=True)
    return _private(first, f"{flow.node} treats each channel differently")


def _private(value: Value, why: str) -> Value:
    return replace(value, private=why)


def _padding(views: Views, cell: Cell, tensor: str) -> bool:
    """Whether the cell's channels are zeros in `tensor`: inserted by a Pad, as in parameter-free shortcuts."""
    flow = views.analysis.flows.get(tensor)
    return flow is not None and flow.kind == "move" and not any(views.holds(name, cell) for name in flow.inputs)


def _mixed(flow: Flow) -> str:
    return f"{flow.node} adds values that do not come from the cell's producers alone"


def _join(flow: Flow, inputs: list[Value]) -> Value:
    """A Concat that several parts of one cell meet in: each channel must come by the same way."""
    return _private(inputs[0], f"{flow.node} joins channels of the cell that come by different ways")


def _same(flow: Flow, value: Value) -> Value:
    """A function behind a f + c: an average keeps both, a pool where the scale is positive, the rest neither.

    A linear function that does not keep constants (Neg, ReduceSum) is good for a scale, but what is added behind it is
    no bias in front of it.
    """
    if flow.degree == Degree.LINEAR and flow.equivariant:
        return value
    bare = value.scale is None and value.offset is None
    if bare or (flow.degree == Degree.LINEAR and (value.offset is None or not value.offset.any())):
        degree = max(value.degree, flow.degree, Degree.HOMOGENEOUS)
        return replace(value, degree=degree, nonlinear=value.nonlinear or flow.degree != Degree.LINEAR)
    if flow.equivariant and value.scale is not None:
        barred = (value.scale <= 0) | (False if value.barred is None else value.barred)
        nonlinear = value.nonlinear or flow.degree != Degree.LINEAR
        return replace(value, degree=max(value.degree, flow.degree), barred=barred, nonlinear=nonlinear)
    return _private(value, f"{flow.node} follows a scale or offset per channel behind another function")


def _affine(views: Views, cell: Cell, tensor: str, flow: Flow, value: Value) -> Value:
    """Into the rows while everything is linear, else into the tail."""
    if flow.scale is None or flow.offset is None:
        return _private(value, f"{flow.node} scales by what is not constant")
    place = views.locate(tensor, cell)
    if place is None:
        return _private(value, f"{flow.node} sees the channels along several axes")
    a, c = (channel_entries(array, *place) for array in (flow.scale, flow.offset))
    if a is None or c is None:
        return _private(value, f"{flow.node} scales each position differently")
    if value.degree == Degree.LINEAR and value.scale is None:
        return replace(value, rows=tuple(a[:, None] * block for block in value.rows), bias=a * value.bias + c)
    scale = np.ones(cell.size) if value.scale is None else value.scale
    offset = np.zeros(cell.size) if value.offset is None else value.offset
    return replace(value, scale=a * scale, offset=a * offset + c)


def channel_entries(array: Floats, axis: int, where: np.ndarray) -> Floats | None:
    """The entries of an array that broadcasts against a tensor for a cell at `where` (n, m) on `axis`: (n,).

    None where they differ between the positions of one channel, or along another axis.
    """
    if any(n != 1 for i, n in enumerate(array.shape) if i != axis):
        return None
    if array.shape[axis] == 1:
        return np.full(where.shape[0], array.ravel()[0])
    taken = array.ravel()[np.where(where >= 0, where, where[:, :1])]
    return taken[:, 0] if (taken == taken[:, :1]).all() else None


def _sum(flow: Flow, inputs: list[Value]) -> Value:
    """Linear parts add their rows and biases; behind other functions the biases become rows of their own.

    A donor then has to stand in at every producer at once, with one scale: cosine and scale of all rows side by side
    say how well it does. Exact by induction, as sums of homogeneous functions of s times the input are s times the sum.
    """
    if any(v.scale is not None or v.offset is not None for v in inputs):
        return _private(inputs[0], f"{flow.node} adds branches with a scale or offset per channel behind a function")
    rows = tuple(block for v in inputs for block in v.rows)
    is_conv = any(v.is_conv for v in inputs)
    family = families([v.family for v in inputs])
    degree = max([flow.degree, *(v.degree for v in inputs)])
    if degree == Degree.LINEAR:
        return Value(rows, np.sum([v.bias for v in inputs], axis=0), is_conv=is_conv, family=family)
    biases = tuple(v.bias[:, None] for v in inputs)
    none, nonlinear = np.zeros_like(inputs[0].bias), flow.degree != Degree.LINEAR or any(v.nonlinear for v in inputs)
    return Value(rows + biases, none, degree, is_conv=is_conv, family=family, nonlinear=nonlinear)


def families(parts: Sequence[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """One number (n,) for each combination of families."""
    given = [part.reshape(part.shape[0], -1) for part in parts if part is not None]
    if not given:
        return None
    numbers = np.unique(np.concatenate(given, axis=1), axis=0, return_inverse=True)[1]
    return np.asarray(numbers, np.int64).ravel()
