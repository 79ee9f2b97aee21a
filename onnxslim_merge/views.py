"""Views of a cell's weights: the rows that make its channels, raw and folded, and the columns that read them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import BiasSlot, Consumer, Flow, Producer
from onnxslim_merge.channels.labels import Ids, varying

Floats = NDArray[np.float64]
CACHED = 3 << 28  # bytes of float64 matrices kept for the next question; a matrix in use is never dropped


@dataclass(frozen=True, slots=True)
class Rows:
    """What one producer holds of a cell: weight (n, d), bias (n,), both as found; batchnorm: one follows at once.

    scale, offset (n,): the affine functions per channel that follow before anything else; folded = scale x + offset.
    family (n, m): of a grouped producer, the groups that the rows belong to.
    """

    weight: Floats
    bias: Floats
    scale: Floats
    offset: Floats
    batchnorm: bool
    is_conv: bool
    family: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Where one consumer reads a cell: `positions` (n, m) along its weight's axis, -1 where there are fewer."""

    consumer: int
    positions: NDArray[np.int64]


class Views:
    """Weights of an analysed graph as float64 matrices; a few are kept, so that huge models do not live twice."""

    def __init__(self, analysis: Analysis) -> None:
        """Index the flows of `analysis` by what they read."""
        self.analysis = analysis
        self.sessions: dict[bytes, Any] = {}  # runtime sessions of single nodes, for statistics
        self.rescaled: dict[str, Floats] = {}  # how much more a BatchNormalization amplifies in the statistics' network
        self._nodes = {node.name: node for node in analysis.graph.nodes}
        self._raw: set[str] | None = None
        self._energies: dict[int, Floats] = {}
        self._cache: OrderedDict[tuple[str, int, int], Floats] = OrderedDict()
        self._users: dict[str, list[str]] = {}
        for output, flow in analysis.flows.items():
            for name in flow.inputs:
                self._users.setdefault(name, []).append(output)
        self._reads = Counter([*analysis.inputs.values(), *analysis.exposed])
        self._made = {p.node: p for p in reversed(analysis.producers)}  # the first producer of each node
        self._producer_roots = [analysis.roots[p.labels] for p in analysis.producers]
        self._consumer_roots = [analysis.roots[c.labels] for c in analysis.consumers]
        self._consumers_of: dict[int, list[int]] = {}
        for index, roots in enumerate(self._consumer_roots):
            for label in np.unique(roots).tolist():
                self._consumers_of.setdefault(label, []).append(index)

    def matrix(self, weight: str, axis: int, out_axis: int | None = None) -> Floats:
        """`weight` with `axis` first: (n, features), or with an out_axis (n, outputs, taps)."""
        key = (weight, axis, -1 if out_axis is None else out_axis)
        if key not in self._cache:
            values = self.analysis.weight(weight)
            if out_axis is None:
                found = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            else:
                moved = np.moveaxis(values, (axis, out_axis), (0, 1))
                found = moved.reshape(*moved.shape[:2], -1)
            self._cache[key] = found
            while len(self._cache) > 1 and sum(m.nbytes for m in self._cache.values()) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def node(self, name: str) -> gs.Node:
        """A node of the analysed graph."""
        return self._nodes[name]

    def columns_of(self, consumer: Consumer) -> Floats:
        """The weight of a consumer, without `gain`: (inputs, outputs, taps), or (inputs, outputs of a group, taps)."""
        return _by_input(consumer, self.matrix(consumer.weight, consumer.axis, consumer.out_axis))

    def rows_of(self, consumer: Consumer, values: NDArray[Any]) -> Floats:
        """`columns_of`, of other values for its weight, in the weight's own layout."""
        moved = np.moveaxis(values, (consumer.axis, consumer.out_axis), (0, 1)).astype(np.float64)
        return _by_input(consumer, moved.reshape(*moved.shape[:2], -1))

    def outputs(self, consumer: Consumer) -> Floats:
        """`columns_of` with `gain`: the effective weight."""
        return _times(consumer.gain, self.columns_of(consumer))

    def bias(self, slot: BiasSlot, size: int) -> Floats:
        """The effective bias that a slot holds now, (size,); zeros where there is none or it differs by position."""
        name = self.analysis.inputs.get((slot.node, slot.slot)) if slot.slot is not None else None
        if not name:
            return np.zeros(size)
        values = self.analysis.weight(name)
        axis = values.ndim - 1 - (0 if slot.vector else slot.rank - slot.axis - 1)
        if any(n != 1 for a, n in enumerate(values.shape) if a != axis):
            return np.zeros(size)
        return slot.gain * np.broadcast_to(values.ravel(), size)

    def rows(self, cell: Cell) -> list[Rows]:
        """One entry for each producer of `cell`."""
        return [self._rows(cell, index) for index in cell.producers]

    def _rows(self, cell: Cell, index: int) -> Rows:
        producer, plain = self.analysis.producers[index], self.plain_rows(cell, index)
        size = self.analysis.constants[producer.weight].shape[producer.axis]
        scale, offset, batchnorm = np.ones(size), np.zeros(size), False
        for flow in self._affine_chain(producer):
            a, c = channel_vector(flow, producer.bias.axis, size)
            scale, offset, batchnorm = a * scale, a * offset + c, batchnorm or flow.moments is not None
        first = positions(self._producer_roots[index], cell.labels)[:, 0]
        return replace(plain, scale=scale[first], offset=offset[first], batchnorm=batchnorm)

    def plain_rows(self, cell: Cell, index: int) -> Rows:
        """The rows of producer `index`, before anything that follows it."""
        producer = self.analysis.producers[index]
        where = positions(self._producer_roots[index], cell.labels)
        weight = _times(producer.gain, self.matrix(producer.weight, producer.axis))
        bias, rows, ones = self.bias(producer.bias, weight.shape[0]), gather_rows(weight, where), np.ones(cell.size)
        if where.shape[1] > 1:  # a head, say, has a bias for each of its rows: all of them count as weights
            rows = np.concatenate([rows, np.where(where >= 0, bias[where], 0.0)], axis=1)
            bias = np.zeros_like(bias)
        bias = bias[where[:, 0]]
        family = where // (weight.shape[0] // producer.groups) if producer.groups > 1 else None
        return Rows(rows, bias, ones, 0 * ones, False, producer.is_conv, family)

    def kernels(self, cell: Cell, index: int) -> Floats:
        """The weights of producer `index` by the input that they read, (inputs, n, d): d for each of n channels.

        Of a grouped producer, inputs of a group. A single input has all where it is not known which axis reads.
        """
        producer = self.analysis.producers[index]
        where = positions(self._producer_roots[index], cell.labels)
        axis = self.analysis.reads.get((producer.node, producer.slot))
        if axis is None:
            found = self.matrix(producer.weight, producer.axis)[:, None]
        else:
            found = self.matrix(producer.weight, producer.axis, axis)
        kernels = found[where.clip(min=0)] * (where >= 0)[..., None, None]  # (n, m, inputs, taps)
        inputs = found.shape[1]
        return _times(producer.gain, np.moveaxis(kernels, 2, 0).reshape(inputs, cell.size, -1))

    def _affine_chain(self, producer: Producer) -> Iterator[Flow]:
        """The affine functions that alone follow the producer's biased output."""
        tensor = producer.bias.output
        while len(users := self._users.get(tensor, [])) == 1 and self._reads[tensor] == 1:
            flow = self.analysis.flows[users[0]]
            if flow.kind != "affine" or not _per_channel(flow, producer.bias.axis):
                return
            yield flow
            tensor = users[0]

    def columns(self, cell: Cell) -> list[Columns]:
        """Every consumer that reads a channel of `cell`, in graph order."""
        found = sorted({c for label in cell.labels.tolist() for c in self._consumers_of.get(label, ())})
        return [Columns(c, positions(self._consumer_roots[c], cell.labels)) for c in found]

    def output_scale(self, consumer: Consumer, *, signed: bool = False) -> Floats | float:
        """|gamma| / sigma of the affine functions right behind a consumer, (outputs,); 1 where there are none."""
        scale: Floats | float = 1.0
        if (producer := self._made.get(consumer.node)) is not None:
            for flow in self._affine_chain(producer):
                factor = channel_vector(flow, producer.bias.axis, self.width(consumer))[0]
                factor = factor * self.rescaled.get(flow.node, 1.0)
                scale = scale * (factor if signed else np.abs(factor))
        return scale

    def leads_to(self, consumer: Consumer) -> tuple[str, str | None]:
        """What alone comes of a consumer's output: scaled and shifted or not, added to another tensor or not.

        Returns the last such tensor, and the other one that is added, if any is.
        """
        producer = self._made.get(consumer.node)
        if producer is None:
            return consumer.output, None
        tensor = producer.bias.output
        for affine in self._affine_chain(producer):
            tensor = next(name for name, other in self.analysis.flows.items() if other is affine)
        flow, output = self.alone_reads(tensor)
        if flow is None or flow.kind != "sum" or self._nodes[flow.node].op != "Add" or len(flow.inputs) != 2:
            return tensor, None
        others = [name for name in flow.inputs if name != tensor]
        return (output, others[0]) if len(others) == 1 else (tensor, None)

    def alone_reads(self, tensor: str) -> tuple[Flow | None, str]:
        """The only flow that reads a tensor, and its output; None if others do, or read it besides."""
        users = self._users.get(tensor, [])
        if len(users) != 1 or self._reads[tensor] != 1:
            return None, ""
        return self.analysis.flows[users[0]], users[0]

    def energy(self, index: int) -> Floats:
        """Squared norm of each column of a consumer, in units of the spread of its BatchNormalization, (inputs,)."""
        if index not in self._energies:
            reader = self.analysis.consumers[index]
            weight = self.outputs(reader)
            squares = np.einsum("iot,iot->io", weight, weight).reshape(reader.groups, -1, weight.shape[1])
            scale = np.broadcast_to(self.output_scale(reader), self.width(reader)).reshape(reader.groups, -1)
            self._energies[index] = np.einsum("gio,go->gi", squares, scale**2).ravel()
        return self._energies[index]

    def width(self, consumer: Consumer) -> int:
        """How many outputs a consumer has."""
        columns = self.analysis.constants[consumer.weight].shape[consumer.out_axis]
        return int(columns) * (consumer.groups if consumer.axis == 0 and consumer.out_axis == 1 else 1)

    def has_unknown_spread(self, cell: Cell) -> bool:
        """Whether any producer reads the graph's inputs, untouched by other layers, without BatchNormalization behind.

        Pixels may be numbers from 0 to 255: some channels are then never, others always above zero.
        """
        if self._raw is None:
            made = {p.node for p in self.analysis.producers}
            self._raw = {tensor.name for tensor in self.analysis.graph.inputs}
            for node in self.analysis.graph.nodes:
                variable = [t.name for t in node.inputs if t.name and t.name not in self.analysis.constants]
                if node.name not in made and variable and self._raw.issuperset(variable):
                    self._raw.update(t.name for t in node.outputs)
        nodes = [self.node(self.analysis.producers[index].node) for index in cell.producers]
        reading = [i for i, node in enumerate(nodes) if any(tensor.name in self._raw for tensor in node.inputs)]
        return bool(reading) and not all(self.rows(cell)[i].batchnorm for i in reading)

    def holds(self, tensor: str, cell: Cell) -> bool:
        """Whether any channel of `cell` lies in `tensor`."""
        roots = self.analysis.roots
        return any(np.isin(roots[array], cell.labels).any() for array in self.analysis.labels.get(tensor, ()))

    def locate(self, tensor: str, cell: Cell) -> tuple[int, NDArray[np.int64]] | None:
        """(axis, positions (n, m)) of the cell's labels in a tensor; None if absent or on several axes or factors."""
        found = []
        for array in self.analysis.labels.get(tensor, ()):
            axes = varying(array)
            roots = self.analysis.roots[array]
            if np.isin(roots, cell.labels).any():
                found.append((axes, roots.ravel()))
        if len(found) != 1 or len(found[0][0]) != 1:
            return None
        return found[0][0][0], positions(found[0][1], cell.labels)


