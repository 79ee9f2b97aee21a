"""Least squares with a ridge around an anchor: strength and anchor are those that serve held-out samples best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError

from onnxslim_merge.numerics import Device
from onnxslim_merge.statistics.gram import Gram

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
FLOOR = 0.01
# Of each feature's variance, from the most usual on; the weakest are for features that explain the targets exactly.
WEAKER = (0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
STRONGER = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
PATIENCE = 2  # strengths without improvement
OUTPUTS = 64  # that are enough to choose a strength by


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights (n, o) and intercept (o,) of a consumer; error: the held-out share of the targets' variance left over.

    errors: the same of every anchor left as it is, by name. strength: of the ridge that served best with so many
    `rows`, None if the anchor itself stayed. start: the anchor's weights, (n, o).
    """

    weights: Floats
    intercept: Floats
    error: float
    anchor: str
    strength: float | None
    errors: Mapping[str, float]
    start: Floats
    rows: int

    def strength_for(self, rows: int) -> float:
        """Of the ridge with another number of rows: in all it stays the same, so that of more each needs less of it.

        That is the best ridge of linear regression with normal noise and normal weights, whatever the rows.
        """
        return (self.strength or 0.0) * self.rows / max(rows, 1)


class Equations:
    """The normal equations of a fit, for other targets: factored once."""

    def __init__(self, sums: Gram, found: Fit) -> None:
        """sums: of the rows to fit; the ridge is that of `found`."""
        self._sums, self._start = sums, sums.device.put(found.start)
        covariance, self._cross = sums.covariances
        self._ridge = penalties(sums, covariance, found.strength_for(sums.count))
        self._factor = _factored(sums.device, covariance, self._ridge)

    def solve(self, cross: Any, shift: Any) -> tuple[Any, Any] | None:
        """Weights (n, o) and intercept (o,) for other targets; None where that is not stable.

        cross: how much more covariance these have with the features, (n, o). shift: how much more mean, (o,). All of
        these are on the device of the sums.
        """
        if self._factor is None:
            return None
        device, right = self._sums.device, self._cross + cross + self._ridge[:, None] * self._start
        weights = device.linalg.solve_factored(self._factor, right)
        f, y = self._sums.means
        return (weights, y + shift - f @ weights) if _is_finite(device, weights) else None


def fit(train: Gram, held: Gram, anchors: Mapping[str, Floats], importance: Floats, among: Ids | None = None) -> Fit:
    """The weights fitted on `train` that give the least error on `held`.

    They are not fitted anew on both at once: what is held out has to stay unseen by all layers in front of one, or the
    ridges of later layers come out far too weak, as what they read is already fitted to it.

    anchors: (n, o) by name. importance: of each output's squared error (o,). among: the outputs that choose the ridge.
    """
    search = _search(train, held, anchors, importance, among)
    error, name, strength = search.best()
    start = anchors[name]
    return fit_again(
        train, anchors, Fit(start, np.zeros(start.shape[1]), error, name, strength, search.plain, start, train.count)
    )


def fit_again(sums: Gram, anchors: Mapping[str, Floats], found: Fit) -> Fit:
    """The fit of other samples, with the anchor and, for each row fewer or more, the ridge that served best before."""
    found, device = replace(found, start=anchors[found.anchor]), sums.device
    weights, (f, y) = device.put(found.start), sums.means
    if found.strength is not None:
        solved = Equations(sums, found).solve(device.zeros(*found.start.shape), device.zeros(found.start.shape[1]))
        weights = weights if solved is None else solved[0]
    return replace(found, weights=device.get(weights), intercept=device.get(y - f @ weights))


def best_strength(
    train: Gram, held: Gram, anchors: Mapping[str, Floats], importance: Floats, among: Ids | None = None
) -> tuple[float, float]:
    """The held-out error of the best ridge, as `fit` has it, and its strength: infinite if an anchor itself is best."""
    error, _, strength = _search(train, held, anchors, importance, among).best()
    return error, np.inf if strength is None else strength


def _search(train: Gram, held: Gram, anchors: Mapping[str, Floats], importance: Floats, among: Ids | None) -> _Search:
    pool = np.arange(importance.size) if among is None else among
    some = pool[np.linspace(0, pool.size - 1, min(OUTPUTS, pool.size)).astype(np.int64)]
    anchors = {name: train.device.put(weights[:, some]) for name, weights in anchors.items()}
    return _Search(train.giving(some), held.giving(some), anchors, importance[some])


class _Search:
    """The errors of many strengths, on some outputs."""

    def __init__(self, train: Gram, held: Gram, anchors: Mapping[str, Any], importance: Floats) -> None:
        """anchors: on the device of the sums."""
        self.train, self.held, self.anchors, self.importance = train, held, anchors, importance
        self.covariance, self.cross = train.covariances
        self.plain: dict[str, float] = {}

    def best(self) -> tuple[float, str, float | None]:
        """(error, anchor, strength): ever weaker, then ever stronger, until nothing gets better."""
        importance = self.importance
        total = float(importance @ self.held.variance)
        total = total if total > 0 else 1.0
        self.plain = {name: self._error(weights, importance) / total for name, weights in self.anchors.items()}
        best: tuple[float, str, float | None] = min((value, name, None) for name, value in self.plain.items())
        for direction in (WEAKER, STRONGER):
            since, last = 0, np.inf
            for strength in direction:
                found = self._tried(strength, total)
                if not found:
                    break
                least = min(found)
                best, since, last = min(best, least, key=lambda item: item[0]), since + (least[0] >= last), least[0]
                if since == PATIENCE:
                    break
            if best[2] is not None and best[2] < WEAKER[0]:
                break
        return best

    def _tried(self, strength: float, total: float) -> list[tuple[float, str, float | None]]:
        """(error, anchor, strength) of every anchor; none where that is not stable."""
        device, ridge = self.train.device, penalties(self.train, self.covariance, strength)
        factor, found = _factored(device, self.covariance, ridge), list[tuple[float, str, float | None]]()
        for name, anchor in self.anchors.items() if factor is not None else ():
            weights = device.linalg.solve_factored(factor, self.cross + ridge[:, None] * anchor)
            if _is_finite(device, weights):
                found.append((self._error(weights, self.importance) / total, name, strength))
        return found

    def _error(self, weights: Any, importance: Floats) -> float:
        f, y = self.train.means
        return float(importance @ self.held.errors(weights, y - f @ weights))


def penalties(sums: Gram, covariance: Any, strength: float) -> Any:
    """What is added to the diagonal of features' covariances, (n,): `strength` times each one's own variance.

    So features of any scale are shrunk alike; those that hardly vary count as a hundredth of the mean. covariance: of
    the features, as `sums` have it.
    """
    own = sums.device.xp.linalg.diagonal(covariance)
    floor = FLOOR * float(own.mean()) if len(own) else 0.0
    return strength * own.clip(min=floor)


def _factored(device: Device, covariance: Any, ridge: Any) -> Any:
    """The Cholesky factor with the ridge added; None where there is none."""
    regular = device.xp.asarray(covariance, copy=True)
    device.add_to_diagonal(regular, ridge)
    try:
        return device.linalg.factor(regular)
    except LinAlgError:
        return None


def _is_finite(device: Device, weights: Any) -> bool:
    return bool(device.xp.all(device.xp.isfinite(weights)))
