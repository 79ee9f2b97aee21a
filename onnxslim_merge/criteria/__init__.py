"""Which channels matter: a function per criterion, (views, cell, statistics, carries_mean) -> score (n,), larger stays.

Norms look at the rows that make a channel, `consumer` and `impact` at the columns that read it.
"""

from typing import Protocol

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.criteria.consumers import consumer, impact
from onnxslim_merge.criteria.norms import geometric_median, l1, l2
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Floats, Views


class CriterionFunction(Protocol):
    """Scores of a cell, (n,)."""

    def __call__(self, views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool, /) -> Floats:
        """Larger stays."""
        ...


CRITERIA: dict[str, CriterionFunction] = {
    "l1": l1,
    "l2": l2,
    "l2-gm": geometric_median,
    "consumer": consumer,
    "impact": impact,
}

__all__ = ["CRITERIA", "CriterionFunction"]
