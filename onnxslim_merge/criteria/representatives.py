"""REPrune, filter form: one filter of each cluster of similar filters stays, whatever its norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.clustering import EXACT_ROWS, ward
from onnxslim_merge.criteria.choice import Choice, parts
from onnxslim_merge.criteria.norms import ranked_rows
from onnxslim_merge.numerics import Device
from onnxslim_merge.settings import Geometry, Settings
from onnxslim_merge.views import Floats, Views

TIE = 1e-9  # of the largest distance: rounding decides nothing


def reprune(views: Views, cell: Cell, keep: int, settings: Settings, device: Device) -> Choice:
    """Ward clustering of the rows into as many clusters as stay; of each the member nearest to its centre stays.

    Ties, as between any two members, go to the larger row, then to the one nearer to the mean of all, then to the
    larger sum (so that no order of the rows decides), then to the lower index. The parts of a cell are clustered one by
    one. Who comes back first is farthest from his centre.
    """
    rows = in_geometry(ranked_rows(views, cell), settings.geometry)
    clusters, distance = np.empty(cell.size, np.int64), np.empty(cell.size)
    divided = parts(cell)
    kept, share = [], max(keep // len(divided), 1)
    for index, part in enumerate(divided):
        labels = ward(rows[part], device, share).labels(share)
        clusters[part], distance[part] = labels + index * share, from_centres(rows[part], labels)
        kept.append(part[representatives(rows[part], labels)])
    note = None
    if divided.shape[1] > EXACT_ROWS and share > 1:
        note = f"{cell.name}: {divided.shape[1]} rows are too many for one clustering: split by 2-means first"
    return Choice(np.sort(np.concatenate(kept)), distance, clusters, note)


def in_geometry(rows: Floats, geometry: Geometry) -> Floats:
    """The rows (n, d) themselves, or of length 1, which makes the choice blind to positive scales."""
    if geometry == "euclidean":
        return rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(norms > 0, norms, 1.0)
    return unit


def from_centres(rows: Floats, labels: NDArray[np.int64]) -> Floats:
    """The distance of each row from the mean of its cluster, (n,)."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    centres = np.add.reduceat(rows[order], starts, axis=0) / np.bincount(labels)[:, None]
    distances: Floats = np.linalg.norm(rows - centres[labels], axis=1)
    return distances


def representatives(rows: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """One index of each cluster, ascending."""
    lengths, from_all = (np.linalg.norm(vectors, axis=1) for vectors in (rows, rows - rows.mean(0)))
    keys = (labels, from_centres(rows, labels), -lengths, from_all, -rows.sum(1))
    order = np.lexsort((np.arange(labels.size), *(_stepped(key) for key in reversed(keys))))
    return np.sort(order[np.unique(labels[order], return_index=True)[1]])


def _stepped(key: Floats) -> NDArray[np.int64]:
    """The rank of each number (n,), the same where neighbours differ by rounding only."""
    order = np.argsort(key, kind="stable")
    steps = np.diff(key[order]) > TIE * np.abs(key).max(initial=0.0)
    rank = np.empty(key.size, np.int64)
    rank[order] = np.concatenate([[0], np.cumsum(steps)])
    return rank
