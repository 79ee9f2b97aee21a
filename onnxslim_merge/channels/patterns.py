"""What several nodes mean together: normalisation written in single steps."""

from __future__ import annotations

from typing import Any

from onnxslim_merge.channels.scope import Scope

LAYERNORM = "layernorm"  # the name by which --allow-inexact asks for it


def is_mean_of_layer_norm(c: Scope) -> bool:
    """Whether a ReduceMean is part of a LayerNormalization or RMSNormalization in single steps.

    Either the mean of squares of t, of which t / sqrt(mean + epsilon) is made; or the mean of x, where t = x - mean is
    normalised so. Other means over channels, of a gate say, are no normalisation.
    """
    if _normalises(c.node, c):
        return True
    x, output = c.node.inputs[0], c.node.outputs[0]
    centred = [user.outputs[0] for user in output.outputs if user.op == "Sub" and user.inputs[0] is x]
    means = [mean for t in centred for square in t.outputs for mean in _users(square, "ReduceMean")]
    return len(centred) == len(output.outputs) and any(_normalises(mean, c) for mean in means)


def _normalises(mean: Any, c: Scope) -> bool:
    """Whether t / sqrt(mean of t t + epsilon) is computed from a mean."""
    square = next(iter(mean.inputs[0].inputs), None)
    if square is None or not (_is_square(square, c) and _is_constant_sum(mean, c)):
        return False
    t, spread = square.inputs[0], _users(next(iter(mean.outputs[0].outputs)), "Sqrt", "Pow")
    inverse = [user for root in spread for user in _users(root, "Reciprocal", "Div", "Mul")]
    inverse += [user for node in inverse for user in _users(node, "Mul") if node.op == "Reciprocal"]
    return any(any(tensor is t for tensor in node.inputs) for node in inverse)


def _is_square(node: Any, c: Scope) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = c.walk.constants.get(node.inputs[1].name) if node.op == "Pow" else None
    return exponent is not None and (exponent.values == 2).all()


def _is_constant_sum(mean: Any, c: Scope) -> bool:
    """Whether a constant is added to the mean, and nothing else reads it."""
    users = mean.outputs[0].outputs
    return len(users) == 1 and users[0].op == "Add" and any(t.name in c.walk.constants for t in users[0].inputs)


def _users(node: Any, *operators: str) -> list[Any]:
    """The nodes of some kind that read output 0 of a node."""
    return [user for user in node.outputs[0].outputs if user.op in operators]
