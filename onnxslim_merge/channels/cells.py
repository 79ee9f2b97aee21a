"""Cells: the channels that are ranked, counted and reported together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim_merge.channels.claims import Producer, Refusal
from onnxslim_merge.channels.labels import Ids
from onnxslim_merge.channels.walk import Walk


@dataclass(frozen=True, slots=True)
class Cell:
    """Channels that occur on exactly the same producers.

    labels: their classes (n,), in the order of the first producer's axis. producers: indices into the analysis.
    inner: one producer, and nowhere joined with another produced tensor. refusal: why it must stay whole, or None.
    """

    name: str
    labels: Ids
    producers: tuple[int, ...]
    inner: bool
    refusal: Refusal | None

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
    names: dict[str, int] = {}
    for (makers_of, stuck), labels in members.items():
        name = _unique(_name(walk.producers[makers_of[0]]), names)
        refusal = walk.refusals[frozen[labels[0]]] if stuck else None
        inner = len(makers_of) == 1 and not joined[labels].any()
        cells.append(Cell(name, np.array(labels, np.int64), makers_of, inner, refusal))
    return tuple(cells)


def _name(producer: Producer) -> str:
    return producer.node or producer.output


def _unique(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"
