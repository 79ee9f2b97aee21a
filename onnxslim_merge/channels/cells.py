"""Cells: the channels that are ranked, counted and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim_merge.channels.claims import Producer, Refusal
from onnxslim_merge.channels.labels import Ids
from onnxslim_merge.channels.walk import Walk


@dataclass(frozen=True, slots=True)
class Cell:
    """Channels that occur on exactly the same producers.

    labels: their classes (n,), in the order of the first producer's axis. producers: indices into the analysis.
    rows: (r, m) positions in `labels`, if each of r parts has to keep equally many of its m, as in a grouped Conv.
    inner: one producer, and nowhere joined with another produced tensor. refusal: why it must stay whole, or None.
    """

    name: str
    labels: Ids
    producers: tuple[int, ...]
    inner: bool
    refusal: Refusal | None
    rows: Ids | None = None

    @property
    def size(self) -> int:
        """How many channels."""
        return int(self.labels.size)


def find_cells(walk: Walk) -> tuple[Cell, ...]:
    """The cells of a finished walk, in order of their first producer."""
    roots = [walk.space.find(p.labels) for p in walk.producers]
    frozen = walk.space.frozen()
    joined = np.zeros(walk.space.size, bool)
    for ids in walk.joins:
        joined[walk.space.find(ids)] = True
    made, signature, makers = _signatures(roots, walk.space.size)
    keys = 2 * signature[made] + (frozen[made] >= 0)
    cells: list[Cell] = []
    balances = [walk.space.find(balance.labels) for balance in walk.balances]
    names: dict[str, int] = {}
    for ids in _by_key(made, keys):
        makers_of, frozen_by = makers[signature[ids[0]]], frozen[ids[0]]
        name = _unique(_name(walk.producers[makers_of[0]]), names)
        refusal = walk.refusals[frozen_by] if frozen_by >= 0 else None
        inner = len(makers_of) == 1 and not joined[ids].any()
        cells.append(Cell(name, ids, makers_of, inner, refusal, _parts(ids, balances)))
    return tuple(cells)


def _signatures(roots: Sequence[Ids], size: int) -> tuple[Ids, Ids, list[tuple[int, ...]]]:
    """The classes that producers make, in the order in which they are met; a number by class; its producers by number.

    Classes have one number if the same producers make them: one by one, each parts those that it makes from the others.
    """
    signature: Ids = np.zeros(size, np.int64)
    makers: list[tuple[int, ...]] = [()]
    met: list[Ids] = [np.empty(0, np.int64)]
    for index, ids in enumerate(roots):
        classes = _unique_in_order(ids)
        met.append(classes[signature[classes] == 0])
        before, which = np.unique(signature[classes], return_inverse=True)
        signature[classes] = len(makers) + which
        makers += [(*makers[number], index) for number in before.tolist()]
    return np.concatenate(met), signature, makers


def _by_key(values: Ids, keys: Ids) -> list[Ids]:
    """`values` in parts of equal keys, in the order in which these are met."""
    order = np.argsort(keys, kind="stable")
    parts = np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1) if keys.size else []
    first = np.unique(keys, return_index=True)[1]
    return [parts[number] for number in np.argsort(first)]


def _unique_in_order(ids: Ids) -> Ids:
    """Each value once, in the order in which they are met."""
    return ids[np.sort(np.unique(ids, return_index=True)[1])]


def _parts(labels: Ids, balances: Sequence[Ids]) -> Ids | None:
    """A division of a cell into equal parts that are no larger than any balance (groups, members) needs.

    Where a balance cuts the cell into unequal parts, or a channel lies in several groups, `select.repair` gives back
    channels until all groups are equal.
    """
    found = [row for groups in balances if (row := _groups_of(labels, groups)) is not None]
    if not found:
        return None
    common = np.unique(np.stack(found), axis=1, return_inverse=True)[1].ravel()
    finest = max(found, key=lambda row: len(np.unique(row)))
    parts = [np.gcd.reduce(np.unique(division, return_counts=True)[1]) for division in (common, finest)]
    division, size = (common, parts[0]) if parts[0] > 1 else (finest, parts[1])
    if size == labels.size:
        return None
    return np.argsort(division, kind="stable").reshape(-1, size)


def _groups_of(labels: Ids, groups: Ids) -> Ids | None:
    """The group that each label lies in, as often as every other; None if that is not so."""
    flat = groups.ravel()
    order = np.argsort(flat, kind="stable")
    first, last = (np.searchsorted(flat[order], labels, side) for side in ("left", "right"))
    times = last - first
    if times[0] == 0 or (times != times[0]).any():
        return None
    rows = order // groups.shape[1]
    return rows[first] if (rows[first] == rows[last - 1]).all() else None


def _name(producer: Producer) -> str:
    return producer.node or producer.output


def _unique(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"
