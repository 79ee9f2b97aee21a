"""Moments measured by running the full-size model on inputs, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.model_io import Source, runnable
from onnxslim_merge.probe import tap
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import Samples
from onnxslim_merge.statistics.moments import Place
from onnxslim_merge.views import Floats


def measure(
    graph: gs.Graph,
    source: Source,
    samples: Samples,
    wanted: Collection[Place],
    custom_ops: Sequence[Path] = (),
) -> dict[Place, tuple[Floats, Floats]]:
    """Mean and mean square, (size,) each, along the axis of every wanted (tensor, axis), over all other axes."""
    sums: dict[Place, tuple[Floats, Floats]] = {}
    counts = dict.fromkeys(wanted, 0)
    names = list(dict.fromkeys(name for name, _ in wanted))
    with runnable(graph, source) as model:
        target: onnx.ModelProto | Path = model
        if isinstance(model, Path):
            target = model.with_name("tapped.onnx")
            target.write_bytes(tap(onnx.load(model, load_external_data=False), names).SerializeToString())
        else:
            tap(model, names)
        runner = Runner(target, custom_ops=custom_ops, label="the prepared model")
        for feeds in samples.feeds:
            outputs = runner.run(feeds, names)
            for place in counts:
                name, axis = place
                array = outputs[name]
                rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
                mean, second = sums.get(place, (0.0, 0.0))
                sums[place] = (mean + rows.sum(1), second + np.einsum("ij,ij->i", rows, rows))
                counts[place] += rows.shape[1]
    return {place: (a / counts[place], b / counts[place]) for place, (a, b) in sums.items()}