def positions(roots: Ids, labels: Ids) -> NDArray[np.int64]:
    """Where each of `labels` occurs in `roots` (size,): (n, m), in ascending order, -1 where it occurs less often."""
    order = np.argsort(labels, kind="stable")
    slot = np.searchsorted(labels[order], roots)
    slot = np.minimum(slot, labels.size - 1)
    hit = labels[order][slot] == roots
    where, owner = np.flatnonzero(hit), order[slot[hit]]
    counts = np.bincount(owner, minlength=labels.size)
    result = np.full((labels.size, max(int(counts.max(initial=0)), 1)), -1, np.int64)
    by_owner = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(by_owner.size) - np.repeat(starts, counts)
    result[owner[by_owner], rank] = where[by_owner]
    return result


def gather_rows(matrix: Floats, where: NDArray[np.int64]) -> Floats:
    """(n, m * d): the rows at `where` (n, m), zeros for -1."""
    if where.shape == (matrix.shape[0], 1) and (where[:, 0] == np.arange(matrix.shape[0])).all():
        return matrix  # the usual case; huge layers should not be copied
    taken = matrix[np.maximum(where, 0)]
    if (where < 0).any():
        taken *= (where >= 0)[..., None]
    return taken.reshape(where.shape[0], -1)


def _by_input(consumer: Consumer, matrix: Floats) -> Floats:
    """(inputs, outputs, taps) of a weight; of a grouped Conv, which holds the inputs of one group, outputs of it."""
    if matrix.shape[0] == consumer.labels.size:
        return matrix
    inputs, _, taps = matrix.shape
    split = matrix.reshape(inputs, consumer.groups, -1, taps)
    return split.swapaxes(0, 1).reshape(consumer.labels.size, -1, taps)


def _times(gain: float, matrix: Floats) -> Floats:
    return matrix if gain == 1.0 else gain * matrix


def _per_channel(flow: Flow, axis: int) -> bool:
    return all(a is None or all(n == 1 or i == axis for i, n in enumerate(a.shape)) for a in (flow.scale, flow.offset))


def channel_vector(flow: Flow, axis: int, size: int) -> tuple[Floats, Floats]:
    """Scale and offset of an affine flow along its channel axis, (size,) each."""
    scale = np.ones(1) if flow.scale is None else flow.scale
    offset = np.zeros(1) if flow.offset is None else flow.offset
    return np.broadcast_to(scale.ravel(), size).copy(), np.broadcast_to(offset.ravel(), size).copy()
