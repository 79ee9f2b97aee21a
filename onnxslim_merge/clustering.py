"""Ward's agglomerative clustering of the rows of a matrix: any rows, or many columns of single numbers at once.

Ward (1963): join, again and again, the two clusters whose union raises the sum of squared distances to the centres
least. Heights are scipy's: sqrt(2 a b / (a + b)) times the distance of the centres of clusters of a and b rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans

from onnxslim_merge.numerics import CPU, Device, Floats

Ints = NDArray[np.int64]
EXACT_ROWS = 12_000  # more need over 1 GB of distances: they are split first
HUGE = 1e100  # in place of infinity: its square is a number
BLOCK = 1 << 24  # distances computed at once
FLAT = 1 << 21  # single numbers clustered at once


@dataclass(frozen=True, slots=True)
class Tree:
    """What joins when: edges (m, 2) between rows, heights (m,) ascending; cutting at any height gives clusters.

    Rows of different parts, where there were too many rows, never join.
    """

    size: int
    edges: Ints
    heights: Floats

    def labels(self, clusters: int) -> Ints:
        """The cluster of each row, (n,), numbered from 0 in order of first rows; as many as asked for."""
        return self._after(max(self.size - clusters, 0))

    def labels_at(self, height: float) -> Ints:
        """The same, after everything that joins at `height` or below."""
        return self._after(int(np.searchsorted(self.heights, height, "right")))

    def height_of(self, clusters: int) -> float:
        """The height of the last join that leads to so many clusters; 0 if there is none."""
        return float(self.heights[self.size - clusters - 1]) if clusters < self.size else 0.0

    def _after(self, joins: int) -> Ints:
        one, other = self.edges[:joins].T
        graph = coo_array((np.ones(one.size), (one, other)), shape=(self.size, self.size))
        return in_order(connected_components(graph, directed=False)[1])


def in_order(labels: NDArray[np.integer]) -> Ints:
    """The same clusters, numbered from 0 in order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    ordered: Ints = rank[inverse.ravel()]
    return ordered


def ward(rows: Floats, device: Device = CPU, clusters: int = 1) -> Tree:
    """The tree of `rows` (n, d). Of over 12,000 rows it is approximate: 2-means splits them until parts are small.

    clusters: at least as many will be asked for, so that there may be as many parts.
    """
    parts = list(_parts(rows, clusters))
    trees = [_exact(rows[part], device) for part in parts]
    edges = np.concatenate([part[edges] for part, (edges, _) in zip(parts, trees, strict=True)])
    heights = np.concatenate([heights for _, heights in trees])
    order = np.argsort(heights, kind="stable")
    return Tree(rows.shape[0], edges[order], heights[order])


def _exact(rows: Floats, device: Device) -> tuple[Ints, Floats]:
    """(edges, heights) in order of heights; an edge joins a row of each of two clusters."""
    n = rows.shape[0]
    if n < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    joined = linkage(distances(rows, device), "ward")
    pairs = joined[:, :2].astype(np.int64)
    member = np.concatenate([np.arange(n), pairs[:, 0]])  # of cluster n + i: what it was joined from
    while (member >= n).any():
        member = member[member]
    return member[pairs], joined[:, 2]


def _parts(rows: Floats, clusters: int) -> Iterator[Ints]:
    """Row indices of parts that are small enough, or as many as clusters."""
    waiting, parts = [np.arange(rows.shape[0])], 1
    while waiting:
        part = waiting.pop()
        if part.size <= EXACT_ROWS or parts >= clusters:
            yield part
            continue
        side = np.arange(part.size) % 2  # of equal rows any half is as good
        if (rows[part] != rows[part[0]]).any():
            side = KMeans(2, n_init=1, random_state=0).fit_predict(rows[part])
        waiting += [part[side == 0], part[side == 1]]
        parts += 1


def finite(rows: Floats) -> Floats:
    """`rows` without infinite weights, which switch a channel off and are legal, and NaN, in dead parts of a model."""
    return rows if np.isfinite(rows).all() else np.nan_to_num(rows, posinf=HUGE, neginf=-HUGE)


