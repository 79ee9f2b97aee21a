"""How long analysis, selection and rewriting take, beside Torch-Pruning, and docs/timing.md from what was measured.

    python tools/timing.py FOLDER [--models REGEX] [--repeat 5] [--millions 60] [--write docs/timing.md]

Every classification model of which FOLDER holds both exporters' files (tools/zoo.py), each in a process of its own, in
which ours and Torch-Pruning take turns. What was measured lies under FOLDER/results/timing, so that an interrupted run
goes on where it stopped; the page is written from those files alone. Needs what tools/coverage.py needs.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cyclopts
import numpy as np

import coverage_page
import rivals
import zoo
from onnxslim_merge.channels.analysis import analyse_channels
from onnxslim_merge.model_io import load
from onnxslim_merge.pipeline import Run, Work
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.sampling import pick_samples
from onnxslim_merge.settings import Criterion, Settings

Facts = dict[str, Any]
Times = dict[str, list[float]]  # by clock, one number for each stage
RATIO = 0.5
CRITERIA: tuple[Criterion, ...] = ("l2", "consumer")
LIMIT_S = 1.0  # what was asked for, up to LIMIT_M million parameters
LIMIT_M = 60
OTHER_S, MEMORY = (
    120,
    8 << 30,
)  # processor seconds and bytes after which Torch-Pruning is stopped: on Swin it never ends
STAGES = ("analyse", "select and plan", "rewrite")
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}
PACKAGES = ("torch", "torchvision", "torch-pruning", "onnx", "onnxruntime", "numpy")
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PAGE = """# Timing

What the structural part takes on torchvision's classification models at ratio {ratio}, beside Torch-Pruning. Written by
`python tools/timing.py FOLDER --write docs/timing.md`; every number below comes from that run's files.

{versions}

- **Ours**: analysis of channels; amounts, scores, choice and plan; rewriting of the graph. With `--compensation none`
  and the criterion `l2` or `consumer` (the default). Not in it: files, verification, fidelity, speed.
- **Preparation**: load, prepare, probe; once, before the repetitions, in seconds by the wall.
- **Torch-Pruning**: `MagnitudePruner(pruning_ratio={ratio})`, which builds the `DependencyGraph`, and `step()`, set
  as in [coverage](coverage.md). The module is copied, and asked for its heads, outside of the time.
- **Numbers** are medians of {repeat} repetitions, in which script, dynamo and Torch-Pruning take turns in one process
  with one thread. Where nothing else is said they are processor seconds, since the machine did other work too, which
  the wall clock counts; on an idle machine both are equal. A slash stands between the files of the two exporters. The
  ratio is the longest of ours over Torch-Pruning. Nodes are those of the prepared graph.
- Torch-Pruning is stopped after {other_s} processor seconds or {memory} GiB.
- Models above {millions} M parameters are marked `*` and stay out of summary and fit.

## Summary

{summary}

## Fit

Least squares of log seconds over {files} files: seconds ~ nodes^a parameters^b, and against nodes or parameters alone.
An exponent of 1 is linear.

{fits}

## Models

