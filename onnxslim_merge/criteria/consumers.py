"""How much of a channel its consumers read."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Columns, Floats, Views


def consumer(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """Frobenius norm of the consumers' columns, in units of the spread of each consumer's own BatchNormalization."""
    energies = [_energy(views, columns).sum(1) for columns in views.columns(cell)]
    return np.sqrt(np.sum(energies, axis=0) if energies else np.zeros(cell.size))


def impact(views: Views, cell: Cell, statistics: Statistics | None, carries_mean: bool) -> Floats:
    """`consumer` times the root mean square of the channel there, or its spread where compensation carries the mean."""
    if statistics is None:
        raise ValueError("the criterion 'impact' needs statistics")
    total = np.zeros(cell.size)
    for columns in views.columns(cell):
        moments = statistics.at(cell, columns)
        total += (_energy(views, columns) * (moments.variance if carries_mean else moments.second)).sum(1)
    return np.sqrt(total)


def _energy(views: Views, columns: Columns) -> Floats:
    """Squared norm of the column at each position, (n, m)."""
    squares = views.energy(columns.consumer)
    return np.where(columns.positions >= 0, squares[columns.positions.clip(min=0)], 0.0)
