"""Moments measured by running the full-size model on inputs, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.model_io import Source, runnable
from onnxslim_merge.probe import tap
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import Samples
from onnxslim_merge.views import Floats


def measure(
    graph: gs.Graph,
    source: Source,
    samples: Samples,
    wanted: Mapping[str, int],
    custom_ops: Sequence[Path] = (),
) -> dict[str, tuple[Floats, Floats]]:
    """Mean and mean square, (size,) each, of every tensor in `wanted` = {tensor: axis}, over all its other axes."""
    sums: dict[str, tuple[Floats, Floats]] = {}
    counts = dict.fromkeys(wanted, 0)
    with runnable(graph, source) as model:
        target: onnx.ModelProto | Path = model
        if isinstance(model, Path):
            target = model.with_name("tapped.onnx")
            target.write_bytes(tap(onnx.load(model, load_external_data=False), list(wanted)).SerializeToString())
        else:
            tap(model, list(wanted))
        runner = Runner(target, custom_ops=custom_ops, label="the prepared model")
        for feeds in samples.feeds:
            for name, array in runner.run(feeds, list(wanted)).items():
                rows = np.moveaxis(array, wanted[name], 0).reshape(array.shape[wanted[name]], -1).astype(np.float64)
                mean, second = sums.get(name, (0.0, 0.0))
                sums[name] = (mean + rows.sum(1), second + np.einsum("ij,ij->i", rows, rows))
                counts[name] += rows.shape[1]
    return {name: (a / counts[name], b / counts[name]) for name, (a, b) in sums.items()}
