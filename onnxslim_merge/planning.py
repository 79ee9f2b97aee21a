"""From kept channels and solved weights to a SlimPlan: every gather, number, edit, mask and fold spelled out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Carrier, Consumer, Contraction, Count, Flow, Indices, Producer, Ragged
from onnxslim_merge.channels.derived import Derived
from onnxslim_merge.channels.labels import Arrays, varying
from onnxslim_merge.compensation import Solution
from onnxslim_merge.errors import InternalError
from onnxslim_merge.plan import CellPlan, Edit, Fold, Gather, Mask, Number, Renumber, SlimPlan
from onnxslim_merge.select import Amount, keep_mask
from onnxslim_merge.views import Floats, channel_vector

Stays = NDArray[np.bool_]
GIVEN_BACK = "given back: a tensor would lose all channels, or no choice was found that leaves all groups equally many"
NOT_EXACT = "removing its channels was not exact: our bug, please report it"


class Planner:
    """Collects the parts of one plan."""

    def __init__(self, analysis: Analysis, kept: Mapping[str, NDArray[np.int64]]) -> None:
        """Take the kept indices of every cell, by name."""
        self.analysis = analysis
        self.mask = keep_mask(analysis, kept)
        self.arrays: dict[str, NDArray[Any]] = {}
        self._edits: list[Edit] = []
        self._copies: dict[str, str] = {}  # edited weight -> the constant whose labels it has
        self._edited: dict[str, dict[int, Stays]] = {}  # edited bias -> its output axis, and what stays there
        self._uses = Counter(analysis.inputs.values())
        self._replaced = Counter[str]()  # constant -> at how many slots new values take its place
        # an inserted Add is named like its constant, so names of nodes are taken too
        self._taken = set(self._uses) | set(analysis.labels) | {node.name for node in analysis.graph.nodes}
        self._nodes = {node.name: node for node in analysis.graph.nodes}

    def check(self) -> None:
        """Raises InternalError if the kept channels of a tensor are no full rectangle: their order could change."""
        for name, arrays in self.analysis.labels.items():
            for kept in (self.mask[a] for a in arrays if len(varying(a)) > 1):
                if not _is_rectangle(kept):
                    raise InternalError(f"the kept channels of {name} are no rectangle: please report this")

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits so far."""
        return tuple(self._edits)

    def stays(self, arrays: Arrays, axis: int, size: int) -> Stays:
        """Which of the `size` indices along `axis` stay, (size,)."""
        stays = np.ones(size, bool)
        for array in (a for a in arrays if a.shape[axis] > 1):
            stays &= self.mask[array].any(tuple(a for a in range(array.ndim) if a != axis))
        return stays

    def gathers(self) -> Iterator[Gather]:
        """What every constant keeps along each axis; edited biases along their output axis."""
        stored = [n for n, t in self.analysis.constants.items() if not isinstance(t, Derived)]
        used = {n: n for n in stored if n not in self._replaced or self._replaced[n] < self._uses[n]}
        sources = used | self._copies
        for name, original in sources.items():
            if name in self._edited:
                continue
            arrays = self.analysis.labels.get(original, [])
            for axis, size in enumerate(self.analysis.constants[original].shape if arrays else ()):
                if not (stays := self.stays(arrays, axis, size)).all():
                    yield Gather(name, axis, _indices(stays))
            if (ragged := self.analysis.ragged.get(original)) is not None:
                yield from self._ragged(name, ragged)
        for name, axes in self._edited.items():
            for axis, stays in sorted(axes.items()):
                if not stays.all():
                    yield Gather(name, axis, _indices(stays))

    def _ragged(self, name: str, ragged: Ragged) -> Iterator[Gather]:
        """The indices along an axis that differ by index of another one, of which some have gone already."""
        arrays = self.analysis.labels[ragged.tensor]
        kept = self.mask[ragged.labels][self.stays(arrays, ragged.by, ragged.labels.shape[0])]
        if not (kept.sum(1) == kept[0].sum()).all():
            raise InternalError(f"the groups of {ragged.tensor} keep different numbers of channels: please report this")
        if not kept.all():
            yield Gather(name, ragged.axis, (), ragged.by, tuple(_indices(row) for row in kept))

    def numbers(self) -> Iterator[Number]:
        """The new value of every claimed count that changes."""
        for count in (c for c in self.analysis.counts if not isinstance(c, Indices)):
            stays = self._line(count)
            # a bound counted from the end is wrong as soon as anything behind it goes
            if not stays.all() or (self._literal(count) < 0 and not self.mask.all()):
                yield Number(count.node, count.name, count.index, int(stays.sum()))

    def renumbers(self) -> Iterator[Renumber]:
        """Every list of positions among channels of which some leave."""
        for indices in (c for c in self.analysis.counts if isinstance(c, Indices)):
            stays = self._line(indices)
            if not stays.all():
                yield Renumber(indices.name, stays.size, _indices(stays))

    def _line(self, count: Count) -> Stays:
        """Which of the positions that a claim is about stay."""
        stays = np.ones(count.labels[0].shape[0], bool)
        for rows in count.labels:
            stays &= self.mask[rows].any(1)
        return stays

    def _literal(self, count: Count) -> int:
        if not count.node:
            return int(np.asarray(self.analysis.constants[count.name].values).ravel()[count.index or 0])
        value = self._nodes[count.node].attrs.get(count.name)
        return int(value[count.index or 0] if isinstance(value, list) else value or 0)

    def masks(self) -> Iterator[Mask]:
        """Zeros for the twin, at every consumer that loses channels, and in one operand of products without weights."""
        readers: tuple[Consumer | Contraction, ...] = (*self.analysis.consumers, *self.analysis.contractions)
        for consumer in readers:
            stays = self.mask[consumer.labels]
            if not stays.all():
                rank = self.analysis.labels[consumer.x][0].ndim
                place = (consumer.node, consumer.x_slot, consumer.x_axis, rank)
                fill, kind = (None, consumer.kind) if isinstance(consumer, Contraction) else (consumer.fill, "sum")
                yield Mask(*place, int(stays.size), _indices(stays), fill, kind)

    def edit(self, solution: Solution) -> None:
        """Turn solved weights and bias gains into edits."""
        for index, weight in sorted(solution.weights.items()):
            self._edit_weight(self.analysis.consumers[index], weight)
        for index, gain in sorted(solution.biases.items()):
            self._edit_bias(self.analysis.consumers[index], gain)

    def _edit_weight(self, consumer: Consumer, values: NDArray[Any]) -> None:
        self._replaced[consumer.weight] += 1
        name = self._name(consumer.weight, consumer.node)
        self._copies[name] = consumer.weight
        self._add_edit(consumer.node, consumer.slot, name, values)

    def _edit_bias(self, consumer: Consumer, gain: Floats) -> None:
        slot = consumer.bias
        if slot is None:
            return
        old = self.analysis.inputs.get((slot.node, slot.slot), "") if slot.slot is not None else ""
        trailing = 0 if slot.vector else slot.rank - slot.axis - 1
        line = (gain / slot.gain).reshape((-1,) + (1,) * trailing)
        values = self.analysis.weight(old) + line if old else line
        if isinstance(derived := self.analysis.constants.get(old), Derived):
            self._edit_integers(derived, values)
            return
        dtype = np.dtype(self.analysis.constants[old or consumer.weight].dtype)
        self._replaced[old] += 1
        name = self._name(old, slot.node) if old else self._unique(f"{slot.node}.bias")
        arrays = self.analysis.labels.get(consumer.output, [])
        lines = self._lines(old, values.ndim) if old else {}
        self._edited[name] = lines | {values.ndim - 1 - trailing: self.stays(arrays, slot.axis, gain.size)}
        self._add_edit(slot.node, slot.slot, name, values.astype(dtype))

    def _edit_integers(self, bias: Derived, values: Floats) -> None:
        """The bias is what DequantizeLinear makes of int32: they change, in steps of their scale."""
        stored = bias.stored
        if stored is None or values.shape != tuple(bias.shape):
            return
        self._replaced[stored.name] += 1
        node, slot = bias.place or (bias.node.name, 0)
        name = self._name(stored.name, node)
        self._copies[name] = stored.name
        self._add_edit(node, slot, name, bias.quantised(values))

    def _lines(self, name: str, rank: int) -> dict[int, Stays]:
        """What stays along each axis of a constant that was broadcast to `rank`."""
        shape, arrays = self.analysis.constants[name].shape, self.analysis.labels.get(name, [])
        return {rank - len(shape) + axis: self.stays(arrays, axis, size) for axis, size in enumerate(shape)}

    def _add_edit(self, node: str, slot: int | None, tensor: str, values: NDArray[Any]) -> None:
        self.arrays[tensor] = np.ascontiguousarray(values)
        self._edits.append(Edit(node, slot, tensor, tensor))

    def _name(self, tensor: str, node: str) -> str:
        """The name for new values of `tensor` at `node`: its own, unless other nodes use it too."""
        return tensor if self._uses[tensor] <= 1 else self._unique(f"{tensor}.{node}")

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def folds(self) -> Iterator[Fold]:
        """Every BatchNormalization that alone reads what a producer makes or a carrier passes on."""
        readers = {name: (out, f) for out, f in self.analysis.flows.items() for name in f.inputs if f.moments}
        makers: tuple[Producer | Carrier, ...] = (*self.analysis.producers, *self.analysis.carriers)
        for producer in makers:
            tensor = producer.bias.output
            if tensor not in readers or self._uses[tensor] != 1 or tensor in self.analysis.exposed:
                continue
            if producer.output != tensor and self._uses[producer.output] != 1:
                continue
            if (fold := self._fold(producer, readers[tensor][1])) is not None:
                yield fold

    def _fold(self, producer: Producer | Carrier, flow: Flow) -> Fold | None:
        slot, size = producer.bias, self.analysis.constants[producer.weight].shape[producer.axis]
        parts = (producer.weight, self.analysis.inputs.get((slot.node, slot.slot), "") if slot.slot is not None else "")
        if any(isinstance(self.analysis.constants.get(name), Derived) for name in parts):
            return None  # integers are never refitted
        if flow.scale is None or any(
            n not in (1, size) or (n > 1 and a != slot.axis) for a, n in enumerate(flow.scale.shape)
        ):
            return None  # it normalises another axis than the producer makes
        scale, offset = f"{flow.node}.scale", f"{flow.node}.offset"
        self.arrays[scale], self.arrays[offset] = channel_vector(flow, slot.axis, size)
        stays = self.stays(self.analysis.labels.get(producer.output, []), slot.axis, size)
        where = (slot.node, slot.slot, slot.axis, slot.rank, slot.gain, slot.vector)
        edited = {(edit.node, edit.slot): edit.tensor for edit in self._edits}
        weight = edited.get((producer.node, producer.slot)) or self._name(producer.weight, producer.node)
        bias = edited.get((slot.node, slot.slot))
        if bias is not None and slot.slot is None:  # the edit puts an Add there, named like its constant
            where = (bias, 1, slot.axis, slot.rank, 1.0, False)
        elif bias is None:
            old = self.analysis.inputs.get((slot.node, slot.slot), "") if slot.slot is not None else ""
            bias = self._name(old, slot.node) if old else self._unique(f"{slot.node}.bias")
        return Fold(
            producer.node, producer.slot, producer.axis, weight, flow.node, where, bias, scale, offset, _indices(stays)
        )


