"""Fused attention: whole heads leave, since every head works alone and its scale depends on its own width only."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.labels import Ids, along
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

MICROSOFT = "com.microsoft"
STAY = "fused attention: heads stay"


@rule("Attention")
def attention(c: Scope) -> None:
    """Whole heads leave, a key-value head with all its query heads; `b s hd` with counted heads, or `b h s d`.

    With caches or further outputs all freeze.
    """
    if c.outputs() > 1 or any(c.has(s) for s in range(4, len(c.node.inputs))):
        return c.freeze_all(f"{STAY}, as their keys or scores are used outside")
    if len(c.shape(0)) == 4:
        heads = [_head_axis(c, slot) for slot in range(3)]
    else:
        counts = [int(c.attr("q_num_heads")), *[int(c.attr("kv_num_heads"))] * 2]
        heads = [_packed_heads(c, slot, count) for slot, count in enumerate(counts)]
    if (tied := _tied(c, heads, 3)) is None:
        return None
    query, _, value = tied
    c.flow("private", [2])
    if len(c.shape(0)) == 4:
        return c.give([along(query[:, 0], 1, 4)])
    c.counts_attribute("q_num_heads", [query[:, :1]], 0)
    c.counts_attribute("kv_num_heads", [value[:, :1]], 0)
    return c.give([along(np.repeat(value, len(query) // len(value), 0).ravel(), 2, 3)])


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(c: Scope) -> None:
    """`b s hd, b t hd, b t he -> b s he`: whole heads leave. With packed inputs, caches, further outputs all freeze."""
    count = int(c.attr("num_heads"))
    packed = not (c.has(1) and c.has(2)) or {len(c.shape(s)) for s in range(3)} != {3}
    if packed or c.outputs() > 1 or any(c.has(s) for s in range(6, len(c.node.inputs))):
        return c.freeze_all(f"{STAY}, as keys and values are packed or used outside")
    heads = [_packed_heads(c, slot, count) for slot in range(3)]
    if c.has(4):
        c.refuse(c.labels(4), 4, None, "a mask of fused attention")
    if (tied := _tied(c, heads, 5)) is None:
        return None
    if c.has(3):
        own = c.axis_labels(3, 0)
        whole = np.concatenate([h.ravel() for h in tied])
        c.unite([(3, [] if own is None else [own], True), (2, [whole], True)], 0)
    c.counts_attribute("num_heads", [tied[0][:, :1]], 0)
    c.give([along(tied[2].ravel(), 2, 3)])
    return c.flow("private", [2])


def _head_axis(c: Scope, slot: int) -> Ids | None:
    """The labels of the heads of `b h s d`, (heads, 1); the other axes freeze."""
    c.keep_axis(slot, 1)
    for axis in (0, 2, 3):
        c.freeze_axis(slot, axis, "fused attention mixes this axis")
    ids = c.axis_labels(slot, 1)
    return None if ids is None else ids[:, None]


def _packed_heads(c: Scope, slot: int, count: int) -> Ids | None:
    """The labels of `b s hd` as (heads, width), those of each head united; the other axes freeze."""
    for axis in (0, 1):
        c.freeze_axis(slot, axis, "fused attention mixes this axis")
    ids = c.axis_labels(slot, 2)
    if ids is None:
        return None
    heads = ids.reshape(count, -1)
    c.space.unite(heads, heads[:, :1])
    return heads


def _tied(c: Scope, heads: list[Ids | None], mask: int) -> list[Ids] | None:
    """Unite each key-value head with its query heads and its part of a mask; None if one of them has no labels."""
    known = [h for h in heads if h is not None]
    if len(known) < len(heads):
        c.freeze_all("queries, keys or values have no channels here")  # nor may a mask or a bias lose any
        return None
    query, *others = known
    for other in others:
        c.space.unite(query[:, 0], np.repeat(other[:, 0], len(query) // len(other)))
    rank = len(c.shape(mask)) if c.has(mask) else 0
    for axis in (a for a in range(rank) if a != rank - 3):
        c.freeze_axis(mask, axis, "a mask of fused attention")
    if rank >= 3 and c.shape(mask)[rank - 3] > 1:
        own = c.axis_labels(mask, rank - 3)
        c.unite([(mask, [] if own is None else [own], True), (0, [query[:, 0]], True)], rank - 3)
    return known


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary(c: Scope) -> None:
    """Turns pairs within each head: whole heads of `b h s d`, or of `b s hd` if they are counted, leave."""
    for slot in range(1, len(c.node.inputs)):
        c.refuse(c.labels(slot), slot, None, "angles of RotaryEmbedding")
    if len(c.shape(0)) == 4:
        heads = _head_axis(c, 0)
        c.give([] if heads is None else [along(heads[:, 0], 1, 4)])
        return c.flow("private", [0])
    count = int(c.attr("num_heads", 0))
    heads = _packed_heads(c, 0, count or 1)
    if heads is not None and count:
        c.counts_attribute("num_heads", [heads[:, :1]], 0)
    c.give([] if heads is None else [along(heads.ravel(), 2, 3)])
    return c.flow("private", [0])


@rule("Attention", "QAttention", "GroupQueryAttention", domain=MICROSOFT)
def other_attention(c: Scope) -> None:
    """Freezes: weights, caches and heads are packed into each other."""
    c.freeze_all(f"{STAY} ({c.op})")
