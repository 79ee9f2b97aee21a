"""The state of one forward walk over the graph: labels by tensor, and everything claimed so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.channels.claims import (
    Balance,
    Carrier,
    Consumer,
    Contraction,
    Count,
    Flow,
    Producer,
    Ragged,
    Refusal,
)
from onnxslim_merge.channels.derived import Derived
from onnxslim_merge.channels.labels import Arrays, Ids, LabelSpace

# Where an element of a small integer tensor comes from: ("const", tensor, index), ("dim", tensor, axis), a result
# ("product" or "quotient", element, element), or unknown.
Element = tuple[Any, ...] | None


@dataclass(slots=True)
class Walk:
    """The state of one forward walk: labels and integer elements by tensor name, and all claims so far."""

    shapes: dict[str, tuple[int, ...]]
    values: dict[str, NDArray[Any]]
    constants: dict[str, gs.Constant | Derived]
    opset: int
    exposed: frozenset[str] = frozenset()  # graph outputs, and tensors that a subgraph uses
    allowed: frozenset[str] = frozenset()  # inexact rules that were asked for
    stretching: frozenset[tuple[str, int]] = frozenset()  # (tensor, axis) of another length at another input size
    space: LabelSpace = field(default_factory=LabelSpace)
    own: int = 0  # labels below it are those of constants
    labels: dict[str, Arrays] = field(default_factory=dict)
    fresh: dict[str, Arrays] = field(default_factory=dict)  # of constants, as they were before the first node
    elements: dict[str, list[Element]] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    carriers: list[Carrier] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    reads: dict[tuple[str, int], int] = field(default_factory=dict)  # (node, slot of a weight): the axis it contracts
    contractions: list[Contraction] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    ragged: dict[str, Ragged] = field(default_factory=dict)
    swapped: list[tuple[Ids, int]] = field(default_factory=list)  # rectangles of a shuffle, and the axis of the members
    flows: dict[str, Flow] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    joins: list[Ids] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    stand_ins: dict[tuple[str, int], str] = field(default_factory=dict)  # real numbers for integers at (node, slot)
    uses: Counter[tuple[str, int]] = field(default_factory=Counter)  # of an element of a constant, where tracing ends

    def refuse(self, labels: Sequence[Ids], refusal: Refusal) -> None:
        """Freeze `labels` for one reason; no labels, no refusal."""
        if labels:
            self.refusals.append(refusal)
            for ids in labels:
                self.space.freeze(ids, len(self.refusals) - 1)
