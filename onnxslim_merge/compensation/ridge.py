"""Least squares with a ridge around an anchor: its strength, and the anchor, are what serves held-out samples best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxslim_merge.statistics.gram import Gram

Floats = NDArray[np.float64]
# Of the mean variance of features, the strongest first; weak ones are for features that explain the targets exactly.
STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
PATIENCE = 3  # strengths without improvement
OUTPUTS = 64  # that are enough to choose a strength by


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights (n, o) and intercept (o,) of a consumer; error: the held-out share of the targets' variance left over.

    errors: the same of every anchor left as it is, by name. strength: of the ridge, None if the anchor itself stayed.
    start: the anchor's weights, (n, o).
    """

    weights: Floats
    intercept: Floats
    error: float
    anchor: str
    strength: float | None
    errors: Mapping[str, float]
    start: Floats


class Solver:
    """The normal equations of a fit, for other targets: factored once."""

    def __init__(self, sums: Gram, found: Fit) -> None:
        """sums: of the rows to fit; the ridge is that of `found`."""
        self._sums, self._start = sums, found.start
        covariance, self._cross, _ = sums.covariances
        self._ridge = (found.strength or 0.0) * _scale(covariance)
        self._factor = _factored(covariance, self._ridge)

    def solve(self, cross: Floats, shift: Floats) -> tuple[Floats, Floats] | None:
        """Weights (n, o) and intercept (o,) for other targets; None where that is not stable.

        cross: how much more covariance these have with the features, (n, o). shift: how much more mean, (o,).
        """
        if self._factor is None:
            return None
        weights = cho_solve(self._factor, self._cross + cross + self._ridge * self._start, check_finite=False)
        f, y = self._sums.means
        return (weights, y + shift - f @ weights) if np.isfinite(weights).all() else None


def fit(train: Gram, held: Gram, anchors: Mapping[str, Floats], importance: Floats) -> Fit:
    """The weights that give the least error on `held` of those fitted on `train`, fitted anew on both.

    anchors: (n, o) by name. importance: of each output's squared error (o,).
    """
    some = np.linspace(0, importance.size - 1, min(OUTPUTS, importance.size)).astype(np.int64)
    search = _Search(train.giving(some), held.giving(some), {n: a[:, some] for n, a in anchors.items()})
    error, name, strength = search.best(importance[some])
    both, weights = train + held, anchors[name]
    if strength is not None:
        covariance, cross, _ = both.covariances
        solved = _solved(covariance, cross, strength * search.scale, weights)
        weights = weights if solved is None else solved
    f, y = both.means
    return Fit(weights, y - f @ weights, error, name, strength, search.plain, anchors[name])


class _Search:
    """The errors of many strengths, on some outputs."""

    def __init__(self, train: Gram, held: Gram, anchors: Mapping[str, Floats]) -> None:
        self.train, self.held, self.anchors = train, held, anchors
        self.covariance, self.cross, _ = train.covariances
        self.scale = _scale(self.covariance)
        self.plain: dict[str, float] = {}

    def best(self, importance: Floats) -> tuple[float, str, float | None]:
        """(error, anchor, strength): from the strongest on, until nothing gets better."""
        total = float(importance @ self.held.covariances[2])
        total = total if total > 0 else 1.0
        self.plain = {name: self._error(weights, importance) / total for name, weights in self.anchors.items()}
        best: tuple[float, str, float | None] = min((value, name, None) for name, value in self.plain.items())
        since = 0
        for strength in STRENGTHS:
            found = []
            for name, anchor in self.anchors.items():
                weights = _solved(self.covariance, self.cross, strength * self.scale, anchor)
                if weights is not None:
                    found.append((self._error(weights, importance) / total, name, strength))
            improved = min([best, *found], key=lambda item: item[0])
            since = 0 if improved is not best else since + 1
            best = improved
            if since == PATIENCE or not found:
                break
        return best

    def _error(self, weights: Floats, importance: Floats) -> float:
        f, y = self.train.means
        return float(importance @ self.held.errors(weights, y - f @ weights))


def _scale(covariance: Floats) -> float:
    """The mean variance."""
    return float(np.trace(covariance)) / max(len(covariance), 1)


def _factored(covariance: Floats, ridge: float) -> Any:
    """The Cholesky factor with the ridge added; None where there is none."""
    regular = covariance.copy()
    regular[np.diag_indices_from(regular)] += ridge
    try:
        return cho_factor(regular, lower=True, overwrite_a=True, check_finite=False)
    except (LinAlgError, ValueError):
        return None


def _solved(covariance: Floats, cross: Floats, ridge: float, anchor: Floats) -> Floats | None:
    """Argmin of the mean square plus ridge |weights - anchor|^2; None where that is not stable."""
    factor = _factored(covariance, ridge)
    if factor is None:
        return None
    weights = cho_solve(factor, cross + ridge * anchor, check_finite=False)
    return weights if np.isfinite(weights).all() else None
