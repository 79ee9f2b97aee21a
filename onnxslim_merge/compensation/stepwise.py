"""Least squares layer by layer: every consumer in turn is refitted to give, from what is left, what it gave before.

Features come from the network as slimmed and compensated so far, targets from the original, so that each layer also
mends what earlier ones broke. Layers that lose no channels but read what has changed are refitted too. With the
criterion `greedy` channels are chosen on the way, on the same statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.linalg import LinAlgError

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Consumer, Contraction
from onnxslim_merge.channels.derived import Derived
from onnxslim_merge.compensation.choosing import ByWeight, Part, cheapest
from onnxslim_merge.compensation.mixing import Mixture, mixture_bytes, unmixable
from onnxslim_merge.compensation.reasons import memory_for_rows, one_for_each, too_few_rows, unsure
from onnxslim_merge.compensation.refits import Refitted, refit, remix, shortfall
from onnxslim_merge.compensation.refittable import Cutoff, cutoff, hindrance
from onnxslim_merge.compensation.solver import Solution, Solver, write_rows
from onnxslim_merge.compensation.waves import affordable, sums_bytes
from onnxslim_merge.criteria import choose
from onnxslim_merge.parsing import parse_size, size_text
from onnxslim_merge.select import Amount, keep_mask, losing
from onnxslim_merge.statistics.readings import Reading
from onnxslim_merge.statistics.tracks import Tracks
from onnxslim_merge.values import Value, cell_values
from onnxslim_merge.views import Columns, Floats, Views

Ids = NDArray[np.int64]
Sums = Reading | list[Mixture]


class Stepwise:
    """One run through the network; `kept`, `scores` and `solver.solution` grow on the way."""

    def __init__(
        self,
        views: Views,
        model: onnx.ModelProto,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        amounts: Mapping[str, Amount],
        solver: Solver,
        kept: Mapping[str, Ids] | None = None,
        *,
        mend: bool = True,
        residual: bool = True,
        one_sided: bool = True,
        first: Stepwise | None = None,
    ) -> None:
        """Nothing has run yet.

        model: of the analysed graph, in float32. amounts: how many channels stay, by cell. kept: which, if that has
        been decided. solver: how consumers are compensated where nothing can be fitted. mend: refit layers that lose
        nothing. residual: let the last layer that feeds a sum make up for the other branch, too. one_sided: count what
        Relu and its like do not cut off only. first: a run of the same kind that is over: its choice and its ridges
        are taken over, and nothing is held out.
        """
        self.views, self.solver, self.amounts = views, solver, amounts
        self._first = first
        kept = first.kept if first is not None else kept
        self.kept: dict[str, Ids] = dict(kept or {})
        self.scores: dict[str, Floats] = {} if first is None else first.scores
        self.found: dict[int, Refitted] = {}  # by consumer
        self.notes: list[str] = []
        self._said: list[tuple[str, str]] = []  # of whom, and what
        self._done: set[int] = set()
        self._short: dict[str, int | None] = {}  # by node, the memory with which a cut-off could be heeded
        self.cells = losing(views.analysis.cells, amounts, kept)
        self._columns = {cell.name: views.columns(cell) for cell in self.cells}
        solver.open = Counter(c.consumer for found in self._columns.values() for c in found)
        self._cells_of: dict[int, list[tuple[Cell, Columns]]] = {}
        for cell in self.cells:
            for columns in self._columns[cell.name]:
                self._cells_of.setdefault(columns.consumer, []).append((cell, columns))
        self._open_tracks(model, feeds, mend=mend, residual=residual, one_sided=one_sided)

    def _open_tracks(
        self,
        model: onnx.ModelProto,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        *,
        mend: bool,
        residual: bool,
        one_sided: bool,
    ) -> None:
        """Find out who will be looked at, before anything runs."""
        analysis, roots = self.views.analysis, self.views.analysis.roots
        mine = np.zeros(roots.size, bool)
        mine[[label for cell in self.cells for label in cell.labels.tolist()]] = True
        self._contractions = [c for c in analysis.contractions if mine[roots[c.labels]].any()]
        changing = {analysis.consumers[i].node for i in self._cells_of} | {c.node for c in self._contractions}
        custom_ops, self._memory = self.solver.settings.custom_ops, parse_size(self.solver.settings.memory_limit)
        self.tracks = Tracks(model, feeds, changing=changing, limit=self._memory // 2, custom_ops=custom_ops)
        solvable = {i for i, c in enumerate(analysis.consumers) if hindrance(self.views, c, self._memory) is None}
        behind = {i for i in solvable if self.tracks.is_dirty(analysis.consumers[i].x)} if mend else set()
        for index in sorted(behind - self._cells_of.keys()):
            self._cells_of[index] = []
        self._solvable = solvable & self._cells_of.keys()
        others, parts = self._cells_of.keys() - solvable, analysis.consumers
        self._mixed = {i for i in others if not unmixable(self.views, parts[i], self._cells_of[i], self._memory)}
        self._fitted = self._solvable | self._mixed
        found = {i: self.views.leads_to(analysis.consumers[i])[1] for i in self._solvable if residual}
        self._besides = {i: tensor for i, tensor in found.items() if tensor is not None}
        ends = {i: cutoff(self.views, analysis.consumers[i]) for i in self._solvable if one_sided}
        self._cutoffs: dict[int, Cutoff] = {i: end for i, end in ends.items() if end is not None}
        self.tracks.expect(self._taps(self._fitted))

    def _taps(self, indices: Collection[int]) -> set[str]:
        """The tensors that these consumers will be asked for."""
        found = {tensor for i in indices for tensor in self._ends(i)}
        found |= {self._cutoffs[i].tensor for i in indices if i in self._cutoffs}
        return found | {self._besides[i] for i in indices if i in self._besides}

    def _ends(self, index: int) -> tuple[str, ...]:
        consumer = self.views.analysis.consumers[index]
        return (consumer.x,) if index in self._mixed else (consumer.x, consumer.output)

    # -- order --------------------------------------------------------------------------------------------------------

    def run(self) -> Solution:
        """Choose what has not been chosen, and compensate everything."""
        waiting = self._events()
        before = {event: self.tracks.before(self._of(event).x) for event in waiting}
        while waiting:
            places = {self.tracks.place(self._of(event).node) for event in waiting}
            wave = [event for event in waiting if not before[event] & places]
            ties = {event: self._not_chosen([event]) for event in wave}
            for part in affordable(wave, ties, {event: self._cost(event) for event in wave}, self._memory // 2):
                self._wave(part)
            waiting = [event for event in waiting if event not in wave]
        self._note_who_was_not_refitted()
        return self.solver.solution

    def _events(self) -> list[int]:
        """Consumers by their index, and contractions without weights, ~index."""
        return [*sorted(self._cells_of), *(~i for i in range(len(self._contractions)))]

    def _of(self, event: int) -> Consumer | Contraction:
        return self.views.analysis.consumers[event] if event >= 0 else self._contractions[~event]

    def _cost(self, event: int) -> int:
        """In bytes of sums."""
        if event not in self._fitted:
            return 0
        if event in self._solvable:
            return sums_bytes(self.views, self.views.analysis.consumers[event])
        return sum(mixture_bytes(cell) for cell, _ in self._cells_of[event])

    def _not_chosen(self, events: Collection[int]) -> set[str]:
        """The cells that these read, and of which nobody has chosen yet who stays."""
        roots = self.views.analysis.roots
        here = np.concatenate([roots[self._of(event).labels].ravel() for event in events])
        return {c.name for c in self.cells if c.name not in self.kept and np.isin(c.labels, here).any()}

    def _wave(self, wave: Sequence[int]) -> None:
        """Events none of which depends on another that is not done; no cell goes by without having been chosen."""
        new, spent, ahead = self._not_chosen(wave), sum(map(self._cost, wave)), list[int]()
        for index in sorted({c.consumer for name in new for c in self._columns[name]} & self._fitted - {*wave}):
            if spent + (cost := self._cost(index)) <= self._memory // 2:
                ahead.append(index)
                spent += cost
            else:
                node = self.views.analysis.consumers[index].node
                needed = size_text(2 * (spent + cost))
                self._note(f"{node}: has no say in who stays, as its sums besides take --memory-limit {needed} or more")
        foreseen = self._gathered(ahead, ahead=True)
        found = self._gathered([i for i in wave if i in self._fitted], ahead=False)
        for cell in (cell for cell in self.cells if cell.name in new):
            self._choose(cell, foreseen, found)
        for event in wave:
            if event >= 0:
                self._compensate(event, found.get(event))
            else:
                self._mask(self._of(event))
                self._done.add(event)

    # -- statistics ---------------------------------------------------------------------------------------------------

    def _gathered(self, indices: Sequence[int], *, ahead: bool) -> dict[int, Sums]:
        """Sums for these consumers; ahead: in the network as it is now, with what they give there as targets."""
        if not indices:
            return {}
        stays = keep_mask(self.views.analysis, self.kept)
        room = self._memory // 64 // len(indices)  # a sixteenth, in numbers of float32
        readings = {i: self._reading(i, stays, room) for i in indices if i in self._solvable}
        mixtures = [self._mixture(*parts, stays) for i in indices if i in self._mixed for parts in self._cells_of[i]]
        ends = {} if ahead else {i: self._cutoffs[i].tensor for i in indices if i in self._cutoffs}
        consumers = [reading.consumer for reading in readings.values()]
        besides = {} if ahead else {i: self._besides[i] for i in indices if self._is_settled(i)}
        read = {mixture.consumer.x for mixture in mixtures}
        sides, inputs, outputs = [*besides.values()], [*read, *(c.x for c in consumers)], [c.output for c in consumers]
        batches, seed = len(self.tracks.feeds), self.solver.settings.seed

        def visit(batch: int, original: Mapping[str, NDArray[Any]], slim: Mapping[str, NDArray[Any]]) -> None:
            for index, reading in readings.items():
                y = (slim if ahead else original)[reading.consumer.output]
                if (side := besides.get(index)) is not None:
                    y = y + shortfall(self.views, reading.consumer, original[side], slim[side])
                before = original[ends[index]] if index in ends else None
                reading.add(batch, batches, slim[reading.consumer.x], y, seed, before)
            for mixture in mixtures:
                x = mixture.consumer.x
                mixture.add(batch, batches, slim[x], (slim if ahead else original)[x], seed)

        if ahead:
            self.tracks.peek([*inputs, *outputs], visit)
        else:
            self.tracks.taps = self._taps(self._fitted - self._done - set(indices))
            self.tracks.advance([*read, *outputs, *sides, *ends.values()], [*inputs, *sides], visit)
        found: dict[int, Sums] = {i: readings.get(i) or [m for m in mixtures if m.index == i] for i in indices}
        for index, sums in list(found.items()):
            if not all(part.finite for part in (sums if isinstance(sums, list) else [sums])):
                del found[index]
                why = "it reads or should give numbers that are not finite on these samples"
                self._note(f"{self.views.analysis.consumers[index].node}: not refitted, as {why}")
        return found

    def _reading(self, index: int, stays: NDArray[np.bool_], room: int) -> Reading:
        mine, holds = stays[self.views.analysis.consumers[index].labels], self._first is None
        return Reading.start(self.views, index, mine, holds=holds, room=room, device=self.solver.device)

    def _mixture(self, cell: Cell, columns: Columns, stays: NDArray[np.bool_]) -> Mixture:
        mine, holds = stays[cell.labels], self._first is None
        return Mixture.start(self.views, cell, columns, mine, holds=holds, device=self.solver.device)

    def _is_settled(self, index: int) -> bool:
        """Whether the other branch of the sum that a consumer ends in is done, so that it can make up for that."""
        side = self._besides.get(index)
        if side is None:
            return False
        waiting = {self.tracks.place(self._of(event).node) for event in self._events() if event not in self._done}
        return not self.tracks.before(side) & waiting

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # -- choice -------------------------------------------------------------------------------------------------------

    def _choose(self, cell: Cell, ahead: Mapping[int, Sums], found: Mapping[int, Sums]) -> None:
        """By what removal costs at all consumers that can be refitted; without any, by their weights."""
        columns, keep = self._columns[cell.name], self.amounts[cell.name].keep
        parts = [(part, readings is found) for readings in (ahead, found) for part in self._parts(columns, readings)]
        try:
            if parts and (chosen := cheapest(cell, keep, parts)) is not None:
                self.kept[cell.name], self.scores[cell.name] = chosen
                return
            why = unsure(self.solver.settings) if parts else "no consumer can be refitted"
        except LinAlgError:
            why = "they cannot be told apart on these samples"
        self._said.append((f"{cell.name}:", f"chosen by the weights of its consumers, as {why}"))
        settings = replace(self.solver.settings, criterion="consumer")
        choice = choose(self.views, cell, keep, None, settings, self.solver.device)
        self.kept[cell.name], self.scores[cell.name] = choice.kept, choice.scores

    def _parts(self, columns: Sequence[Columns], readings: Mapping[int, Sums]) -> Iterator[Part]:
        """What is known of one cell, at those of its consumers for which there are sums."""
        for c in columns:
            sums = readings.get(c.consumer)
            if isinstance(sums, Reading):
                yield ByWeight(self.views, sums, c)
            else:
                yield from (mixture for mixture in sums or () if mixture.columns is c)

    # -- compensation -------------------------------------------------------------------------------------------------

    def _compensate(self, index: int, sums: Sums | None) -> None:
        """Merging first, which serves where nothing can be fitted, and as an anchor elsewhere."""
        consumer, solution = self.views.analysis.consumers[index], self.solver.solution
        first, found = None if self._first is None else self._first.found.get(index), None
        self._done.add(index)
        if self._first is not None and first is None:
            sums = None  # it fell back before, and nothing is held out now that could choose a ridge
        if isinstance(sums, list):
            donors = [self.solver.donors(m.cell, m.columns, self.kept[m.cell.name], self._values(m.cell)) for m in sums]
            found = remix(self.views, sums, self.kept, [who for who, _ in donors], first)
        if found is None or not found.finite:
            for cell, columns in self._cells_of[index]:
                self.solver.absorb(cell, columns, self.kept[cell.name], self._values(cell))
        if sums is not None and not isinstance(sums, list):
            stays, end = keep_mask(self.views.analysis, self.kept)[consumer.labels], self._cutoffs.get(index)
            found = refit(self.views, sums, stays, solution.weights.get(index), end, first)
            if end is not None and self._first is None and found.fits[0].strength is not None:  # else its anchor won
                self._short[consumer.node] = memory_for_rows(sums, stays, len(self.tracks.feeds), self._memory)
        if found is not None and found.finite:
            solution.weights[index], solution.biases[index], self.found[index] = found.weight, found.gain, found
        constant = self.views.analysis.constants[consumer.weight]
        if isinstance(constant, Derived) or consumer.fill is not None or constant.values.dtype.kind not in "fV":
            self._mask(consumer)
            return
        weight = np.array(solution.weights.get(index, constant.values))
        stays = keep_mask(self.views.analysis, self.kept)[consumer.labels]
        write_rows(weight, consumer, np.flatnonzero(~stays), 0 * self.views.outputs(consumer)[~stays])
        kind, added = np.float64 if weight.dtype == np.float64 else np.float32, None
        if consumer.bias is not None and (gain := solution.biases.get(index)) is not None:
            slot = consumer.bias
            added = gain.reshape([-1 if a == slot.axis else 1 for a in range(slot.rank)]).astype(kind)
        self.tracks.put(consumer.node, consumer.slot, weight.astype(kind), added)

    def _values(self, cell: Cell) -> Mapping[str, Value]:
        return cell_values(self.views, cell) if self.solver.settings.merges else {}

    def _mask(self, reader: Consumer | Contraction) -> None:
        """Zeros for the channels that left, where nothing is refitted."""
        stays = keep_mask(self.views.analysis, self.kept)[reader.labels]
        rank = self.views.analysis.labels[reader.x][0].ndim
        line = stays.reshape([-1 if a == reader.x_axis else 1 for a in range(rank)])
        kind = np.dtype(self.views.node(reader.node).inputs[reader.x_slot].dtype)
        fill = (reader.fill or 0) if isinstance(reader, Consumer) else 0
        single = kind if kind.kind in "iu" or kind == np.float64 else np.dtype(np.float32)  # as the whole network is
        self.tracks.mask(reader.node, reader.x_slot, line, np.asarray(fill, single))

    def _note_who_was_not_refitted(self) -> None:
        """One note for each reason: a quantised network has as many layers as others."""
        for index in (i for i in sorted(self._cells_of.keys() - self._solvable) if self._cells_of[i]):
            consumer, mixed = self.views.analysis.consumers[index], index in self._mixed and index in self.found
            how = "refitted channel by channel, not weight by weight" if mixed else "not refitted"
            why = f"is {how} ({hindrance(self.views, consumer, self._memory)})"
            self._said.append((f"{self._cells_of[index][0][0].name}: {consumer.node}", why))
        self.notes += one_for_each([*self._said, *too_few_rows(self._short)])