def distances(rows: Floats, device: Device = CPU) -> Floats:
    """Euclidean distances of all pairs, condensed as scipy has them: (n (n - 1) / 2,).

    By |a|^2 + |b|^2 - 2 a.b, which is matrix products, several times faster than differences; centred rows keep the
    cancellation small: about 1e-8 of the largest row.
    """
    n, xp = rows.shape[0], device.xp
    result, at = np.empty(n * (n - 1) // 2), 0
    for top, squared in _squared_distances(rows, device):
        places = device.put(np.arange(n - top))
        upper = places[None, :] > places[: squared.shape[0], None]
        found = device.get(xp.sqrt(squared[upper]))
        result[at : at + found.size] = found
        at += found.size
    return result


def distance_sums(rows: Floats) -> Floats:
    """The sum of each row's Euclidean distances to all others, (n,), in memory that grows with n."""
    sums = np.zeros(len(rows))
    for top, squared in _squared_distances(rows, CPU):
        places, lines = np.indices(squared.shape, sparse=True)
        np.sqrt(squared, out=squared, where=lines > places)
        np.copyto(squared, 0.0, where=lines <= places)
        sums[top : top + len(squared)] += squared.sum(1)
        sums[top:] += squared.sum(0)
    return sums


def _squared_distances(rows: Floats, device: Device) -> Iterator[tuple[int, Any]]:
    """Block by block: the first row of a block, and squares from its rows to all rows from the first on, (h, n - top).

    On the device; only those above the diagonal are of use.
    """
    n, xp = rows.shape[0], device.xp
    x = device.put(rows - rows.mean(0))
    squares = xp.sum(x * x, axis=1)
    height = max(BLOCK // max(n, 1), 1)
    for top in range(0, n, height):
        squared = x[top : top + height, :] @ xp.matrix_transpose(x[top:, :])
        squared *= -2  # in place, as blocks are large
        squared += squares[top : top + height, None]
        squared += squares[None, top:]
        yield top, xp.clip(squared, min=0.0)


def ward_of_numbers(columns: Floats) -> tuple[Ints, Floats]:
    """Ward's clustering of each row of `columns` (c, n) for itself: n single numbers each.

    Returns (order, heights), (c, n) and (c, n - 1): the numbers in ascending order, and the height at which the gap
    behind each of them closes. Of numbers in a row only neighbours can be the nearest pair, so that a whole tree is
    one height for each gap, and all pairs that are each other's nearest can join at once (Ward's is reducible).
    """
    c, n = columns.shape
    order = np.argsort(columns, axis=1, kind="stable")
    sorted_ = np.take_along_axis(columns, order, 1)
    heights = np.zeros((c, max(n - 1, 0)))
    step = max(FLAT // max(n, 1), 1)
    for top in range(0, c if n > 1 else 0, step):
        heights[top : top + step] = _close_gaps(sorted_[top : top + step])
    return order, heights


def _close_gaps(values: Floats) -> Floats:
    """Heights (c, n - 1) of the gaps between ascending values (c, n)."""
    c, n = values.shape
    heights = np.zeros((c, n))  # with a last gap in each row that never closes
    first = np.concatenate([np.ones((c, 1), bool), np.diff(values, axis=1) > 0], axis=1).ravel()  # equals join at 0
    starts = np.flatnonzero(first)
    size = np.diff(np.append(starts, c * n)).astype(float)
    centre, gap = values.ravel()[starts], np.append(starts[1:], c * n) - 1
    while True:
        open_ = gap % n < n - 1
        spread = 2 * size[:-1] * size[1:] / (size[:-1] + size[1:])
        height = np.where(open_[:-1], np.sqrt(spread) * np.diff(centre), np.inf)
        lower = np.minimum(np.append(height[1:], np.inf), np.append(np.inf, height[:-1]))
        nearest = (height <= lower) & np.isfinite(height)
        if not nearest.any():
            return heights[:, :-1]
        run = np.arange(nearest.size) - np.maximum.accumulate(np.where(nearest, -1, np.arange(nearest.size)))
        left = np.flatnonzero(nearest & (run % 2 == 1))  # of neighbours that tie, every other
        heights.ravel()[gap[left]] = height[left]
        total = size[left] + size[left + 1]
        centre[left] = (size[left] * centre[left] + size[left + 1] * centre[left + 1]) / total
        size[left], gap[left] = total, gap[left + 1]
        stays = np.ones(size.size, bool)
        stays[left + 1] = False
        size, centre, gap = size[stays], centre[stays], gap[stays]


def cut_numbers(order: Ints, heights: Floats, clusters: int) -> Ints:
    """Labels (c, n) of `ward_of_numbers`: as many clusters in each row as asked for."""
    highest = np.argsort(-heights, axis=1, kind="stable")[:, : clusters - 1]
    opened = np.zeros_like(heights, bool)
    np.put_along_axis(opened, highest, True, 1)
    return _labels_between(order, opened)


def cut_numbers_at(order: Ints, heights: Floats, height: float) -> Ints:
    """The same, with every gap closed that closes at `height` or below."""
    return _labels_between(order, heights > height)


def _labels_between(order: Ints, opened: NDArray[np.bool_]) -> Ints:
    ranks = np.concatenate([np.zeros((order.shape[0], 1), np.int64), np.cumsum(opened, axis=1)], axis=1)
    labels = np.empty_like(order)
    np.put_along_axis(labels, order, ranks, 1)
    return labels
