"""Norms of producer rows: raw rows without bias where BatchNormalization follows, else [w | b] as found.

Ranking by the folded norm is a trap: BatchNormalization's scale says little of a channel's use.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import squareform

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.clustering import distances
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Floats, Rows, Views


def ranked_rows(views: Views, cell: Cell) -> Floats:
    """Rows (n, d) of all producers side by side, each producer's divided by its mean row norm if there are several."""
    blocks = [weighed_rows(rows) for rows in views.rows(cell)]
    return blocks[0] if len(blocks) == 1 else np.concatenate([b / typical_norm(b) for b in blocks], axis=1)


def typical_norm(rows: Floats) -> float:
    """The mean norm of `rows` (n, d); 1 if all are zero."""
    return float(np.linalg.norm(rows, axis=1).mean()) or 1.0


def weighed_rows(rows: Rows) -> Floats:
    """What of one producer is ranked: (n, d), or (n, d + 1) with the bias behind."""
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
    scores: Floats = squareform(distances(rows), checks=False).sum(1) if len(rows) > 1 else np.zeros(1)
    return scores
