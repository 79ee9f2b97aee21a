"""Block optimal brain surgeon (ZipLM, Kurtic et al., 2023): remove the cheapest channel, let the others make up for it.

A channel is a block of features, all taps of it, at one consumer or several. With H the inverse of the features' second
moments, removing block j from weights W costs tr(W_j' (H_jj)^-1 W_j), and leaves W - H_:j (H_jj)^-1 W_j and
H - H_:j (H_jj)^-1 H_j:. Both are exact, so the choice counts what the others can still do at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
DELAYED = 64  # removals between two updates of the whole inverse: a product of matrices instead of many of vectors


def inverse(second: Floats) -> Floats:
    """Of a symmetric positive definite matrix. Raises LinAlgError if it is not."""
    root, info = dpotrf(second, lower=True)
    if info == 0:
        lower, info = dpotri(root, lower=True)
    if info != 0:
        raise LinAlgError("second moments are not positive definite")
    full = np.tril(lower)
    return np.asarray(full + np.tril(full, -1).T)


class Term:
    """One consumer's share in the cost: its weights W (n, o), and the features (n,) of each of c channels.

    second: E[f f'] with its ridge, (n, n). blocks: (c, b) places among the features, -1 where a channel has fewer.
    """

    def __init__(self, second: Floats, weights: Floats, lost: Floats | None, importance: Floats, blocks: Ids) -> None:
        """Raises LinAlgError if `second` is not positive definite.

        lost: what the targets have in common with the features beyond what `weights` explain, (n, o): they are refitted
        first. importance: of each output's error, (o,).
        """
        self._inverse = inverse(second)
        self._weights = (weights if lost is None else weights + self._inverse @ lost) * importance
        if (blocks < 0).any():  # one feature more, which nothing depends on
            self._inverse = np.pad(self._inverse, (0, 1))
            self._inverse[-1, -1] = 1.0
            self._weights = np.pad(self._weights, ((0, 1), (0, 0)))
        self._blocks = blocks
        self._diagonal = self._inverse[blocks[:, :, None], blocks[:, None, :]].copy()
        self._dummy(self._diagonal, 1.0)
        taken = self._weights[blocks]
        self._energy = taken @ taken.swapaxes(1, 2)
        self._panels: list[Floats] = []

    def _dummy(self, matrices: Floats, value: float) -> None:
        """Dummies of one block are not the same feature."""
        absent = self._blocks < 0
        if absent.any():
            both = absent[:, :, None] | absent[:, None, :]
            matrices[both] = 0.0
            channel, place = np.nonzero(absent)
            matrices[channel, place, place] = value

    def costs(self) -> Floats:
        """The price of each channel as things are now, (c,); that of a removed one is of no use."""
        solved = np.linalg.solve(self._diagonal, self._energy)
        return np.asarray(np.trace(solved, axis1=1, axis2=2))

    def remove(self, channel: int) -> None:
        """Take a channel away, and let the others make up for it."""
        block = self._blocks[channel]
        block = block[block >= 0]
        if not block.size:
            return
        column = self._inverse[:, block].copy()
        for panel in self._panels:
            column -= panel @ panel[block].T
        root = np.linalg.cholesky(column[block])
        panel = solve_triangular(root, column.T, lower=True).T
        lost = solve_triangular(root, self._weights[block], lower=True)
        mine, own = panel[self._blocks], (self._weights @ lost.T)[self._blocks]
        absent = self._blocks < 0
        mine[absent], own[absent] = 0.0, 0.0
        self._diagonal -= mine @ mine.swapaxes(1, 2)
        self._diagonal[channel] = np.eye(self._blocks.shape[1])
        both = own @ mine.swapaxes(1, 2)
        self._energy += mine @ (lost @ lost.T) @ mine.swapaxes(1, 2) - both - both.swapaxes(1, 2)
        self._weights -= panel @ lost
        self._panels.append(panel)
        if len(self._panels) >= DELAYED:
            together = np.concatenate(self._panels, axis=1)
            self._inverse -= together @ together.T
            self._panels.clear()


def surgeon(terms: Sequence[Term], size: int, keep: int, rows: Ids | None = None) -> tuple[Ids, Floats]:
    """The `keep` of `size` channels that stay, ascending, and scores (size,): who left last comes back first.

    rows: (r, m) channels of parts that keep equally many.
    """
    scores = np.full(size, float(size))
    parts = np.arange(size)[None] if rows is None else rows
    part = np.zeros(size, np.int64)
    part[parts.ravel()] = np.repeat(np.arange(len(parts)), parts.shape[1])
    left = np.full(len(parts), (size - keep) // len(parts))
    gone = np.zeros(size, bool)
    for step in range(int(left.sum())):
        costs = np.sum([term.costs() for term in terms], axis=0)
        costs[gone | (left[part] == 0)] = np.inf
        channel = int(np.argmin(costs))
        for term in terms:
            term.remove(channel)
        gone[channel], scores[channel] = True, float(step)
        left[part[channel]] -= 1
    return np.flatnonzero(~gone), scores
