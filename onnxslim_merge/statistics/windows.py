"""What a consumer reads at each of its output positions: rows of features, taps x channels, padding as zeros."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.claims import Consumer, Window

Ids = NDArray[np.int64]


def share_of_taps(window: Window, space: Sequence[int]) -> float:
    """How many of the taps meet an input, on average over outputs; padding is taken to be alike on both sides.

    space: the spatial sizes of the input.
    """
    share = 1.0
    for axis, size in enumerate(space if window.kernel else ()):
        stride, reach = window.strides[axis], (window.kernel[axis] - 1) * window.dilations[axis] + 1
        given = isinstance(window.begin, str)
        pads = 0 if given else 2 * int(window.begin[axis])
        if window.transposed:
            out = size * stride if given else (size - 1) * stride + reach - pads
        else:
            out = -(-size // stride) if given else (size + pads - reach) // stride + 1
        share *= float((_line(window, axis, size, max(out, 1)) >= 0).mean())
    return share


def output_positions(y: NDArray[Any], axis: int) -> int:
    """How many positions an output has, all samples together."""
    return int(y.size // y.shape[axis])


def output_rows(y: NDArray[Any], axis: int, where: Ids | None) -> NDArray[Any]:
    """`y` at the positions `where` (all: None), in the order of its other axes: (rows, outputs), in its own type."""
    rows = np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis])
    return rows if where is None else rows[where]


def input_rows(
    consumer: Consumer, x: NDArray[Any], outputs: tuple[int, ...], where: Ids | None, channels: Ids
) -> NDArray[Any]:
    """The features behind the output positions `where` (all: None) of a consumer: (rows, taps * channels).

    x: its input. outputs: the shape of its output without the axis of channels. channels: positions on the input's
    axis of channels. Features lie tap by tap, channels within. Raises ValueError where the consumer has no window.
    """
    window = consumer.window
    if window is None:
        raise ValueError(f"{consumer.node}: how its outputs come from its inputs is not known")
    rows = np.take(np.moveaxis(x, consumer.x_axis, -1), channels, axis=-1)
    flat = rows.reshape(int(np.prod(rows.shape[:-1])), channels.size)  # which may be 0
    if not window.kernel:
        return flat if where is None else flat[where]
    space = rows.shape[1:-1]
    chosen = np.unravel_index(np.arange(int(np.prod(outputs))) if where is None else where, outputs)
    lines = [_line(window, axis, space[axis], outputs[axis + 1])[chosen[axis + 1]] for axis in range(len(space))]
    flat = np.concatenate([flat, np.zeros((1, channels.size), flat.dtype)])  # the padding reads this row
    taps = list(itertools.product(*(range(size) for size in window.kernel)))
    found = np.empty((chosen[0].size, len(taps), channels.size), flat.dtype)
    for index, tap in enumerate(taps):
        place, inside = chosen[0], np.ones(chosen[0].size, bool)
        for axis, size in enumerate(space):
            at = lines[axis][:, tap[axis]]
            place, inside = place * size + at, inside & (at >= 0)
        found[:, index] = flat[np.where(inside, place, flat.shape[0] - 1)]
    return found.reshape(chosen[0].size, -1)


def _line(window: Window, axis: int, size: int, out: int) -> Ids:
    """Along one spatial axis, the input position of each output position and tap, -1 in the padding: (out, taps)."""
    kernel, stride, dilation = window.kernel[axis], window.strides[axis], window.dilations[axis]
    begin = _begin(window, axis, size, out)
    reach = np.arange(kernel) * dilation
    if not window.transposed:
        at = (np.arange(out) * stride - begin)[:, None] + reach
    else:
        spread = (np.arange(out) + begin)[:, None] - reach
        at = np.where(spread % stride == 0, spread // stride, -1)
    return np.where((at >= 0) & (at < size), at, -1)


def _begin(window: Window, axis: int, size: int, out: int) -> int:
    if not isinstance(window.begin, str):
        return window.begin[axis]
    reach, stride = (window.kernel[axis] - 1) * window.dilations[axis] + 1, window.strides[axis]
    total = (size - 1) * stride + reach - out if window.transposed else (out - 1) * stride + reach - size
    total = max(total, 0)
    return total // 2 if window.begin == "upper" else total - total // 2
