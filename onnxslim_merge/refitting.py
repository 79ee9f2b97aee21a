"""Least squares as a stage of a run: the samples it takes, and what is done where it is not possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.compensation import Solution, Solver, solve
from onnxslim_merge.compensation.least_squares import Refit, least_squares
from onnxslim_merge.errors import VerifyError
from onnxslim_merge.model_io import Source
from onnxslim_merge.numerics import Device
from onnxslim_merge.probe import Probe
from onnxslim_merge.samples import Pool, Samples
from onnxslim_merge.samples.specs import HELD_OUT
from onnxslim_merge.sampling import samples_to_fit
from onnxslim_merge.select import Amount, Selection, repair, select
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Views

Kept = Mapping[str, NDArray[np.int64]]


@dataclass(slots=True)
class Refitter:
    """One model, its samples and settings; `notes` grow, and the last result is kept for the choice it was made for."""

    graph: gs.Graph
    source: Source
    probe: Probe
    given: Samples
    settings: Settings
    views: Views
    amounts: Mapping[str, Amount]
    statistics: Statistics | None
    notes: list[str] = field(default_factory=list)
    last: Refit | None = None
    samples: Samples | Pool | None = None  # to fit, which are chosen once
    hopeless: bool = False  # it was tried, and will fail again

    def choose(self) -> Selection:
        """The channels that stay by the criterion `greedy`."""
        self.last = self._run(None)
        if self.last is None:
            settings = replace(self.settings, criterion="consumer")
            self.notes.append("channels are chosen by --criterion consumer instead")
            return select(self.views, self.amounts, self.statistics, settings, Device(settings.device))
        kept = repair(self.views.analysis, self.last.kept, self.last.scores)
        return Selection(kept, self.last.scores)

    def instead(self, settings: Settings) -> Settings:
        """What was done, where least squares are not possible."""
        if not self.hopeless:
            return settings
        criterion = "consumer" if settings.criterion == "greedy" else settings.criterion
        return replace(
            settings, criterion=criterion, compensation="mean+merge" if settings.refits else settings.compensation
        )

    def solve(self, kept: Kept) -> Solution:
        """New weights and biases for these channels; by merging where least squares are not possible."""
        if self.last is None or not _same(self.last.kept, kept):
            self.last = self._run(kept)
        if self.last is None:
            return solve(self.views, kept, self.statistics, self.settings, {}, Device(self.settings.device))
        return replace(self.last.solution, notes=[*self.last.solution.notes, *self.last.notes])

    def _run(self, kept: Kept | None) -> Refit | None:
        if self.hopeless:
            return None
        settings = self.settings
        solver = Solver(self.views, self.statistics, settings, {}, Device(settings.device))
        samples = self.samples = self.samples or samples_to_fit(self.source, settings, self.probe, self.given)
        try:
            found = least_squares(self.graph, self.source, samples, self.amounts, solver, kept)
            many = "1 sample is" if samples.count == 1 else f"{samples.count} samples are"
            why = f"{many} too few to hold any out, or in too few batches: {HELD_OUT} are needed"
        except VerifyError as error:
            found, why = None, str(error)
        if found is None:
            self.hopeless = True
            self.notes.append(f"no least squares ({why}): merged instead")
        return found


def _same(one: Kept, other: Kept) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
