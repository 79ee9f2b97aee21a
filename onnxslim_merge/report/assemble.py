"""From the results of the stages to one Report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.channels.claims import Refusal
from onnxslim_merge.compensation import Solution
from onnxslim_merge.costs import count
from onnxslim_merge.model_io import Source
from onnxslim_merge.plan import CellPlan, SlimPlan
from onnxslim_merge.planning import build_plan
from onnxslim_merge.probe import Probe, probe_at
from onnxslim_merge.report.model import Change, FileRef, GroupReport, RefusalReport
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.verify.fidelity import Fidelity
from onnxslim_merge.verify.speed import Speed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What verification found; a dry run has none of it."""

    fidelity: Fidelity | None = None
    samples: int = 0
    twin_error: float | None = None
    speeds: tuple[Speed, ...] = ()
    output: FileRef = field(default_factory=FileRef)
    size_bytes: int | None = None


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


def cost_changes(
    analysis: Analysis, plan: SlimPlan, source: Source, probe: Probe, custom_ops: Sequence[Path] = ()
) -> tuple[Change, Change]:
    """Parameters and MACs, BatchNormalization folded on both sides."""
    folded = build_plan(analysis, {}, Solution(), {})
    whole, shapes = rewrite(analysis.graph, folded), dict(probe.shapes)
    for node in (n for n in whole.nodes if n.op == "Add"):  # one put in for a bias: both sides have its shape
        shapes.setdefault(node.inputs[0].name, shapes.get(node.outputs[0].name, ()))
    before = count(whole, shapes, batch=probe.batch)
    small = rewrite(analysis.graph, plan)
    again = probe_at(small, source, probe, custom_ops)
    after = count(small, again.shapes, batch=probe.batch)
    return Change(before.parameters, after.parameters), Change(before.macs, after.macs)
