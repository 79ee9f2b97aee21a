"""Which numbers a model that reads images expects for pixels: no file says it, but layers tell it apart.

What a layer makes of the images that it was trained on, before the function that follows, lies on both sides of zero:
BatchNormalization saw to that, and folding it moved the mean of these images into biases. Shown other pixels, biases
are not met by what they are there for: then channels have means far above their spread, and hardly anything depends on
the image any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.errors import SlimError
from onnxslim_merge.model_io import Source, runnable
from onnxslim_merge.probe import Probe, read_by, tap
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import InputSpec, Samples, image_axis, in_range, input_specs, is_float, synthetic_samples
from onnxslim_merge.settings import Settings

RANGES = ("0:255", "0:1", "-1:1")  # beside "normal", which is of mean 0 and deviation 1
EVIDENCE = 3.0  # means are so many times further out on normal pixels than on those of a range that is taken instead
USUAL = 0.3  # no range has been seen to bring means nearer
DOUBTFUL = 2.5  # the same on real images, of which only a note comes: right ones are as near as made-up ones (0014)
LAYERS = 8
IMAGES, ELEMENTS = (2, 16), 1 << 18  # least and most, and numbers in all
Place = tuple[str, int]  # a tensor, and its axis of channels
CONSTANT = 1e-6  # of the largest number: the spread of a channel that does not vary
WEIGHTED = ("Conv", "Gemm", "MatMul")


def pick_pixels(graph: gs.Graph, source: Source, settings: Settings, probe: Probe) -> str:
    """`--pixels`, or what it is for this model where it is "auto": one of RANGES if layers say so clearly."""
    if settings.pixels != "auto":
        return settings.pixels
    specs, places = input_specs(source.proto), list(_outputs(graph))[:LAYERS]
    if settings.calibration_data is not None or not places or not any(_is_image(spec, probe) for spec in specs):
        return "normal"
    samples = _made_up(specs, settings, probe)
    try:
        with _layers(graph, source, settings, places) as runner:
            normal = _outlying(runner, samples, places)
            if normal < EVIDENCE * USUAL or not np.isfinite(normal):
                return "normal"
            least, found = _nearest(runner, samples, specs, places)
    except SlimError:  # what cannot be run is said elsewhere
        return "normal"
    return found if normal >= EVIDENCE * least else "normal"


def doubts(graph: gs.Graph, source: Source, settings: Settings, probe: Probe, samples: Samples) -> str | None:
    """What to say of calibration data whose images hold other pixels than layers clearly expect; else None."""
    specs, places = input_specs(source.proto), list(_outputs(graph))[:LAYERS]
    if not places or not any(_is_image(spec, probe) for spec in specs):
        return None
    made_up = _made_up(specs, settings, probe)
    try:
        with _layers(graph, source, settings, places) as runner:
            real = _outlying(runner, samples.first(made_up.count, specs), places)
            if real < DOUBTFUL * USUAL or not np.isfinite(real):
                return None
            least, found = min(_nearest(runner, made_up, specs, places), (_outlying(runner, made_up, places), "normal"))
    except SlimError:
        return None
    if real < DOUBTFUL * least:
        return None
    what = "mean 0 and deviation 1" if found == "normal" else found
    return (
        f"the calibration data may be scaled wrongly: in the first layers means are {real:.1f} times their spread away"
        f" from zero, but {least:.1f} times on made-up images with pixels of {what};"
        " arrays have to hold what the model reads, for images there are --mean, --std and --scale"
    )


def _made_up(specs: Sequence[InputSpec], settings: Settings, probe: Probe) -> Samples:
    count = min(max(ELEMENTS // max(probe.elements, 1), IMAGES[0]), IMAGES[1])
    return synthetic_samples(specs, sizes=probe.inputs, count=count, seed=settings.seed, images="dead leaves")


@contextmanager
def _layers(graph: gs.Graph, source: Source, settings: Settings, places: Sequence[Place]) -> Iterator[Runner]:
    """A session of the first layers."""
    with runnable(graph, source) as model:
        yield Runner(
            _cut(model, [name for name, _ in places]), custom_ops=settings.custom_ops, label="the prepared model",
            lean=isinstance(model, Path),
        )  # fmt: skip


def _nearest(
    runner: Runner, samples: Samples, specs: Sequence[InputSpec], places: Sequence[Place]
) -> tuple[float, str]:
    """The range on which means are nearest to zero, behind how far they are."""
    return min((_outlying(runner, in_range(samples, specs, pixels), places), pixels) for pixels in RANGES)


def _is_image(spec: InputSpec, probe: Probe) -> bool:
    return is_float(spec.dtype) and image_axis(spec, tuple(probe.inputs.get(spec.name, ()))) is not None


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


def _outlying(runner: Runner, samples: Samples, places: Sequence[Place]) -> float:
    """How far from zero means are, in units of the spread: of the median channel, as a geometric mean of layers."""
    names, found = [name for name, _ in places], []
    runs = [runner.run(feeds, names) for feeds in samples.feeds]
    for name, axis in places:
        rows = np.concatenate([np.moveaxis(run[name], axis, -1).reshape(-1, run[name].shape[axis]) for run in runs])
        if not np.isfinite(rows).all():
            return np.inf
        mean, spread = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
        varies = spread > CONSTANT * np.abs(rows).max(initial=0.0)
        if varies.any():
            found.append(float(np.median(np.abs(mean[varies]) / spread[varies])))
    return float(np.exp(np.mean(np.log(np.maximum(found, CONSTANT))))) if found else np.inf


def _outputs(graph: gs.Graph) -> Iterator[Place]:
    """(tensor, axis of channels) of layers with weights, of BatchNormalization, and of constants added by channel.

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
            yield tensor.name, axis


def _axis(node: gs.Node) -> int | None:
    """Of channels, in what such a node makes; None for other nodes."""
    if node.op in WEIGHTED:
        held = any(hasattr(tensor, "values") for tensor in node.inputs[1:2])
        return (1 if node.op == "Conv" else -1) if held else None
    if node.op == "BatchNormalization":
        return 1
    if node.op in ("Add", "Sub"):
        shapes = [np.shape(tensor.values) for tensor in node.inputs if hasattr(tensor, "values")]
        wide = [axis - len(shape) for shape in shapes for axis, size in enumerate(shape) if size != 1]
        return wide[0] if len(wide) == 1 else None
    return None
