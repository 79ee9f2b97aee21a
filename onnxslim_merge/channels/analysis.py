"""One forward walk over the prepared graph: labels, claims and refusals, and the cells that follow from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.channels import rules  # noqa: F401 - fills the registry
from onnxslim_merge.channels.cells import Cell, find_cells
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
from onnxslim_merge.channels.derived import Derived, are_numbers, derived_constants
from onnxslim_merge.channels.elements import LIMIT, constant_elements, refuse_shared, trace, use
from onnxslim_merge.channels.labels import Arrays, Ids, LabelSpace, along, varying
from onnxslim_merge.channels.registry import find_rule
from onnxslim_merge.channels.scope import Scope
from onnxslim_merge.channels.walk import Walk
from onnxslim_merge.model_io.stores import forget_pages
from onnxslim_merge.probe import Probe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that later stages know of the graph's channels.

    labels: label arrays by tensor; roots: class of every label; constants: names whose axes can be gathered.
    """

    cells: tuple[Cell, ...]
    producers: tuple[Producer, ...]
    carriers: tuple[Carrier, ...]
    consumers: tuple[Consumer, ...]
    reads: dict[tuple[str, int], int]
    contractions: tuple[Contraction, ...]
    balances: tuple[Balance, ...]
    ragged: Mapping[str, Ragged]
    flows: Mapping[str, Flow]
    counts: tuple[Count, ...]
    labels: Mapping[str, Arrays]
    roots: Ids
    constants: Mapping[str, gs.Constant | Derived]
    exposed: frozenset[str]
    inputs: Mapping[tuple[str, int], str]
    graph: gs.Graph
    refusals: tuple[Refusal, ...]

    def weight(self, name: str) -> NDArray[np.float64]:
        """The original values of a constant as float64."""
        stored = np.asarray(self.constants[name].values)
        values = stored.astype(np.float64)
        forget_pages(stored)
        return values


def analyse_channels(graph: gs.Graph, probes: tuple[Probe, ...], allow_inexact: Collection[str] = ()) -> Analysis:
    """Walk `graph` at every probe; what differs between probes is frozen. The claims are those of the first.

    allow_inexact: names of rules that may cut what changes a statistic, such as "layernorm".
    """
    constants = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    common = _Common(
        graph, constants, frozenset(_captured(graph)), frozenset(allow_inexact), frozenset(_stretching(probes)),
        frozenset(_fed(graph)),
    )  # fmt: skip
    first = _settled(common, probes[0], np.empty(0, np.int64))
    for probe in probes[1:]:  # what is tied at one size may be tied at all: it only means that less can leave
        _freeze_differences(first, _settled(common, probe, _ties(first)))
    cells = find_cells(first)
    space = first.space
    return Analysis(
        cells=cells,
        producers=tuple(first.producers),
        carriers=tuple(first.carriers),
        consumers=tuple(first.consumers),
        reads=first.reads,
        contractions=tuple(first.contractions),
        balances=tuple(first.balances),
        ragged=first.ragged,
        flows=first.flows,
        counts=tuple(first.counts),
        labels={name: [space.collapse(a) for a in arrays] for name, arrays in first.labels.items()},
        roots=space.find(np.arange(space.size, dtype=np.int64)),
        constants=first.constants,
        exposed=first.exposed,
        graph=graph,
        inputs={(n.name, slot): t.name for n in graph.nodes for slot, t in enumerate(n.inputs) if t.name}
        | first.stand_ins,
        refusals=tuple(first.refusals),
    )


@dataclass(frozen=True, slots=True)
class _Common:
    """What all walks share.

    captured: tensors that a subgraph uses. fed: tensors whose values come from the data, not from shapes alone.
    """

    graph: gs.Graph
    constants: Mapping[str, gs.Constant]
    captured: frozenset[str]
    allowed: frozenset[str]
    stretching: frozenset[tuple[str, int]]
    fed: frozenset[str]


def _stretching(probes: Sequence[Probe]) -> Iterator[tuple[str, int]]:
    first = probes[0].shapes
    for other in probes[1:]:
        for name, shape in other.shapes.items():
            if len(first.get(name, ())) == len(shape):
                yield from ((name, axis) for axis, n in enumerate(shape) if n != first[name][axis])


def _fed(graph: gs.Graph) -> set[str]:
    found = {t.name for t in graph.inputs}
    for node in graph.nodes:
        own = any(isinstance(v, gs.Graph) for v in node.attrs.values())
        if node.op not in ("Shape", "Size") and (own or any(t.name in found for t in node.inputs)):
            found |= {t.name for t in node.outputs if t.name}
    return found


def _settled(common: _Common, probe: Probe, ties: Ids) -> Walk:
    """Walk until no tensor holds channels that vary along several axes: what is tied in one walk, the next starts with.

    Rules decide by the axes along which channels vary, so they have to see the ties that later nodes ask for.
    """
    while True:
        walk = _walk(common, probe, ties)
        if not any(len(varying(a)) > 1 for arrays in walk.labels.values() for a in arrays):
            return walk
        found = _ties(walk)
        if np.array_equal(found, ties):
            _tie_rectangles(walk)
            found = _ties(walk)
        if np.array_equal(found, ties):
            return walk
        ties = found


def _ties(walk: Walk) -> Ids:
    """The classes of the labels of constants, which are numbered alike in every walk."""
    return walk.space.find(np.arange(walk.own, dtype=np.int64))


