"""Every torchvision model through three tools, and docs/coverage.md from what happened.

    python tools/coverage.py FOLDER [--shared SHARED] [--models REGEX] [--tools REGEX] [--exporters REGEX]
                             [--write docs/coverage.md]

Exports what FOLDER lacks (tools/zoo.py), runs each tool on each file in a process of its own (tools/rivals.py) and
keeps what happened under FOLDER/results, so that an interrupted run goes on where it stopped. The page is written from
those files alone (tools/coverage_page.py). Needs torch, torchvision, torch-pruning 1.6.1 and onnxsim 0.8.1 beside this
package.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cyclopts

import coverage_page
import zoo
from onnxslim_merge.settings import Settings

SHARED_RATIO = 0.3
PACKAGES = ("torch", "torchvision", "torch-pruning", "onnxsim", "onnx", "onnxruntime")
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
RIVALS = Path(__file__).with_name("rivals.py")
ATTENTION = re.compile("^(vit|swin|maxvit)")
LAYERNORM = re.compile("^(vit|swin|maxvit|convnext)")


def jobs(models: str, shared: Path | None) -> Iterator[tuple[str, str, str]]:
    """(tool, model, exporter) of everything that is asked for; the exporter of a file of SHARED is "file"."""
    for name in zoo.wanted(models):
        for tool in ("torch-pruning", *(["plain"] if ATTENTION.match(name) else [])):
            yield tool, name, "torch"
        allowed = "allow_inexact" in Settings.__dataclass_fields__ and LAYERNORM.match(name)
        for exporter in zoo.EXPORTERS:
            for tool in ("ours", *(["inexact"] if allowed else []), "onnxsim"):
                yield tool, name, exporter
    root = (shared or Path()) / "models"
    for path in [*sorted(root.glob("*.onnx")), *sorted(root.glob("wide/*.onnx"))] if shared else []:
        if re.search(models, path.stem):
            yield "ours", path.relative_to(root).with_suffix("").as_posix(), "file"


def run(job: tuple[str, str, str], folder: Path, source: Path | None, ratio: float, limit: float) -> dict[str, Any]:
    """Run one tool in a process of its own, for `limit` seconds at most; returns what it noted."""
    tool, name, exporter = job
    result = coverage_page.result_path(folder, *job)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command: list[str | Path] = [
            sys.executable,
            RIVALS,
            tool,
            name,
            exporter,
            result,
            scratch,
            "--ratio",
            str(ratio),
        ]
        command += ["--source", source] if source else []
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            said = process.communicate(timeout=limit)[1].strip().splitlines()
            code = process.returncode
            failure = f"ended with exit code {code}: {said[-1][:200] if said else 'no word'}" if code else ""
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            failure = f"stopped after {limit:.0f} s"
    facts = json.loads(result.read_text()) if result.exists() else note(job, ratio, "start")
    if failure:
        facts["error"] = failure
        result.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def note(job: tuple[str, str, str], ratio: float, step: str, error: str | None = None) -> dict[str, Any]:
    """What is known of a job whose process left nothing."""
    return dict(zip(("tool", "model", "exporter"), job, strict=True)) | {"ratio": ratio, "step": step, "error": error}


def find_source(job: tuple[str, str, str], folder: Path, shared: Path | None, export: bool) -> tuple[Path | None, str]:
    """The file that a job works on, exported if need be, and what went wrong with that."""
    _, name, exporter = job
    if exporter == "torch":
        return None, ""
    if exporter == "file" and shared:
        return shared / "models" / f"{name}.onnx", ""
    path = zoo.path_of(folder, name, exporter)
    error = "" if path.exists() or not export else zoo.export_apart(folder, name, exporter)
    return path, error


def measure(
    folder: Path, wanted: list[tuple[str, str, str]], shared: Path | None, ratio: float, limit: float, export: bool
) -> None:
    """Run the jobs one after the other; with export=False, leave out those whose file is missing."""
    for index, job in enumerate(wanted, 1):
        source, error = find_source(job, folder, shared, export)
        if source and not source.exists() and not error:
            continue
        if error:
            facts = note(job, ratio, "export", error)
            path = coverage_page.result_path(folder, *job)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(facts, indent=1) + "\n")
        else:
            facts = run(job, folder, source, SHARED_RATIO if job[2] == "file" else ratio, limit)
        share = f"{facts['after'] / facts['before']:.3f} kept" if facts.get("after") else ""
        said = [share, f"{facts.get('seconds', 0):.1f} s", facts["error"] and f"{facts['step']}: {facts['error']}"]
        print(f"{index}/{len(wanted)} {' '.join(job)}: {', '.join(filter(None, said))}", flush=True)


def _size(job: tuple[str, str, str], folder: Path, shared: Path | None) -> int:
    """Bytes of a job's file, so that the smallest models come first; 0 where there is none yet."""
    path, _ = find_source(job, folder, shared, export=False)
    files = [path] if job[2] == "file" else path.parent.iterdir() if path and path.parent.exists() else []
    return sum(file.stat().st_size for file in files if file and file.exists())


def main(folder: Path, /, *, shared: Path | None = None, models: str = "", tools: str = "", exporters: str = "",
         ratio: float = 0.5, limit: float = 600, again: bool = False, export: bool = True,
         write: Path | None = None) -> None:  # fmt: skip
    """Measure what is not measured yet, then write the page.

    folder: keeps exports and results. shared: a folder with models/*.onnx and models/wide/*.onnx.
    models, tools, exporters: only those that a regex finds; the exporter of the files of shared is "file".
    limit: seconds for one tool on one model. again: measure again. export: with --no-export, leave out what is not
    exported yet.
    """
    wanted = [job for job in jobs(models, shared) if re.search(tools, job[0]) and re.search(exporters, job[2])]
    todo = [job for job in wanted if again or not coverage_page.read(coverage_page.result_path(folder, *job))]
    todo.sort(key=lambda job: _size(job, folder, shared))
    about = {"onnxslim-merge": tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]}
    about |= {name: version(name) for name in PACKAGES}
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "results" / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    measure(folder, todo, shared, ratio, limit, export)
    if write:
        write.write_text(coverage_page.page(folder, {kind: zoo.names(kind) for kind in zoo.KINDS}), encoding="utf-8")


if __name__ == "__main__":
    cyclopts.run(main)
