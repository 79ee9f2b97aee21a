"""Matrix products with a constant."""

from __future__ import annotations

from onnxslim_merge.channels.claims import Window
from onnxslim_merge.channels.labels import along
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope


@rule("Gemm")
def gemm(c: Scope) -> None:
    """`m k, k n, C -> m n` with either operand transposed, C of any shape that broadcasts to (m, n)."""
    if not c.is_constant(1) or (c.has(2) and not c.is_constant(2)):
        return c.freeze_all("the weight or the bias is not a constant")
    a = "k m" if c.attr("transA", 0) else "m k"
    b = "n k" if c.attr("transB", 0) else "k n"
    addend = ""
    if c.has(2) and c.shape(2):
        addend = ", " + " ".join(("m", "n")[-len(c.shape(2)) :])
    alpha, beta = float(c.attr("alpha", 1.0)), float(c.attr("beta", 1.0))
    # beta 0 silences input 2, so a bias has to come from an Add behind the node
    bias = c.bias(2 if beta else None, 1, beta or 1.0)
    c.axes(f"{a}, {b}{addend} -> m n")
    out_axis = b.split().index("n")
    c.produces(1, out_axis, bias, alpha)
    return c.consumes((0, a.split().index("k")), (1, 1 - out_axis, out_axis), bias, alpha, window=Window())


@rule("MatMul")
def matmul(c: Scope) -> None:
    """`... k, k n -> ... n` with a constant matrix on the right, or `m k` on the left of `k n`.

    Of two activations (attention): `b m k, b k n -> b m n`, and only whole slices along b (heads) leave.
    """
    rank = len(c.out_shape())
    depth = len(c.shape(1))
    if c.is_constant(1) and 2 <= depth <= len(c.shape(0)) and set(c.shape(1)[:-2]) <= {1} and not c.is_constant(0):
        bias = c.bias(None, rank - 1)
        c.axes("... k, * k n -> ... n")
        c.produces(1, depth - 1, bias)
        c.flow("same", [0])  # for channels on the leading axes; those on the last are made anew
        return c.consumes((0, rank - 1), (1, depth - 2, depth - 1), bias, window=Window())
    if c.is_constant(0) and len(c.shape(0)) == 2 and len(c.shape(1)) == 2 and not c.is_constant(1):
        bias = c.bias(None, 0)
        c.axes("m k, k n -> m n")
        c.produces(0, 0, bias)
        return c.consumes((1, 0), (0, 1, 0), bias, window=Window())
    if rank < 2 or min(len(c.shape(0)), depth) < 2:
        return c.freeze_all("a product with a vector")
    return _batched(c)


def _batched(c: Scope) -> None:
    """Batch axes broadcast and unite; the contracted axis unites, and a zero in one operand removes it."""
    rank, left, right = len(c.out_shape()), len(c.shape(0)), len(c.shape(1))
    for slot in (0, 1):
        depth = len(c.shape(slot))
        for axis in range(depth - 2):
            c.keep_axis(slot, axis)
    c.joins([0, 1])
    given = c.elementwise([0, 1], without=(rank - 2, rank - 1))
    c.contracts((0, left - 1), (1, right - 2))
    for slot, axis, to in ((0, left - 2, rank - 2), (1, right - 1, rank - 1)):
        ids = c.axis_labels(slot, axis)
        given += [] if ids is None else [along(ids, to, rank)]
    c.give(given)
    c.flow("private", [0, 1])
