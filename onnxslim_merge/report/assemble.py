"""From the results of the stages to one Report."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim_merge.channels.claims import Refusal
from onnxslim_merge.costs import Costs
from onnxslim_merge.plan import CellPlan, SlimPlan
from onnxslim_merge.report.model import Change, GroupReport, RefusalReport


def group_reports(plan: SlimPlan) -> tuple[GroupReport, ...]:
    """One line for each cell of the plan."""
    return tuple(_group(cell) for cell in plan.cells)


def _group(cell: CellPlan) -> GroupReport:
    after = len(cell.keep)
    status = "slimmed" if after < cell.size else cell.status if cell.status != "slimmed" else "kept"
    return GroupReport(cell.name, cell.size, after, status, cell.reason or None)


def refusal_reports(refusals: Sequence[Refusal]) -> tuple[RefusalReport, ...]:
    """Each refusal once, in the order found."""
    unique = dict.fromkeys((r.tensor, r.axis, r.node, r.op_type, r.reason) for r in refusals)
    return tuple(RefusalReport(*fields) for fields in unique)


def cost_changes(before: Costs, after: Costs) -> tuple[Change, Change]:
    """Parameters and MACs."""
    return Change(before.parameters, after.parameters), Change(before.macs, after.macs)
