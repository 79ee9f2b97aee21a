"""Block optimal brain surgeon (ZipLM, Kurtic et al., 2023): remove the cheapest channel, let the others make up for it.

A channel is a block of features, all taps of it, at one consumer or several. With H the inverse of the features' second
moments, removing block j from weights W costs tr(W_j' (H_jj)^-1 W_j), and leaves W - H_:j (H_jj)^-1 W_j and
H - H_:j (H_jj)^-1 H_j:. Both are exact, so the choice counts what the others can still do at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.numerics import CPU, Device

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
DELAYED = 64  # removals between two updates of the whole inverse: a product of matrices instead of many of vectors


class Term:
    """One consumer's share in the cost: its weights W (n, o), and the features (n,) of each of c channels.

    second: E[f f'] with its ridge, (n, n). blocks: (c, b) places among the features, -1 where a channel has fewer.
    All that is dense stays on the device: a removal takes places of features there, and prices (c,) come back.

    Removals are collected: the inverse and the weights of now are those of the last update less P'P and P'L, where P
    (k, n) and L (k, o) have a row for every feature that has left since. An update also drops these features.
    """

    def __init__(
        self, second: Any, weights: Any, lost: Any, importance: Any, blocks: Ids, device: Device = CPU
    ) -> None:
        """Raises LinAlgError if `second` is not positive definite.

        lost: what the targets have in common with the features beyond what `weights` explain, (n, o): they are refitted
        first; or None. importance: of each output's error, (o,). All but `blocks` are on the device.
        """
        self._device = device
        self._inverse = device.linalg.inverse(second)
        self._weights = (weights if lost is None else weights + self._inverse @ lost) * importance
        if (blocks < 0).any():  # one feature more, which nothing depends on
            self._inverse, self._weights = _padded(device, self._inverse, 1), _padded(device, self._weights, 0)
            self._inverse[-1, -1] = 1.0
        self._blocks = np.where(blocks < 0, len(self._inverse) - 1, blocks)
        self._absent = blocks < 0  # and what has left
        self._alive = np.ones(len(self._inverse), bool)
        self._one = device.put(np.eye(blocks.shape[1]))
        self._reserve()
        self._diagonal = self._inverse[self._places[:, :, None], self._places[:, None, :]]
        if self._absent.any():  # dummies of one block are not the same feature
            self._diagonal[device.put(self._absent[:, :, None] | self._absent[:, None, :])] = 0.0
            channel, place = (device.put(array) for array in np.nonzero(self._absent))
            self._diagonal[channel, place, place] = 1.0
        taken = self._weights[self._places]
        self._energy = taken @ self._turned(taken)

    def _turned(self, matrices: Any) -> Any:
        return self._device.xp.matrix_transpose(matrices)

    def _reserve(self) -> None:
        """Room for the removals up to the next update."""
        size = DELAYED * self._blocks.shape[1]
        self._used, self._panels = 0, self._device.zeros(size, len(self._inverse))
        self._lost = self._device.zeros(size, self._weights.shape[1])
        self._places = self._device.put(self._blocks)

    def costs(self) -> Floats:
        """The price of each channel as things are now, (c,); that of a removed one is of no use."""
        solved = self._device.linalg.solve(self._diagonal, self._energy)
        return self._device.get(self._device.xp.linalg.trace(solved))

    def remove(self, channel: int) -> None:
        """Take a channel away, and let the others make up for it."""
        features = self._blocks[channel][~self._absent[channel]]
        if not features.size:
            return
        block, linalg = self._device.put(features), self._device.linalg
        panels, losts = self._panels[: self._used], self._lost[: self._used]
        before = panels[:, block].T
        rows = self._inverse[block] - before @ panels
        root = linalg.cholesky(rows[:, block])
        panel = linalg.solve_lower(root, rows)
        lost = linalg.solve_lower(root, self._weights[block] - before @ losts)
        own = lost @ self._weights.T - (lost @ losts.T) @ panels
        self._charge(panel, own, lost @ lost.T)
        self._diagonal[channel] = self._one
        self._energy[channel] = 0.0
        end = self._used + features.size
        self._panels[self._used : end], self._lost[self._used : end] = panel, lost
        self._used, self._alive[features], self._absent[channel] = end, False, True
        if end > len(self._panels) - self._blocks.shape[1]:
            self._update()

    def _charge(self, panel: Any, own: Any, square: Any) -> None:
        """What a removal does to the blocks on the diagonal and to the products of weights, which prices are made of.

        panel (k, n): its part in the inverse; own (k, n): the weights' products with what they lose; square (k, k).
        """
        move = self._device.xp.moveaxis
        mine, theirs = (move(array[:, self._places], 0, -1) for array in (panel, own))  # (c, b, k)
        if self._absent.any():
            absent = self._device.put(self._absent)
            mine[absent], theirs[absent] = 0.0, 0.0
        self._diagonal -= mine @ self._turned(mine)
        both = theirs @ self._turned(mine)
        self._energy += mine @ square @ self._turned(mine) - both - self._turned(both)

    def _update(self) -> None:
        """Bring inverse and weights up to date, without the features that have left."""
        left = np.flatnonzero(self._alive)
        place = np.full(len(self._alive), 0)  # of removed channels nobody asks
        place[left] = np.arange(left.size)
        self._blocks, self._alive = place[self._blocks], self._alive[left]
        stays = self._device.put(left)
        panels = self._panels[: self._used, stays]
        self._weights = self._weights[stays] - panels.T @ self._lost[: self._used]
        self._inverse = self._inverse[stays[:, None], stays[None, :]]
        self._inverse -= panels.T @ panels
        self._reserve()


def _padded(device: Device, matrix: Any, columns: int) -> Any:
    """With one more row of zeros, and `columns` of them."""
    (n, m), found = matrix.shape, device.zeros(matrix.shape[0] + 1, matrix.shape[1] + columns)
    found[:n, :m] = matrix
    return found


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
