"""Accuracy, time and memory of every way to make up for removed channels, with calibration data and without.

    python tools/compensation.py run FOLDER SHARED [--cases REGEX] [--methods REGEX] [--ratios 0.3 0.5] [--threads 1]
    python tools/compensation.py write FOLDER docs/compensation.md

SHARED is the folder with `models/`, `data/` and `score.py` that this project's developers have beside their clone. What
was measured lies in FOLDER, a JSON file for each case, so that an interrupted run goes on where it stopped, and several
may run beside each other on different cases; the page is written from those files alone. FOLDER/cache, which git does
not see, holds what is made on the way. Every measurement has a process of its own, so that seconds and memory are its
own. Models are slimmed without verification, which the tests and every real run do. tools/compensation_rivals.py adds
other tools to the same FOLDER.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np

import compensation_page
from bench import analysed, classes
from compensation_cases import CASES, METHODS, SEEING, TIERS, Case, Column, Place
from onnxslim_merge.files import write_atomically
from onnxslim_merge.model_io import build
from onnxslim_merge.report.assemble import cost_changes
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.settings import Settings
from paper_tables import load_score

NOTES = 8  # how many notes of a run are kept
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGE = Path(__file__).parents[1] / "onnxslim_merge"
Facts = dict[str, Any]


# -- one measurement, in its own process -------------------------------------------------------------------------------


@contextmanager
def costs(facts: Facts) -> Iterator[None]:
    """Notes in `facts` the seconds by both clocks, and the peak of memory while the body runs, in MiB."""
    _forget_peak()
    facts["start_mib"] = _memory("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    yield
    facts |= {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    facts["peak_mib"] = _memory("VmHWM")


def _forget_peak() -> None:
    with suppress(OSError):  # then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> int:
    """MiB, of Linux; unlike `ru_maxrss` it does not start with the parent's."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


def save(path: Path, *array: np.ndarray, **arrays: np.ndarray) -> None:
    """One array as npy, or several by name as npz; the file appears whole."""
    stream = io.BytesIO()
    (np.savez if arrays else np.save)(stream, *array, **arrays)
    write_atomically(path, stream.getvalue())