{models}
"""


def laps(*steps: Callable[[], Any]) -> Times:
    """Do one step after the other: what each takes, by each clock."""
    gc.collect()
    marks = [[clock() for clock in CLOCKS.values()]]
    for step in steps:
        step()
        marks.append([clock() for clock in CLOCKS.values()])
    return dict(zip(CLOCKS, np.diff(marks, axis=0).T.tolist(), strict=True))


def prepared(path: Path) -> tuple[float, int, Callable[[Criterion], tuple[Times, int]]]:
    """Load, prepare and probe a file: seconds, nodes, and what is timed, as a function of the criterion."""
    start = time.perf_counter()
    source = load(path)
    graph = prepare(source)
    probes = probe_shapes(graph, source, {})
    spent = time.perf_counter() - start
    samples = pick_samples(graph, source, Settings(), probes[0])  # which no criterion here looks at

    def run(criterion: Criterion) -> tuple[Times, int]:
        """What each stage takes, and how many cells there are."""
        quiet = Run(Settings(criterion=criterion, compensation="none", ratio=RATIO), lambda stage: None)
        found: Facts = {}

        def analyse() -> None:
            found["analysis"] = analyse_channels(graph, probes)

        def plan() -> None:
            found["plan"] = Work(quiet, source, graph, probes, samples, found["analysis"]).plan(check=False)

        times = laps(analyse, plan, lambda: rewrite(graph, found["plan"]))
        return times, len(found["analysis"].cells)

    return spent, len(graph.nodes), run


def torch_pruning(name: str) -> tuple[int, Callable[[], Times]]:
    """Parameters of a model, and a function that prunes a copy of it."""
    import torch
    import torch_pruning as tp

    torch.set_num_threads(1)
    options = {"aux_logits": False} if name in zoo.AUXILIARY else {}
    model = zoo.KINDS["classification"].get_model(name, weights=None, **options).eval()
    size = zoo.SIZES.get(name, 224)
    example = torch.randn(2, 3, size, size)

    def run() -> Times:
        victim = copy.deepcopy(model)
        ignored, heads = rivals.last_layers(victim, "classification"), rivals.attention_heads(victim)
        importance = tp.importance.MagnitudeImportance(p=2)

        def prune() -> None:
            tp.pruner.MagnitudePruner(
                victim, example, importance=importance, pruning_ratio=RATIO, ignored_layers=ignored, num_heads=heads
            ).step()

        return laps(prune)

    return sum(parameter.numel() for parameter in model.parameters()), run


def stop(number: int, frame: object) -> None:
    """Raises TimeoutError, as a handler of signals."""
    raise TimeoutError(f"stopped after {OTHER_S} processor seconds")


def measure(folder: Path, name: str, repeat: int) -> Facts:
    """Everything about one model; a failure of Torch-Pruning is noted."""
    tasks = {exporter: prepared(zoo.path_of(folder, name, exporter)) for exporter in zoo.EXPORTERS}
    parameters, other = torch_pruning(name)
    facts: Facts = {
        "model": name, "parameters": parameters, "repeat": repeat, "cells": {}, "torch_pruning": [], "said": "",
        "nodes": {exporter: nodes for exporter, (_, nodes, _) in tasks.items()},
        "preparation": {exporter: seconds for exporter, (seconds, _, _) in tasks.items()},
        "ours": {exporter: {criterion: [] for criterion in CRITERIA} for exporter in tasks},
    }  # fmt: skip
    for _ in range(repeat):
        for exporter, (_, _, run) in tasks.items():
            for criterion in CRITERIA:
                times, facts["cells"][exporter] = run(criterion)
                facts["ours"][exporter][criterion].append(times)
        if not facts["said"]:
            try:
                signal.setitimer(signal.ITIMER_PROF, OTHER_S)
                facts["torch_pruning"].append(other())
            except Exception as error:  # whatever it raises is a result
                facts["said"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    return facts


def result_path(folder: Path, name: str) -> Path:
    """Where the numbers of a model lie. They have no "step": the page on coverage passes over them."""
    return folder / "results" / "timing" / f"{name}.json"


def wanted(folder: Path, models: str, millions: float) -> list[str]:
    """Models of up to so many million parameters with both files, the smallest first."""
    sizes = {}
    for name in zoo.wanted(models, ("classification",)):
        size = zoo.KINDS["classification"].get_model_weights(name).DEFAULT.meta["num_params"]
        if round(size / 1e6) <= millions and all(zoo.path_of(folder, name, e).exists() for e in zoo.EXPORTERS):
            sizes[name] = size
    return sorted(sizes, key=lambda name: sizes[name])


def measure_apart(folder: Path, name: str, repeat: int) -> str:
    """Measure in a process of its own, with one thread; returns how it went."""
    command = [sys.executable, __file__, str(folder), "--one", name, "--repeat", str(repeat)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    if done.returncode:
        return f"FAILED {(done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1][:300]}"
    facts = json.loads(result_path(folder, name).read_text(encoding="utf-8"))
    other = facts["said"] or f"{rival(facts):.2f} s"
    return f"ours {slowest(facts):.2f} s ({slowest(facts, 'wall'):.2f} by the wall), Torch-Pruning {other}"


def ours(facts: Facts, exporter: str, criterion: str, clock: str = "processor", stage: int | None = None) -> float:
    """Median seconds of all stages together, or of one."""
    times = [times[clock] for times in facts["ours"][exporter][criterion]]
    return float(median(sum(stages) if stage is None else stages[stage] for stages in times))


def slowest(facts: Facts, clock: str = "processor") -> float:
    """The longest of the medians of ours."""
    return max(ours(facts, exporter, criterion, clock) for exporter in zoo.EXPORTERS for criterion in CRITERIA)


def rival(facts: Facts, clock: str = "processor") -> float:
    """Median seconds of Torch-Pruning; not a number if it fails."""
    return float("nan") if facts["said"] else float(median(times[clock][0] for times in facts["torch_pruning"]))


def page(folder: Path) -> str:
    """The whole page, from what lies under FOLDER/results/timing."""
    about = json.loads(result_path(folder, "about").read_text(encoding="utf-8"))
    paths = sorted(path for path in result_path(folder, "about").parent.glob("*.json") if path.stem != "about")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    asked = [facts for facts in found if round(facts["parameters"] / 1e6) <= LIMIT_M]
    return PAGE.format(
        ratio=RATIO, millions=LIMIT_M, other_s=OTHER_S, memory=MEMORY >> 30,
        repeat=min(facts["repeat"] for facts in found),
        versions=coverage_page.wrapped(", ".join(f"{name} {number}" for name, number in about.items()) + "."),
        summary="\n".join(map(coverage_page.wrapped, summary(asked))), files=len(asked) * len(zoo.EXPORTERS),
        fits=fits(asked), models=model_table(found),
    )  # fmt: skip


def summary(found: list[Facts]) -> Iterator[str]:
    """What the numbers say."""
    for clock in CLOCKS:
        times = {facts["model"]: slowest(facts, clock) for facts in found}
        worst, over = max(times, key=lambda name: times[name]), [n for n in times if times[n] >= LIMIT_S]
        yield (
            f"- **Ours**, {clock} seconds: {len(times)} models, median {median(times.values()):.2f}, longest"
            f" {times[worst]:.2f} ({worst}); {LIMIT_S:g} or more: {', '.join(over) or 'none'}."
        )
    for clock in CLOCKS:
        ratios = {f["model"]: slowest(f, clock) / rival(f, clock) for f in found if not f["said"]}
        worst, slower = max(ratios, key=lambda name: ratios[name]), [n for n in ratios if ratios[n] >= 1]
        yield (
            f"- **Ours over Torch-Pruning**, {clock} seconds, where it comes to an end ({len(ratios)} models): median"
            f" {median(ratios.values()):.2f}, at most {ratios[worst]:.2f} ({worst}); 1 or more:"
            f" {', '.join(slower) or 'none'}."
        )
    for said in dict.fromkeys(facts["said"] for facts in found if facts["said"]):
        yield f"- **Torch-Pruning fails** on {', '.join(f['model'] for f in found if f['said'] == said)}: `{said}`."
    spent = [seconds for facts in found for seconds in facts["preparation"].values()]
    yield f"- **Preparation** by the wall: median {median(spent):.1f} s, longest {max(spent):.1f} s."


def fits(found: list[Facts]) -> str:
    """Exponents for each criterion, for the stages of the default one, and for Torch-Pruning."""
    places = [(facts, exporter) for facts in found for exporter in zoo.EXPORTERS]
    rows = [_fit_row(f"ours, {name}", [(f, e, ours(f, e, name)) for f, e in places]) for name in CRITERIA]
    for index, stage in enumerate(STAGES):
        rows.append(_fit_row(f"its {stage}", [(f, e, ours(f, e, CRITERIA[-1], stage=index)) for f, e in places]))
    rows.append(_fit_row("Torch-Pruning", [(f, e, rival(f)) for f, e in places if not f["said"]]))
    head = ["seconds of", "nodes, a", "parameters, b", "nodes alone", "parameters alone"]
    return coverage_page.table(head, rows)


def _fit_row(title: str, points: list[tuple[Facts, str, float]]) -> list[str]:
    logs = np.log2([(facts["nodes"][exporter], facts["parameters"], seconds) for facts, exporter, seconds in points])
    nodes, parameters, target = logs.T
    numbers: list[float] = []
    for columns in ([nodes, parameters], [nodes], [parameters]):
        matrix = np.stack([*columns, np.ones_like(target)], axis=1)
        numbers += np.linalg.lstsq(matrix, target, rcond=None)[0][:-1].tolist()
    return [title, *(f"{number:.2f}" for number in numbers)]


def model_table(found: list[Facts]) -> str:
    """One row for each model."""
    rows = []
    for facts in found:
        name = facts["model"] + (" *" if round(facts["parameters"] / 1e6) > LIMIT_M else "")
        both = [f"{facts[key]['script']} / {facts[key]['dynamo']}" for key in ("nodes", "cells")]
        spent = [f"{facts['preparation']['script']:.1f} / {facts['preparation']['dynamo']:.1f}"]
        spent += [f"{ours(facts, 'script', c):.2f} / {ours(facts, 'dynamo', c):.2f}" for c in CRITERIA]
        other = ["fails", ""] if facts["said"] else [f"{rival(facts):.2f}", f"{slowest(facts) / rival(facts):.2f}"]
        rows.append([name, f"{facts['parameters'] / 1e6:.1f}", *both, *spent, *other])
    criteria = [f"ours, {name}" for name in CRITERIA]
    head = ["model", "M parameters", "nodes", "cells", "preparation", *criteria, "Torch-Pruning", "ratio"]
    return coverage_page.table(head, rows)


def main(folder: Path, /, *, models: str = "", repeat: int = 5, millions: float = LIMIT_M, again: bool = False,
         write: Path | None = None, one: Annotated[str, cyclopts.Parameter(show=False)] = "") -> None:  # fmt: skip
    """Measure what is not measured yet, then write the page.

    folder: holds exports and keeps results. models: only those that a regex finds. repeat: how often each is timed.
    millions: leave out models with more parameters. again: measure again.
    """
    if one:  # the process of one model
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGPROF, stop)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        facts = measure(folder, one, repeat)
        result_path(folder, one).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return
    about = {"onnxslim-merge": tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]}
    about |= {name: version(name) for name in PACKAGES}
    result_path(folder, "about").parent.mkdir(parents=True, exist_ok=True)
    result_path(folder, "about").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    names = [name for name in wanted(folder, models, millions) if again or not result_path(folder, name).exists()]
    for index, name in enumerate(names, 1):
        print(f"{index}/{len(names)} {name}: {measure_apart(folder, name, repeat)}", flush=True)
    if write:
        write.write_text(page(folder), encoding="utf-8")


if __name__ == "__main__":
    cyclopts.run(main)
