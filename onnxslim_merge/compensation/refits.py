"""New weights of one consumer from sums of what it reads and should give, weight by weight or channel by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.claims import Consumer
from onnxslim_merge.compensation.choosing import by_feature, importance
from onnxslim_merge.compensation.donors import Donors
from onnxslim_merge.compensation.mixing import Mixture
from onnxslim_merge.compensation.onesided import Limits, one_sided
from onnxslim_merge.compensation.refittable import Cutoff
from onnxslim_merge.compensation.ridge import Fit, fit, fit_again
from onnxslim_merge.compensation.solver import write_rows
from onnxslim_merge.statistics.readings import Reading
from onnxslim_merge.views import Floats, Views

SILENT = 1e-6  # a scale of BatchNormalization below which an output cannot make up for anything

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Refitted:
    """The new weight of a consumer, in its own layout and type; what its effective bias gains, (outputs,).

    fits: one for each of its groups, or for each family of channels that mix. gaining: which outputs were fitted to
    what a Relu or its like lets through, if any were.
    """

    weight: NDArray[Any]
    gain: Floats
    fits: Sequence[Fit]
    gaining: NDArray[np.bool_] | None = None

    @property
    def finite(self) -> bool:
        """Whether these are numbers."""
        return bool(np.isfinite(self.weight).all() and np.isfinite(self.gain).all())


def shortfall(views: Views, consumer: Consumer, original: NDArray[Any], slim: NDArray[Any]) -> NDArray[Any]:
    """What the other branch of a sum lacks, as the consumer's output sees it, before any BatchNormalization."""
    slot, size = consumer.bias, views.width(consumer)
    scale = np.broadcast_to(views.output_scale(consumer, signed=True), size)
    safe = np.where(np.abs(scale) < SILENT, np.inf, scale)
    line = safe.reshape([-1 if slot is not None and a == slot.axis else 1 for a in range(original.ndim)])
    return np.asarray((original - slim) / line, original.dtype)


def refit(
    views: Views,
    reading: Reading,
    stays: NDArray[np.bool_],
    merged: NDArray[Any] | None,
    end: Cutoff | None,
    first: Refitted | None,
) -> Refitted:
    """Weight by weight.

    stays: of its inputs, (n,). merged: its weight as merged, an anchor of the ridge. end: what it ends in. first: how
    it was refitted before, with some samples held out: strength and anchor are taken over.
    """
    consumer, starts = reading.consumer, {"plain": views.outputs(reading.consumer)}
    if merged is not None:
        starts["merged"] = consumer.gain * views.rows_of(consumer, merged)
    scale, rows, intercepts = importance(views, consumer), starts["plain"].copy(), list[Floats]()
    fits, gaining = list[Fit](), None
    for group, channels in enumerate(reading.channels):
        left = stays[channels]
        features, mine = np.flatnonzero(np.tile(left, reading.taps)), channels[left]
        train, held = (sums[group].of(features) for sums in (reading.train, reading.held))
        anchors = {name: by_feature(weights, mine) for name, weights in starts.items()}
        if first is None:
            found = fit(train, held, anchors, scale[group])
        else:
            found = fit_again(train, anchors, first.fits[group])
        fits.append(found)
        weights, intercept = found.weights, found.intercept
        if end is not None and (first is None or first.gaining is not None):
            signed = np.broadcast_to(views.output_scale(consumer, signed=True), intercept.shape)
            limits = Limits(end.low, end.high, np.where(np.abs(signed) < SILENT, 0.0, signed))
            samples = [s if left.all() else replace(s, features=s.features[:, features]) for s in reading.samples]
            better = one_sided(found, train, samples, limits, None if first is None else first.gaining)
            weights, intercept, gaining = better or (weights, intercept, None)
        rows[mine] = weights.reshape(reading.taps, mine.size, intercept.size).transpose(1, 2, 0)
        intercepts.append(intercept)
    weight = np.array(views.analysis.constants[consumer.weight].values)
    write_rows(weight, consumer, np.flatnonzero(stays), rows[stays] / consumer.gain)
    slot, gain = consumer.bias, np.concatenate(intercepts)
    if slot is not None and slot.node == consumer.node:
        gain = gain - views.bias(slot, gain.size)
    return Refitted(weight, gain, fits, gaining)


def remix(
    views: Views,
    mixtures: Sequence[Mixture],
    kept: Mapping[str, Ids],
    donors: Sequence[Donors],
    first: Refitted | None,
) -> Refitted:
    """Channel by channel, cell by cell. donors: of each mixture's cell, an anchor. first: as of `refit`."""
    consumer, fits = mixtures[0].consumer, list[Fit]()
    weight, gain = np.array(views.analysis.constants[consumer.weight].values), np.zeros(views.width(consumer))
    for mixture, given in zip(mixtures, donors, strict=True):
        stay, start = kept[mixture.cell.name], len(fits)
        before = None if first is None else first.fits[start : start + len(mixture.families)]
        found = mixture.solve(stay, given, before)
        places, rows, added = mixture.absorbed(stay, found)
        write_rows(weight, consumer, places, rows)
        fits += found
        gain += added
    return Refitted(weight, gain, fits)
