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

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.compensation.ridge import Fit, Solver
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.readings import Sample

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """The function is constant below `low` and above `high`. scale: from targets to its input, (o,), signed."""

    low: float
    high: float
    scale: Floats

    def aim(self, sample: Sample, weights: Singles, intercept: Singles) -> tuple[Singles, Singles]:
        """What to add to targets, so that they are the nearest that serve (r, o); and what the fit misses them by."""
        missed = sample.features @ weights
        missed += intercept - sample.targets
        scale, t = self.scale.astype(np.float32), sample.before
        p = t + scale * missed
        nearest = np.where(
            t <= self.low, np.minimum(p, self.low), np.where(t >= self.high, np.maximum(p, self.high), t)
        )
        added = (nearest - t) * np.where(scale == 0, 0, 1 / np.where(scale == 0, 1, scale))
        return added, missed - added

    def error(self, samples: Sequence[Sample], weights: Floats, intercept: Floats, importance: Floats) -> float:
        """Mean of the distance counted, each output by its importance."""
        total, w, c = 0.0, weights.astype(np.float32), intercept.astype(np.float32)
        for sample in samples:
            total += float(np.square(self.aim(sample, w, c)[1], dtype=np.float64).sum(0) @ importance)
        return total / max(sum(len(sample.features) for sample in samples), 1)


def one_sided(
    found: Fit, train: Gram, samples: Sequence[Sample], limits: Limits, importance: Floats, gain: float | None = None
) -> tuple[Floats, Floats, float] | None:
    """Better weights and intercept than those of `found`, and the share of the held-out distance that is left.

    gain: that share, where it is known already; then nothing need be held out.
    None if held-out samples do not gain, or `found` is its anchor.
    """
    seen, unseen = ([s for s in samples if s.held == which] for which in (False, True))
    if found.strength is None or not seen or not (unseen or gain):
        return None
    solver = Solver(train, found)
    plain = solver.solve(np.zeros_like(found.weights), np.zeros_like(found.intercept))
    if plain is None:
        return None
    if gain is not None:
        fitted = _rounds(solver, seen, limits, plain)
        return None if fitted is None else (*fitted, gain)
    before, fitted = limits.error(unseen, *plain, importance), _rounds(solver, seen, limits, plain)
    if fitted is None or not (after := limits.error(unseen, *fitted, importance)) < before:
        return None
    return *fitted, after / before


def _rounds(
    solver: Solver, samples: Sequence[Sample], limits: Limits, start: tuple[Floats, Floats]
) -> tuple[Floats, Floats] | None:
    """Aim and fit; the sums of all rows are corrected by what these samples say."""
    weights, intercept = start
    count = sum(len(sample.features) for sample in samples)
    for _ in range(ROUNDS):
        w, c = weights.astype(np.float32), intercept.astype(np.float32)
        cross, f, y = np.zeros(weights.shape), np.zeros(len(weights)), np.zeros(weights.shape[1])
        for sample in samples:
            added, _ = limits.aim(sample, w, c)
            cross += sample.features.T @ added
            f += sample.features.sum(0, dtype=np.float64)
            y += added.sum(0, dtype=np.float64)
        solved = solver.solve(cross / count - np.outer(f, y) / count**2, y / count)
        if solved is None:
            return None
        weights, intercept = solved
    return weights, intercept
