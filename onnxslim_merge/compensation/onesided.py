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
Mask = NDArray[np.bool_]
ROUNDS = 3  # twice as many are worth half a percent of the error, and as much time as all else
# Rows for each feature. Fewer, where sums have more rows than are kept, say too little about the others: what they
# correct then rises again from round to round.
ENOUGH = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """The function is constant below `low` and above `high`. scale: from targets to its input, (o,), signed."""

    low: float
    high: float
    scale: Floats

    def aim(self, device: Device, sample: _Rows, weights: Any, intercept: Any) -> Any:
        """What to add to targets, so that they are the nearest that serve, (r, o), in float32, on the device."""
        missed = sample.features @ weights
        missed += intercept - sample.targets
        xp, single, t = device.xp, self.scale.astype(np.float32), sample.before
        back = np.where(single == 0, 0, 1 / np.where(single == 0, 1, single)).astype(np.float32)
        missed *= device.put(single)
        added = xp.where(t <= self.low, xp.minimum(missed, self.low - t), 0.0)
        if np.isfinite(self.high):
            added = xp.where(t >= self.high, xp.maximum(missed, self.high - t), added)
        return xp.astype(added * device.put(back), xp.float32, copy=False)

    def errors(self, device: Device, samples: Sequence[_Rows], weights: Any, intercept: Any) -> Floats:
        """Mean square of what is missed behind the function, where nothing but what it lets through counts, (o,)."""
        xp, total = device.xp, device.zeros(len(self.scale))
        w, c = (xp.astype(array, xp.float32) for array in (weights, intercept))
        scale = device.put(self.scale.astype(np.float32))
        for sample in samples:
            p = sample.before + scale * (sample.features @ w + (c - sample.targets))
            missed = p.clip(min=self.low, max=self.high) - sample.before.clip(min=self.low, max=self.high)
            total += xp.sum(xp.astype(missed, xp.float64) ** 2, axis=0)
        return device.get(total / max(sum(len(sample.features) for sample in samples), 1))


@dataclass(frozen=True, slots=True)
class _Rows:
    """A `Sample` on a device."""

    features: Any
    targets: Any
    before: Any


def one_sided(
    found: Fit, train: Gram, samples: Sequence[Sample], limits: Limits, gaining: Mask | None = None
) -> tuple[Floats, Floats, Mask] | None:
    """Weights and intercept that are better than those of `found` for some outputs, and for which, (o,).

    An output takes the new weights if held-out samples miss less of it behind the function. gaining: those for which
    that is known already; then nothing need be held out.
    None if none gains, or `found` is its anchor.
    """
    if found.strength is None or not any(not s.held for s in samples):
        return None
    if gaining is None and not any(s.held for s in samples):
        return None
    rows = sum(len(s.features) for s in samples if not s.held)
    if rows < min(train.count, ENOUGH * len(found.weights)):
        return None
    device, equations = train.device, Equations(train, found)
    plain = equations.solve(device.zeros(*found.weights.shape), device.zeros(*found.intercept.shape))
    if plain is None:
        return None
    seen, unseen = ([_rows(device, s) for s in samples if s.held == which] for which in (False, True))
    fitted = _rounds(device, equations, seen, limits, plain)
    if fitted is None:
        return None
    if gaining is None:
        before, after = (limits.errors(device, unseen, *weights) for weights in (plain, fitted))
        gaining = after < before
    if not gaining.any():
        return None
    weights, intercept = (np.where(gaining, device.get(f), device.get(p)) for p, f in zip(plain, fitted, strict=True))
    return weights, intercept, gaining


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
            added = limits.aim(device, sample, w, c)
            cross += sample.features.T @ added
            f += xp.sum(sample.features, axis=0, dtype=xp.float64)
            y += xp.sum(added, axis=0, dtype=xp.float64)
        solved = equations.solve(cross / count - f[:, None] * y[None, :] / count**2, y / count)
        if solved is None:
            return None
        weights, intercept = solved
    return weights, intercept
