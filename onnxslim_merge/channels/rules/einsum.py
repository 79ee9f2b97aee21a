"""Einsum: letters are what `Scope.axes` is made of."""

from __future__ import annotations

import re
from collections import Counter

from onnxslim_merge.channels.claims import Window
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

Terms = list[list[str]]


@rule("Einsum")
def einsum(c: Scope) -> None:
    """Equal letters unite; with a constant matrix a product, as of MatMul, with the axes in any order.

    What else is summed is a contraction. Letters that stand twice in one term freeze.
    """
    terms, out = _terms(c)
    twice = {letter for term in terms for letter, times in Counter(term).items() if times > 1}
    summed = {letter for term in terms for letter in term if letter not in out}
    live = [s for s in range(len(terms)) if not c.is_constant(s)]
    found = {letter: _place(c, terms, live, letter) for letter in sorted(summed - twice)}
    product = None if twice or len(terms) != 2 else _product(c, terms, out, summed)
    frozen = twice | {letter for letter, place in found.items() if place is None}
    c.joins(live)
    _batches(c, terms, set(out))
    bias = c.bias(None, out.index(product[3])) if product else None
    left, right = ([["*" if x in frozen else x for x in term] for term in group] for group in (terms, [out]))
    c.axes(", ".join(" ".join(term) for term in left) + " -> " + " ".join(right[0]))
    if product is None or bias is None:
        c.flow("private", live)
        for place in (p for p in found.values() if p is not None):
            c.contracts(place)
        return
    x, weight, inner, outer = product
    axis, out_axis = terms[weight].index(inner), terms[weight].index(outer)
    c.flow("same", [x])  # for channels on the other axes; those of the matrix are made anew
    c.produces(weight, out_axis, bias)
    rest = [[letter for letter in term if letter not in (inner, outer)] for term in (terms[x], out)]
    window = Window() if rest[0] == rest[1] else None
    c.consumes((x, terms[x].index(inner)), (weight, axis, out_axis), bias, window=window)


def _place(c: Scope, terms: Terms, live: list[int], letter: str) -> tuple[int, int] | None:
    """(slot, axis) of an activation in which a zero takes a summed channel away; None where no activation has it."""
    places = [(s, terms[s].index(letter)) for s in live if letter in terms[s]]
    return next((place for place in places if c.shape(place[0])[place[1]] > 1), None)


def _batches(c: Scope, terms: Terms, letters: set[str]) -> None:
    """Of channels that vary along a batch axis and others (heads x width), whole slices along the batch axis leave."""
    for slot, term in enumerate(terms):
        others = {letter for s, other in enumerate(terms) if s != slot for letter in other}
        for axis in (a for a, letter in enumerate(term) if letter in letters & others):
            c.keep_axis(slot, axis)


def _terms(c: Scope) -> tuple[Terms, list[str]]:
    """The letters of each input and of the output; axes under an ellipsis are named from the right."""
    left, arrow, right = str(c.attr("equation")).replace(" ", "").partition("->")
    found = [_letters(term, len(c.shape(slot))) for slot, term in enumerate(left.split(","))]
    if arrow:
        return found, _letters(right, len(c.out_shape()))
    once = Counter(letter for letter in left if letter.isalpha())
    dots = "..." if "..." in left else ""
    return found, _letters(dots + "".join(sorted(x for x in once if once[x] == 1)), len(c.out_shape()))


def _letters(term: str, rank: int) -> list[str]:
    hidden = rank - len(term.replace("...", ""))
    named = [f"~{place}" for place in range(hidden, 0, -1)]
    return [letter for part in re.findall(r"\.\.\.|\w", term) for letter in (named if part == "..." else [part])]


def _product(c: Scope, terms: Terms, out: list[str], summed: set[str]) -> tuple[int, int, str, str] | None:
    """(slot of x, slot of the weight, contracted letter, output letter) if one operand is a constant matrix."""
    weights = [s for s in (0, 1) if c.is_constant(s)]
    if len(weights) != 1 or len(terms[weights[0]]) != 2 or len(summed) != 1:
        return None
    weight, x, inner = weights[0], 1 - weights[0], next(iter(summed))
    outer = next(letter for letter in terms[weight] if letter != inner)
    fits = inner in terms[weight] and inner in terms[x] and outer not in terms[x] and outer in out
    return (x, weight, inner, outer) if fits else None
