"""One question, two sources: the moments of a cell where a consumer reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.statistics.closed_form import closed_moments
from onnxslim_merge.views import Columns, Floats, Views

Place = tuple[str, int]  # (tensor, axis)
Measure = Callable[[Collection[Place]], Mapping[Place, tuple[Floats, Floats]]]


@dataclass(frozen=True, slots=True)
class Moments:
    """mean, second (mean square): (n, m) at the m positions where a consumer reads each of n channels."""

    mean: Floats
    second: Floats

    @property
    def variance(self) -> Floats:
        """Never negative, (n, m)."""
        variance: Floats = (self.second - self.mean**2).clip(min=0.0)
        return variance


class Statistics:
    """Moments of the cells given at construction: closed form where it holds, else measured, all in one pass.

    measure maps (tensor, axis) to (mean, mean square) along it; it is called at most once, and only if needed.
    """

    def __init__(self, views: Views, cells: Sequence[Cell], measure: Measure, *, spread: bool) -> None:
        """spread: whether mean squares are asked for too (an average pool hides them from the closed form)."""
        self._views = views
        self._closed: dict[tuple[str, str], tuple[Floats, Floats | None]] = {}
        wanted: dict[Place, None] = {}  # a set that keeps its order
        for cell in cells:
            for columns in views.columns(cell):
                consumer = views.analysis.consumers[columns.consumer]
                key = cell.name, consumer.x
                known = self._closed.get(key) or closed_moments(views, cell, consumer.x)
                if known is not None:
                    self._closed[key] = known
                if known is None or (spread and known[1] is None):
                    wanted[consumer.x, consumer.x_axis] = None
        self._measured = measure(wanted) if wanted else {}

    def at(self, cell: Cell, columns: Columns) -> Moments:
        """The moments of `cell` at the positions where `columns` reads it; 0 where there is no position."""
        consumer, where = self._views.analysis.consumers[columns.consumer], columns.positions
        place, present = (consumer.x, consumer.x_axis), where >= 0
        known = self._closed.get((cell.name, consumer.x))
        if known is None or (known[1] is None and place in self._measured):
            mean, second = (a[where.clip(min=0)] for a in self._measured[place])
        else:
            mean, second = (0.0 * where + a[:, None] if a is not None else 0.0 * where for a in known)
        return Moments(mean * present, second * present)
