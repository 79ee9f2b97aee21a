"""Consumer by consumer: new weights and biases that absorb what was removed. All sums use the original columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Consumer, Degree
from onnxslim_merge.channels.derived import Derived
from onnxslim_merge.compensation.donors import Donors, Search, find_donors
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.values import Value, cell_values, families
from onnxslim_merge.views import Columns, Floats, Views

NEARLY_PARALLEL = 0.99  # a donor of this cosine is good whatever the inputs are


@dataclass(slots=True)
class Solution:
    """By consumer index: the new weight, in its own layout and type, and what its effective bias gains, (outputs,)."""

    weights: dict[int, NDArray[Any]] = field(default_factory=dict)
    biases: dict[int, Floats] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    clusters: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # of each cell's channels, as given


def solve(
    views: Views,
    kept: Mapping[str, NDArray[np.int64]],
    statistics: Statistics | None,
    settings: Settings,
    clusters: Mapping[str, NDArray[np.int64]] | None = None,
    device: Device = CPU,
) -> Solution:
    """Compensate every consumer of every slimmed cell; `kept` maps cell names to the indices that stay.

    clusters: by cell name, (n,): whose representatives stand in for whom, where that was decided with the choice.
    """
    solver = Solver(views, statistics, settings, (clusters or {}) if settings.uses_clusters else {}, device)
    cells = [cell for cell in views.analysis.cells if len(kept.get(cell.name, cell.labels)) < cell.size]
    if settings.compensation == "none":
        return solver.solution
    columns = {cell.name: views.columns(cell) for cell in cells}
    solver.open = Counter(c.consumer for found in columns.values() for c in found)
    for cell in cells:
        values = cell_values(views, cell) if settings.merges else {}
        served = [solver.absorb(cell, c, kept[cell.name], values) for c in columns[cell.name]]
        solver.solution.notes += _notes(cell, len(kept[cell.name]), served, settings)
    solver.solution.notes = _gathered(solver.solution.notes)
    return solver.solution


class Solver:
    """Rows under way, in float64, until the last cell of a consumer is done."""

    def __init__(
        self,
        views: Views,
        statistics: Statistics | None,
        settings: Settings,
        clusters: Mapping[str, NDArray[np.int64]],
        device: Device,
    ) -> None:
        """Nothing solved yet; `open` counts the cells that a consumer still waits for."""
        self.views, self.statistics, self.settings = views, statistics, settings
        self.clusters, self.device = clusters, device
        self.solution = Solution(clusters=clusters)
        self.open: Counter[int] = Counter()
        self._rows: dict[int, list[tuple[NDArray[np.int64], Floats]]] = {}

    def anew(self) -> Solver:
        """Another one that has not begun."""
        return Solver(self.views, self.statistics, self.settings, self.clusters, self.device)

    def absorb(
        self, cell: Cell, columns: Columns, kept: NDArray[np.int64], values: Mapping[str, Value]
    ) -> tuple[int, str | None]:
        """Compensate one consumer for one cell.

        Returns how many removed channels found a donor, and why the others cannot have one.
        """
        consumer = self.views.analysis.consumers[columns.consumer]
        original = self.views.columns_of(consumer)
        removed, group = np.setdiff1d(np.arange(cell.size), kept), self._group(columns)
        donors, why = self.donors(cell, columns, kept, values)
        source = columns.positions[removed]
        taken = original[source.clip(min=0)]  # (r, m, outputs, taps)
        if (source < 0).any():
            taken *= (source >= 0)[..., None, None]
        if donors.found.any():
            merged = _merged(original, columns.positions, donors, taken, self.device)
            self._rows.setdefault(columns.consumer, []).extend(merged)
        shift = np.repeat(donors.offset[:, None], columns.positions.shape[1], 1)
        if self.statistics is not None and self.settings.carries_mean:
            mean = self.statistics.at(cell, columns).mean - (consumer.fill or 0.0)
            if not np.isfinite(mean).all():
                self.solution.notes.append(f"{cell.name}: means that are not finite on these samples are left out")
                mean = np.where(np.isfinite(mean), mean, 0.0)
            shift = mean[removed] - donors.share(cell.size) @ mean
        if shift.any() and not takes_mean(self.views, consumer):
            self.solution.notes.append(f"{cell.name}: {consumer.node} has no bias that could take means")
        elif shift.any():
            summed = shift.reshape(-1, 1) * taken.sum(-1).reshape(shift.size, -1)
            gain = np.zeros((consumer.groups, summed.shape[1]))
            np.add.at(gain, group[removed].ravel().clip(min=0), summed)
            gain = gain.ravel() * consumer.gain * consumer.tap_gain
            self.solution.biases[columns.consumer] = self.solution.biases.get(columns.consumer, 0.0) + gain
        self._close(columns.consumer)
        return int(donors.found.sum()), why

    def donors(
        self, cell: Cell, columns: Columns, kept: NDArray[np.int64], values: Mapping[str, Value]
    ) -> tuple[Donors, str | None]:
        """Who stands in at one consumer for what was removed, and why nobody can.

        Nobody does if the channel's way is private, or channels differ in number of positions.
        """
        consumer, settings = self.views.analysis.consumers[columns.consumer], self.settings
        removed = np.setdiff1d(np.arange(cell.size), kept)
        value, none = values.get(consumer.x), Donors.none(removed.size)
        if not settings.merges:
            return none, None
        if value is None:
            return none, "the way to a consumer is not known"
        if isinstance(self.views.analysis.constants[consumer.weight], Derived):
            return none, f"the weight of {consumer.node} is quantised"
        if value.private is not None:
            return none, value.private
        if (columns.positions < 0).any():
            return none, "channels take different numbers of places at a consumer"
        value = _within(self._group(columns), value, self.clusters.get(cell.name))
        search = Search(settings.threshold, settings.lam, settings.donor_count, settings.carries_mean)
        fits = search.count != 1 and value.nonlinear and value.degree == Degree.HOMOGENEOUS
        if fits and self.views.has_unknown_spread(cell):
            alike = replace(search, threshold=max(settings.threshold or 0.0, NEARLY_PARALLEL), count=1)
            why = "its layer reads the model's inputs, whose spread is not known: only a nearly parallel channel may"
            found = find_donors(value, kept, removed, alike, self.device)
            return found, None if found.found.any() else why
        return find_donors(value, kept, removed, search, self.device), None

    def _group(self, columns: Columns) -> NDArray[np.int64]:
        """The consumer's group at each place of each channel, (n, m)."""
        consumer = self.views.analysis.consumers[columns.consumer]
        return columns.positions // (consumer.labels.size // consumer.groups)

    def _close(self, index: int) -> None:
        """Once no cell is open any more, write the new rows into a copy of the weight, in its own layout and type."""
        self.open[index] -= 1
        if self.open[index] > 0 or index not in self._rows:
            return
        consumer = self.views.analysis.consumers[index]
        weight = np.array(self.views.analysis.constants[consumer.weight].values)
        for place, rows in self._rows.pop(index):
            write_rows(weight, consumer, place, rows)
        self.solution.weights[index] = weight


