"""Which channels stay. Scores, larger stays: norms look at the rows that make a channel, `consumer` and `impact` at the
columns that read it. Representatives: REPrune clusters the rows, or their kernels. `choose` serves all of them.
"""

from collections.abc import Callable

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.criteria.choice import Choice, best
from onnxslim_merge.criteria.consumers import consumer, impact
from onnxslim_merge.criteria.coverage import reprune_kernel
from onnxslim_merge.criteria.norms import geometric_median, l1, l2
from onnxslim_merge.criteria.representatives import reprune
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Floats, Views

SCORES: dict[str, Callable[[Views, Cell, Statistics | None, bool], Floats]] = {
    "l1": l1,
    "l2": l2,
    "l2-gm": geometric_median,
    "consumer": consumer,
    "impact": impact,
}
REPRESENTATIVES: dict[str, Callable[[Views, Cell, int, Settings, Device], Choice]] = {
    "reprune": reprune,
    "reprune-kernel": reprune_kernel,
}


def choose(
    views: Views, cell: Cell, keep: int, statistics: Statistics | None, settings: Settings, device: Device = CPU
) -> Choice:
    """The `keep` channels of `cell` that stay by the criterion of `settings`, equally many of each part."""
    if settings.criterion in REPRESENTATIVES:
        return REPRESENTATIVES[settings.criterion](views, cell, keep, settings, device)
    scores = SCORES[settings.criterion](views, cell, statistics, settings.carries_mean)
    return Choice(best(cell, scores, keep), scores)


__all__ = ["REPRESENTATIVES", "SCORES", "Choice", "best", "choose"]
