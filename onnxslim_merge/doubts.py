"""Whether calibration data hold what the model reads: no file says how inputs are scaled, but its first layers tell.

BatchNormalization knows the spread that it saw in training. Where it is folded, right images bring means as near to
zero as made-up images of the right range do (`pixels`). Pixels of 0..255 in place of small numbers escape that, as
means and spreads grow alike; but then biases are nothing beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim_merge.errors import SlimError
from onnxslim_merge.model_io import Source
from onnxslim_merge.pixels import (
    USUAL,
    Layer,
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

SAMPLES, ROWS = 8, 16  # as many samples are looked at, and of layers with fewer rows spreads say nothing
DOUBTFUL = 2.5  # means are so many times further out than on made-up images; right ones are as near (decision 0014)
TRAINED, SPREAD = 2, 3.0  # so many BatchNormalizations tell, and spreads differ so many times from those in training
LARGE = 16.0  # inputs that reach this may be pixels of 0..255
FAINT, HEARD = 0.03, 0.01  # biases below one share of the spread are as good as none; above the other they count


def doubts(graph: gs.Graph, source: Source, settings: Settings, probe: Probe, samples: Samples) -> str | None:
    """What to say of calibration data that are scaled otherwise than layers clearly expect; else None."""
    specs, layers = input_specs(source.proto), first_layers(graph)
    if not layers or not any(is_float(spec.dtype) for spec in specs):
        return None
    try:
        trial = made_up(specs, settings, probe)
        some = samples.first(max(trial.count, SAMPLES), specs)
        with opened(graph, source, settings, layers) as runner:
            real = _enough(looked_at(runner, some, layers))
            found = _unlike_training(real)
            if found is None and real and has_images(specs, probe):
                found = _unlike_made_up(runner, real, trial, specs, layers)
                found = found or _without_biases(runner, real, some, layers)
    except SlimError:  # what cannot be run is said elsewhere
        return None
    if found is None:
        return None
    return (
        f"the calibration data may be scaled wrongly: {found}; arrays have to hold what the model reads, for images"
        " there are --mean, --std and --scale"
    )


def _enough(found: Sequence[Seen] | None) -> list[Seen]:
    """Layers of which means and spreads tell something."""
    return [seen for seen in found or () if seen.rows >= ROWS]


def _unlike_training(real: Sequence[Seen]) -> str | None:
    ratios = []
    for seen in real:
        trained = seen.layer.spread
        if trained is None or trained.shape != seen.spread.shape:  # old files have it by position
            continue
        if (heard := trained > 1e-3 * trained.max()).any():
            ratios.append(float(np.median(seen.spread[heard] / trained[heard])))
    ratio = typical(ratios[:TRAINED])
    if not ratios or 1 / SPREAD <= ratio <= SPREAD:
        return None
    times = f"{ratio:.2g} times"
    return f"the first BatchNormalizations make of it numbers that spread {times} as much as in training"


def _unlike_made_up(
    runner: Runner, real: Sequence[Seen], trial: Samples, specs: Sequence[InputSpec], layers: Sequence[Layer]
) -> str | None:
    far = outlying(real)
    if far < DOUBTFUL * USUAL:
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


def _without_biases(runner: Runner, real: Sequence[Seen], samples: Samples, layers: Sequence[Layer]) -> str | None:
    """Two signs have to agree: biases count, and means come nearer to zero, on the same images in small numbers."""
    floats = (array for feed in samples.feeds for array in feed.values() if is_float(array.dtype))
    largest = max(float(np.abs(array).max(initial=0)) for array in floats)
    if largest < LARGE or (share := _biases(real)) >= FAINT:
        return None
    other = _enough(looked_at(runner, _standard(samples), layers))
    better = _biases(other)
    if better < HEARD or not outlying(other) < outlying(real):
        return None
    return (
        f"its numbers reach {largest:.3g}, and biases of the first layers are {share:.1g} of the spread there, but"
        f" {better:.1g} on the same data with mean 0 and deviation 1"
    )


def _biases(found: Sequence[Seen]) -> float:
    """How large biases are, in units of the spread; as `outlying`."""
    shares = []
    for seen in found:
        bias = seen.layer.bias
        if bias is not None and bias.size in (1, seen.spread.size) and seen.varies.any():
            size = np.broadcast_to(np.abs(bias), seen.spread.shape)[seen.varies]
            shares.append(float(np.median(size / seen.spread[seen.varies])))
    return typical(shares)


def _standard(samples: Samples) -> Samples:
    """The same, every input of floats with mean 0 and deviation 1."""
    feeds = [dict(feed) for feed in samples.feeds]
    for name in (name for name, array in feeds[0].items() if is_float(array.dtype)):
        arrays = [feed[name].astype(np.float32) for feed in feeds]
        mean = float(np.mean([array.mean() for array in arrays]))
        spread = float(np.mean([array.std() for array in arrays])) or 1.0
        for feed, array in zip(feeds, arrays, strict=True):
            feed[name] = ((array - mean) / spread).astype(feed[name].dtype)
    return replace(samples, feeds=feeds)
