"""Weights that are not stored as they are used: behind DequantizeLinear, or Quantize and Dequantize, of constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Operators whose integer constants stand for real numbers, or are zero points of such.
INTEGERS = QUANTISERS | {"QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul"}
MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Identity"})
DOMAINS = (None, "", "ai.onnx", "com.microsoft")


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor that `node` makes of constants alone. Its channels can leave, but its values are never refitted.

    It answers what rules and views ask of a constant: `shape`, `dtype`, `values`. place: (node, slot) where the stored
    integers are read, if that is an operator on integers, and no tensor holds the values.
    """

    name: str
    node: gs.Node
    inputs: tuple[gs.Constant | Derived | None, ...]
    shape: tuple[int, ...]
    place: tuple[str, int] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values at run time."""
        like = self.inputs[1 if self.node.op == "DequantizeLinear" else 0]
        return np.dtype(np.float32) if like is None else np.dtype(like.dtype)

    @property
    def values(self) -> NDArray[Any]:
        """The numbers that the tensor has at run time, computed anew at each call."""
        function: Callable[..., NDArray[Any]] = _FUNCTIONS.get(self.node.op, _reshaped)
        return np.asarray(function(self, *(None if t is None else _values(t) for t in self.inputs)))

    @property
    def stored(self) -> gs.Constant | None:
        """The int32 constant of a bias, read once, that can be changed in steps of its scale; None for all else."""
        first = self.inputs[0]
        if self.node.op != "DequantizeLinear" or not isinstance(first, gs.Constant) or first.dtype != np.int32:
            return None
        return first if self.place or len(self.node.outputs[0].outputs) == 1 else None

    def quantised(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """The integers of `stored` that come nearest to `values`."""
        scale, zero = (self._along(None if t is None else _values(t)) for t in (*self.inputs, None)[1:3])
        limits = np.iinfo(np.int32)
        return (np.rint(values / scale) + zero).clip(limits.min, limits.max).astype(np.int32)

    def _along(self, parameter: NDArray[Any] | None) -> NDArray[np.float64]:
        """A scale or zero point, so that it broadcasts; 0 where there is none."""
        found = np.zeros(()) if parameter is None else np.asarray(parameter).astype(np.float64)
        axis = int(self.node.attrs.get("axis", 1)) % max(len(self.shape), 1)
        return found.reshape([-1 if a == axis else 1 for a in range(len(self.shape))]) if found.size > 1 else found


def derived_constants(
    nodes: Iterable[gs.Node], constants: Mapping[str, gs.Constant], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Derived]:
    """What quantisers, and moves of what they make, compute from constants alone, by name. Blocks are left out."""
    known: dict[str, gs.Constant | Derived] = dict(constants)
    found: dict[str, Derived] = {}
    for node in nodes:
        inputs = [known.get(t.name) for t in node.inputs]
        given = [t.name for t, constant in zip(node.inputs, inputs, strict=True) if t.name and constant is None]
        if given or not inputs or node.domain not in DOMAINS or node.outputs[0].name not in shapes:
            continue
        moved = node.op in MOVES and isinstance(inputs[0], Derived)
        if moved or (node.op in QUANTISERS and not node.attrs.get("block_size")):
            name = node.outputs[0].name
            found[name] = known[name] = Derived(name, node, tuple(inputs), tuple(shapes[name]))
    return found


def are_numbers(tensor: gs.Constant) -> bool:
    """Whether the integers of a constant stand for real numbers, so that its axes can be channels."""
    return any(node.op in INTEGERS and node.domain in DOMAINS for node in tensor.outputs)


def dequantised(constants: dict[str, gs.Constant | Derived], node: str, names: list[str], axis: int) -> str:
    """Enter the real numbers behind an operator's integer weight, from its names [integers, scale, zero point].

    Returns the name by which claims can call them: a tensor that the graph does not have.
    """
    integers, scale, zero = (constants[name] for name in names)
    alone = gs.Node("DequantizeLinear", name=node, attrs={"axis": axis})
    name = f"{node}.dequantised"
    constants[name] = Derived(name, alone, (integers, scale, zero), tuple(int(n) for n in integers.shape))
    return name


def integer_bias(
    constants: dict[str, gs.Constant | Derived], place: tuple[str, int], bias: str, scale: NDArray[np.float64]
) -> str:
    """Enter the real numbers behind the int32 vector `bias` at `place` = (node, slot), each in steps of `scale`."""
    integers, name = constants[bias], f"{place[0]}.bias.dequantised"
    steps = gs.Constant(f"{name}.scale", np.broadcast_to(scale, integers.shape).astype(np.float32))
    alone = gs.Node("DequantizeLinear", name=place[0], attrs={"axis": 0})
    constants[name] = Derived(name, alone, (integers, steps, None), tuple(int(n) for n in integers.shape), place)
    return name


def stored_name(constants: Mapping[str, gs.Constant | Derived], name: str, axis: int) -> str | None:
    """The constant that holds the numbers of a weight in the same layout, and nothing of whose scale runs along `axis`.

    The weight itself, or the integers that DequantizeLinear, and nothing else, makes it of; None for anything else.
    """
    weight = constants[name]
    if not isinstance(weight, Derived):
        return name
    first, *scales = weight.inputs
    if weight.node.op != "DequantizeLinear" or not isinstance(first, gs.Constant) or len(first.outputs) != 1:
        return None
    split = any(t is not None and np.prod(t.shape) > 1 for t in scales)
    return None if split and int(weight.node.attrs.get("axis", 1)) % len(weight.shape) == axis else str(first.name)


def _values(tensor: gs.Constant | Derived) -> NDArray[Any]:
    return np.asarray(tensor.values)


def _dequantised(of: Derived, x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None = None) -> NDArray[Any]:
    return (x.astype(np.float64) - of._along(zero)) * of._along(scale)


def _quantised(of: Derived, x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None = None) -> NDArray[Any]:
    steps = x.astype(np.float64) / of._along(scale)
    kind = int(of.node.attrs.get("output_dtype") or 0)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind) if kind else np.uint8) if zero is None else zero.dtype
    if dtype.name not in _BOUNDS and dtype.kind not in "iu":  # float8 rounds by itself
        return steps.astype(dtype)
    low, high = _BOUNDS.get(dtype.name) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return (np.rint(steps) + of._along(zero)).clip(low, high).astype(dtype)


def _transposed(of: Derived, x: NDArray[Any]) -> NDArray[Any]:
    return x.transpose(of.node.attrs.get("perm") or None)


def _reshaped(of: Derived, x: NDArray[Any], *_: Any) -> NDArray[Any]:
    return x.reshape(of.shape)


_BOUNDS = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
_FUNCTIONS: dict[str, Callable[..., NDArray[Any]]] = {
    "DequantizeLinear": _dequantised,
    "QuantizeLinear": _quantised,
    "Transpose": _transposed,
}
