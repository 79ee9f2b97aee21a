"""What one consumer reads and should give: second moments of its features and targets, group by group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.claims import Consumer
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.samples.specs import HELD_OUT
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.windows import input_rows, output_rows
from onnxslim_merge.views import Views

PRODUCTS = 2e10  # products of two features that one consumer's sums may take ...
ROWS = 8  # ... but as many rows for each feature in any case
SAMPLED, SAMPLED_ROWS = 1 << 25, 128  # of rows that are kept themselves: numbers in all, and rows for each feature
SINGLE = 512  # features from which on products within a batch are float32; their sums never are

Ids = NDArray[np.int64]


def is_held_out(batch: int) -> bool:
    """Whether a batch chooses ridges, instead of being fitted to."""
    return batch % HELD_OUT == HELD_OUT - 1


def rows_wanted(features: int, batches: int) -> int:
    """How many rows of one batch the sums take."""
    return int(max(PRODUCTS / features**2, ROWS * features)) // batches + 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of one batch: features (r, n), targets (r, o), and the original in front of what follows, (r, o)."""

    features: NDArray[np.float32]
    targets: NDArray[np.float32]
    before: NDArray[np.float32]
    held: bool


@dataclass(slots=True)
class Reading:
    """The features of one consumer that are there: of each group, positions on the input's axis of channels.

    Features lie tap by tap, channels within. train, held: their sums with the targets, one for each group. samples:
    some of the rows themselves, where it was said what the original has in front of the function that follows.
    """

    index: int
    consumer: Consumer
    channels: list[Ids]
    taps: int
    train: list[Gram] = field(default_factory=list)
    held: list[Gram] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    holds: bool = True
    room: int = SAMPLED

    @classmethod
    def start(
        cls,
        views: Views,
        index: int,
        stays: NDArray[np.bool_],
        *,
        holds: bool = True,
        room: int = SAMPLED,
        device: Device = CPU,
    ) -> Reading:
        """No rows yet. stays: of the input's channels, (n,). holds: whether samples are held out.

        room: numbers of `samples` that may be kept. device: where sums are.
        """
        consumer = views.analysis.consumers[index]
        parts = stays.reshape(consumer.groups, -1)
        channels = [np.flatnonzero(part) + group * parts.shape[1] for group, part in enumerate(parts)]
        taps = int(np.prod(consumer.window.kernel)) if consumer.window is not None else 1
        reading = cls(index, consumer, channels, taps, holds=holds, room=min(room, SAMPLED))
        width = views.width(consumer) // consumer.groups
        for sums in (reading.train, reading.held):
            sums += [Gram.zeros(taps * part.size, width, device) for part in channels]
        return reading

    @property
    def finite(self) -> bool:
        """Whether no row held NaN or infinity."""
        return all(gram.finite for gram in (*self.train, *self.held))

    @property
    def features(self) -> int:
        """Of the widest group."""
        return max((part.size for part in self.channels), default=0) * self.taps

    def add(
        self,
        batch: int,
        batches: int,
        x: NDArray[Any],
        y: NDArray[Any],
        seed: int,
        before: NDArray[Any] | None = None,
    ) -> None:
        """The rows of one batch; some of them, drawn at random, where there are more than needed.

        before: what the original has at the places of y in front of the function that follows, if `samples` are wanted.
        """
        axis = self.consumer.bias.axis if self.consumer.bias is not None else 1
        shape = tuple(n for a, n in enumerate(y.shape) if a != axis)
        total, features = int(np.prod(shape)), max(self.features, 1)
        wanted = rows_wanted(features, batches)
        where, rng = None, np.random.default_rng((seed, self.index, batch))
        if wanted < total:
            where = np.sort(rng.choice(total, wanted, replace=False))
        sums = self.held if self.holds and is_held_out(batch) else self.train
        targets, kind = output_rows(y, axis, where), np.float32 if features > SINGLE else np.float64
        for group, (gram, channels) in enumerate(zip(sums, self.channels, strict=True)):
            rows, width = input_rows(self.consumer, x, shape, where, channels), len(gram.y)
            gram.add(rows.astype(kind), targets[:, group * width : (group + 1) * width].astype(kind))
        if before is not None:
            some = min(self.room // (features + 2 * y.shape[axis]), SAMPLED_ROWS * features) // batches + 1
            if some < len(rows):
                pick = np.sort(rng.choice(len(rows), some, replace=False))
                rows, targets, where = rows[pick], targets[pick], pick if where is None else where[pick]
            found = [a.astype(np.float32) for a in (rows, targets, output_rows(before, axis, where))]
            self.samples.append(Sample(found[0], found[1], found[2], sums is self.held))

    def blocks(self, positions: Ids, group: int) -> Ids:
        """The features of each channel of a cell at `positions` (n, m), (n, m * taps), -1 for what a group lacks."""
        channels = self.channels[group]
        place = np.full(self.consumer.labels.size, -1)
        place[channels] = np.arange(channels.size)
        where = np.where(positions >= 0, place[positions.clip(min=0)], -1)[:, :, None]
        found = where + np.arange(self.taps) * channels.size
        return np.where(where >= 0, found, -1).reshape(len(positions), -1)
