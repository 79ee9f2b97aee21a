"""Reductions: the axis that they work along freezes, the others pass."""

from __future__ import annotations

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.channels.patterns import LAYERNORM, is_mean_of_layer_norm
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

LINEAR = {"ReduceMean", "ReduceSum"}
HOMOGENEOUS = {"ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"}


@rule(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
def reduction(c: Scope) -> None:
    """Axes from the attribute or input 1; none means all, unless noop_with_empty_axes."""
    if c.has(1) and not c.is_constant(1):
        return c.freeze_all("its axes are not constant")
    axes = c.integers(1) if c.has(1) else c.attr("axes")
    rank = len(c.shape(0))
    if not axes:
        axes = [] if c.attr("noop_with_empty_axes", 0) else range(rank)
    normalises = c.op == "ReduceMean" and is_mean_of_layer_norm(c)
    if normalises and LAYERNORM in c.walk.allowed:
        for axis in {int(a) % rank for a in axes}:
            c.contracts((0, axis), kind="mean")
    else:
        _freeze(c, {int(a) % rank for a in axes}, " (--allow-inexact layernorm)" if normalises else "")
    _drop(c, {int(a) % rank for a in axes})
    degree = Degree.LINEAR if c.op in LINEAR else Degree.HOMOGENEOUS if c.op in HOMOGENEOUS else Degree.OTHER
    keeps = c.op in {"ReduceMean", "ReduceMax", "ReduceMin"}
    return c.flow("same", [0], degree=degree, keeps_mean=c.op == "ReduceMean", equivariant=keeps)


@rule("ArgMax", "ArgMin")
def arg_extreme(c: Scope) -> None:
    """The result is a position along the axis: it freezes."""
    axis = int(c.attr("axis", 0)) % len(c.shape(0))
    _freeze(c, {axis})
    _drop(c, {axis})
    c.flow("private", [0])


@rule("CumSum")
def cumulative(c: Scope) -> None:
    """Sums along one axis, which freezes."""
    axis = c.integers(1)
    if axis is None or not c.is_constant(1):
        return c.freeze_all("its axis is not constant")
    c.freeze_axis(0, axis[0] % len(c.shape(0)), "CumSum works along this axis")
    c.give(list(c.labels(0)))
    return c.flow("same", [0])


def _freeze(c: Scope, axes: set[int], hint: str = "") -> None:
    for axis in axes:
        c.freeze_axis(0, axis, f"{c.op} works along this axis{hint}")


def _drop(c: Scope, axes: set[int]) -> None:
    """Give what does not lie on `axes`, squeezed unless keepdims."""
    left = [a for a in c.labels(0) if not any(a.shape[axis] > 1 for axis in axes)]
    if not c.attr("keepdims", 1):
        shape = [axis for axis in range(len(c.shape(0))) if axis not in axes]
        left = [a.reshape([a.shape[axis] for axis in shape]) for a in left]
    c.give(left)