def _walk(common: _Common, probe: Probe, ties: Ids) -> Walk:
    graph, constants, captured = common.graph, common.constants, common.captured
    values = {n: v for n, v in probe.values.items() if n not in common.fed}
    shapes = {**probe.shapes, **{name: tuple(t.shape) for name, t in constants.items()}}
    exposed = captured | {t.name for t in graph.outputs}
    known = {**constants, **derived_constants(graph.nodes, constants, shapes)}
    walk = Walk(shapes, values, known, graph.opset, exposed, common.allowed, common.stretching)
    for name, tensor in constants.items():
        _label_constant(walk, name, tensor)
    walk.own = walk.space.size
    walk.space.unite(np.arange(ties.size, dtype=np.int64), ties)
    for node in graph.nodes:
        _visit(node, walk)
        for tensor in node.outputs:
            if tensor.name in captured:
                reason = Refusal(tensor.name, None, node.name, node.op, "used inside a subgraph")
                walk.refuse(walk.labels.get(tensor.name, []), reason)
    for tensor in graph.outputs:
        walk.refuse(walk.labels.get(tensor.name, []), Refusal(tensor.name, None, tensor.name, "output", "graph output"))
    for name in sorted(exposed):
        use(name, name, "output" if name not in captured else "subgraph", "is used outside", walk)
    refuse_shared(walk)
    for name in captured & constants.keys():
        walk.refuse(walk.labels.get(name, []), Refusal(name, None, name, "subgraph", "used inside a subgraph"))
    return walk


def _label_constant(walk: Walk, name: str, tensor: gs.Constant) -> None:
    shape, kind = tuple(tensor.shape), np.dtype(tensor.dtype).kind if _known(tensor.dtype) else "O"
    if kind in "iu" and (size := math.prod(shape)) <= LIMIT:
        walk.elements[name] = constant_elements(name, size)
    if kind in "fV" or are_numbers(tensor):  # ml_dtypes' bfloat16 is of kind V
        walk.labels[name] = [along(walk.space.fresh(n), a, len(shape)) for a, n in enumerate(shape) if n > 1]
        walk.fresh[name] = walk.labels[name]


def _known(dtype: Any) -> bool:
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def _visit(node: gs.Node, walk: Walk) -> None:
    c = Scope(node, walk)
    named = [t.name for t in [*node.inputs, *node.outputs] if t.name]
    function = find_rule(node.op, node.domain or "")
    missing = [name for name in named if name not in walk.shapes]
    if missing:
        c.freeze_all(f"the shape of {missing[0]} is not known")
    elif function is None:
        c.freeze_all(f"no rule for {node.op}" if not node.domain else f"no rule for {node.domain}:{node.op}")
    else:
        try:
            function(c)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            log.debug("rule of %s failed", node.name, exc_info=True)
            c.freeze_all(f"our rule for {node.op} failed ({type(error).__name__}: {error}): please report this")
            for tensor in node.outputs:
                walk.labels.pop(tensor.name, None)
    if not missing:
        return trace(node, walk)
    for tensor in node.inputs:
        use(tensor.name, c.name, c.op, "is computed with", walk)
    return None


def _captured(graph: gs.Graph) -> Iterator[str]:
    """Names of outer tensors that a subgraph uses (names made inside it are harmless: they shadow nothing)."""
    for node in graph.nodes:
        for sub in [v for v in node.attrs.values() if isinstance(v, gs.Graph)]:
            yield from (t.name for t in sub.outputs)
            yield from (t.name for inner in sub.nodes for t in inner.inputs)
            yield from _captured(sub)


def _tie_rectangles(walk: Walk) -> None:
    """Channels that vary along several axes of a tensor leave as whole slices of one of them.

    Of a shuffle (channels cut into groups that change places with their members) the same members of every group;
    elsewhere whole slices along the axis on which most of them differ (channels mixed with a batch repeat themselves).
    """
    again = True
    while again:
        again = False
        rectangles = [*walk.swapped, *((a, -1) for arrays in walk.labels.values() for a in arrays)]
        for array, members in ((walk.space.collapse(a), axis) for a, axis in rectangles):
            axes = varying(array)
            if len(axes) > 1:
                kept = members if members in axes else max(axes, key=lambda axis: _slices(walk.space.find(array), axis))
                corner = array[tuple(slice(0, 1 if x in axes and x != kept else None) for x in range(array.ndim))]
                walk.space.unite(array, corner)
                again = True


def _slices(array: Ids, axis: int) -> int:
    """How many different slices there are along `axis`."""
    return len(np.unique(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1), axis=0))


def _freeze_differences(first: Walk, other: Walk) -> None:
    """Freeze the classes that sit differently on a constant when sizes differ. Constants' labels are numbered alike."""
    count = first.own
    ids = np.arange(count, dtype=np.int64)
    a, b = first.space.find(ids), other.space.find(ids)
    frozen_elsewhere = other.space.frozen()[:count]
    differs = a != b
    why = "depends on input size: sits differently, or freezes, when the input has another size"
    for name, tensor in first.constants.items():
        for array in first.fresh.get(name, []):
            mine = array.ravel()[differs[array.ravel()]]
            if mine.size:
                axis, user = max(varying(array), default=0), next(iter(getattr(tensor, "outputs", ())), None)
                reason = Refusal(name, axis, user.name if user else name, user.op if user else "constant", why)
                first.refuse([mine, a[mine], b[mine]], reason)
    only_elsewhere = np.where(first.space.frozen()[:count] >= 0, -1, frozen_elsewhere)
    for refusal in np.unique(only_elsewhere[only_elsewhere >= 0]):
        found = other.refusals[refusal]
        reason = replace(found, reason=f"{found.reason} (at another input size)")
        first.refuse([ids[only_elsewhere == refusal]], reason)


__all__ = ["Analysis", "LabelSpace", "analyse_channels"]
