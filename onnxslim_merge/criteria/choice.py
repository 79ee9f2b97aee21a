"""What a criterion says of one cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.views import Floats


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the n channels of a cell stay.

    kept: their indices, ascending. scores (n,): of those that go, the largest comes back first.
    clusters (n,): channels of one cluster stand in for each other, and for no others. note: for the report.
    """

    kept: NDArray[np.int64]
    scores: Floats
    clusters: NDArray[np.int64] | None = None
    note: str | None = None


def best(cell: Cell, scores: Floats, keep: int) -> NDArray[np.int64]:
    """Indices of the `keep` largest scores, ascending, equally many of each part; ties go to the lower index."""
    if cell.rows is None:
        return np.sort(np.argsort(-scores, kind="stable")[:keep])
    found = np.argsort(-scores[cell.rows], axis=1, kind="stable")[:, : keep // len(cell.rows)]
    return np.sort(np.take_along_axis(cell.rows, found, 1).ravel())


def parts(cell: Cell) -> NDArray[np.int64]:
    """The parts of a cell that keep equally many channels, (parts, members); usually one."""
    return np.arange(cell.size)[None] if cell.rows is None else cell.rows
