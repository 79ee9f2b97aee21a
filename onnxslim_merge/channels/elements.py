"""Small integer tensors, element by element: which constant or which axis length each number comes from.

Reshape targets, pads and slice bounds that an exporter assembles from Shape, Gather and Concat are traced here, so that
a rule can claim a number that counts channels, and so that one that leaks into arithmetic freezes what it counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.channels.claims import Refusal
from onnxslim_merge.channels.counting import leaves, value
from onnxslim_merge.channels.labels import on_axis
from onnxslim_merge.channels.scope import Scope
from onnxslim_merge.channels.walk import Element, Walk

log = logging.getLogger(__name__)
LIMIT = 1024
# Inputs at which a rule itself judges the numbers that it reads.
JUDGED = {"Reshape": {1}, "Slice": {1, 2}, "Split": {1}, "Pad": {1}, "Expand": {1}, "Resize": {3}, "CenterCropPad": {1}}


def constant_elements(name: str, size: int) -> list[Element]:
    """The elements of an integer constant."""
    return [("const", name, i) for i in range(size)]


def _take(c: Scope, indices: list[int]) -> list[Element] | None:
    source = c.walk.elements.get(c.tensor(0))
    return None if source is None else [source[i] for i in indices]


def _shape(c: Scope) -> list[Element] | None:
    rank = len(c.shape(0))
    start, end = (slice(c.attr("start", 0), c.attr("end", rank)).indices(rank))[:2]
    return [("dim", c.tensor(0), axis) for axis in range(start, end)]


def _same(c: Scope) -> list[Element] | None:
    return c.walk.elements.get(c.tensor(0))


def _gather(c: Scope) -> list[Element] | None:
    indices, source = c.integers(1), c.walk.elements.get(c.tensor(0))
    if indices is None or source is None or len(c.shape(0)) != 1 or not c.is_constant(1):
        return None
    return [source[i] for i in indices]


def _concat(c: Scope) -> list[Element] | None:
    parts = [c.walk.elements.get(c.tensor(s), [None] * int(np.prod(c.shape(s)))) for s in range(len(c.node.inputs))]
    return [element for part in parts for element in part]


def _slice(c: Scope) -> list[Element] | None:
    if len(c.shape(0)) != 1 or not all(c.is_constant(s) for s in range(1, len(c.node.inputs)) if c.has(s)):
        return None
    if "starts" in c.node.attrs:
        start, end, step = c.attr("starts")[0], c.attr("ends")[0], 1
    else:
        bounds = [c.integers(s) or [] for s in (1, 2)]
        start, end = bounds[0][0], bounds[1][0]
        step = (c.integers(4) or [1])[0] if c.has(4) else 1
    return _take(c, list(range(*slice(start, end, step).indices(c.shape(0)[0]))))


def _arithmetic(c: Scope) -> list[Element] | None:
    """Products and quotients, element by element."""
    kind = "product" if c.op == "Mul" else "quotient"
    parts = [c.walk.elements.get(c.tensor(s)) for s in (0, 1)]
    if parts[0] is None or parts[1] is None or not all(parts):
        return None
    size = max(len(parts[0]), len(parts[1]))
    a, b = (part * size if len(part) == 1 else part for part in parts if part is not None)
    return [None if x is None or y is None else (kind, x, y) for x, y in zip(a, b, strict=True)]


def _where(c: Scope) -> list[Element] | None:
    """Picked by a condition as it was at the probe: exporters ask whether a number is -1, which no cut changes."""
    condition = _condition(c)
    parts = [c.walk.elements.get(c.tensor(s)) for s in (1, 2)]
    if condition is None or any(part is None or len(part) != condition.size for part in parts):
        return None
    yes, no = (part for part in parts if part is not None)
    return [a if k else b for k, a, b in zip(condition.ravel().tolist(), yes, no, strict=True)]


def _condition(c: Scope) -> NDArray[np.bool_] | None:
    """A constant, or which numbers are -1."""
    if c.is_constant(0):
        return np.asarray(c.walk.constants[c.tensor(0)].values, bool)
    made = Scope(c.node.inputs[0].inputs[0], c.walk) if c.node.inputs[0].inputs else None
    if made is None or not _asks_for_minus_one(made):
        return None
    constant = 0 if made.is_constant(0) else 1
    numbers = made.integers(1 - constant)
    return None if numbers is None else np.array(numbers) == made.constant(constant).ravel()


def _asks_for_minus_one(c: Scope) -> bool:
    """Equal of numbers with negative constants."""
    if c.op != "Equal":
        return False
    constant = [s for s in (0, 1) if c.is_constant(s) and c.tensor(s) in c.walk.elements]  # strings are no numbers
    return len(constant) == 1 and bool((c.constant(constant[0]) < 0).all())


TRACED: dict[str, Callable[[Scope], list[Element] | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Where": _where,
    **dict.fromkeys(("Mul", "Div"), _arithmetic),
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape"), _same),
}


def trace(node: gs.Node, walk: Walk) -> None:
    """Trace the output of `node`, or freeze the channels whose number it feeds into something else."""
    c = Scope(node, walk)
    function = TRACED.get(node.op)
    integer = bool(node.outputs) and node.outputs[0].dtype is not None and _integer(node, walk)
    if function is not None and (node.op == "Shape" or (integer and _traced_inputs(c))):
        found = _checked(c, function)
        if found is not None:
            walk.elements[c.output()] = found
            return
    if _asks_for_minus_one(c):
        return
    for slot, tensor in enumerate(node.inputs):
        if tensor.name in walk.elements:
            use(tensor.name, c.name, c.op, "is computed with", walk, judged=slot in JUDGED.get(node.op, ()))


def _checked(c: Scope, function: Callable[[Scope], list[Element] | None]) -> list[Element] | None:
    """The elements of a list of numbers, if they are what the graph computed at the probe."""
    if len(c.out_shape()) > 1:
        return None
    try:
        found = function(c)
    except (IndexError, KeyError, TypeError, ValueError):
        log.debug("tracing %s failed", c.name, exc_info=True)
        return None
    seen = c.walk.values.get(c.output())
    if found is None or seen is None:
        return found
    told = [value(c.walk, element) for element in found]
    right = len(told) == seen.size and all(t in (None, v) for t, v in zip(told, seen.ravel().tolist(), strict=True))
    return found if right else None


def use(tensor: str, node: str, op_type: str, what: str, walk: Walk, *, judged: bool = False) -> None:
    """Where tracing ends: numbers of channels freeze, unless the rule judges them; constants are used once more."""
    for element in (leaf for whole in walk.elements.get(tensor, ()) for leaf in leaves(whole)):
        if element is not None and element[0] == "const":
            walk.uses[element[1:]] += 1
        elif element is not None and not judged:
            labels = on_axis(walk.labels.get(element[1], []), element[2])
            walk.refuse(labels, Refusal(element[1], element[2], node, op_type, f"its number of channels {what}"))


def refuse_shared(walk: Walk) -> None:
    """A number that counts channels in one place, and something else in another, cannot be rewritten."""
    claims: dict[tuple[str, int], list[tuple[bytes, ...]]] = {}
    for count in walk.counts:
        if not count.node:
            key = tuple(walk.space.find(array).tobytes() for array in count.labels)
            claims.setdefault((count.name, count.index or 0), []).append(key)
    for count in walk.counts:
        found = claims.get((count.name, count.index or 0), []) if not count.node else []
        if found and (walk.uses[count.name, count.index or 0] > len(found) or len(set(found)) > 1):
            reason = "the number that counts them is also used elsewhere"
            walk.refuse(list(count.labels), Refusal(count.name, 0, count.name, "constant", reason))


def _traced_inputs(c: Scope) -> set[str]:
    return {t.name for t in c.node.inputs if t.name in c.walk.elements}


def _integer(node: gs.Node, walk: Walk) -> bool:
    value = walk.values.get(node.outputs[0].name)
    return value is not None and np.issubdtype(value.dtype, np.integer) and value.size <= LIMIT
