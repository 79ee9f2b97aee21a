"""Least squares that know what follows: where a Relu gives 0 for the target, any fit below 0 is as good.

With t the original's value in front of the function and p the fitted one, the distance counted is that of p from all
values that the function takes to the same place: (p - t)^2 where t is inside its limits, max(p - low, 0)^2 where t lies
below, max(high - p, 0)^2 above. That is convex in the weights, unlike the distance behind the function, which it
bounds, and is brought down by plain least squares: aim at the nearest such value, fit, and again (alternating
projections). Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks" (2015, section 3.2) aim likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.compensation.ridge import Equations, Fit
from onnxslim_merge.numerics import Device
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.readings import Sample

Floats = NDArray[np.float64]
ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """The function is constant below `low` and above `high`. scale: from targets to its input, (o,), signed."""

    low: float
    high: float
    scale: Floats

    def aim(self, device: Device, sample: _Rows, weights: Any, intercept: Any) -> tuple[Any, Any]:
        """What to add to targets, so that they are the nearest that serve (r, o); and what the fit misses them by.

        All of it in float32, on the device.
        """
        missed = sample.features @ weights
        missed += intercept - sample.targets
        single, t, where = self.scale.astype(np.float32), sample.before, device.xp.where
        back = np.where(single == 0, 0, 1 / np.where(single == 0, 1, single)).astype(np.float32)
        p = t + device.put(single) * missed
        nearest = where(t <= self.low, p.clip(max=self.low), where(t >= self.high, p.clip(min=self.high), t))
        added = (nearest - t) * device.put(back)
        return added, missed - added

    def error(
        self, device: Device, samples: Sequence[_Rows], weights: Any, intercept: Any, importance: Floats
    ) -> float:
        """Mean of the distance counted, each output by its importance."""
        xp, total = device.xp, 0.0
        w, c = (xp.astype(array, xp.float32) for array in (weights, intercept))
        for sample in samples:
            missed = xp.astype(self.aim(device, sample, w, c)[1], xp.float64)
            total += float(device.get((missed**2).sum(0)) @ importance)
        return total / max(sum(len(sample.features) for sample in samples), 1)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A `Sample` on a device."""

    features: Any
    targets: Any
    before: Any


def one_sided(
    found: Fit, train: Gram, samples: Sequence[Sample], limits: Limits, importance: Floats, gain: float | None = None
) -> tuple[Floats, Floats, float] | None:
    """Better weights and intercept than those of `found`, and the share of the held-out distance that is left.

    gain: that share, where it is known already; then nothing need be held out.
    None if held-out samples do not gain, or `found` is its anchor.
    """
    if found.strength is None or not any(not s.held for s in samples) or not (any(s.held for s in samples) or gain):
        return None
    device, equations = train.device, Equations(train, found)
    plain = equations.solve(device.zeros(*found.weights.shape), device.zeros(*found.intercept.shape))
    if plain is None:
        return None
    seen, unseen = ([_rows(device, s) for s in samples if s.held == which] for which in (False, True))
    fitted = _rounds(device, equations, seen, limits, plain)
    if fitted is None:
        return None
    share = gain
    if share is None:
        before, after = (limits.error(device, unseen, *weights, importance) for weights in (plain, fitted))
        if not after < before:
            return None
        share = after / before
    return device.get(fitted[0]), device.get(fitted[1]), share


def _rows(device: Device, sample: Sample) -> _Rows:
    return _Rows(device.put(sample.features), device.put(sample.targets), device.put(sample.before))


def _rounds(
    device: Device, equations: Equations, samples: Sequence[_Rows], limits: Limits, start: tuple[Any, Any]
) -> tuple[Any, Any] | None:
    """Aim and fit; the sums of all rows are corrected by what these samples say."""
    (weights, intercept), xp = start, device.xp
    count = sum(len(sample.features) for sample in samples)
    for _ in range(ROUNDS):
        w, c = (xp.astype(array, xp.float32) for array in (weights, intercept))
        cross, f, y = device.zeros(*weights.shape), device.zeros(len(weights)), device.zeros(weights.shape[1])
        for sample in samples:
            added, _ = limits.aim(device, sample, w, c)
            cross += sample.features.T @ added
            f += xp.sum(sample.features, axis=0, dtype=xp.float64)
            y += xp.sum(added, axis=0, dtype=xp.float64)
        solved = equations.solve(cross / count - f[:, None] * y[None, :] / count**2, y / count)
        if solved is None:
            return None
        weights, intercept = solved
    return weights, intercept
