"""Norms of producer rows: raw rows without bias where BatchNormalization follows, else [w | b] as found.

Ranking by the folded norm is a trap: BatchNormalization's scale says little of a channel's use.
"""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.clustering import distance_sums, finite
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Floats, Rows, Views


def ranked_rows(views: Views, cell: Cell) -> Floats:
    """Rows (n, d) of all producers side by side, each producer's divided by its mean row norm if there are several."""
    blocks = views.rows(cell)
    if len(blocks) == 1:  # without a copy: it may be large
        return finite(weighed_rows(blocks[0]))
    return np.concatenate([finite(weighed_rows(rows)) / unit(rows, len(blocks)) for rows in blocks], axis=1)


def weighed_rows(rows: Rows) -> Floats:
    """What of one producer is ranked: (n, d), or (n, d + 1) with the bias behind."""
    if rows.batchnorm:
        return rows.weight
    bias, scale = _folded(rows)
    return np.concatenate([scale[:, None] * rows.weight, bias[:, None]], axis=1)


def l1(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Sum of absolute weights (Li et al., ICLR 2017)."""
    blocks, total = views.rows(cell), np.zeros(cell.size)
    for rows in blocks:
        bias, scale = _folded(rows)
        total += (np.abs(scale) * np.abs(rows.weight).sum(1) + np.abs(bias)) / unit(rows, len(blocks))
    return total


def l2(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Euclidean norm."""
    blocks = views.rows(cell)
    return np.sqrt(sum(_squares(rows) / unit(rows, len(blocks)) ** 2 for rows in blocks))


def _folded(rows: Rows) -> tuple[Floats, Floats]:
    """Bias and scale of the ranked rows, (n,) each: `weighed_rows` is scale x weight, and the bias behind."""
    if rows.batchnorm:
        return np.zeros_like(rows.scale), np.ones_like(rows.scale)
    return rows.scale * rows.bias + rows.offset, rows.scale


def _squares(rows: Rows) -> Floats:
    """Squared norms of the ranked rows, (n,), without a copy of them: weights may be large."""
    bias, scale = _folded(rows)
    squares: Floats = scale**2 * np.einsum("ij,ij->i", rows.weight, rows.weight) + bias**2
    return squares


def unit(rows: Rows, blocks: int) -> float:
    """What one of `blocks` producers is divided by: its mean row norm, if there are several."""
    return (float(np.sqrt(_squares(rows)).mean()) or 1.0) if blocks > 1 else 1.0


def geometric_median(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Sum of Euclidean distances to all rows: what lies near the geometric median goes (FPGM, He et al., CVPR 2019)."""
    return distance_sums(ranked_rows(views, cell))
