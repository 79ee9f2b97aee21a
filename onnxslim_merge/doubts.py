"""Whether calibration data hold what the model reads: no file says how inputs are scaled, but its first layers tell.

BatchNormalization knows the spread that it saw in training. Where it is folded, right images bring means as near to
zero as made-up images of the right range do (`pixels`). Pixels of 0..255 in place of small numbers escape that where
BatchNormalization is gone, as means and spreads grow alike (decision 0014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.errors import SlimError
from onnxslim_merge.model_io import Source
from onnxslim_merge.pixels import (
    USUAL,
    Seen,
    first_layers,
    has_images,
    looked_at,
    made_up,
    nearest_range,
    opened,
    outlying,
    typical,
)
from onnxslim_merge.probe import Probe
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import InputSpec, Samples, input_specs, is_float
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics.batchnorm import MEAN, spread_left

Floats = NDArray[np.float64]
SAMPLES, ELEMENTS = (2, 512), 1 << 18  # least and most that are looked at, and numbers in all
ROWS = 16  # of layers with fewer, spreads say nothing
DOUBTFUL = 2.5  # means are so many times further out than on made-up images; right ones are as near (decision 0014)
TRAINED = 2  # so many BatchNormalizations tell
SPREAD, WIDE = 3.0, 10.0  # a spread that differs so many times from that in training: of images, of other inputs


def doubts(graph: gs.Graph, source: Source, settings: Settings, probe: Probe, samples: Samples) -> str | None:
    """What to say of calibration data that are scaled otherwise than layers clearly expect; else None."""
    specs, layers = input_specs(source.proto), first_layers(graph)
    if not layers or not any(is_float(spec.dtype) for spec in specs):
        return None
    images = has_images(specs, probe)
    count = min(max(ELEMENTS // max(probe.elements, 1), SAMPLES[0]), SAMPLES[1])
    some = samples.first(count, specs)
    try:
        with opened(graph, source, settings, layers) as runner:
            real = _enough(looked_at(runner, some, layers))
            found = _unlike_training(real, SPREAD if images else WIDE)
            if found is None and real and images:
                found = _unlike_made_up(runner, real, made_up(specs, settings, probe), specs)
    except SlimError:  # what cannot be run is said elsewhere
        return None
    if found is None:
        return None
    return (
        f"the calibration data may be scaled wrongly: {found}; arrays have to hold what the model reads, for images"
        " there are --mean, --std and --scale; on wrong data fidelity can look perfect and says nothing"
    )


def _enough(found: Sequence[Seen] | None) -> list[Seen]:
    """Layers of which means and spreads tell something."""
    return [seen for seen in found or () if seen.rows >= ROWS]


def _unlike_training(real: Sequence[Seen], most: float) -> str | None:
    """most: how many times spreads may differ."""
    ratio = times_as_in_training(real)
    if ratio is None or 1 / most <= ratio <= most:
        return None
    return f"the first BatchNormalizations make of it numbers that spread {ratio:.2g} times as much as in training"


def times_as_in_training(real: Sequence[Seen]) -> float | None:
    """The spread of what the first BatchNormalizations make, for 1 in training; None where none tells."""
    ratios = []
    for seen in real:
        trained = _in_training(seen.layer.node)
        if trained is None or trained.shape != seen.spread.shape:  # old files have it by position
            continue
        heard = trained > 1e-3 * trained.max()
        if heard.any() and seen.varies[heard].mean() > 0.5:  # else samples tell of too few channels
            ratios.append(float(np.median(seen.spread[heard] / trained[heard])))
    return typical(ratios[:TRAINED]) if ratios else None


def _in_training(node: gs.Node) -> Floats | None:
    """How far what BatchNormalization made spread, (channels,); None for other nodes, and if its mean is 0.

    So it is before any training, and where the statistics were folded into scale and offset.
    """
    held = node.op == "BatchNormalization" and all(hasattr(tensor, "values") for tensor in node.inputs[1:])
    left = spread_left(node) if held and np.any(node.inputs[MEAN].values) else None
    return None if left is None else np.abs(np.asarray(node.inputs[1].values, np.float64).ravel()) * left


def _unlike_made_up(runner: Runner, real: Sequence[Seen], trial: Samples, specs: Sequence[InputSpec]) -> str | None:
    far, layers = outlying(real), [seen.layer for seen in real]
    if far < DOUBTFUL * USUAL or not np.isfinite(far):  # nothing varies: that is said elsewhere
        return None
    least, found = min(
        nearest_range(runner, trial, specs, layers), (outlying(looked_at(runner, trial, layers)), "normal")
    )
    if far < DOUBTFUL * least:
        return None
    what = "mean 0 and deviation 1" if found == "normal" else found
    return (
        f"in the first layers means are {far:.1f} times their spread away from zero, but {least:.1f} times on made-up"
        f" images with pixels of {what}"
    )
