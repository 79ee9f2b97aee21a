"""The channel-mixing form of least squares: one matrix over channels, shared by all taps and positions.

Where a consumer has more features than can be solved for, or how its outputs come from its inputs is not known, what
the original has in each channel is foretold from the channels that stay, where the consumer reads them: x ~ M' x_kept
+ c. The weights absorb that as they absorb donors: row j of the kept becomes the sum of M_ji row_i, and the bias gains
c_i times the taps of row i. What a channel is missed by counts as much as the consumer makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Consumer
from onnxslim_merge.channels.derived import Derived
from onnxslim_merge.compensation.choosing import RIDGE, importance
from onnxslim_merge.compensation.donors import Donors
from onnxslim_merge.compensation.ridge import Fit, best_strength, fit, fit_again, penalties
from onnxslim_merge.compensation.solver import takes_mean
from onnxslim_merge.criteria.surgeon import Term
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.readings import is_held_out, rows_wanted
from onnxslim_merge.statistics.windows import share_of_taps
from onnxslim_merge.views import Columns, Floats, Views

MATRICES = 17  # of channels x channels in float64, at once: sums, covariances, anchors, what prices are worked out from
JITTER = 1e-10  # of the mean of a diagonal: what a Cholesky factor of a singular matrix needs

Ids = NDArray[np.int64]


@dataclass(slots=True)
class Family:
    """Channels of a cell that one consumer reads in the same groups of its own: only these can mix.

    channels (n,): in the cell. features (k,): those of them that are still there. groups (m,): of the consumer, at each
    of the places of a channel. train, held: sums of features with all n.
    """

    channels: Ids
    features: Ids
    groups: Ids
    train: Gram
    held: Gram


@dataclass(slots=True)
class Mixture:
    """What one consumer reads of one cell: second moments of its channels, of all places alike."""

    views: Views
    index: int
    consumer: Consumer
    cell: Cell
    columns: Columns
    families: list[Family]
    holds: bool

    @classmethod
    def start(
        cls,
        views: Views,
        cell: Cell,
        columns: Columns,
        stays: NDArray[np.bool_],
        *,
        holds: bool = True,
        device: Device = CPU,
    ) -> Mixture:
        """No rows yet. stays: of the cell's channels, (n,). holds: whether samples are held out."""
        consumer = views.analysis.consumers[columns.consumer]
        group = columns.positions // (consumer.labels.size // consumer.groups)
        patterns, which = np.unique(group, axis=0, return_inverse=True)
        families = []
        for number, groups in enumerate(patterns):
            channels = np.flatnonzero(which.reshape(-1) == number)
            features = channels[stays[channels]]
            sums = [Gram.zeros(features.size, channels.size, device) for _ in range(2)]
            families.append(Family(channels, features, groups, *sums))
        return cls(views, columns.consumer, consumer, cell, columns, families, holds)

    @property
    def finite(self) -> bool:
        """Whether no row held NaN or infinity."""
        return all(sums.finite for family in self.families for sums in (family.train, family.held))

    def add(self, batch: int, batches: int, x: NDArray[Any], y: NDArray[Any], seed: int) -> None:
        """The rows of one batch; some, drawn at random, where there are more than needed. y: what x should be."""
        lines = [np.moveaxis(a, self.consumer.x_axis, -1).reshape(-1, self.consumer.labels.size) for a in (x, y)]
        wanted = rows_wanted(self.cell.size, batches)
        if wanted < len(lines[0]):
            rng = np.random.default_rng((seed, self.index, batch))
            where = np.sort(rng.choice(len(lines[0]), wanted, replace=False))
            lines = [line[where] for line in lines]
        held, empty = self.holds and is_held_out(batch), self._empty(x, len(lines[0]))
        for family in self.families:
            sums = family.held if held else family.train
            for place in self.columns.positions.T:
                rows, targets = lines[0][:, place[family.features]], lines[1][:, place[family.channels]]
                sums.add(rows.astype(np.float64), targets.astype(np.float64))
                sums.add_zeros(empty)

    def _empty(self, x: NDArray[Any], rows: int) -> int:
        """How many rows of zeros belong to so many of x: taps that meet padding, or fall between inputs, read zeros.

        Without them the intercept, which the bias gets for every tap, would be wrong by what it gives there.
        """
        window = self.consumer.window
        if window is None or not window.kernel:
            return 0
        space = [size for axis, size in enumerate(x.shape) if axis not in (0, self.consumer.x_axis)]
        share = share_of_taps(window, space)
        return round(rows * (1 / share - 1)) if share else 0  # a consumer that reads nothing but padding

    # -- choice -------------------------------------------------------------------------------------------------------

    def terms(self, fitted: bool) -> Iterator[Term]:
        """What the removal of channels costs at this consumer, in units of the spread of what it makes of all."""
        energy = self._energy("train")
        for family in self.families:
            sums, device = family.train, family.train.device
            covariance, cross = sums.covariances
            root = device.put(self._root(family) / energy**0.5)
            lost = (cross - covariance) @ root if fitted else None
            device.add_to_diagonal(covariance, penalties(sums, covariance, RIDGE))
            blocks = np.full((self.cell.size, 1), -1)
            blocks[family.channels, 0] = np.arange(family.channels.size)
            ones = device.zeros(root.shape[1]) + 1.0
            yield Term(covariance, root, lost, ones, blocks, device)

    def wanted(self, kept: Ids) -> Iterator[tuple[float, float]]:
        """Of each family, the share of the spread that a refit leaves on held-out samples, and the ridge for it."""
        energy = self._energy("held")
        for family in self.families:
            places = np.flatnonzero(np.isin(family.features, kept))
            train, held = family.train.of(places), family.held.of(places)
            weight, gone = self._importance(family), _gone(family, kept)
            error, strength = best_strength(train, held, {"plain": _same(family, places)}, weight, gone)
            yield error * float(weight[gone] @ held.variance[gone]) / energy, strength

    def _energy(self, which: str) -> float:
        parts = ((self._importance(family), getattr(family, which).variance) for family in self.families)
        return sum(float(weight @ variance) for weight, variance in parts) or 1.0

    def _rows(self, family: Family) -> Floats:
        """The consumer's weights for the family's channels, each output by its importance: (n, m * outputs * taps)."""
        scale, place = np.sqrt(importance(self.views, self.consumer)), self.columns.positions[family.channels]
        rows = self.views.outputs(self.consumer)[place] * scale[family.groups][None, :, :, None]
        return np.asarray(rows.reshape(len(place), -1))

    def _importance(self, family: Family) -> Floats:
        """Of the squared error of each channel, (n,)."""
        return np.asarray(np.square(self._rows(family)).sum(1))

    def _root(self, family: Family) -> Floats:
        """R with R R' = W W', as narrow as can be, (n, r)."""
        rows = self._rows(family)
        if rows.shape[1] <= len(rows):
            return rows
        square = rows @ rows.T
        np.fill_diagonal(square, np.diagonal(square) + JITTER * (np.trace(square) / len(square) or 1.0))
        return np.asarray(np.linalg.cholesky(square), np.float64)

    # -- compensation -------------------------------------------------------------------------------------------------

    def solve(self, kept: Ids, donors: Donors, first: Sequence[Fit] | None) -> list[Fit]:
        """The fit of every family. donors: of the removed, an anchor. first: fits whose ridges are taken over."""
        removed = np.setdiff1d(np.arange(self.cell.size), kept)
        share, merged = donors.share(self.cell.size).toarray(), np.eye(self.cell.size)
        merged[:, removed] = share.T
        found = []
        for number, family in enumerate(self.families):
            places = np.flatnonzero(np.isin(family.features, kept))
            anchors = {"plain": _same(family, places)}
            if donors.found.any():
                anchors["merged"] = merged[np.ix_(family.features[places], family.channels)]
            train, held = family.train.of(places), family.held.of(places)
            if first is None:
                found.append(fit(train, held, anchors, self._importance(family), _gone(family, kept)))
            else:
                known = first[number] if first[number].anchor in anchors else replace(first[number], anchor="plain")
                found.append(fit_again(train, anchors, known))
        return found

    def absorbed(self, kept: Ids, fits: Sequence[Fit]) -> tuple[Ids, Floats, Floats]:
        """New rows of the consumer's weight and where: places (p,), rows (p, outputs, taps); what its bias gains."""
        consumer, original = self.consumer, self.views.columns_of(self.consumer)
        gain, places, rows = np.zeros((consumer.groups, original.shape[1])), [], []
        for family, found in zip(self.families, fits, strict=True):
            stay = family.features[np.isin(family.features, kept)]
            for m, group in enumerate(family.groups):
                old = original[self.columns.positions[family.channels, m]]
                places.append(self.columns.positions[stay, m])
                rows.append((found.weights @ old.reshape(len(old), -1)).reshape(-1, *old.shape[1:]))
                gain[group] += found.intercept @ old.sum(-1)
        met = consumer.tap_gain if consumer.window is None else 1.0  # else rows of zeros stand for taps that meet none
        return np.concatenate(places), np.concatenate(rows), gain.ravel() * consumer.gain * met


def unmixable(views: Views, consumer: Consumer, columns: Sequence[tuple[Cell, Columns]], memory: int) -> bool:
    """Whether not even channels can be mixed: that takes numbers for weights, a bias, channels of equal widths.

    memory: bytes that the sums of one consumer may take.
    """
    if isinstance(views.analysis.constants[consumer.weight], Derived) or consumer.fill is not None or not consumer.gain:
        return True
    if not takes_mean(views, consumer) or not columns:
        return True
    return any((c.positions < 0).any() or MATRICES * 8 * cell.size**2 > memory for cell, c in columns)


def mixture_bytes(cell: Cell) -> int:
    """What the sums of a mixture take, for fitting and held-out samples."""
    return 4 * 8 * cell.size**2


def _gone(family: Family, kept: Ids) -> Ids:
    """The family's channels that are removed, or all if none is; a few of all would hardly be those."""
    gone = np.flatnonzero(~np.isin(family.channels, kept))
    return gone if gone.size else np.arange(family.channels.size)


def _same(family: Family, places: Ids) -> Floats:
    """What is kept stays itself, and nothing stands in for the others, (k, n)."""
    return np.asarray(family.channels[None, :] == family.features[places][:, None], np.float64)
