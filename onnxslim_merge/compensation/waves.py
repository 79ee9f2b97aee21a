"""How many consumers are looked at together: as many as their sums have memory for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from onnxslim_merge.channels.claims import Consumer
from onnxslim_merge.views import Views


def sums_bytes(views: Views, consumer: Consumer) -> int:
    """What the sums of a consumer take, for fitting and held-out samples, in bytes: features x (features + outputs)."""
    taps = int(np.prod(consumer.window.kernel)) if consumer.window is not None else 1
    features, outputs = consumer.labels.size // consumer.groups * taps, views.width(consumer) // consumer.groups
    return 2 * 8 * consumer.groups * features * (features + outputs)


def affordable(
    events: Sequence[int], ties: Mapping[int, Collection[str]], costs: Mapping[int, int], budget: int
) -> Iterator[list[int]]:
    """The events in parts that cost no more than `budget`, or are one event.

    ties: what an event has in common with others; these stay in one part if that fits.
    """
    part: list[int] = []
    for tied in _tied(events, ties):
        fits = sum(costs[event] for event in tied) <= budget
        for piece in [tied] if fits else [[event] for event in tied]:
            if part and sum(costs[event] for event in [*part, *piece]) > budget:
                yield part
                part = []
            part = [*part, *piece]
    if part:
        yield part


def _tied(events: Sequence[int], ties: Mapping[int, Collection[str]]) -> list[list[int]]:
    """Events that are connected by what they have in common, in the order of the first of each."""
    found: list[tuple[set[str], list[int]]] = []
    for event in events:
        names, mine = set(ties[event]), [event]
        for other in [group for group in found if group[0] & names]:
            found.remove(other)
            names, mine = names | other[0], [*other[1], *mine]
        found.append((names, mine))
    order = {event: place for place, event in enumerate(events)}
    groups = [sorted(mine, key=order.__getitem__) for _, mine in found]
    return sorted(groups, key=lambda mine: order[mine[0]])
