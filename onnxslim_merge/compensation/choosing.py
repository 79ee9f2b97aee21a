"""The criterion `greedy`: which channels of a cell stay, by what their removal costs where everything is refitted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Consumer
from onnxslim_merge.compensation.ridge import best_strength, penalties
from onnxslim_merge.criteria.surgeon import Term, surgeon
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.readings import Reading
from onnxslim_merge.views import Columns, Floats, Views

RIDGE = 1e-3  # of each feature's variance; a tenth or ten times as much is as good
POOR = 1.0  # the ridge that held-out samples want where samples are too few to tell what can make up for what

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chooser:
    """One cell, of which `keep` channels stay, and what is known of its consumers.

    parts: their sums, and where they read the cell. fitted: the consumers (by index) whose targets are the original's,
    so that their weights are refitted before anything is removed.
    """

    views: Views
    cell: Cell
    keep: int
    parts: Sequence[tuple[Reading, Columns]]
    fitted: Collection[int]

    def choose(self) -> tuple[Ids, Floats] | None:
        """The channels that stay, ascending, and scores (n,); None where the samples are too few to tell.

        Held-out samples tell by the ridge that they want for the refit of what was chosen. Prices that samples do not
        bear out are worse than none: channels that are silent in them come out as the cheapest (decision 0013).
        Raises LinAlgError if nothing varies.
        """
        terms = [term for reading, columns in self.parts for term in self._terms(reading, columns)]
        kept, scores = surgeon(terms, self.cell.size, self.keep, self.cell.rows)
        return None if self._wanted(kept) >= POOR else (kept, scores)

    def _groups(self, reading: Reading, columns: Columns) -> Iterator[tuple[int, Ids]]:
        """Each group of a consumer, and the features in it of each channel of the cell (n, b), -1 for none."""
        for group in range(len(reading.channels)):
            blocks = reading.blocks(columns.positions, group)
            if (blocks >= 0).any():
                yield group, blocks

    def _terms(self, reading: Reading, columns: Columns) -> Iterator[Term]:
        """The cost at one consumer, in units of the spread of its targets, group by group."""
        weights, scale = self.views.outputs(reading.consumer), importance(self.views, reading.consumer)
        energy = _energy(reading.train, scale)
        for group, blocks in self._groups(reading, columns):
            sums, device = reading.train[group], reading.train[group].device
            covariance, cross = sums.covariances
            start = device.put(by_feature(weights, reading.channels[group]))
            lost = cross - covariance @ start if reading.index in self.fitted else None
            device.add_to_diagonal(covariance, penalties(sums, covariance, RIDGE))
            yield Term(covariance, start, lost, device.put(np.sqrt(scale[group] / energy)), blocks, device)

    def _wanted(self, kept: Ids) -> float:
        """The ridge that held-out samples want for a refit, of the consumer with the largest error."""
        gone, worst = np.setdiff1d(np.arange(self.cell.size), kept), (-1.0, 0.0)
        for reading, columns in self.parts:
            weights, scale = self.views.outputs(reading.consumer), importance(self.views, reading.consumer)
            energy = _energy(reading.held, scale)
            for group, blocks in self._groups(reading, columns):
                features = np.setdiff1d(np.arange(len(reading.train[group].f)), blocks[gone])
                train, held = (sums[group].of(features) for sums in (reading.train, reading.held))
                anchors = {"plain": by_feature(weights, reading.channels[group])[features]}
                error, strength = best_strength(train, held, anchors, scale[group])
                error *= float(scale[group] @ held.variance) / energy
                worst = max(worst, (error, strength))
        return worst[1]


def importance(views: Views, consumer: Consumer) -> Floats:
    """Of the squared error of each output, by group (g, outputs): what BatchNormalization makes of it."""
    scale = np.broadcast_to(views.output_scale(consumer), views.width(consumer))
    return np.asarray(scale**2).reshape(consumer.groups, -1)


def by_feature(weights: Floats, channels: Ids) -> Floats:
    """Of weights (inputs, outputs, taps) the rows of some inputs, tap by tap: (taps * channels, outputs)."""
    return weights[channels].transpose(2, 0, 1).reshape(-1, weights.shape[1])


def _energy(sums: Sequence[Gram], scale: Floats) -> float:
    """The variance of all targets, each by its importance."""
    return sum(float(part @ gram.variance) for part, gram in zip(scale, sums, strict=True)) or 1.0
