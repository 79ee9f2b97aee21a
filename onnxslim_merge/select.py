"""How many channels of each cell stay, and which."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.labels import Ids, varying
from onnxslim_merge.criteria import choose
from onnxslim_merge.errors import UsageError
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Floats, Views

AUTO_SMALL = 32


@dataclass(frozen=True, slots=True)
class Amount:
    """How many channels of a cell stay. status: `slimmed` or why not; source: the option that decided."""

    keep: int
    status: str
    reason: str
    source: str


def amounts(analysis: Analysis, settings: Settings) -> dict[str, Amount]:
    """The amount for every cell, by name. Raises UsageError for a regex that no producer matches."""
    names = {cell.name: producer_names(analysis, cell) for cell in analysis.cells}
    options = [("--ratio-for", rule.pattern) for rule in settings.ratio_for]
    for option, pattern in [*options, *(("--exclude", p) for p in settings.exclude)]:
        if not any(re.search(pattern, n) for found in names.values() for n in found):
            raise UsageError(f"{option} {pattern!r}: no producer's node, weight or output name matches")
    return {cell.name: _amount(analysis, settings, cell, names[cell.name]) for cell in analysis.cells}


def producer_names(analysis: Analysis, cell: Cell) -> list[str]:
    """What a regex is searched in: node, weight and output name of every producer."""
    found = [analysis.producers[i] for i in cell.producers]
    return [name for p in found for name in (p.node, p.weight, p.output)]


def _amount(analysis: Analysis, settings: Settings, cell: Cell, names: list[str]) -> Amount:
    if cell.refusal is not None:
        return Amount(cell.size, "frozen", str(cell.refusal), "")
    excluded = [p for p in settings.exclude if any(re.search(p, n) for n in names)]
    if excluded:
        return Amount(cell.size, "excluded", f"--exclude {excluded[-1]}", f"--exclude {excluded[-1]}")
    ratio, source = settings.ratio, f"--ratio {settings.ratio:g}"
    if settings.scope == "inner" and not cell.inner:
        ratio, source = 0.0, "--scope inner"
    for rule in settings.ratio_for:
        if any(re.search(rule.pattern, n) for n in names):
            ratio, source = rule.ratio, f"--ratio-for {rule.pattern}={rule.ratio:g}"
    multiple = _multiple(analysis, settings, cell)
    parts, size = (1, cell.size) if cell.rows is None else cell.rows.shape
    least = -(-settings.min_channels // parts)
    keep = parts * kept_count(size, ratio, least, multiple // math.gcd(multiple, parts))
    if keep == cell.size:
        why = f" --channel-multiple {settings.channel_multiple}" if multiple > 1 and ratio else ""
        return Amount(keep, "kept", f"nothing to remove: {source}{why}", source)
    return Amount(keep, "slimmed", "", source)


def kept_count(size: int, ratio: float, least: int = 1, multiple: int = 1) -> int:
    """floor(n (1 - ratio) + 0.5), at least `least`, then to the nearest multiple that is no less, never above n.

    Ratio 0 keeps all.
    """
    if ratio == 0:
        return size
    keep = max(int(np.floor(size * (1 - ratio) + 0.5 + 1e-9)), 1, least)
    if multiple > 1:
        keep = int(np.floor(keep / multiple + 0.5)) * multiple
        keep += multiple * (keep < max(least, 1))
    return min(keep, size)


def _multiple(analysis: Analysis, settings: Settings, cell: Cell) -> int:
    producer = analysis.producers[cell.producers[0]]
    places = int(np.isin(analysis.roots[producer.labels], cell.labels).sum())  # of heads, as many as all are wide
    multiple = settings.channel_multiple
    if multiple == "auto":
        small = np.dtype(analysis.constants[producer.weight].dtype).itemsize < 4
        multiple = 1 if places < AUTO_SMALL else 16 if small else 8  # tensor cores of 2- and 1-byte types want 16
    return multiple // math.gcd(multiple, places // cell.size)


@dataclass(frozen=True, slots=True)
class Selection:
    """By cell name: the indices that stay, scores (n,) of who comes back first, clusters (n,) where there are any."""

    kept: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    scores: dict[str, Floats] = field(default_factory=dict)
    clusters: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def select(
    views: Views, amounts: Mapping[str, Amount], statistics: Statistics | None, settings: Settings, device: Device = CPU
) -> Selection:
    """The channels that stay of every cell that loses any."""
    found = Selection()
    for cell in views.analysis.cells:
        if (keep := amounts[cell.name].keep) == cell.size:
            continue
        choice = choose(views, cell, keep, statistics, settings, device)
        found.kept[cell.name], found.scores[cell.name] = choice.kept, choice.scores
        if choice.clusters is not None:
            found.clusters[cell.name] = choice.clusters
        if choice.note is not None:
            found.notes.append(choice.note)
    return replace(found, kept=repair(views.analysis, found.kept, found.scores))


def repair(
    analysis: Analysis, kept: Mapping[str, NDArray[np.int64]], scores: Mapping[str, Floats]
) -> dict[str, NDArray[np.int64]]:
    """Give back the best channels to whatever would lose all of its own (one part of a Split, say) or too many.

    Too many have left a group of a grouped operator of which another keeps more. No scores: the first come back.
    """
    result = dict(kept)
    owner, rank = np.empty_like(analysis.roots), np.empty_like(analysis.roots)  # of each class: its cell, and where
    for number, cell in enumerate(analysis.cells):
        owner[cell.labels], rank[cell.labels] = number, np.arange(cell.size)

    def give_back(labels: Ids) -> None:
        gone = labels.ravel()[~mask[labels.ravel()]]
        classes = dict.fromkeys(analysis.roots[gone].tolist())
        found = [(analysis.cells[owner[label]], int(rank[label])) for label in classes]
        cell, index = max(found, key=lambda place: float(scores[place[0].name][place[1]]) if scores else 0.0)
        result[cell.name] = np.union1d(result[cell.name], [index])

    arrays = [a for arrays in analysis.labels.values() for a in arrays if a.size and len(varying(a)) < 2]
    lines = [*arrays, *(row for balance in analysis.balances for row in balance.labels)]
    while True:
        mask = keep_mask(analysis, result)
        short = [labels for labels in lines if not mask[labels].any()]
        for balance in analysis.balances:
            counts = mask[balance.labels].sum(1)
            short += [row for row, count in zip(balance.labels, counts, strict=True) if count < counts.max()]
        if not short:
            return result
        for labels in short:
            give_back(labels)


def keep_mask(analysis: Analysis, kept: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """For every label whether it stays, (labels,)."""
    stays = np.ones(analysis.roots.size, bool)
    for cell in analysis.cells:
        if cell.name in kept:
            stays[np.delete(cell.labels, kept[cell.name])] = False
    return stays[analysis.roots]


def losing(
    cells: Sequence[Cell], amounts: Mapping[str, Amount], kept: Mapping[str, NDArray[np.int64]] | None
) -> list[Cell]:
    """The cells that lose channels: by what is kept, by name, if that has been decided; else by amounts."""
    sizes = {name: a.keep for name, a in amounts.items()} if kept is None else {n: len(k) for n, k in kept.items()}
    return [cell for cell in cells if sizes.get(cell.name, cell.size) < cell.size]
