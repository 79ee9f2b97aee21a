"""Norms of producer rows: raw rows without bias where BatchNormalization follows, else [w | b] as found.

Ranking by the folded norm is a trap: BatchNormalization's scale says little of a channel's use.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Floats, Rows, Views


def ranked_rows(views: Views, cell: Cell) -> Floats:
    """Rows (n, d) of all producers side by side, each producer's divided by its mean row norm if there are several."""
    blocks = [_rows(rows) for rows in views.rows(cell)]
    if len(blocks) == 1:
        return blocks[0]
    norms = [np.linalg.norm(block, axis=1).mean() for block in blocks]
    return np.concatenate([b / (norm or 1.0) for b, norm in zip(blocks, norms, strict=True)], axis=1)


def _rows(rows: Rows) -> Floats:
    if rows.batchnorm:
        return rows.weight
    folded = rows.scale * rows.bias + rows.offset
    return np.concatenate([rows.scale[:, None] * rows.weight, folded[:, None]], axis=1)


def l1(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Sum of absolute weights (Li et al., ICLR 2017)."""
    scores: Floats = np.abs(ranked_rows(views, cell)).sum(1)
    return scores


def l2(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Euclidean norm."""
    norms: Floats = np.linalg.norm(ranked_rows(views, cell), axis=1)
    return norms


def geometric_median(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Sum of Euclidean distances to all rows: what lies near the geometric median goes (FPGM, He et al., CVPR 2019)."""
    rows = ranked_rows(views, cell)
    scores: Floats = cdist(rows, rows).sum(1)
    return scores
