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
    makers: dict[int, list[int]] = {}
    for index, ids in enumerate(roots):
        for label in dict.fromkeys(ids.tolist()):
            makers.setdefault(label, []).append(index)
    members: dict[tuple[tuple[int, ...], bool], list[int]] = {}
    for label, signature in makers.items():
        members.setdefault((tuple(signature), bool(frozen[label] >= 0)), []).append(label)
    cells: list[Cell] = []
    balances = [walk.space.find(balance.labels) for balance in walk.balances]
    names: dict[str, int] = {}
    for (makers_of, stuck), labels in members.items():
        name = _unique(_name(walk.producers[makers_of[0]]), names)
        refusal = walk.refusals[frozen[labels[0]]] if stuck else None
        inner = len(makers_of) == 1 and not joined[labels].any()
        ids = np.array(labels, np.int64)
        cells.append(Cell(name, ids, makers_of, inner, refusal, _parts(ids, balances)))
    return tuple(cells)


def _parts(labels: Ids, balances: Sequence[Ids]) -> Ids | None:
    """The finest division of a cell into equal parts that a balance (groups, members) asks for.

    Where divisions do not fit each other, `select.repair` gives back channels until all groups are equal.
    """
    best: Ids | None = None
    for groups in balances:
        flat = groups.ravel()
        order = np.argsort(flat, kind="stable")
        place = np.minimum(np.searchsorted(flat[order], labels), flat.size - 1)
        if (flat[order[place]] != labels).any() or np.isin(flat, labels).sum() != labels.size:
            continue
        row = order[place] // groups.shape[1]
        sizes = np.unique(row, return_counts=True)[1]
        if (sizes == sizes[0]).all() and (best is None or len(sizes) > len(best)):
            best = np.argsort(row, kind="stable").reshape(len(sizes), -1)
    return best


def _name(producer: Producer) -> str:
    return producer.node or producer.output


def _unique(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"
