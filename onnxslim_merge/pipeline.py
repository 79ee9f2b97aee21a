"""The stages in order: load, prepare, analyse, select, compensate, rewrite, verify, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge import remarks
from onnxslim_merge.channels.analysis import Analysis, analyse_channels
from onnxslim_merge.compensation import Solution, solve
from onnxslim_merge.doubts import doubts
from onnxslim_merge.model_io import Source, build, load, staged_output
from onnxslim_merge.numerics import Device
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.planning import build_plan
from onnxslim_merge.preflight import Targets, check_options, check_targets, inputs_of
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import Probe, probe_shapes
from onnxslim_merge.provenance import metadata, version
from onnxslim_merge.refitting import Refitter
from onnxslim_merge.replay import replayed_choice
from onnxslim_merge.report.assemble import Outcome, cost_changes, group_reports, refusal_reports
from onnxslim_merge.report.model import Change, FileRef, Report
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.runtime import resolve_providers
from onnxslim_merge.samples import Samples, input_specs
from onnxslim_merge.sampling import pick_samples
from onnxslim_merge.select import Amount, Selection, amounts, repair, select
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Place, Statistics
from onnxslim_merge.statistics.measured import measure
from onnxslim_merge.verify import speed
from onnxslim_merge.verify.bisect import exonerate
from onnxslim_merge.verify.gates import LARGE, Judge, check_file
from onnxslim_merge.views import Views

FEW, FEW_ELEMENTS = 8, 1 << 18  # samples for the exact checks, fewer of large inputs: a wrong channel shows everywhere
Kept = dict[str, NDArray[np.int64]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SlimResult:
    """What came out. model: None in a dry run, and above 1 GiB, where it is in the file only."""

    model: onnx.ModelProto | None
    plan: SlimPlan
    report: Report


@dataclass(slots=True)
class Run:
    """One run: what is known so far, and the time that each stage took."""

    settings: Settings
    progress: Progress
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and show it; the time of stages inside it is theirs alone."""
        self.progress(name)
        start, others = time.perf_counter(), sum(self.stages.values())
        yield
        inside = sum(self.stages.values()) - others
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - start - inside


def run_slim(
    model: str | Path | onnx.ModelProto,
    output: Path | None,
    settings: Settings,
    *,
    plan: SlimPlan | Path | None = None,
    save_plan: Path | None = None,
    report: Path | None = None,
    dry_run: bool = False,
    progress: Progress = lambda stage: None,
) -> SlimResult:
    """Slim `model`; write it to `output` if given. The one function behind the command line and `slim`.

    plan: to be replayed, with the settings recorded in it. The files appear together or not at all.
    """
    run = Run(settings, progress)
    with run.stage("load"):
        source = load(model)
        given, path = (SlimPlan.load(plan), plan) if isinstance(plan, Path) else (plan, None)
        if given is not None:
            run.settings = settings = settings.with_record(given.settings)
        targets = Targets(None if dry_run else output, save_plan, report, settings.external_data)
        check_targets(targets, inputs_of(source, settings, path))
        check_options(settings, source, measures=not dry_run)
    with run.stage("prepare"):
        graph = prepare(source, custom_ops=settings.custom_ops)
    with run.stage("probe"):
        probes = probe_shapes(graph, source, settings.input_shapes, settings.custom_ops)
        samples = pick_samples(graph, source, settings, probes[0])
    with run.stage("analyse"):
        analysis = analyse_channels(graph, probes, settings.allow_inexact)
    work = Work(run, source, graph, probes, samples, analysis)
    work.decide()
    if len(probes) == 1 and any(not isinstance(size, int) for t in graph.inputs for size in t.shape or ()):
        work.notes.append("no second choice of input sizes runs: exact at the sizes tried, not checked at others")
    with run.stage("verify"):
        work.judge().check_prepared()
    chosen = work.replay(given) if given is not None else work.plan()
    if targets.output is not None:
        return work.to_file(chosen, targets.output, targets)
    result = SlimResult(None, chosen, work.report(chosen, Outcome())) if dry_run else work.in_memory(chosen)
    with targets.beside(chosen, result.report):
        return result


