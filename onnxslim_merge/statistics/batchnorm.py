"""What BatchNormalization knows of the data, for a network that is shown something else.

beta and |gamma| are mean and spread of its output on the training set. On synthetic inputs they are not, unless the
running statistics are those of the synthetic inputs. Then every layer reads channels with the mean and spread of real
ones, as in data-free quantisation and generative inversion (Yin et al., DeepInversion, 2020, use the same knowledge).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.statistics.tracks import Tracks

Floats = NDArray[np.float64]
MEAN, VARIANCE = 3, 4  # inputs of BatchNormalization
SILENT = 1e-8  # a variance this small is a channel that never changes on the samples: it keeps the file's


@dataclass(frozen=True, slots=True)
class Correction:
    """New running statistics of one node, (channels,) each; amplifies: what they do to its scale."""

    mean: Floats
    variance: Floats
    amplifies: Floats

    @property
    def inputs(self) -> dict[int, Floats]:
        """By slot."""
        return {MEAN: self.mean, VARIANCE: self.variance}


def spread_left(node: gs.Node) -> Floats | None:
    """Of what a channel of |gamma| spreads by, how much is left, as epsilon is added to the variance, (channels,).

    None where the file does not hold its variance.
    """
    if len(node.inputs) <= VARIANCE or not hasattr(node.inputs[VARIANCE], "values"):
        return None
    variance = np.asarray(node.inputs[VARIANCE].values, np.float64).ravel()
    return np.asarray(np.sqrt(variance / (variance + float(node.attrs.get("epsilon", 1e-5)))))


def corrections(analysis: Analysis, tracks: Tracks) -> dict[str, Correction]:
    """The statistics of what each BatchNormalization reads, from front to back, each one corrected before the next.

    tracks: of the original, not yet run; it is used up.
    """
    norms = {flow.node: flow.inputs[0] for flow in analysis.flows.values() if flow.moments is not None}
    nodes = {node.name: node for node in analysis.graph.nodes if node.name in norms}
    waiting = {name: tensor for name, tensor in norms.items() if len(nodes[name].inputs) > VARIANCE}
    tracks.expect(waiting.values())
    before = {name: tracks.before(tensor) for name, tensor in waiting.items()}
    found: dict[str, Correction] = {}
    while waiting:
        places = {tracks.place(name) for name in waiting}
        wave = {name: tensor for name, tensor in waiting.items() if not before[name] & places}
        waiting = {name: tensor for name, tensor in waiting.items() if name not in wave}
        for name, (seen, spread) in _measured(tracks, wave, set(waiting.values())).items():
            node = nodes[name]
            if not all(hasattr(node.inputs[slot], "values") for slot in (MEAN, VARIANCE)):
                continue
            file = np.asarray(node.inputs[VARIANCE].values, np.float64)
            epsilon, moves = float(node.attrs.get("epsilon", 1e-5)), spread > SILENT
            own = np.asarray(node.inputs[MEAN].values, np.float64)
            mean, variance = np.where(moves, seen, own), np.where(moves, spread, file)
            found[name] = Correction(mean, variance, np.sqrt((file + epsilon) / (variance + epsilon)))
            tracks.correct(name, found[name].inputs)
    return found


def _measured(tracks: Tracks, wave: Mapping[str, str], later: set[str]) -> dict[str, tuple[Floats, Floats]]:
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in wave}

    def visit(batch: int, original: Mapping[str, NDArray[Any]], slim: Mapping[str, NDArray[Any]]) -> None:
        for name, tensor in wave.items():
            rows = np.moveaxis(original[tensor], 1, 0).reshape(original[tensor].shape[1], -1).astype(np.float64)
            for place, part in enumerate((rows.shape[1], rows.sum(1), np.einsum("ij,ij->i", rows, rows))):
                sums[name][place] = sums[name][place] + part

    tracks.taps = later
    tracks.advance([*dict.fromkeys(wave.values())], [], visit)
    return {name: (a / n, (b / n - (a / n) ** 2).clip(min=0.0)) for name, (n, a, b) in sums.items()}
