"""Least squares from an analysed graph and samples: sets the statistics' network up, and runs `Stepwise` through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.compensation.solver import Solution, Solver
from onnxslim_merge.compensation.stepwise import Stepwise
from onnxslim_merge.errors import VerifyError
from onnxslim_merge.model_io import Source, is_half_precision, runnable, to_float32
from onnxslim_merge.parsing import parse_size
from onnxslim_merge.samples import InputSpec, Pool, Samples, augmented, input_specs, what_helps
from onnxslim_merge.samples.specs import HELD_OUT, Batching, Feed
from onnxslim_merge.select import Amount, losing
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics.batchnorm import Correction, corrections
from onnxslim_merge.statistics.nearest import nearest
from onnxslim_merge.statistics.tracks import Tracks
from onnxslim_merge.views import Floats, Views

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
    samples: Samples | Pool,
    amounts: Mapping[str, Amount],
    solver: Solver,
    kept: Mapping[str, NDArray[np.int64]] | None,
) -> Refit | None:
    """Choose (unless `kept` is given) and refit; None if there are too few samples to hold any out.

    samples: a pool if there are no data. Then BatchNormalization chooses, where there is any, and what it sees besides
    is put right by its running statistics.
    """
    specs, views, settings = input_specs(source.proto), solver.views, solver.settings
    if not losing(views.analysis.cells, amounts, kept):
        return Refit(dict(kept or {}), {}, solver.solution, [])
    if is_half_precision(graph):
        graph, source = to_float32(graph, source)
    with runnable(graph, source) as made:
        model = onnx.load(made) if isinstance(made, Path) else made
    size, memory, notes = max(min(64, samples.count // BATCHES), 1), parse_size(settings.memory_limit), list[str]()
    if isinstance(samples, Pool):
        feeds, notes = _made_up(samples, views, None if isinstance(made, Path) else model, settings, size)
    else:
        feeds = _pieces(samples.in_float32(), specs, size)
    if len(feeds) < HELD_OUT:
        return None
    every: Sequence[Feed] = feeds
    found: dict[str, Correction] = {}
    if isinstance(samples, Pool):
        with Tracks(model, feeds, limit=memory // 2, custom_ops=settings.custom_ops) as tracks:
            found = corrections(views.analysis, tracks)
    else:
        augment = what_helps(settings.augment, feeds, specs)
        every = augmented(feeds, specs, HELD_OUT, augment=augment, seed=settings.seed)
        notes += _on_images(settings.augment, augment, len(every) > len(feeds))
    views.rescaled = {name: correction.amplifies for name, correction in found.items()}
    # Who stays is settled in the first sweep; of ridges alone the images themselves tell enough.
    step = Stepwise(views, model, every if kept is None else feeds, amounts, solver, kept)
    solution = _run(step, found)
    notes += step.notes
    if not isinstance(samples, Pool):  # made-up ones could be more; of data, what was held out is used up, too
        step = Stepwise(views, model, every, amounts, solver.anew(), first=step)
        solution = _run(step, found)
    views.rescaled = {}
    return Refit(step.kept, step.scores, solution, [*dict.fromkeys([*notes, *step.notes])])


def _made_up(
    pool: Pool, views: Views, model: onnx.ModelProto | None, settings: Settings, size: int
) -> tuple[list[Feed], list[str]]:
    """Batches of `size` that BatchNormalization chose, if there is any; else others. And what to say of them."""
    memory, custom_ops = parse_size(settings.memory_limit), settings.custom_ops
    try:
        chosen, why = nearest(model, views.analysis, pool, batch=size, memory=memory, custom_ops=custom_ops)
    except VerifyError as error:
        chosen, why = None, str(error)
    if chosen is not None:
        return chosen, [f"layers are refitted on {pool.count} made-up samples, chosen by BatchNormalization"]
    plain = pool.plain()
    if why is not None:
        notes = [f"BatchNormalization does not choose the samples that are made up ({why})"]
    elif plain.pixels:  # of which the pixels are what there is to say
        notes = []
    else:
        notes = [f"layers are refitted on {plain.count} made-up samples: --calibration-data shows what real ones are"]
    return _pieces(plain, pool.specs, size), notes


def _on_images(asked: str, augment: str, more: bool) -> list[str]:
    """What is said of `--augment`: what was asked, what helps, and whether there are more samples for it."""
    notes = []
    if more:
        besides = "mirror images and crops" if augment == "crops" else "mirror images"
        notes.append(f"the samples look like images, so layers are fitted to {besides}, too (--augment)")
    if asked not in ("auto", augment):
        notes.append(f"--augment {asked} without effect, as not all inputs are images, one for each sample")
    return notes


def _pieces(samples: Samples, specs: Sequence[InputSpec], size: int) -> list[Feed]:
    return [piece for feed in samples.feeds for piece in Batching.of(specs).cut(feed, size)]


def _run(step: Stepwise, corrected: Mapping[str, Correction]) -> Solution:
    """Once through the network."""
    with step.tracks:
        for name, correction in corrected.items():
            step.tracks.correct(name, correction.inputs)
        return step.run()
