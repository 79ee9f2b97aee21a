"""Fused operators of com.microsoft: element-wise ones pass, those that normalise freeze."""

from __future__ import annotations

from onnxslim_merge.channels.claims import Degree, Window
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

MICROSOFT = "com.microsoft"


@rule("Gelu", "FastGelu", "BiasGelu", "QuickGelu", domain=MICROSOFT)
def gelu(c: Scope) -> None:
    """Every axis passes; a bias inside is sliced with its channels."""
    biased = c.has(1)
    c.give(c.elementwise([0, 1]) if biased else list(c.labels(0)))
    return c.flow("private" if biased else "same", [0], degree=Degree.OTHER)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def fused_normalisation(c: Scope) -> None:
    """Freezes: the mean or mean square over all channels enters each of them."""
    c.freeze_all(f"{c.op} normalises over the channels")


@rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul(c: Scope) -> None:
    """`... k, k n -> ... n` times alpha, with a constant matrix on the right, transposed or not."""
    turned = any(c.attr(name, 0) for name in ("transA", "transBatchA", "transBatchB"))
    if turned or not c.is_constant(1) or c.is_constant(0) or len(c.shape(1)) != 2:
        return c.freeze_all("a product of two activations, or a transposed one")
    rank, alpha = len(c.out_shape()), float(c.attr("alpha", 1.0))
    out_axis = 0 if c.attr("transB", 0) else 1
    bias = c.bias(None, rank - 1)
    c.axes(f"... k, {'n k' if out_axis == 0 else 'k n'} -> ... n")
    c.produces(1, out_axis, bias, alpha)
    c.flow("same", [0])  # for channels on the leading axes; those on the last are made anew
    return c.consumes((0, rank - 1), (1, 1 - out_axis, out_axis), bias, alpha, window=Window())


@rule("FusedConv", "FusedGemm", domain=MICROSOFT)
def with_activation(c: Scope) -> None:
    """Freezes: the activation stands between the weight and what follows, so nothing could be folded or merged."""
    c.freeze_all(f"{c.op} hides an activation")
