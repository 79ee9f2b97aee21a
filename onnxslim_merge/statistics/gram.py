"""Second moments of what consumers read and of what they should give, summed batch by batch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Gram:
    """Sums over rows: count, features f (n,), f f' (n, n), targets y (o,), f y' (n, o), y^2 (o,).

    least: the variance that features are known to have, (n,), 0 where nothing is known; samples may show less.
    """

    count: int
    f: Floats
    ff: Floats
    y: Floats
    fy: Floats
    yy: Floats
    least: Floats

    @classmethod
    def zeros(cls, features: int, outputs: int, least: Floats | None = None) -> Gram:
        """No rows yet."""
        n, o = features, outputs
        known = np.zeros(n) if least is None else least
        return cls(0, np.zeros(n), np.zeros((n, n)), np.zeros(o), np.zeros((n, o)), np.zeros(o), known)

    def add(self, features: Floats, targets: Floats) -> None:
        """Rows (r, n) of features and (r, o) of targets."""
        self.count += len(features)
        self.f += features.sum(0, dtype=np.float64)
        self.ff += features.T @ features
        self.y += targets.sum(0, dtype=np.float64)
        self.fy += features.T @ targets
        self.yy += np.einsum("ro,ro->o", targets, targets, dtype=np.float64)

    def of(self, features: NDArray[np.int64]) -> Gram:
        """The same rows with some of the features."""
        f, ff, fy = self.f[features], self.ff[np.ix_(features, features)], self.fy[features]
        return Gram(self.count, f, ff, self.y, fy, self.yy, self.least[features])

    def giving(self, targets: NDArray[np.int64]) -> Gram:
        """The same rows with some of the targets."""
        y, fy, yy = self.y[targets], self.fy[:, targets], self.yy[targets]
        return Gram(self.count, self.f, self.ff, y, fy, yy, self.least)

    @property
    def means(self) -> tuple[Floats, Floats]:
        """Of features and targets."""
        return self.f / max(self.count, 1), self.y / max(self.count, 1)

    @property
    def variance(self) -> Floats:
        """Of the targets, (o,)."""
        return np.asarray((self.yy / max(self.count, 1) - self.means[1] ** 2).clip(min=0.0))

    @property
    def covariances(self) -> tuple[Floats, Floats, Floats]:
        """Of features (n, n), of features and targets (n, o), and the variance of targets (o,); for each row."""
        count, (f, y) = max(self.count, 1), self.means
        return self.ff / count - np.outer(f, f), self.fy / count - np.outer(f, y), self.variance

    def errors(self, weights: Floats, intercept: Floats) -> Floats:
        """Mean square of y - weights' f - intercept, by output (o,). weights (n, o)."""
        count, (f, y) = max(self.count, 1), self.means
        cross = np.einsum("no,no->o", weights, self.fy / count)
        square = np.einsum("no,no->o", weights, (self.ff / count) @ weights)
        constant = intercept * (intercept + 2 * (f @ weights) - 2 * y)
        return np.asarray((self.yy / count - 2 * cross + square + constant).clip(min=0.0))
