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
from onnx import TensorProto, helper, numpy_helper

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.parsing import size_text
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import Pool
from onnxslim_merge.samples.specs import Feed
from onnxslim_merge.statistics.batchnorm import spread_left

POOL = 8  # as many samples as are wanted
LEAST = 2  # as many; else a choice is hardly one
DRAWN = 1 << 28  # numbers in all samples that are made: large images take long
TOGETHER, ELEMENTS = 16, 1 << 19  # run at a time: samples, and numbers in them
SHARE = 8  # of the memory for least squares, what is known of all samples takes one part in so many
AXES_AS_INPUT = 18  # the opset of ReduceMean and its like since which they are no attribute
SILENT = 1e-6  # a deviation of BatchNormalization below which a channel tells nothing
FARTHEST = 1e3  # what is further off counts as this, so that one channel does not decide all

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Known:
    """What one BatchNormalization gives: a tensor of a rank, with means and deviations in training, (channels,)."""

    tensor: str
    rank: int
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def nearest(
    model: onnx.ModelProto | None,
    analysis: Analysis,
    pool: Pool,
    *,
    batch: int,
    memory: int,
    custom_ops: Sequence[Path] = (),
) -> tuple[list[Feed] | None, str | None]:
    """`pool.count` samples in batches of `batch`; else None, and why, if there is BatchNormalization that could choose.

    model: of the analysed graph, in float32; None if it is too large for one piece. memory: bytes for least squares, of
    which this takes a part. Raises VerifyError if the model does not run.
    """
    if pool.chosen is not None:
        return pool.feeds(pool.chosen, batch), None
    known = _known(analysis)
    if not known:
        return None, None
    if model is None:
        return None, "the model is too large to be run in one piece"
    wanted, width = -(-pool.count // pool.step), 2 * sum(norm.mean.size for norm in known)
    drawn = max(DRAWN // max(pool.elements * pool.step, 1), LEAST * wanted)
    numbers = range(min(POOL * wanted, drawn, memory // (SHARE * 4 * width)))
    if len(numbers) < LEAST * wanted:
        return None, f"that takes --memory-limit {size_text(LEAST * wanted * SHARE * 4 * width)}"
    runner = Runner(_reduced(model, known), custom_ops=custom_ops, label="the prepared model")
    rows = _rows(runner, pool, numbers, known)  # most of what this takes: nothing here copies all of it
    usable = np.flatnonzero([np.isfinite(row).all() for row in rows])
    if usable.size < wanted:
        return None, "on most of them it gives numbers that are not finite"
    np.clip(rows, -FARTHEST, FARTHEST, out=rows)
    chosen = usable[herded(rows if usable.size == len(rows) else rows[usable], wanted)]
    # Mixed, as those that were taken first are not like the last.
    pool.chosen = np.random.default_rng(pool.seed).permutation(chosen).tolist()
    return pool.feeds(pool.chosen, batch), None


def herded(rows: Floats, count: int) -> NDArray[np.int64]:
    """Indices of `count` of the `rows` (n, d), none twice, taken one by one so that their sum stays nearest to 0.

    Herding (Welling 2009) towards the mean 0; the first of equals.
    """
    sizes, total = np.einsum("ij,ij->i", rows, rows), np.zeros(rows.shape[1], rows.dtype)
    chosen, left = np.empty(count, np.int64), np.ones(len(rows), bool)
    for place in range(count):
        chosen[place] = index = int(np.argmin(np.where(left, sizes + 2 * (rows @ total), np.inf)))
        left[index] = False
        total += rows[index]
    return chosen


def _known(analysis: Analysis) -> list[Known]:
    """What each BatchNormalization gives, whose deviation is a little less than |gamma|."""
    nodes, found = {node.name: node for node in analysis.graph.nodes}, []
    for tensor, flow in analysis.flows.items():
        if flow.moments is None:
            continue
        (mean, spread), node = (values.ravel() for values in flow.moments), nodes.get(flow.node)
        if node is not None and (left := spread_left(node)) is not None:
            spread = spread * left
        found.append(Known(tensor, analysis.labels[tensor][0].ndim, mean, spread))
    return found


def _rows(runner: Runner, pool: Pool, numbers: range, known: Sequence[Known]) -> Floats:
    """What is known of each number, (numbers, 2 x channels of all)."""
    rows = np.empty((len(numbers), 2 * sum(norm.mean.size for norm in known)), np.float32)
    start, together = 0, max(min(ELEMENTS // max(pool.elements * pool.step, 1), TOGETHER), 1)
    while start < len(numbers):
        some = numbers[start : start + together]
        feeds = pool.feeds(some, together)
        runs = [runner.run(feed) for feed in feeds]
        if len(feeds) < len(some) and any(len(runs[0][_names(i)[0]]) != len(some) for i in range(len(known))):
            together = 1  # axis 0 of one is not that of the samples: what it gives has to be told apart
            continue
        parts = [_distances(run, known, len(some) // len(feeds)) for run in runs]
        rows[start : start + len(some)] = np.concatenate(parts)
        start += len(some)
    return rows


def _reduced(model: onnx.ModelProto, known: Sequence[Known]) -> onnx.ModelProto:
    """The model with means and sums of squares over positions, (samples, channels), and how many those are.

    Of what BatchNormalizations give, less its mean in training, so that squares keep their digits; not of what they
    read, so that ONNX Runtime can fold them into the layers before them.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    for place, norm in enumerate(known):
        axes, (*reduced, size) = np.arange(2, norm.rank, dtype=np.int64), _names(place)
        single, centre, centred = (f"onnxslim_merge.{place}.{part}" for part in ("single", "centre", "centred"))
        line = norm.mean.astype(np.float32).reshape(-1, *(1,) * (norm.rank - 2))
        made.graph.initializer.append(numpy_helper.from_array(line, centre))
        made.graph.node.append(helper.make_node("Cast", [norm.tensor], [single], to=TensorProto.FLOAT))
        made.graph.node.append(helper.make_node("Sub", [single, centre], [centred]))
        for kind, name in zip(("ReduceMean", "ReduceSumSquare"), reduced, strict=True):
            inputs = [centred]
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
        made.graph.node.append(helper.make_node("Size", [centred], [size]))
        made.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in (*reduced, size))
    return made


def _names(place: int) -> tuple[str, str, str]:
    name = f"onnxslim_merge.{place}"
    return f"{name}.mean", f"{name}.squares", f"{name}.size"


def _distances(found: Mapping[str, NDArray[Any]], known: Sequence[Known], numbers: int) -> Floats:
    """(numbers, 2 x channels): means and mean squares less what they were in training, in deviations and variances.

    Every layer weighs the same, however many channels it has. numbers: of samples, 1 if all of axis 0 is one.
    """
    parts = []
    for place, norm in enumerate(known):
        mean, squares, size = (found[name].astype(np.float64) for name in _names(place))
        heard = norm.spread > SILENT
        weight, spread = heard * norm.mean.size**-0.5, np.where(heard, norm.spread, 1.0)
        with np.errstate(invalid="ignore", over="ignore"):  # such samples are not taken
            both = weight * mean / spread, weight * (squares * (mean.size / size) / spread**2 - 1)
            parts += [part.reshape(numbers, -1, norm.mean.size).mean(1).astype(np.float32) for part in both]
    return np.concatenate(parts, 1)
