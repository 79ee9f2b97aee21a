"""Replaying a plan on another export of the same model: the choice is taken over, compensation is computed anew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.errors import InputError
from onnxslim_merge.plan import CellPlan, SlimPlan


def replayed_choice(plan: SlimPlan, analysis: Analysis) -> dict[str, NDArray[np.int64]]:
    """Kept indices by cell name. Cells are matched by the names of their producers, else by order and shape.

    Raises InputError naming the first cell that has no partner.
    """
    planned = [cell for cell in plan.cells if len(cell.keep) < cell.size]
    by_name = {_names(analysis, cell): cell for cell in analysis.cells}
    partners = {cell.name: by_name.get(frozenset(p[0] for p in cell.producers)) for cell in planned}
    if any(p is None or p.size != c.size for c, p in zip(planned, partners.values(), strict=True)):
        partners = _by_order(plan, analysis)
    choice = {}
    for cell in planned:
        partner = partners[cell.name]
        if partner is None:
            raise InputError(f"plan: cell {cell.name} ({cell.size} channels) has no partner in this model")
        if partner.refusal is not None:
            raise InputError(f"plan: cell {cell.name} cannot be slimmed here: {partner.refusal.reason}")
        choice[partner.name] = np.array(cell.keep, np.int64)
    return choice


def _names(analysis: Analysis, cell: Cell) -> frozenset[str]:
    return frozenset(analysis.producers[i].node for i in cell.producers)


def _by_order(plan: SlimPlan, analysis: Analysis) -> dict[str, Cell | None]:
    """Pair all cells in order; the first whose size or number of producers differs, and all behind it, have none."""
    partners: dict[str, Cell | None] = dict.fromkeys((c.name for c in plan.cells), None)
    for planned, cell in zip(plan.cells, analysis.cells, strict=False):
        if not _alike(planned, cell):
            break
        partners[planned.name] = cell
    return partners


def _alike(planned: CellPlan, cell: Cell) -> bool:
    return planned.size == cell.size and len(planned.producers) == len(cell.producers)
