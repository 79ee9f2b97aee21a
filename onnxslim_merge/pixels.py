"""Which numbers a model that reads images expects for pixels: no file says it, but layers tell it apart.

What a layer makes of the images that it was trained on, before the function that follows, lies on both sides of zero:
BatchNormalization saw to that, and folding it moved the mean of these images into biases. Shown other pixels, biases
are not met by what they are there for: then channels have means far above their spread, and hardly anything depends on
the image any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.errors import SlimError
from onnxslim_merge.model_io import Source, runnable
from onnxslim_merge.probe import Probe, read_by, tap
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import InputSpec, Samples, image_axis, in_range, input_specs, is_float, synthetic_samples
from onnxslim_merge.settings import Settings

RANGES = ("0:255", "0:1", "-1:1")  # beside "normal", which is of mean 0 and deviation 1
EVIDENCE = 3.0  # means are so many times further out on normal pixels than on those of a range that is taken instead
USUAL = 0.3  # no range has been seen to bring means nearer
LAYERS = 8
IMAGES, ELEMENTS = (2, 16), 1 << 18  # least and most, and numbers in all
CONSTANT = 1e-6  # of the largest number: the spread of a channel that does not vary
WEIGHTED = ("Conv", "Gemm", "MatMul")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer makes: a tensor, its axis of channels, and the node that added biases last."""

    tensor: str
    axis: int
    node: gs.Node


@dataclass(frozen=True, slots=True)
class Seen:
    """A layer on some samples: rows, and of its channels (n,) the mean and the spread, and which of them vary."""

    layer: Layer
    rows: int
    mean: Floats
    spread: Floats
    varies: NDArray[np.bool_]


def pick_pixels(graph: gs.Graph, source: Source, settings: Settings, probe: Probe) -> str:
    """`--pixels`, or what it is for this model where it is "auto": one of RANGES if layers say so clearly."""
    if settings.pixels != "auto":
        return settings.pixels
    specs, layers = input_specs(source.proto), first_layers(graph)
    if settings.calibration_data is not None or not layers or not has_images(specs, probe):
        return "normal"
    samples = made_up(specs, settings, probe)
    try:
        with opened(graph, source, settings, layers) as runner:
            normal = outlying(looked_at(runner, samples, layers))
            if normal < EVIDENCE * USUAL or not np.isfinite(normal):
                return "normal"
            least, found = nearest_range(runner, samples, specs, layers)
    except SlimError:  # what cannot be run is said elsewhere
        return "normal"
    return found if normal >= EVIDENCE * least else "normal"


def first_layers(graph: gs.Graph) -> list[Layer]:
    """The first LAYERS that tell something."""
    return list(itertools.islice(_outputs(graph), LAYERS))


def has_images(specs: Sequence[InputSpec], probe: Probe) -> bool:
    """Whether any input is an image of floats."""
    shapes = {spec: tuple(probe.inputs.get(spec.name, ())) for spec in specs}
    return any(is_float(spec.dtype) and image_axis(spec, shape) is not None for spec, shape in shapes.items())


