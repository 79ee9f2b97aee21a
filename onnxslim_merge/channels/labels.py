"""Label arrays and their union-find: numpy only, knows no ONNX.

A tensor of rank r carries a list of *label arrays*: integer arrays of rank r that broadcast against it. A label is one
channel that can be removed by itself; an axis along which no array varies has no channel meaning. Several arrays that
vary along one axis are independent factors: an index survives if all its labels do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Arrays = list[Ids]


class LabelSpace:
    """Labels 0 .. size-1 in classes; the root of a class is its smallest member."""

    def __init__(self) -> None:
        """Start without labels."""
        self._parent: Ids = np.empty(0, np.int64)
        self._size = 0
        self._frozen: list[tuple[Ids, int]] = []

    @property
    def size(self) -> int:
        """How many labels exist."""
        return self._size

    def fresh(self, count: int) -> Ids:
        """Return `count` new labels, each in a class of its own, shape (count,)."""
        start, self._size = self._size, self._size + count
        if self._size > self._parent.size:
            grown = np.arange(max(self._size, 2 * self._parent.size), dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        return np.arange(start, self._size, dtype=np.int64)

    def find(self, labels: Ids) -> Ids:
        """Roots of `labels`, same shape."""
        root = self._parent[labels]
        if (self._parent[root] == root).all():  # nearly always
            return root
        while not ((up := self._parent[root]) == root).all():
            root = up
        self._parent[labels] = root
        return root

    def unite(self, a: Ids, b: Ids) -> None:
        """Put a[i] and b[i] into one class, for every i; `a` and `b` broadcast."""
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        while True:
            ra, rb = self.find(a), self.find(b)
            differ = ra != rb
            if not differ.any():
                return
            high, low = np.maximum(ra, rb)[differ], np.minimum(ra, rb)[differ]
            np.minimum.at(self._parent, high, low)

    def freeze(self, labels: Ids, refusal: int) -> None:
        """Mark the classes of `labels` as not removable; `refusal` is the index of the reason."""
        if labels.size:
            self._frozen.append((labels.ravel().copy(), refusal))

    def frozen(self) -> Ids:
        """For every label the index of the first refusal that froze its class, or -1; shape (size,)."""
        none = np.iinfo(np.int64).max
        first = np.full(self._size, none, np.int64)
        for labels, refusal in self._frozen:
            np.minimum.at(first, self.find(labels), refusal)
        reasons = first[self.find(np.arange(self._size, dtype=np.int64))]
        return np.where(reasons == none, -1, reasons)

    def collapse(self, array: Ids) -> Ids:
        """Shorten to length 1 every axis of `array` along which the classes do not vary."""
        roots = self.find(array)
        for axis in varying(array):
            if (roots == (first := roots.take([0], axis))).all():
                array, roots = array.take([0], axis), first
        return array


def varying(array: Ids) -> tuple[int, ...]:
    """The axes along which `array` is longer than 1."""
    return tuple(axis for axis, length in enumerate(array.shape) if length > 1)


def on_axis(arrays: Iterable[Ids], axis: int) -> Arrays:
    """Those of `arrays` that vary along `axis`."""
    return [a for a in arrays if a.shape[axis] > 1]


def along(labels: Ids, axis: int, rank: int) -> Ids:
    """A vector of labels as an array of rank `rank` that varies along `axis`."""
    shape = [1] * rank
    shape[axis] = labels.size
    return labels.reshape(shape)


def lift(array: Ids, rank: int) -> Ids:
    """`array` with axes of length 1 put in front, up to `rank`, as broadcasting does."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def regroup(before: Sequence[int], after: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a reshape into the smallest blocks of (axes before, axes after) with equal products.

    Axes of length 1 join whichever block is open. Both shapes must have the same number of elements.
    """
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0, left, right = i, j, 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif left > right and j < len(after):
                right, j = right * after[j], j + 1
            else:  # only axes of length 1 (or 0) remain on the short side
                i, j = len(before), len(after)
                break
        blocks.append((tuple(range(i0, i)), tuple(range(j0, j))))
    return blocks


def reshape(array: Ids, before: Sequence[int], after: Sequence[int]) -> Ids:
    """Run Reshape on a label array: only the axes that the reshape mixes with varying ones are expanded."""
    varies = set(varying(array))
    full, short = [1] * len(before), [1] * len(after)
    for ins, outs in regroup(before, after):
        if varies & set(ins):
            for axis in ins:
                full[axis] = before[axis]
            for axis in outs:
                short[axis] = after[axis]
    return np.broadcast_to(array, full).reshape(short)


def rows(arrays: Arrays, axis: int) -> tuple[Ids, ...]:
    """Each array as (n, m): what lies at each of the n indices along `axis`."""
    return tuple(np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays)


def blocks(arrays: Arrays) -> list[set[int]]:
    """Axes linked by arrays that vary along several of them, as disjoint sets, in order of the first axis."""
    found: list[set[int]] = []
    for array in arrays:
        block = set(varying(array))
        for other in [b for b in found if b & block]:
            block |= other
            found.remove(other)
        if block:
            found.append(block)
    return sorted(found, key=min)
