"""Every criterion with every compensation, on real models, at seven ratios: accuracy, agreement, shifts of layers.

    python tools/criteria.py FOLDER SHARED [--cases REGEX] [--threads 1] [--write docs/criteria.md]

SHARED is the folder with `models/`, `data/` and `score.py` that this project's developers have beside their clone. What
was measured lies in FOLDER, a JSON file for each case, so that an interrupted run goes on where it stopped, and several
may run beside each other on different cases; the page is written from those files alone (`--cases '^$' --write FILE`:
nothing but that). Models are slimmed without data and without verification, which the tests and every real run do.
Accuracy is top-1 on the labelled test set, all of it; agreement is that of the highest class with the original's on
unlabelled training images (`x_calib`), which is what defaults are chosen by.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import onnx

from bench import Bench
from criteria_page import page
from onnxslim_merge import select
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.criteria import Choice, choose
from onnxslim_merge.files import write_atomically
from onnxslim_merge.model_io import build
from onnxslim_merge.numerics import Device
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.probe import tap
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.settings import RatioRule, Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.views import Views
from paper_tables import PAPER_VGG

RATIOS = (0.3, 0.1, 0.5, 0.2, 0.4, 0.6, 0.7)  # in this order: the first say most
COMPENSATIONS: dict[str, dict[str, Any]] = {
    "none": {"compensation": "none"},
    "mean": {"compensation": "mean"},
    "merge": {"compensation": "merge"},
    "mean+merge": {"compensation": "mean+merge"},
    "merge, all": {"compensation": "merge", "donors": "all"},
    "mean+merge, all": {"compensation": "mean+merge", "donors": "all"},
}
FREE: dict[str, dict[str, Any]] = {  # of `reprune`, whose donors are the representatives otherwise
    "merge, one": {"compensation": "merge", "donors": 1},
    "mean+merge, one": {"compensation": "mean+merge", "donors": 1},
}
VARIANTS: dict[str, dict[str, str]] = {
    "l1": {"criterion": "l1"},
    "l2": {"criterion": "l2"},
    "l2-gm": {"criterion": "l2-gm"},
    "consumer": {"criterion": "consumer"},
    "impact": {"criterion": "impact"},
    "reprune": {"criterion": "reprune"},
    "reprune, cosine": {"criterion": "reprune", "geometry": "cosine"},
    "reprune-kernel": {"criterion": "reprune-kernel"},
    "reprune-kernel, layer": {"criterion": "reprune-kernel", "kernel_cut": "layer"},
}
# Percent of agreement, of ten classes, below which a model is not scored on the test set at once, to save hours.
HOPELESS, NEVER = 50.0, 101.0
ASKED = [(v, c) for v in VARIANTS if ", " not in v for c in COMPENSATIONS if ", " not in c]  # first; the rest says more
MORE = [(v, c) for v in VARIANTS if ", " not in v for c in COMPENSATIONS if ", " in c]
REST = [(v, c) for v in VARIANTS if ", " in v for c in COMPENSATIONS]
REST += [(v, c) for v in ("reprune", "reprune, cosine") for c in FREE]
# What is asked for first, and of what collapsed its agreement only; at last everything.
PASSES = ((ASKED, HOPELESS), (MORE, NEVER), (ASKED, 0.0), (MORE, HOPELESS), (REST, HOPELESS))
SHIFTS = ("l1", "l2", "reprune", "reprune, cosine", "reprune-kernel")
SHIFT_IMAGES, SHIFT_RATIO = 64, 0.5


class Choices:
    """Choices of the slow criteria, which no compensation changes: those of one ratio are kept."""

    def __init__(self) -> None:
        """Nothing chosen yet."""
        self.kept: dict[tuple[Any, ...], Choice] = {}

    def __call__(
        self, views: Views, cell: Cell, keep: int, statistics: Statistics | None, settings: Settings, device: Device
    ) -> Choice:
        """As `choose`."""
        if not settings.criterion.startswith("reprune"):
            return choose(views, cell, keep, statistics, settings, device)
        how = settings.criterion, settings.geometry, settings.kernel_cut, settings.ratio, settings.ratio_for
        self.kept = {key: found for key, found in self.kept.items() if key[0] == how}
        place = how, cell.name, keep
        if place not in self.kept:
            self.kept[place] = choose(views, cell, keep, statistics, settings, device)
        return self.kept[place]


@dataclass(frozen=True, slots=True)
class Case:
    """One model at one kind of amount. task: of score.py; ratios None: as in `options`. shifts: by layer too."""

    model: str
    task: str
    options: dict[str, Any]
    ratios: tuple[float, ...] | None = RATIOS
    shifts: bool = False


CASES = {
    "lenet": Case("lenet300_100_fashionmnist", "fashion", {}, shifts=True),
    "vgg16 paper": Case(
        "vgg16_cifar10_bn", "cifar10-b", {"ratio": 0.0, "ratio_for": tuple(map(RatioRule.parse, PAPER_VGG))}, None, True
    ),
    "resnet20 bn inner": Case("resnet20_cifar10_bn_op13", "cifar10-a", {"scope": "inner"}, shifts=True),
    "resnet20 folded inner": Case("resnet20_cifar10_folded_op17", "cifar10-a", {"scope": "inner"}),
    "resnet20 bn all": Case("resnet20_cifar10_bn_op13", "cifar10-a", {}),
    "resnet20 folded all": Case("resnet20_cifar10_folded_op17", "cifar10-a", {}),
    "densenet": Case("densenet_jw_cifar10_bn", "cifar10-b", {}),
    "vgg16": Case("vgg16_cifar10_bn", "cifar10-b", {}),
    "efficientnet inner": Case("efficientnet_lite0_imagenet_bn", "imagenet", {"scope": "inner"}, (0.1,)),
}


class CaseBench(Bench):
    """One case, with its labelled test set."""

    def __init__(self, shared: Path, case: Case, threads: int) -> None:
        """Score the original."""
        super().__init__(shared, case.model, case.task, threads=threads)
        self.case = case
        self.before: dict[str, list[np.ndarray]] = {}
        self.choices = Choices()
        raw, self.labels = self.score.images(case.task, "test", None)
        self.test: np.ndarray = self.score.prepare(case.task, raw)
        self.base = self.accuracy(self.path.read_bytes())

    def accuracy(self, model: bytes) -> float:
        """Top-1 on the test set, in percent."""
        return 100 * float((self.classes(model, self.test) == self.labels).mean())

    def plan_of(self, **options: Any) -> SlimPlan:
        """The plan for these options of the case."""
        select.choose = self.choices  # of this model, others have theirs
        return self.plan(Settings(**(self.case.options | options)))

    def measure(self, variant: str, compensation: str, ratio: float | None, hopeless: float) -> dict[str, float]:
        """Accuracy and agreement in percent, and what it took; accuracy from `hopeless` percent of agreement on."""
        amount = {} if ratio is None else {"ratio": ratio}
        start = time.perf_counter()
        plan = self.plan_of(**VARIANTS[variant], **(COMPENSATIONS | FREE)[compensation], **amount)
        planned = time.perf_counter() - start
        model = self.model(plan)
        found = {"agreement": self.agreement(model), "seconds": planned}
        return found if found["agreement"] < hopeless else found | {"accuracy": self.accuracy(model)}

    def shifts(self, variant: str, compensation: str) -> dict[str, float]:
        """For each layer whose inputs alone lose half: the relative L2 distance of its output from the original's.

        BatchNormalization is kept, so that the output has its name in both.
        """
        found, analysis = dict[str, float](), self.work.analysis
        for cell in analysis.cells:
            if cell.refusal is not None or not cell.inner or cell.size == 1:
                continue
            producer = re.escape(analysis.producers[cell.producers[0]].output)
            plan = self.plan_of(
                ratio=0.0, ratio_for=(RatioRule(f"^{producer}$", SHIFT_RATIO),), keep_batchnorm=True, scope="all",
                **VARIANTS[variant], **COMPENSATIONS[compensation],
            )  # fmt: skip
            readers = [c.output for c in analysis.consumers if np.isin(analysis.roots[c.labels], cell.labels).any()]
            after = self.layers(build(rewrite(self.work.graph, plan), self.work.source), readers)
            if cell.name not in self.before:
                self.before[cell.name] = self.layers(build(self.work.graph, self.work.source), readers)
            before = self.before[cell.name]
            wrong = sum(np.square(a - b, dtype=np.float64).sum() for a, b in zip(before, after, strict=True))
            found[cell.name] = float((wrong / sum(np.square(a, dtype=np.float64).sum() for a in before)) ** 0.5)
        return found

    def layers(self, model: onnx.ModelProto, names: list[str]) -> list[np.ndarray]:
        """The tensors `names` on the first calibration images; nothing behind them is run."""
        del model.graph.output[:]
        (found,) = self.outputs(tap(model, names).SerializeToString(), self.inputs[:SHIFT_IMAGES])
        return found


class Journal:
    """What is known of one case, in a file from measurement to measurement."""

    def __init__(self, folder: Path, shared: Path, name: str, threads: int) -> None:
        """Read what there is."""
        self.name, self.case, self.path = name, CASES[name], folder / f"{name}.json"
        self.facts: dict[str, Any] = {"found": {}, "shifts": {}}
        if self.path.exists():
            self.facts = json.loads(self.path.read_text())
        self._bench: CaseBench | None = None
        self._made = shared, threads

    @property
    def bench(self) -> CaseBench:
        """The model, analysed when it is first needed."""
        if self._bench is None:
            self._bench = CaseBench(self._made[0], self.case, self._made[1])
            self.facts["base"] = self._bench.base
        return self._bench

    def measure(self, wanted: Sequence[tuple[str, str]], ratio: float, hopeless: float) -> None:
        """What is missing at one ratio; of a case without ratios all. hopeless: as in CaseBench.measure."""
        if ratio not in (self.case.ratios or RATIOS[:1]):
            return
        at = ratio if self.case.ratios else None
        for variant, compensation in wanted:
            name = key(variant, compensation, at)
            known = self.facts["found"].get(name)
            if known is None or ("accuracy" not in known and known["agreement"] >= hopeless):
                self.keep("found", name, self.bench.measure(variant, compensation, at, hopeless))

    def shifts(self) -> None:
        """What is missing of the shifts of layers."""
        for variant, compensation in ((v, c) for v in SHIFTS for c in COMPENSATIONS if self.case.shifts):
            if (name := key(variant, compensation, None)) not in self.facts["shifts"]:
                self.keep("shifts", name, self.bench.shifts(variant, compensation))

    def keep(self, kind: str, name: str, found: dict[str, float]) -> None:
        """Write it down."""
        self.facts[kind][name] = found
        write_atomically(self.path, json.dumps(self.facts, indent=1).encode())
        print(self.name, name, found if kind == "found" else kind, flush=True)


def key(variant: str, compensation: str, ratio: float | None) -> str:
    """The name of one measurement."""
    return " | ".join((variant, compensation, "" if ratio is None else f"{ratio:g}"))


app = cyclopts.App(help=__doc__, help_format="plaintext")


@app.default
def main(
    folder: Path,
    shared: Path,
    /,
    *,
    cases: Annotated[str, cyclopts.Parameter(help="REGEX: only these cases.")] = "",
    threads: int = 1,
    write: Path | None = None,
) -> None:
    """Measure what is missing in FOLDER; write the page."""
    folder.mkdir(parents=True, exist_ok=True)
    journals = [Journal(folder, shared, name, threads) for name in CASES if re.search(cases, name)]
    for wanted, hopeless in PASSES:
        for ratio in RATIOS:
            for journal in journals:
                journal.measure(wanted, ratio, hopeless)
        for journal in journals:
            journal.shifts()
    if write is not None:
        facts = {name: json.loads(file.read_text()) for name in CASES if (file := folder / f"{name}.json").exists()}
        write.write_text(page(facts), encoding="utf-8")


if __name__ == "__main__":
    app()