def made_up(specs: Sequence[InputSpec], settings: Settings, probe: Probe) -> Samples:
    """Images to try."""
    count = min(max(ELEMENTS // max(probe.elements, 1), IMAGES[0]), IMAGES[1])
    return synthetic_samples(specs, sizes=probe.inputs, count=count, seed=settings.seed, images="dead leaves")


@contextmanager
def opened(graph: gs.Graph, source: Source, settings: Settings, layers: Sequence[Layer]) -> Iterator[Runner]:
    """A session of these layers."""
    with runnable(graph, source) as model:
        yield Runner(
            _cut(model, [layer.tensor for layer in layers]), custom_ops=settings.custom_ops, label="the prepared model",
            lean=isinstance(model, Path),
        )  # fmt: skip


def nearest_range(
    runner: Runner, samples: Samples, specs: Sequence[InputSpec], layers: Sequence[Layer]
) -> tuple[float, str]:
    """The range on which means are nearest to zero, behind how far they are."""
    ranges = ((in_range(samples, specs, pixels), pixels) for pixels in RANGES)
    return min((outlying(looked_at(runner, scaled, layers)), pixels) for scaled, pixels in ranges)


def looked_at(runner: Runner, samples: Samples, layers: Sequence[Layer]) -> list[Seen] | None:
    """What layers make of samples; None where that are no finite numbers."""
    names, found = [layer.tensor for layer in layers], []
    runs = [runner.run(feeds, names) for feeds in samples.feeds]
    for layer in layers:
        made = [run[layer.tensor] for run in runs]
        rows = np.concatenate([np.moveaxis(one, layer.axis, -1).reshape(-1, one.shape[layer.axis]) for one in made])
        if not np.isfinite(rows).all():
            return None
        mean, spread = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
        found.append(Seen(layer, len(rows), mean, spread, spread > CONSTANT * np.abs(rows).max(initial=0.0)))
    return found


def outlying(found: Sequence[Seen] | None) -> float:
    """How far from zero means are, in units of the spread: of the median channel, as a geometric mean of layers."""
    seen = [one for one in found or () if one.varies.any()]
    return typical(float(np.median(np.abs(one.mean[one.varies]) / one.spread[one.varies])) for one in seen)


def typical(numbers: Iterable[float]) -> float:
    """The geometric mean; infinity of none."""
    found = list(numbers)
    return float(np.exp(np.mean(np.log(np.maximum(found, CONSTANT))))) if found else np.inf


def _cut(model: onnx.ModelProto | Path, names: list[str]) -> onnx.ModelProto | Path:
    """The part of the model that makes these tensors; of a file, another file beside it."""
    cut = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
    del cut.graph.output[:]
    tap(cut, names)
    wanted, nodes = set(names), list[onnx.NodeProto]()
    for node in reversed(cut.graph.node):
        if wanted & {*node.output}:
            nodes.append(node)
            wanted |= set(read_by(node))
    idle = {tensor.name for tensor in cut.graph.initializer} - wanted
    for field, kept in (
        (cut.graph.node, nodes[::-1]),
        (cut.graph.initializer, [tensor for tensor in cut.graph.initializer if tensor.name not in idle]),
        (cut.graph.input, [value for value in cut.graph.input if value.name not in idle]),
    ):
        del field[:]
        field.extend(kept)
    if not isinstance(model, Path):
        return cut
    target = model.with_name("cut.onnx")
    target.write_bytes(cut.SerializeToString())
    return target


def _outputs(graph: gs.Graph) -> Iterator[Layer]:
    """Layers with weights, BatchNormalization, and constants added by channel.

    What is only half-way, as BatchNormalization or a bias that is added apart alone reads it, is left out.
    """
    exposed = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        axis = _axis(node)
        if axis is None:
            continue
        tensor = node.outputs[0]
        after = tensor.outputs[0] if len(tensor.outputs) == 1 and tensor.name not in exposed else None
        if after is None or _axis(after) is None or after.op in WEIGHTED:
            yield Layer(tensor.name, axis, node)


def _axis(node: gs.Node) -> int | None:
    """Of channels, in what such a node makes; None for other nodes."""
    if node.op in WEIGHTED:
        held = any(hasattr(tensor, "values") and len(tensor.shape) > 1 for tensor in node.inputs[1:2])
        return (1 if node.op == "Conv" else -1) if held else None
    if node.op == "BatchNormalization":
        return 1
    if node.op in ("Add", "Sub"):
        shapes = [np.shape(tensor.values) for tensor in node.inputs if hasattr(tensor, "values")]
        wide = [axis - len(shape) for shape in shapes for axis, size in enumerate(shape) if size != 1]
        return wide[0] if len(wide) == 1 else None
    return None
