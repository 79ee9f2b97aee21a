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
STRIP = 256  # rows at once
DELAYED = 64  # removals between two updates of the whole inverse: a product of matrices instead of many of vectors


def inverse(second: Floats) -> Floats:
    """Of a symmetric positive definite matrix. Raises LinAlgError if it is not."""
    root, info = dpotrf(second, lower=True)
    if info == 0:
        lower, info = dpotri(root, lower=True)
    if info != 0:
        raise LinAlgError("second moments are not positive definite")
    for start in range(0, len(lower), STRIP):  # the other half, strip by strip: a whole transpose takes memory and time
        stop = start + STRIP
        lower[start:stop, stop:] = lower[stop:, start:stop].T
        square = lower[start:stop, start:stop]
        square += np.tril(square, -1).T - np.triu(square, 1)
    return np.asarray(lower.T)  # row by row in memory


class Term:
    """One consumer's share in the cost: its weights W (n, o), and the features (n,) of each of c channels.

    second: E[f f'] with its ridge, (n, n). blocks: (c, b) places among the features, -1 where a channel has fewer.

    Removals are collected: the inverse and the weights of now are those of the last update less P'P and P'L, where P
    (k, n) and L (k, o) have a row for every feature that has left since. An update also drops these features.
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
        self._blocks = np.where(blocks < 0, len(self._inverse) - 1, blocks)
        self._absent = blocks < 0  # and what has left
        self._alive = np.ones(len(self._inverse), bool)
        self._diagonal = self._inverse[self._blocks[:, :, None], self._blocks[:, None, :]]
        self._dummy(self._diagonal, 1.0)
        taken = self._weights[self._blocks]
        self._energy = taken @ taken.swapaxes(1, 2)
        self._reserve()

    def _dummy(self, matrices: Floats, value: float) -> None:
        """Dummies of one block are not the same feature."""
        if self._absent.any():
            both = self._absent[:, :, None] | self._absent[:, None, :]
            matrices[both] = 0.0
            channel, place = np.nonzero(self._absent)
            matrices[channel, place, place] = value

    def _reserve(self) -> None:
        """Room for the removals up to the next update."""
        size = DELAYED * self._blocks.shape[1]
        self._used, self._panels = 0, np.empty((size, len(self._inverse)))
        self._lost = np.empty((size, self._weights.shape[1]))

    def costs(self) -> Floats:
        """The price of each channel as things are now, (c,); that of a removed one is of no use."""
        solved = np.linalg.solve(self._diagonal, self._energy)
        return np.asarray(np.trace(solved, axis1=1, axis2=2))

    def remove(self, channel: int) -> None:
        """Take a channel away, and let the others make up for it."""
        block = self._blocks[channel][~self._absent[channel]]
        if not block.size:
            return
        panels, losts = self._panels[: self._used], self._lost[: self._used]
        before = panels[:, block].T
        rows = self._inverse[block] - before @ panels
        root = np.linalg.cholesky(rows[:, block])
        panel = solve_triangular(root, rows, lower=True)
        lost = solve_triangular(root, self._weights[block] - before @ losts, lower=True)
        own = lost @ self._weights.T - (lost @ losts.T) @ panels
        self._charge(panel, own, lost @ lost.T)
        self._diagonal[channel] = np.eye(self._blocks.shape[1])
        self._energy[channel] = 0.0
        end = self._used + block.size
        self._panels[self._used : end], self._lost[self._used : end] = panel, lost
        self._used, self._alive[block], self._absent[channel] = end, False, True
        if end > len(self._panels) - self._blocks.shape[1]:
            self._update()

    def _charge(self, panel: Floats, own: Floats, square: Floats) -> None:
        """What a removal does to the blocks on the diagonal and to the products of weights, which prices are made of.

        panel (k, n): its part in the inverse; own (k, n): the weights' products with what they lose; square (k, k).
        """
        mine, theirs = (np.moveaxis(array[:, self._blocks], 0, -1) for array in (panel, own))  # (c, b, k)
        if self._absent.any():
            mine[self._absent], theirs[self._absent] = 0.0, 0.0
        self._diagonal -= mine @ mine.swapaxes(1, 2)
        both = theirs @ mine.swapaxes(1, 2)
        self._energy += mine @ square @ mine.swapaxes(1, 2) - both - both.swapaxes(1, 2)

    def _update(self) -> None:
        """Bring inverse and weights up to date, without the features that have left."""
        stays = np.flatnonzero(self._alive)
        place = np.full(len(self._alive), 0)  # of removed channels nobody asks
        place[stays] = np.arange(stays.size)
        panels = self._panels[: self._used, stays]
        self._weights = self._weights[stays] - panels.T @ self._lost[: self._used]
        self._inverse = self._inverse[np.ix_(stays, stays)]
        self._inverse -= panels.T @ panels
        self._blocks, self._alive = place[self._blocks], self._alive[stays]
        self._reserve()


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
