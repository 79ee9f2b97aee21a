"""Replaying a plan on another export of the same model: the choice is taken over, compensation is computed anew."""

from __future__ import annotations

import numpy as np

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.errors import InputError
from onnxslim_merge.plan import CellPlan, SlimPlan
from onnxslim_merge.select import Selection


def replayed_choice(plan: SlimPlan, analysis: Analysis) -> Selection:
    """What the plan keeps, and its clusters. Cells are matched by names of producers, else by order and shape.

    Raises InputError naming the first cell that has no partner.
    """
    planned = [cell for cell in plan.cells if len(cell.keep) < cell.size]
    partners = _by_name(plan, analysis)
    if any(partners[cell.name] is None for cell in planned):
        partners = _by_order(plan, analysis)
    choice = Selection()
    for cell in planned:
        partner = partners[cell.name]
        if partner is None:
            raise InputError(f"plan: cell {cell.name} ({cell.size} channels) has no partner in this model")
        if partner.refusal is not None:
            raise InputError(f"plan: cell {cell.name} cannot be slimmed here: {partner.refusal.reason}")
        choice.kept[partner.name] = np.array(cell.keep, np.int64)
        if cell.clusters:
            choice.clusters[partner.name] = np.array(cell.clusters, np.int64)
    return choice


def _by_name(plan: SlimPlan, analysis: Analysis) -> dict[str, Cell | None]:
    """Pair cells whose producers have the same names and shapes, in order where there are several."""
    waiting: dict[frozenset[str], list[Cell]] = {}
    for cell in analysis.cells:
        waiting.setdefault(frozenset(analysis.producers[i].node for i in cell.producers), []).append(cell)
    partners: dict[str, Cell | None] = {}
    for planned in plan.cells:
        found = waiting.get(frozenset(p[0] for p in planned.producers), [])
        match = next((i for i, cell in enumerate(found) if _alike(planned, cell, analysis)), None)
        partners[planned.name] = None if match is None else found.pop(match)
    return partners


def _by_order(plan: SlimPlan, analysis: Analysis) -> dict[str, Cell | None]:
    """Pair all cells in order; the first that differs in size or shapes, and all behind it, have none."""
    partners: dict[str, Cell | None] = dict.fromkeys((c.name for c in plan.cells), None)
    for planned, cell in zip(plan.cells, analysis.cells, strict=False):
        if not _alike(planned, cell, analysis):
            break
        partners[planned.name] = cell
    return partners


def _alike(planned: CellPlan, cell: Cell, analysis: Analysis) -> bool:
    """Same channels, same shapes of the weights that make them, and frozen in both or in neither."""
    weights = [analysis.constants[analysis.producers[i].weight] for i in cell.producers]
    shapes = tuple(tuple(int(n) for n in weight.shape) for weight in weights)
    frozen = (planned.status == "frozen", cell.refusal is not None)
    return planned.size == cell.size and planned.shapes == shapes and frozen[0] == frozen[1]
