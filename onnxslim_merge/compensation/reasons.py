"""What is said of layers that were not refitted, or not as they could have been: one note for each reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.compensation.onesided import ENOUGH
from onnxslim_merge.parsing import size_text
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics.readings import SAMPLED, Reading


def one_for_each(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """From pairs (who, reason) a note for each reason: the first whom it holds for, the reason, and how many more."""
    found: dict[str, list[str]] = {}
    for who, reason in reasons:
        found.setdefault(reason, []).append(who)
    return [f"{at[0]} {why}{f', and {len(at) - 1} more' * (len(at) > 1)}" for why, at in found.items()]


def memory_for_rows(reading: Reading, stays: NDArray[np.bool_], batches: int, memory: int) -> int | None:
    """The least --memory-limit, in bytes, with which rows suffice to fit a layer to what follows it; None if they do.

    reading: of a layer that ends in a cut-off. stays: of its inputs, (n,). batches: that it was read from. memory: the
    limit that its rows had a share of.
    """
    features = reading.taps * int(stays[reading.channels[0]].sum())
    kept, read = sum(len(s.features) for s in reading.samples if not s.held), reading.train[0].count
    needed = min(read, ENOUGH * features)
    if kept >= needed or not kept:
        return None
    seen = sum(not s.held for s in reading.samples)
    room = -(-needed // seen) * batches * (reading.features + 2 * len(reading.train[0].y))
    return -(-memory * room // reading.room) if reading.room < room <= SAMPLED else None


def unsure(settings: Settings) -> str:
    """Why samples cannot say who stays."""
    more = "more or other samples" if settings.calibration_data is not None else "--calibration-data"
    return f"a refit to these samples does not hold on others ({more} may tell)"


def too_few_rows(memory: Mapping[str, int | None]) -> list[tuple[str, str]]:
    """Pairs (who, reason) from what `memory_for_rows` found, by node."""
    short = {node: size for node, size in memory.items() if size is not None}
    needed = size_text(max(short.values(), default=0))
    why = f"is refitted without regard to the Relu or Clip that follows (that takes --memory-limit {needed} or more)"
    return [(node, why) for node in short]