def build_plan(
    analysis: Analysis,
    kept: Mapping[str, NDArray[np.int64]],
    solution: Solution,
    amounts: Mapping[str, Amount],
    *,
    sha256: str = "",
    settings: Mapping[str, Any] | None = None,
    keep_batchnorm: bool = False,
) -> SlimPlan:
    """The plan that keeps `kept` (indices by cell name; other cells stay whole) with the solved weights.

    Raises InternalError if the kept channels of some tensor are no full rectangle.
    """
    planner = Planner(analysis, kept)
    planner.check()
    planner.edit(solution)
    notes = list(solution.notes)
    if keep_batchnorm and next(Planner(analysis, kept).folds(), None) is None:
        notes.append("--keep-batchnorm has no effect: no BatchNormalization stands where it could be folded")
    return SlimPlan(
        source_sha256=sha256,
        settings=settings or {},
        cells=tuple(
            _cell_plan(analysis, cell, kept, amounts.get(cell.name), solution.clusters.get(cell.name))
            for cell in analysis.cells
        ),
        edits=planner.edits,
        gathers=tuple(planner.gathers()),
        numbers=tuple(planner.numbers()),
        renumbers=tuple(planner.renumbers()),
        masks=tuple(planner.masks()),
        folds=() if keep_batchnorm else tuple(planner.folds()),
        notes=tuple(notes),
        arrays=planner.arrays,
    )