def write_rows(weight: NDArray[Any], consumer: Consumer, place: NDArray[np.int64], rows: Floats) -> None:
    """Put rows (k, outputs of a group, taps) of the inputs `place` (k,) into a consumer's weight, in its layout."""
    inputs_first = np.moveaxis(weight, (consumer.axis, consumer.out_axis), (0, 1))
    group, i = np.divmod(place, inputs_first.shape[0])
    of_group = np.arange(rows.shape[1]) + group[:, None] * rows.shape[1]
    inputs_first[i[:, None], of_group] = rows.reshape(*rows.shape[:2], *inputs_first.shape[2:])


def takes_mean(views: Views, consumer: Consumer) -> bool:
    """Whether a mean can be added: not where no bias can enter, nor to integers with coarse steps or shared ones."""
    slot = consumer.bias
    if slot is None:
        return False
    name = views.analysis.inputs.get((slot.node, slot.slot), "") if slot.slot is not None else ""
    held = views.analysis.constants.get(name)
    return not isinstance(held, Derived) or held.stored is not None


def _within(group: NDArray[np.int64], value: Value, clusters: NDArray[np.int64] | None) -> Value:
    """Only channels of the same groups (n, m) of a consumer, and of the same cluster, can stand in for each other."""
    given = [part for part in (group if group.any() else None, clusters) if part is not None]
    return replace(value, family=families([*given, value.family])) if given else value


def _merged(
    original: Floats, place: NDArray[np.int64], donors: Donors, taken: Floats, device: Device
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """For each of the m positions: the donors' places, and their original + scale x removed rows."""
    share = donors.share(place.shape[0]).T.tocsr()
    targets = np.flatnonzero(np.diff(share.indptr))
    share = share[targets]
    for m in range(place.shape[1]):
        added = device.spread(share, taken[:, m].reshape(taken.shape[0], -1))
        yield place[targets, m], original[place[targets, m]] + added.reshape(targets.size, *taken.shape[2:])


def _notes(cell: Cell, kept: int, served: list[tuple[int, str | None]], settings: Settings) -> list[str]:
    """Say it where channels went without a donor."""
    if not settings.merges or not served:
        return []
    removed, instead = cell.size - kept, "mean shift" if settings.carries_mean else "plain removal"
    reasons = sorted({why for _, why in served if why})
    if reasons:
        return [f"{cell.name}: no merging ({reasons[0]}); {instead} instead"]
    least = min(count for count, _ in served)
    if least < removed:
        return [f"{cell.name}: {removed - least} of {removed} removed channels have no donor; {instead} instead"]
    return []


def _gathered(notes: Sequence[str]) -> list[str]:
    """Notes `cell: text` that differ only in the cell and the node that they name become one, worded as the first."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for note in notes:
        cell, _, text = note.partition(": ")
        groups.setdefault(re.sub(r"no merging \(\S+", "no merging (", text), []).append((cell, text))
    return [f"{g[0][0]}{f' and {len(g) - 1} more' * (len(g) > 1)}: {g[0][1]}" for g in groups.values()]
