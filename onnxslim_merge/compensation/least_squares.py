"""Least squares from an analysed graph and samples: sets the statistics' network up, and runs `Stepwise` through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.compensation.solver import Solution, Solver
from onnxslim_merge.compensation.stepwise import Stepwise
from onnxslim_merge.model_io import Source, is_half_precision, runnable, to_float32
from onnxslim_merge.parsing import parse_size
from onnxslim_merge.samples import Pool, Samples, with_mirror_images
from onnxslim_merge.samples.specs import Batching, input_specs
from onnxslim_merge.select import Amount
from onnxslim_merge.statistics.batchnorm import Correction, corrections
from onnxslim_merge.statistics.nearest import nearest
from onnxslim_merge.statistics.readings import HELD_OUT
from onnxslim_merge.statistics.tracks import Tracks
from onnxslim_merge.views import Floats

BATCHES = 2 * HELD_OUT  # at least as many, so that a quarter can be held out


@dataclass(frozen=True, slots=True)
class Refit:
    """What came out: indices that stay and scores (n,) by cell, new weights, and notes."""

    kept: dict[str, NDArray[np.int64]]
    scores: dict[str, Floats]
    solution: Solution
    notes: list[str]


def least_squares(
    graph: gs.Graph,
    source: Source,
    samples: Samples,
    amounts: Mapping[str, Amount],
    solver: Solver,
    kept: Mapping[str, NDArray[np.int64]] | None,
    *,
    pool: Pool | None,
) -> Refit | None:
    """Choose (unless `kept` is given) and refit; None if there are too few samples to hold any out.

    pool: None if the samples are of the data. If they are made up, others to choose from where BatchNormalization says
    what it saw in training; then it has to say what is, too.
    """
    specs, views = input_specs(source.proto), solver.views
    size = max(min(64, samples.count // BATCHES), 1)
    feeds = [piece for feed in samples.in_float32().feeds for piece in Batching.of(specs).cut(feed, size)]
    if len(feeds) < HELD_OUT:
        return None
    every = feeds
    if solver.settings.augment == "mirror" and pool is None:
        every = with_mirror_images(feeds, specs, HELD_OUT)
    if kept is None:
        feeds = every  # who stays is settled in the first sweep; of ridges alone the images themselves tell enough
    if is_half_precision(graph):
        graph, source = to_float32(graph, source)
    with runnable(graph, source) as made:
        model = onnx.load(made) if isinstance(made, Path) else made
    found: dict[str, Correction] = {}
    if pool is not None:
        limit, custom_ops = parse_size(solver.settings.memory_limit) // 2, solver.settings.custom_ops
        feeds = nearest(model, views.analysis, pool, batch=size, limit=limit // 4, custom_ops=custom_ops) or feeds
        with Tracks(model, feeds, limit=limit, custom_ops=custom_ops) as tracks:
            found = corrections(views.analysis, tracks)
    views.rescaled = {name: correction.amplifies for name, correction in found.items()}
    step = Stepwise(views, model, feeds, amounts, solver, kept)
    solution, notes = _run(step, found), step.notes
    if pool is None:  # made-up ones could be more; of calibration data, what was held out is used up, too
        step = Stepwise(views, model, every, amounts, solver.anew(), first=step)
        solution = _run(step, found)
    views.rescaled = {}
    return Refit(step.kept, step.scores, solution, [*dict.fromkeys([*notes, *step.notes])])


def _run(step: Stepwise, corrected: Mapping[str, Correction]) -> Solution:
    """Once through the network."""
    with step.tracks:
        for name, correction in corrected.items():
            step.tracks.correct(name, correction.inputs)
        return step.run()