@dataclass(slots=True)
class Work:
    """The middle and the end of a run, on an analysed graph."""

    run: Run
    source: Source
    graph: gs.Graph
    probes: tuple[Probe, ...]
    samples: Samples
    analysis: Analysis
    notes: list[str] = field(default_factory=list)
    automatic: bool = False
    guessed: str = ""  # the pixels of images that layers are refitted on, where nothing tells their means and spreads
    doubt: str | None = None  # of calibration data
    replayed: bool = False  # a plan as it is, for which nothing was fitted to the samples at hand
    selection: Selection = field(default_factory=Selection)
    refitter: Refitter | None = None

    def decide(self) -> None:
        """Settle what "auto" means for this model."""
        asked = self.run.settings
        has_batchnorm = any(flow.moments is not None for flow in self.analysis.flows.values())
        self.run.settings = asked.resolved(has_batchnorm=has_batchnorm, pixels=self.samples.pixels or asked.pixels)
        if asked.calibration_data is None:
            self.notes += remarks.on_pixels(asked, self.samples)
            guesses = self.run.settings.refits and not has_batchnorm and asked.pixels == "auto"
            self.guessed = self.samples.pixels if guesses else ""
        elif self.run.settings.carries_mean or self.run.settings.criterion in ("impact", "greedy"):
            self.doubt = doubts(self.graph, self.source, asked, self.probes[0], self.samples)
        self.automatic = asked.compensation == "auto"

    def plan(self, *, check: bool = True) -> SlimPlan:
        """Select and compensate; cells that turn out not to be exact are kept whole (unless `check` is off)."""
        run, settings, views = self.run, self.run.settings, Views(self.analysis)
        self.refitter = None  # of other settings
        with run.stage("select"):
            found = amounts(self.analysis, settings)
            self.notes += remarks.on_rules(self.analysis, settings, found)
            statistics = self._statistics(views, found)
            self._select(views, found, statistics)
        if not check:
            return self._build(self.selection.kept, found, self._solve(views, self.selection.kept, statistics))
        return self._checked(views, self.selection.kept, found, statistics)

    def _statistics(self, views: Views, found: Mapping[str, Amount]) -> Statistics | None:
        settings = self.run.settings
        spread = settings.criterion == "impact"
        if not spread and not settings.carries_mean:
            return None
        cells = [cell for cell in self.analysis.cells if found[cell.name].keep < cell.size]

        def measured(wanted: Collection[Place]) -> Any:
            with self.run.stage("statistics"):
                return measure(self.graph, self.source, self.samples, wanted, settings.custom_ops)

        return Statistics(views, cells, measured, spread=spread)

    def _select(self, views: Views, found: Mapping[str, Amount], statistics: Statistics | None) -> None:
        settings = self.run.settings
        if settings.criterion == "greedy":
            self.selection = self._refits(views, found, statistics).choose()
        else:
            self.selection = select(views, found, statistics, settings, Device(settings.device))
        self.notes += self.selection.notes

    def _refits(self, views: Views, found: Mapping[str, Amount], statistics: Statistics | None) -> Refitter:
        parts = self.graph, self.source, self.probes[0], self.samples
        self.refitter = Refitter(*parts, self.run.settings, views, found, statistics, self.notes)
        return self.refitter

    def _solve(self, views: Views, kept: Kept, statistics: Statistics | None) -> Solution:
        settings = self.run.settings
        if settings.refits:
            return (self.refitter or self._refits(views, {}, statistics)).solve(kept)
        return solve(views, kept, statistics, settings, self.selection.clusters, Device(settings.device))

    def _checked(
        self, views: Views, kept: Kept, found: Mapping[str, Amount], statistics: Statistics | None
    ) -> SlimPlan:
        """The plan of `kept`; if it differs from its twin, that of the cells that do not."""

        def planned(some: Mapping[str, NDArray[np.int64]]) -> SlimPlan:
            # without its neighbours a cell may leave groups unequal
            some = repair(self.analysis, some, self.selection.scores)
            with self.run.stage("merge"):
                solution = self._solve(views, some, statistics)
            return self._build(some, found, solution)

        judge, plan = self.judge(), planned(kept)
        with self.run.stage("verify"):
            if judge.equals_twin(plan):
                return plan
            judge.require_twin(planned({}))  # what goes wrong without any removal is no cell's fault
            innocent, guilty = exonerate(kept, lambda some: judge.equals_twin(planned(some)))
        for name in guilty:
            self.notes.append(
                f"{name}: kept whole, since removing its channels was not exact: our bug, please report it"
            )
        return planned(innocent)

    def _build(
        self, kept: Mapping[str, NDArray[np.int64]], found: Mapping[str, Amount], solution: Solution
    ) -> SlimPlan:
        if self.refitter is not None:
            self.run.settings = self.refitter.instead(self.run.settings)
        settings = self.run.settings
        doubted = replace(solution, notes=[*([self.doubt] if self.doubt else []), *solution.notes])
        return build_plan(
            self.analysis, kept, doubted, found,
            sha256=self.source.sha256, settings=settings.record(), keep_batchnorm=settings.keep_batchnorm,
        )  # fmt: skip

    def replay(self, plan: SlimPlan) -> SlimPlan:
        """The same plan on the same file; on another export the same choice, compensated anew with its settings."""
        if plan.source_sha256 == self.source.sha256:
            self.guessed, self.replayed = "", True  # nothing is refitted
            self.notes += [self.doubt] if self.doubt else []
            return plan
        self.notes.append(
            "the plan was made for another file: its choice of channels was taken over, the rest done anew"
        )
        if self.run.settings.refits and self.run.settings.calibration_data is None:
            self.notes.append("refitted on synthetic samples: give --calibration-data, as the plan may have had")
        views, self.selection = Views(self.analysis), replayed_choice(plan, self.analysis)
        kept = self.selection.kept
        found = {name: Amount(len(keep), "slimmed", "", "--plan") for name, keep in kept.items()}
        for cell in self.analysis.cells:
            why = str(cell.refusal) if cell.refusal else "kept by the plan"
            found.setdefault(cell.name, Amount(cell.size, "frozen" if cell.refusal else "kept", why, "--plan"))
        statistics = self._statistics(views, found)
        return self._checked(views, kept, found, statistics)

    def judge(self) -> Judge:
        """The checks of this run."""
        count = min(max(FEW_ELEMENTS // max(self.probes[0].elements, 1), 2), FEW)
        few = self.samples.first(count, input_specs(self.source.proto))
        return Judge(self.source, self.graph, self.samples, few, self.run.settings.custom_ops)

    def in_memory(self, plan: SlimPlan) -> SlimResult:
        """The slimmed and verified model as a ModelProto."""
        with self.run.stage("rewrite"):
            small = rewrite(self.graph, plan)
            model = build(small, self.source, metadata=metadata(self.source, plan))
        outcome = self._verify(plan, model, FileRef(), model.ByteSize())
        return SlimResult(model, plan, self.report(plan, outcome))

    def to_file(self, plan: SlimPlan, output: Path, targets: Targets) -> SlimResult:
        """Written beside the output, verified there, and only then given its name, after plan and report."""
        settings = self.run.settings
        with staged_output(output, external_data=settings.external_data, source=self.source) as staging:
            with self.run.stage("rewrite"):
                staging.write(rewrite(self.graph, plan), self.source, metadata=metadata(self.source, plan))
            name = FileRef(str(output), staging.sha256())
            outcome = self._verify(plan, staging.model_path, name, staging.size_bytes())
            report = self.report(plan, outcome)
            with targets.beside(plan, report):
                staging.commit()
        written = onnx.load(output) if (outcome.size_bytes or 0) < LARGE else None
        return SlimResult(written, plan, report)

    def _verify(self, plan: SlimPlan, model: onnx.ModelProto | Path, name: FileRef, size: int) -> Outcome:
        settings, judge = self.run.settings, self.judge()
        with self.run.stage("verify"):
            judge.let_go()
            check_file(self.source, model)
            twin = judge.require_twin(plan)
            fidelity, count_ = judge.fidelity(model, settings.score_output)
            self.notes += remarks.on_samples(plan, self.samples, settings, fidelity, self.replayed)
            self.notes += remarks.on_exactness(plan, twin, fidelity)
        with self.run.stage("speed"):
            feeds = self.samples.first(1, input_specs(self.source.proto)).feeds[0]
            providers = resolve_providers(settings.providers)
            lean = self.source.size_bytes > LARGE  # without it the runtime holds a second copy of the weights
            ends, custom_ops = (judge.original(), model), settings.custom_ops
            speeds = speed.measure(*ends, feeds, providers, custom_ops=custom_ops, lean=lean)
            self.notes += remarks.on_cost(plan, speeds, self.source, size, settings)
        return Outcome(fidelity, count_, twin.error, tuple(speeds), name, size)

    def report(self, plan: SlimPlan, outcome: Outcome) -> Report:
        """Everything that is known now."""
        settings = self.run.settings
        with self.run.stage("report"):
            parts = self.source, self.probes[0], settings.custom_ops
            parameters, macs = cost_changes(self.analysis, plan, *parts)
        chosen = remarks.on_choice(plan, self.source, settings, self.automatic, self.guessed)
        return Report(
            version=version(),
            input_shapes=self.probes[0].inputs,
            source=FileRef(str(self.source.path) if self.source.path else None, self.source.sha256),
            output=outcome.output,
            parameters=parameters,
            macs=macs,
            size_bytes=Change(self.source.size_bytes, outcome.size_bytes),
            fidelity=outcome.fidelity,
            samples=outcome.samples,
            fidelity_source=self.samples.source if outcome.fidelity else None,
            twin_max_error=outcome.twin_error,
            speed=outcome.speeds,
            groups=group_reports(plan),
            settings=settings.record(),
            refusals=refusal_reports(self.analysis.refusals),
            notes=(*remarks.on_plan(plan, self.replayed), *chosen, *self.notes),
            stages=self.run.stages,
            elapsed_s=time.perf_counter() - self.run.started,
        )
