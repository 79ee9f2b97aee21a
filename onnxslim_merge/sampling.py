"""Which samples a run looks at: the calibration data, or synthetic ones at the sizes of the probe."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxslim_merge.model_io import Source
from onnxslim_merge.pixels import pick_pixels
from onnxslim_merge.probe import Probe
from onnxslim_merge.samples import (
    Pool,
    Samples,
    find_files,
    in_range,
    input_specs,
    load_images,
    load_samples,
    synthetic_samples,
)
from onnxslim_merge.samples.specs import HELD_OUT, Batching
from onnxslim_merge.settings import Settings

MEASURED, MEASURED_ELEMENTS = (8, 32), 1 << 20  # least and most, and numbers in all: means settle early
FITTED, FITTED_ELEMENTS = (32, 512), 1 << 24  # least squares have as many unknowns as layers have weights
CHECKED = 8  # samples in a batch: the exact checks take one


def pick_samples(graph: gs.Graph, source: Source, settings: Settings, probe: Probe) -> Samples:
    """For checks, fidelity and means: the calibration data, or smoothed noise where inputs look like images."""
    specs = input_specs(source.proto)
    if settings.calibration_data is not None:
        found = find_files(settings.calibration_data)
        if found.images:
            return load_images(found, specs, sizes=probe.inputs, how=settings.preprocessing)
        return load_samples(found.path, specs)
    count = _count(probe.elements, MEASURED, MEASURED_ELEMENTS)
    pixels = pick_pixels(graph, source, settings, probe)
    made = synthetic_samples(specs, sizes=probe.inputs, count=count, seed=settings.seed, batch=CHECKED)
    return in_range(made, specs, pixels)


def samples_to_fit(source: Source, settings: Settings, probe: Probe, given: Samples) -> Samples | Pool:
    """For least squares: the calibration data `given`; without, others that are made up, as many as that needs."""
    if settings.calibration_data is not None:
        return given
    specs, pixels = input_specs(source.proto), given.pixels or "normal"
    step = Batching.of(specs).fixed or 1
    elements = probe.elements // step  # a probe of a fixed batch counts as one sample
    count = max(_count(elements, FITTED, FITTED_ELEMENTS), HELD_OUT * step)
    return Pool(specs, probe.inputs, pixels, settings.seed, count, elements)


def _count(elements: int, bounds: tuple[int, int], all_elements: int) -> int:
    return min(max(all_elements // max(elements, 1), bounds[0]), bounds[1])
