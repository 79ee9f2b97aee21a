"""Element-wise operators: labels broadcast and unite as the values do."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.channels.registry import rule
from onnxslim_merge.channels.scope import Scope

# f(sx) = s f(x) for s > 0
HOMOGENEOUS = {"Relu", "LeakyRelu", "Abs"}
LINEAR = {"Identity", "Dropout", "Neg"}


@rule(
    "Relu", "LeakyRelu", "Abs", "Identity", "Dropout", "Neg", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Erf", "Elu",
    "Selu", "Celu", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Mish", "Gelu", "Swish", "ThresholdedRelu",
    "Sign", "Floor", "Ceil", "Round", "Reciprocal", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
    "Asinh", "Acosh", "Atanh", "Shrink", "Not", "IsNaN", "IsInf", "Clip",
)  # fmt: skip
def unary(c: Scope) -> None:
    """Every axis passes: each number is treated alone, all alike. Clip's bounds and Dropout's ratio are scalars."""
    c.give(list(c.labels(0)))
    if c.outputs() > 1:
        c.refuse(c.labels(0), 0, None, f"the second output of {c.op} is used")
    constant = all(c.is_constant(s) for s in range(1, len(c.node.inputs)) if c.has(s))
    degree = Degree.LINEAR if c.op in LINEAR else Degree.HOMOGENEOUS if c.op in HOMOGENEOUS else Degree.OTHER
    c.flow("same", [0], degree=degree, elementwise=constant, equivariant=c.op in {"Identity", "Dropout"})


@rule("Cast")
def cast(c: Scope) -> None:
    """Every axis passes; to another float type the value stays, to integers it is rounded."""
    c.give(list(c.labels(0)))
    to_float = int(c.attr("to")) in (1, 10, 11, 16)
    degree = Degree.LINEAR if to_float else Degree.OTHER
    c.flow("same", [0], degree=degree, elementwise=to_float, equivariant=to_float)


@rule("PRelu")
def prelu(c: Scope) -> None:
    """Broadcasts against its slopes; one slope for all is homogeneous, a slope per channel is private."""
    c.give(c.elementwise([0, 1]))
    if c.is_constant(1) and c.constant(1).size == 1:
        return c.flow("same", [0], degree=Degree.HOMOGENEOUS)
    return c.flow("private", [0])


@rule("Add", "Sub", "Mul", "Div")
def arithmetic(c: Scope) -> None:
    """With a constant: affine per channel. Between activations: Add and Sub sum, Mul and Div gate."""
    c.joins([0, 1])
    c.give(c.elementwise([0, 1]))
    live = [s for s in (0, 1) if not c.is_constant(s)]
    if len(live) == 1:
        return _affine(c, live[0])
    if c.tensor(0) == c.tensor(1):
        return c.flow("same", [0], degree=Degree.OTHER)
    labelled = [s for s in live if c.labels(s)]
    if len(labelled) == 1:  # the other operand is the same for all channels
        linear = c.op == "Mul" or (c.op == "Div" and labelled == [0])
        return c.flow("same", labelled, degree=Degree.LINEAR if linear else Degree.OTHER)
    if c.op in ("Mul", "Div"):
        return c.flow("product", labelled)
    # a difference is no sum of biases, but it is jointly homogeneous
    return c.flow("sum", live, degree=Degree.LINEAR if c.op == "Add" else Degree.HOMOGENEOUS)


def _affine(c: Scope, x: int) -> None:
    """Y = scale x + offset, with a constant on either side."""
    k = c.constant(1 - x)
    one = np.ones((1,) * len(c.out_shape()))
    if c.op == "Add" or (c.op == "Sub" and x == 0):
        scale, offset = one, (k if c.op == "Add" else -k) * one
    elif c.op == "Sub":
        scale, offset = -one, k * one
    elif c.op == "Mul":
        scale, offset = k * one, 0 * one
    elif x == 0 and (k != 0).all():
        scale, offset = one / k, 0 * one
    else:  # constant / x
        return c.flow("same" if k.size == 1 else "private", [x], degree=Degree.OTHER)
    return c.flow("affine", [x], scale=scale, offset=offset)


@rule("Sum", "Mean", "Max", "Min")
def variadic(c: Scope) -> None:
    """Sum is jointly linear, Mean, Max and Min jointly homogeneous; a constant among them ends that."""
    slots = [s for s in range(len(c.node.inputs)) if c.has(s)]
    c.joins(slots)
    c.give(c.elementwise(slots))
    live = [s for s in slots if not c.is_constant(s)]
    labelled = [s for s in live if c.labels(s)]
    if len(live) == len(slots) == len(labelled):
        linear = c.op == "Sum" and len({c.tensor(s) for s in slots}) == len(slots)
        return c.flow("sum", live, degree=Degree.LINEAR if linear else Degree.HOMOGENEOUS)
    alike = len(labelled) == 1 and all(c.constant(s).size == 1 for s in slots if c.is_constant(s))
    return c.flow("same" if alike else "private", labelled, degree=Degree.OTHER)


@rule("Where", "Pow", "Mod", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor")
def mixed(c: Scope) -> None:
    """Element-wise on two or three operands; the value is not followed further."""
    slots = [s for s in range(len(c.node.inputs)) if c.has(s)]
    c.joins(slots)
    c.give(c.elementwise(slots))
    labelled = [s for s in slots if not c.is_constant(s) and c.labels(s)]
    alike = len(labelled) == 1 and all(c.is_constant(s) and c.constant(s).size == 1 for s in slots if s not in labelled)
    return c.flow("same" if alike else "private", labelled, degree=Degree.OTHER)
