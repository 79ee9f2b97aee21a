"""What a rule may say about a node: the words that every later stage works with, free of operators.

A rule says how labels travel (through the `Scope`), and leaves claims: which constant axis *produces* channels, which
one *consumes* them, how a value *flows* from input to output, which numbers *count* channels, and what it refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.labels import Ids


class Degree(IntEnum):
    """What is known of the function f that every channel passes through on its way; the larger wins when composed."""

    LINEAR = 0  # f(sx + ty) = s f(x) + t f(y)
    HOMOGENEOUS = 1  # f(sx) = s f(x) for s > 0
    OTHER = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an axis stays whole. `axis` None means every axis of the tensor."""

    tensor: str
    axis: int | None
    node: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        """Node, operator and reason, as groups report them."""
        return f"{self.node or self.tensor} ({self.op_type}): {self.reason}"


@dataclass(frozen=True, slots=True)
class BiasSlot:
    """Where a bias enters: input `slot` of `node` times `gain`, or, with slot None, an Add to be put behind output 0.

    axis: the output axis that the bias runs along; rank: of the output; output: the tensor that holds the biased sum.
    vector: the input must be a vector; otherwise it broadcasts against the output.
    """

    node: str
    slot: int | None
    axis: int
    rank: int
    output: str
    gain: float = 1.0
    vector: bool = False


@dataclass(frozen=True, slots=True)
class Producer:
    """`axis` of constant `weight` (shape: any) makes the channels `labels` (n,) of tensor `output`.

    A single channel has no label: then `labels` is empty. groups: each reads a part of the input of its own.
    """

    node: str
    op_type: str
    weight: str
    slot: int
    axis: int
    labels: Ids
    output: str
    bias: BiasSlot
    gain: float = 1.0
    groups: int = 1

    @property
    def is_conv(self) -> bool:
        """Whether the papers' settings for convolutions apply."""
        return self.op_type.startswith("Conv")


@dataclass(frozen=True, slots=True)
class Carrier:
    """`axis` of constant `weight` holds channels of `output` that it neither makes nor contracts (a depthwise kernel).

    What scales them right behind can go into the weight, and what shifts them into the bias.
    """

    node: str
    weight: str
    slot: int
    axis: int
    output: str
    bias: BiasSlot


@dataclass(frozen=True, slots=True)
class Window:
    """How a weight slides over its input: the output is linear in it, and nothing else enters but the bias.

    Taps lie on the spatial axes of the input, all but the first and the channels', in the weight's order; without any,
    each output position reads the one input position of the same rank. begin: the padding before each axis, or "upper"
    or "lower" where it is what keeps the size (the odd one comes behind, or before). transposed: the input slides.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begin: tuple[int, ...] | Literal["upper", "lower"] = ()
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Consumer:
    """`axis` of constant `weight` contracts the channels `labels` (n,) on `x_axis` of input `x_slot`, tensor `x`.

    bias None: no constant can be added to the outputs, so that a mean is lost.
    fill: the integer that stands for zero in x, if x is of integers.
    Outputs lie on `out_axis` of the weight; every other axis of it is a tap. The effective weight is `gain` times it.
    groups: inputs and outputs fall into as many equal parts, and each part of the outputs reads its part of the inputs.
    A constant m on one channel shows at an inner output as tap_gain x gain x (sum of its taps) x m, on average.
    window: how outputs come from inputs, None where that is not said.
    """

    node: str
    op_type: str
    x: str
    x_slot: int
    x_axis: int
    weight: str
    slot: int
    axis: int
    out_axis: int
    labels: Ids
    output: str
    bias: BiasSlot | None
    gain: float = 1.0
    tap_gain: float = 1.0
    groups: int = 1
    fill: float | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Contraction:
    """The channels `labels` (n,) on `x_axis` of input `x_slot`, tensor `x`, are summed over without a weight of ours.

    A zero in one operand is as good as removal in all. kind: or they are averaged over, or normalised, with statistics
    of those that are left, which changes the result (asked for with `--allow-inexact`).
    """

    node: str
    x: str
    x_slot: int
    x_axis: int
    labels: Ids
    kind: Literal["sum", "mean", "layernorm", "rmsnorm"] = "sum"


@dataclass(frozen=True, slots=True)
class Balance:
    """A grouped operator reads or makes the channels `labels` (groups, members): all groups keep equally many."""

    node: str
    op_type: str
    labels: Ids


@dataclass(frozen=True, slots=True)
class Ragged:
    """Constant `tensor` holds channels `labels` (r, n) along `axis`, which differ by index r of its axis `by`."""

    tensor: str
    axis: int
    by: int
    labels: Ids


@dataclass(frozen=True, slots=True)
class Flow:
    """How the value of each channel of a tensor comes from the same channel of `inputs`.

    kind: `same` (one function for all channels, of a degree), `affine` (times `scale`, plus `offset`, per channel),
    `sum` (joint function of several inputs, of a degree), `product` (or quotient),
    `move` (rearranged, unchanged), `private` (not expressible).
    scale, offset: broadcast against the tensor.
    moments: (mean, spread) that BatchNormalization guarantees on the training set: (beta, |gamma|).
    elementwise: a `same` flow that is the node run on each number alone. keeps_mean: it averages or repeats.
    equivariant: f(a x + c) = a f(x) + c for a > 0, as pools are; a linear one for every a.
    """

    kind: Literal["same", "affine", "sum", "product", "move", "private"]
    inputs: tuple[str, ...]
    degree: Degree = Degree.LINEAR
    scale: NDArray[np.float64] | None = None
    offset: NDArray[np.float64] | None = None
    moments: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    node: str = ""
    elementwise: bool = False
    keeps_mean: bool = False
    equivariant: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """A number that holds how many indices an axis has.

    Either attribute `name` of `node` (element `index` of it, or None: the attribute is one number), or, with node "",
    element `index` of the constant `name`.
    labels: the factors along that axis, each (n, m): index i stays if every factor keeps one of its m labels.
    """

    node: str
    name: str
    index: int | None
    labels: tuple[Ids, ...]


@dataclass(frozen=True, slots=True)
class Indices(Count):
    """Constant `name` lists positions among the n of `labels`: who leaves is dropped, the others are numbered anew."""
