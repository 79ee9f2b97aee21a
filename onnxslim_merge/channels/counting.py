"""Numbers of channels that a graph computes: which follow a cut by themselves, and which constant has to change.

An element of a small integer tensor is a constant's, the length of an axis, or a product or quotient of such.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxslim_merge.channels.claims import Count
from onnxslim_merge.channels.labels import Arrays, Ids, on_axis, rows, varying
from onnxslim_merge.channels.walk import Element, Walk


def read(walk: Walk, element: Element) -> Arrays:
    """The label arrays whose number an element was computed from."""
    return [a for leaf in leaves(element) for a in _of_leaf(walk, leaf)]


def _of_leaf(walk: Walk, leaf: Element) -> Arrays:
    if leaf is None or leaf[0] != "dim":
        return []
    return on_axis(walk.labels.get(leaf[1], []), leaf[2])


def leaves(element: Element) -> Iterator[Element]:
    """The constants and axis lengths in an element."""
    if element is not None and element[0] in ("product", "quotient"):
        for part in element[1:]:
            yield from leaves(part)
    elif element is not None:
        yield element


def judge(walk: Walk, element: Element, arrays: Arrays, axis: int) -> bool:
    """Whether `element` counts the indices of `arrays` along `axis` after any cut; claims what has to change.

    No arrays: the axis has no channels, and the element must stay as it is.
    """
    if element is None:
        return False
    if element[0] == "const":
        if arrays:
            walk.counts.append(Count("", element[1], element[2], rows(arrays, axis)))
        return True
    mine = _line(walk, arrays, axis)
    if mine is None and arrays:
        return False
    if element[0] == "dim":
        return mine is not None and _same(mine, _line(walk, _of_leaf(walk, element), element[2]))
    function = _product if element[0] == "product" else _quotient
    return function(walk, element, mine)


def _line(walk: Walk, arrays: Arrays, axis: int) -> Ids | None:
    """The classes along `axis`, (n,), if one factor varies along this axis alone."""
    found = [walk.space.collapse(a) for a in arrays]
    found = [a for a in found if a.shape[axis] > 1]
    if len(found) != 1 or len(varying(found[0])) != 1:
        return None
    return walk.space.find(found[0].ravel())


def _same(a: Ids, b: Ids | None) -> bool:
    return b is not None and a.size == b.size and bool((a == b).all())


def _product(walk: Walk, element: Element, mine: Ids | None) -> bool:
    """B x heads: the constant counts the channels that every sample repeats. C x H x W: follows if C is labelled."""
    parts = list(_factors(element))
    if any(part is not None and part[0] == "quotient" and read(walk, part) for part in parts):
        return False
    lines = [_line(walk, _of_leaf(walk, part), part[2]) for part in parts if part is not None and _of_leaf(walk, part)]
    if mine is None:
        return False
    if lines:
        there = lines[0]
        if len(lines) > 1 or there is None or mine.size % there.size:
            return False
        times = mine.size // there.size
        return _same(mine, np.repeat(there, times)) or _same(mine, np.tile(there, times))
    for part in (p for p in parts if p is not None and p[0] == "const"):
        count = int(np.asarray(walk.constants[part[1]].values).ravel()[part[2]])
        if count > 1 and mine.size % count == 0:
            for unit in (mine[:count], mine[:: mine.size // count]):
                times = mine.size // count
                if _same(mine, np.tile(unit, times)) or _same(mine, np.repeat(unit, times)):
                    walk.counts.append(Count("", part[1], part[2], (unit[:, None],)))
                    return True
    return False


def _factors(element: Element) -> Iterator[Element]:
    """What is multiplied; a quotient among it is one number."""
    if element is not None and element[0] == "product":
        for part in element[1:]:
            yield from _factors(part)
    else:
        yield element


def value(walk: Walk, element: Element) -> int | None:
    """The number that an element stands for at the probe."""
    if element is None:
        return None
    if element[0] == "const":
        return int(np.asarray(walk.constants[element[1]].values).ravel()[element[2]])
    if element[0] == "dim":
        return walk.shapes[element[1]][element[2]]
    a, b = (value(walk, part) for part in element[1:])
    if a is None or b is None or (element[0] == "quotient" and b <= 0):
        return None
    return a * b if element[0] == "product" else a // b


def _quotient(walk: Walk, element: Element, mine: Ids | None) -> bool:
    """C / 2 of equal halves follows; C / heads is the width of a head: as many heads as stay must divide it."""
    above, below = (element or (None, None, None))[1:]
    if above is None or below is None or above[0] != "dim" or below[0] != "const":
        return False
    there = _line(walk, _of_leaf(walk, above), above[2])
    divisor = int(np.asarray(walk.constants[below[1]].values).ravel()[below[2]])
    if there is None or divisor < 1 or there.size % divisor:
        return False
    width = there.size // divisor
    if mine is not None:
        halves = _same(there, np.tile(mine, divisor)) if mine.size == width else False
        return halves or (mine.size == width and _same(there, np.repeat(mine, divisor)))
    if not _same(there, np.repeat(there[::width], width)):
        return False
    walk.counts.append(Count("", below[1], below[2], (there[::width][:, None],)))
    return True