def _cell_plan(
    analysis: Analysis,
    cell: Cell,
    kept: Mapping[str, NDArray[np.int64]],
    amount: Amount | None,
    clusters: NDArray[np.int64] | None,
) -> CellPlan:
    producers = [analysis.producers[i] for i in cell.producers]
    makers = tuple((p.node, p.weight, p.output) for p in producers)
    shapes = tuple(tuple(int(n) for n in analysis.constants[p.weight].shape) for p in producers)
    keep = tuple(int(i) for i in kept.get(cell.name, range(cell.size)))
    status, reason, source = (amount.status, amount.reason, amount.source) if amount else ("kept", "", "")
    if status == "slimmed" and len(keep) == cell.size:
        status, reason = "kept", GIVEN_BACK if cell.name in kept else NOT_EXACT
    labels = () if clusters is None or len(keep) == cell.size else tuple(clusters.tolist())
    return CellPlan(cell.name, makers, shapes, cell.size, keep, status, reason, source, labels)


def _indices(stays: Stays) -> tuple[int, ...]:
    return tuple(np.flatnonzero(stays).tolist())


def _is_rectangle(kept: Stays) -> bool:
    """Whether what is kept is the product of what is kept along each axis."""
    lines = [kept.any(tuple(a for a in range(kept.ndim) if a != axis)) for axis in range(kept.ndim)]
    return int(kept.sum()) == math.prod(int(line.sum()) for line in lines)
