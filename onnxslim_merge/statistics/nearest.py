"""Made-up samples on which the BatchNormalizations of a network see nearly what they saw in training.

Zero-shot quantisation and generative inversion (Cai et al., "ZeroQ", 2020; Yin et al., "DeepInversion", 2020) change
the pixels of noise by gradients until the running statistics are met. Here many samples are made, and those stay whose
statistics together are nearest: that needs no gradients, only ONNX Runtime, and images keep their edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples.pools import Feed, Pool

POOL = 8  # as many samples as are wanted
TOGETHER, ELEMENTS = 16, 1 << 19  # run at a time: samples, and numbers in them
LARGEST = 1 << 31  # bytes of a model that ONNX Runtime takes in one piece
AXES_AS_INPUT = 18  # the opset of ReduceMean and its like since which they are no attribute
SILENT = 1e-6  # a deviation of BatchNormalization below which a channel tells nothing

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Known:
    """What one BatchNormalization gives: a tensor of a rank, with means and deviations in training, (channels,)."""

    tensor: str
    rank: int
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def nearest(
    model: onnx.ModelProto, analysis: Analysis, pool: Pool, *, batch: int, limit: int, custom_ops: Sequence[Path] = ()
) -> list[Feed] | None:
    """`pool.count` samples in batches of `batch`; None where no BatchNormalization can choose.

    model: of the analysed graph, in float32. limit: bytes of what is known of all samples, which bounds their number.
    Raises VerifyError if the model does not run.
    """
    known = [
        Known(tensor, analysis.labels[tensor][0].ndim, *(values.ravel() for values in flow.moments))
        for tensor, flow in analysis.flows.items()
        if flow.moments is not None
    ]
    if not known or model.ByteSize() >= LARGEST:
        return None
    wanted, width = -(-pool.count // pool.step), 2 * sum(norm.mean.size for norm in known)
    numbers = range(min(POOL * wanted, limit // (4 * width)))
    if len(numbers) <= wanted:
        return None
    runner = Runner(_reduced(model, known), custom_ops=custom_ops, label="the prepared model")
    rows, together = (
        np.empty((len(numbers), width), np.float32),
        max(min(ELEMENTS // max(pool.elements, 1), TOGETHER), 1),
    )
    for start in range(0, len(numbers), together):
        some = numbers[start : start + together]
        found = [_distances(runner.run(feed), known) for feed in pool.feeds(some, together)]
        rows[start : start + len(some)] = np.concatenate(found).reshape(len(some), -1, width).mean(1)
    usable = np.flatnonzero(np.isfinite(rows).all(1))
    if usable.size < wanted:
        return None
    chosen = usable[herded(rows[usable], wanted)]
    mixed = np.random.default_rng(pool.seed).permutation(chosen)  # the first ones chosen are not like the last
    return pool.feeds(mixed.tolist(), batch)


def herded(rows: Floats, count: int) -> NDArray[np.int64]:
    """Indices of `count` of the `rows` (n, d), none twice, taken one by one so that their sum stays nearest to 0.

    Herding (Welling 2009) towards the mean 0; the first of equals.
    """
    sizes, total = np.einsum("ij,ij->i", rows, rows), np.zeros(rows.shape[1], rows.dtype)
    chosen = np.empty(count, np.int64)
    for place in range(count):
        chosen[place] = index = int(np.argmin(sizes + 2 * (rows @ total)))
        sizes[index] = np.inf
        total += rows[index]
    return chosen


def _reduced(model: onnx.ModelProto, known: Sequence[Known]) -> onnx.ModelProto:
    """The model with means and sums of squares over positions, (samples, channels), and how many those are.

    Of what BatchNormalizations give, not of what they read: so ONNX Runtime can fold them into the layers before them.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    for place, norm in enumerate(known):
        axes, (*reduced, size) = np.arange(2, norm.rank, dtype=np.int64), _names(place)
        for kind, name in zip(("ReduceMean", "ReduceSumSquare"), reduced, strict=True):
            inputs = [norm.tensor]
            if not axes.size:
                node = helper.make_node(
                    *(("Identity", inputs) if kind == "ReduceMean" else ("Mul", inputs * 2)), [name]
                )
            elif opset < AXES_AS_INPUT:
                node = helper.make_node(kind, inputs, [name], axes=axes.tolist(), keepdims=0)
            else:
                made.graph.initializer.append(numpy_helper.from_array(axes, f"{name}.axes"))
                node = helper.make_node(kind, [*inputs, f"{name}.axes"], [name], keepdims=0)
            made.graph.node.append(node)
        made.graph.node.append(helper.make_node("Size", [norm.tensor], [size]))
        made.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in (*reduced, size))
    return made


def _names(place: int) -> tuple[str, str, str]:
    name = f"onnxslim_merge.{place}"
    return f"{name}.mean", f"{name}.squares", f"{name}.size"


def _distances(found: Mapping[str, NDArray[Any]], known: Sequence[Known]) -> Floats:
    """(samples, numbers): means and mean squares less what they were in training, in its deviations and variances.

    Every layer weighs the same, however many channels it has.
    """
    parts = []
    for place, norm in enumerate(known):
        mean, squares, size = (found[name].astype(np.float64) for name in _names(place))
        square, heard = squares * (mean.size / size), norm.spread > SILENT
        weight, spread = heard * norm.mean.size**-0.5, np.where(heard, norm.spread, 1.0)
        with np.errstate(invalid="ignore", over="ignore"):  # such samples are not taken
            parts.append(weight * (mean - norm.mean) / spread)
            parts.append(weight * ((square - 2 * norm.mean * mean + norm.mean**2) / spread**2 - 1))
    return np.concatenate(parts, 1).astype(np.float32)
