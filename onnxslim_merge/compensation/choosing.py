"""The criterion `greedy`: which channels of a cell stay, by what their removal costs where everything is refitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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
NOTHING = 1e-9  # of the spread of targets: what is lost where no ridge can be told from another

Ids = NDArray[np.int64]


class Part(Protocol):
    """What one consumer says of one cell."""

    def terms(self, fitted: bool) -> Iterator[Term]:
        """What removal costs there, in units of the spread of targets; fitted: weights are refitted before."""

    def wanted(self, kept: Ids) -> Iterator[tuple[float, float]]:
        """The share of that spread which a refit leaves on held-out samples, and the ridge that it wants."""


@dataclass(frozen=True, slots=True)
class ByWeight:
    """A consumer whose own weights are refitted: its sums, and where it reads the cell."""

    views: Views
    reading: Reading
    columns: Columns

    def terms(self, fitted: bool) -> Iterator[Term]:
        """Group by group."""
        weights, scale = self.views.outputs(self.reading.consumer), importance(self.views, self.reading.consumer)
        energy = _energy(self.reading.train, scale)
        for group, blocks in self._groups():
            sums, device = self.reading.train[group], self.reading.train[group].device
            covariance, cross = sums.covariances
            start = device.put(by_feature(weights, self.reading.channels[group]))
            lost = cross - covariance @ start if fitted else None
            device.add_to_diagonal(covariance, penalties(sums, covariance, RIDGE))
            yield Term(covariance, start, lost, device.put(np.sqrt(scale[group] / energy)), blocks, device)

    def wanted(self, kept: Ids) -> Iterator[tuple[float, float]]:
        """Group by group."""
        reading, gone = self.reading, np.setdiff1d(np.arange(len(self.columns.positions)), kept)
        weights, scale = self.views.outputs(reading.consumer), importance(self.views, reading.consumer)
        energy = _energy(reading.held, scale)
        for group, blocks in self._groups():
            features = np.setdiff1d(np.arange(len(reading.train[group].f)), blocks[gone])
            train, held = (sums[group].of(features) for sums in (reading.train, reading.held))
            anchors = {"plain": by_feature(weights, reading.channels[group])[features]}
            error, strength = best_strength(train, held, anchors, scale[group])
            yield error * float(scale[group] @ held.variance) / energy, strength

    def _groups(self) -> Iterator[tuple[int, Ids]]:
        """Each group of a consumer, and the features in it of each channel of the cell (n, b), -1 for none."""
        for group in range(len(self.reading.channels)):
            blocks = self.reading.blocks(self.columns.positions, group)
            if (blocks >= 0).any():
                yield group, blocks


def cheapest(cell: Cell, keep: int, parts: Sequence[tuple[Part, bool]]) -> tuple[Ids, Floats] | None:
    """The `keep` channels of a cell that stay, ascending, and scores (n,); None where samples are too few to tell.

    parts: of every consumer that is refitted, and whether its targets are the original's, so that it is refitted before
    anything is removed. Held-out samples tell by the ridge that they want, where most is lost, for the refit of what
    was chosen. Prices that samples do not bear out are worse than none: channels that are silent in them come out as
    the cheapest (decision 0013). Raises LinAlgError if nothing varies.
    """
    terms = [term for part, fitted in parts for term in part.terms(fitted)]
    kept, scores = surgeon(terms, cell.size, keep, cell.rows)
    lost, strength = max((found for part, _ in parts for found in part.wanted(kept)), default=(0.0, 0.0))
    return None if strength >= POOR and lost > NOTHING else (kept, scores)


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
