"""What can be told before the long work: where a run writes, and options that name things which are not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from onnxslim_merge.errors import OutputError, UsageError, VerifyError
from onnxslim_merge.files import written_together
from onnxslim_merge.model_io import Source
from onnxslim_merge.numerics import Device
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.report.model import Report
from onnxslim_merge.runtime import load_onnxruntime, one_line, resolve_providers
from onnxslim_merge.samples import find_files, input_specs, load_pillow
from onnxslim_merge.settings import Settings

Named = tuple[str, Path]  # a file, and what a message calls it


@dataclass(frozen=True, slots=True)
class Targets:
    """The files that a run is to write; None = not asked for."""

    output: Path | None = None
    save_plan: Path | None = None
    report: Path | None = None
    external_data: bool = False

    def named(self) -> Iterator[Named]:
        """Every file, those that come along with another one included."""
        if self.output is not None:
            yield "the output", self.output
            if self.external_data:
                yield "the output's data file", self.output.with_name(self.output.name + ".data")
        if self.save_plan is not None:
            yield "--save-plan", self.save_plan
            yield "the arrays of --save-plan,", SlimPlan.arrays_path(self.save_plan)
        if self.report is not None:
            yield "--report", self.report

    def beside(self, plan: SlimPlan, report: Report) -> AbstractContextManager[None]:
        """Write plan and report where asked for; if the body fails, they are gone again. Raises OutputError."""
        files = plan.files(self.save_plan) if self.save_plan is not None else {}
        if self.report is not None:
            files[self.report] = report.to_json().encode()
        return written_together(files)


def check_targets(targets: Targets, inputs: Sequence[Named]) -> None:
    """Raise OutputError if a target cannot be written, UsageError if it is an input or another target."""
    taken = list(inputs)
    for what, path in targets.named():
        _require_writable(what, path)
        for other, file in taken:
            if _same(path, file):
                raise UsageError(f"{what} {path} is the same file as {other.rstrip(',')} ({file}): name another one")
        taken.append((what, path))


def check_options(settings: Settings, source: Source, *, measures: bool) -> None:
    """Raise what a later stage would, so that it is no surprise then: a SlimError. measures: not in a dry run."""
    input_specs(source.proto)
    Device(settings.device)
    if settings.calibration_data is not None and find_files(settings.calibration_data).images:
        load_pillow()
    outputs = [output.name for output in source.proto.graph.output]
    name = settings.score_output
    if measures and name is not None and name not in outputs:
        raise UsageError(f"--score-output {name!r}: no such output; the model has {', '.join(outputs)}")
    if measures and settings.providers:
        resolve_providers(settings.providers)
    for library in settings.custom_ops:
        _require_custom_ops(library)


def inputs_of(source: Source, settings: Settings, plan: Path | None) -> list[Named]:
    """Every file that a run reads."""
    found: list[Named] = [] if source.path is None else [("the input model", source.path)]
    found += [("the input model's data", file) for file in source.external_files()]
    if plan is not None:
        found += [("--plan", plan), ("the arrays of --plan", SlimPlan.arrays_path(plan))]
    if settings.calibration_data is not None:
        found += [("--calibration-data", file) for file in find_files(settings.calibration_data).files]
    return [*found, *(("--custom-ops", library) for library in settings.custom_ops)]


def _same(one: Path, other: Path) -> bool:
    """Whether both name one file, through links too; neither has to exist."""
    there = one.exists()  # first, as it is fast: folders of images are long
    if there != other.exists():
        return False
    return os.path.samefile(one, other) if there else one.resolve() == other.resolve()


def _require_writable(what: str, path: Path) -> None:
    try:
        if path.is_dir():
            raise OutputError(f"{what} {path} is a directory: name a file")
        if not path.parent.is_dir():
            raise OutputError(f"{what} {path}: {path.parent} is not an existing folder; create it first")
        if path.exists() and not path.is_file():
            raise OutputError(f"{what} {path} is not a regular file: name another one")
        # Permission bits tell root nothing, and a file system may be read-only.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except (OSError, ValueError) as error:
        raise OutputError(f"{what} {path} cannot be written: {getattr(error, 'strerror', '') or error}") from error


def _require_custom_ops(library: Path) -> None:
    if not library.is_file():
        raise UsageError(f"--custom-ops {library}: no such file")
    options = load_onnxruntime().SessionOptions()
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime raises several unrelated classes
        raise VerifyError(f"--custom-ops {library} does not load in ONNX Runtime: {one_line(error)}") from error