@dataclass(frozen=True, slots=True)
class Job:
    """A case at one amount; `path` is its model, made if need be."""

    place: Place
    case: Case
    column: Column
    threads: int

    @classmethod
    def of(cls, place: Place, case: str, column: str, threads: int) -> Job:
        """By the names in CASES."""
        return cls(place, CASES[case], CASES[case].columns[column], threads)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.column.model or self.case.model

    @property
    def path(self) -> Path:
        """Of the model."""
        return self.place.model(self.name)

    @property
    def images(self) -> int:
        """How many calibration images are given."""
        return self.column.images or self.case.images

    def prepared(self, split: str, first: int | None = None) -> np.ndarray:
        """Images of "test" or "calib" as the model expects them."""
        score = load_score(self.place.shared)
        found: np.ndarray = score.prepare(self.case.task, self._raw(split, first)[0])
        return found

    def _raw(self, split: str, first: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Images and labels as score.py gives them, unpacked once."""
        path, labels = (self.place.cache / f"{self.case.task} {split}{end}.npy" for end in ("", " labels"))
        if not path.exists():
            try:
                found = load_score(self.place.shared).images(self.case.task, split, None)
            except ModuleNotFoundError as error:
                raise SystemExit(f"the task {self.case.task} needs Pillow: pip install pillow ({error})") from None
            for target, array in ((labels, found[1]), (path, found[0])):
                if array is not None:
                    save(target, array)
        return np.load(path)[:first], np.load(labels)[:first] if labels.exists() else None

    def calibration(self) -> Path:
        """The npz that is given as --calibration-data."""
        path = self.place.cache / f"{self.case.task} {self.name.replace(':', ' ')} {self.images}.npz"
        if not path.exists():
            import onnx

            name = onnx.load(self.path, load_external_data=False).graph.input[0].name
            save(path, **{name: self.prepared("calib", self.images)})
        return path

    def score(self, model: bytes) -> Facts:
        """Accuracy and changed decisions on the test set, agreement on the calibration images that nobody saw."""
        test, labels = self.prepared("test"), self._raw("test", None)[1]
        unseen = self.prepared("calib")[self.images :]
        reference = self._reference(test, unseen)
        found = classes(model, test, self.threads)
        facts = {
            "accuracy": 100 * float((found == labels).mean()),
            "base": 100 * float((reference["test"] == labels).mean()),
            "changed": 100 * float((found != reference["test"]).mean()),
            "tested": len(test),
        }
        if len(unseen):
            same = classes(model, unseen, self.threads) == reference["unseen"]
            facts |= {"agreement": 100 * float(same.mean()), "unseen": len(unseen)}
        return facts

    def _reference(self, test: np.ndarray, unseen: np.ndarray) -> dict[str, np.ndarray]:
        """The original's classes, worked out once."""
        path = self.place.cache / f"{self.name.replace(':', ' ')} classes {len(unseen)}.json"
        if not path.exists():
            model = self.path.read_bytes()
            parts = {"test": test, "unseen": unseen}
            found = {k: classes(model, x, self.threads).tolist() if len(x) else [] for k, x in parts.items()}
            write_atomically(path, json.dumps(found).encode())
        return {k: np.array(v) for k, v in json.loads(path.read_text()).items()}


def measured(job: Job, method: str, mode: str) -> Facts:
    """Slim by one method, and look at what came out."""
    facts: Facts = {}
    data = {"calibration_data": job.calibration()} if mode == SEEING else {}
    settings, path = Settings(**(job.column.options | METHODS[method].options | data)), job.path
    with costs(facts):
        work = analysed(path, settings)
        work.decide()
        plan = work.plan(check=False)
        model = build(rewrite(work.graph, plan), work.source).SerializeToString()
    facts["stages"] = work.run.stages
    facts["notes"] = [*plan.notes, *work.notes][:NOTES]
    parameters, macs = cost_changes(work.analysis, plan, work.source, work.probes[0])
    facts |= {"before": parameters.before, "after": parameters.after, "macs": [macs.before, macs.after]}
    return facts | (job.score(model) if job.case.scored else {})


app = cyclopts.App(help=__doc__, help_format="plaintext")


@app.command
def one(
    shared: Path, cache: Path, case: str, method: str, mode: str, column: str, result: Path, /, *, threads: int = 1
) -> None:
    """Make one measurement and write it to RESULT: what `run` starts."""
    facts = attempt(lambda: measured(Job.of(Place(shared, cache), case, column, threads), method, mode))
    write_atomically(result, json.dumps(facts).encode())


def attempt(measure: Any) -> Facts:
    """What was found, or why nothing was."""
    try:
        found: Facts = measure()
    except Exception as error:  # whatever is raised is a result
        text = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {text[0][:300]}"}
    return found


# -- many of them ------------------------------------------------------------------------------------------------------


class Journal:
    """What is known of one case, in a file from measurement to measurement."""

    def __init__(self, folder: Path, name: str, suffix: str = "") -> None:
        """Read what there is."""
        self.name, self.path = name, folder / f"{name}{suffix}.json"
        self.facts: Facts = {"found": {}}
        if self.path.exists():
            self.facts = json.loads(self.path.read_text())

    @property
    def found(self) -> Facts:
        """{"method | mode | column": what was measured}."""
        found: Facts = self.facts["found"]
        return found

    def keep(self, key: str, found: Facts) -> None:
        """Write it down."""
        self.found[key] = found
        write_atomically(self.path, (json.dumps(self.facts, indent=1) + "\n").encode())
        shown = ("accuracy", "agreement", "changed", "wall", "processor", "peak_mib", "error")
        said = " ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k in shown if (v := found.get(k)))
        print(f"{self.name} | {key}: {said}", flush=True)


def key(method: str, mode: str, column: str) -> str:
    """The name of one measurement."""
    return " | ".join((method, mode, column))


def apart(command: Sequence[str | Path], threads: int, limit: float) -> Facts:
    """What a process of its own writes into a file, whose name it gets as its last argument."""
    environment = os.environ | (dict.fromkeys(THREADS, str(threads)) if threads else {})
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        whole = [sys.executable, *command, result, "--threads", str(threads)]
        process = subprocess.Popen(
            whole, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            said = process.communicate(timeout=limit)[1].strip().splitlines()
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {"error": f"stopped after {limit:.0f} s"}
        if result.exists():
            found: Facts = json.loads(result.read_text())
            return found
    if process.returncode == 1 and said and "pip install" in said[-1]:
        raise SystemExit(said[-1])  # a missing package is no result
    return {"error": f"ended with exit code {process.returncode}: {said[-1][:300] if said else 'no word'}"}


def version() -> str:
    """The commit that last changed the package, with a plus sign where it has been changed since; "" without git."""
    try:
        log = ["git", "-C", PACKAGE, "log", "-1", "--format=%h", "--", "."]
        commit = subprocess.run(log, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", PACKAGE, "status", "--porcelain", "--", "."], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + "+" * bool(changes.stdout)


def cache_of(folder: Path) -> Path:
    """Where made models and inputs lie, which git does not see."""
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(cache / ".gitignore", b"*\n")
    return cache


def wanted(names: Sequence[str], methods: str, ratios: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """(case, method, mode, column), what matters most first."""
    for tier in TIERS:
        for rank in range(max(len(CASES[name].columns) for name in names)):
            for name in names:
                columns = list(CASES[name].columns)[rank : rank + 1]
                for column in (c for c in columns if not ratios or c in ratios):
                    for method in (m for m in METHODS if METHODS[m].tier == tier and re.search(methods, m)):
                        yield from (
                            (name, method, m, column) for m in METHODS[method].modes if CASES[name].wants(method, m)
                        )


@app.command
def run(
    folder: Path,
    shared: Path,
    /,
    *,
    cases: Annotated[str, cyclopts.Parameter(help="REGEX: only these cases.")] = "",
    methods: Annotated[str, cyclopts.Parameter(help="REGEX: only these methods.")] = "",
    ratios: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True, help="Only these columns.")] = (),
    threads: Annotated[int, cyclopts.Parameter(help="Of ONNX Runtime when scoring, and of BLAS; 0 = their own.")] = 1,
    limit: Annotated[float, cyclopts.Parameter(help="Seconds for one measurement.")] = 7200,
    retry: Annotated[bool, cyclopts.Parameter(help="Also what failed before.")] = False,
    stale: Annotated[bool, cyclopts.Parameter(help="Also what another state of the package gave.")] = False,
    dry: Annotated[bool, cyclopts.Parameter(help="Only say what is missing.")] = False,
) -> None:
    """Measure what is missing in FOLDER."""
    names = [name for name in CASES if re.search(cases, name)]
    if not names:
        raise SystemExit(f"no case matches {cases!r}: {', '.join(CASES)}")
    place, now = Place(shared, cache_of(folder)), version()
    journals = {name: Journal(folder, name) for name in names}
    for name, method, mode, column in wanted(names, methods, ratios):
        known = journals[name].found.get(at := key(method, mode, column))
        if known and not (retry and "error" in known) and not (stale and known.get("version") != now):
            continue
        if dry:
            print(f"{name} | {at}")
            continue
        job = Job.of(place, name, column, threads)
        place.model(job.name)  # made before time counts, as is what follows
        if mode == SEEING:
            job.calibration()
        command = [__file__, "one", shared, place.cache, name, method, mode, column]
        journals[name].keep(at, apart(command, threads, limit) | {"version": now, "threads": threads})


@app.command
def write(folder: Path, target: Path, /) -> None:
    """Write the page TARGET from what FOLDER holds."""
    found = {}
    for name in CASES:
        parts = [
            json.loads(file.read_text())["found"]
            for s in ("", ".rivals")
            if (file := folder / f"{name}{s}.json").exists()
        ]
        if parts:
            found[name] = {k: v for part in parts for k, v in part.items()}
    images = folder / "generators.json"
    generators = json.loads(images.read_text()) if images.exists() else {}
    target.write_text(compensation_page.page(found, CASES, generators), encoding="utf-8")


if __name__ == "__main__":
    app()
