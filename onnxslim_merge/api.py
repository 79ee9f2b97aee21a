"""The functions that people call from Python: same options as the command line, by name."""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxslim_merge.channels.analysis import Analysis, analyse_channels
from onnxslim_merge.errors import OutputError, UsageError
from onnxslim_merge.files import ARRAYS
from onnxslim_merge.model_io import build, load
from onnxslim_merge.parsing import parse_input_shapes
from onnxslim_merge.pipeline import Progress, SlimResult, run_slim
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.prepare import prepare
from onnxslim_merge.preprocessing import parse_numbers
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.provenance import metadata
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.samples import find_files, input_specs
from onnxslim_merge.settings import RECORDED, RatioRule, Settings, option_name

Model = str | Path | onnx.ModelProto


def slim(
    model: Model,
    output: str | Path | None = None,
    *,
    plan: SlimPlan | str | Path | None = None,
    save_plan: str | Path | None = None,
    report: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress = lambda stage: None,
    **options: Any,
) -> SlimResult:
    """Slim `model` (path or ModelProto) and verify the result; write it to `output` if given.

    plan: a plan to replay; only options that do not decide a plan may stand beside it.
    save_plan, report: where to write the plan (with its .npz) and the report as JSON. All files appear, or none.
    dry_run: plan and report only; no model. progress: called with the name of each stage.
    options: the fields of `Settings`; `calibration_data` also takes an array, or arrays by input; `ratio_for`
        texts "REGEX=R", `input_shapes` texts "NAME:1,3,224,224",
        `mean`, `std` and `scale` texts "0.5,1/255", paths may be texts. Warns (UserWarning) of options that have no
        effect.
    Without `output`, `result.model` holds the slimmed ModelProto; with it, the file appears only when verified.
    Raises SlimError: see `onnxslim_merge.errors` for its kinds.
    """
    for name, value in (("output", output), ("plan", plan), ("save_plan", save_plan), ("report", report)):
        if not isinstance(value, str | os.PathLike | None) and not (name == "plan" and isinstance(value, SlimPlan)):
            raise UsageError(f"{name} {value!r:.80}: must be a path")
    if plan is not None:
        _refuse_beside_plan(options)
    with _saved(options) as given:
        settings = make_settings(**given)
        writes, data = output is not None and not dry_run, settings.calibration_data
        images = data is not None and find_files(data).images
        planned = settings if plan is None else settings.with_record(_plan(plan).settings)
        for text in planned.without_effect(options, measures=not dry_run, writes=writes, images=images):
            warnings.warn(text, stacklevel=2)
        target, save_plan, report = (None if path is None else Path(path) for path in (output, save_plan, report))
        return run_slim(
            model,
            target,
            settings,
            plan=Path(plan) if isinstance(plan, str) else plan,
            save_plan=save_plan,
            report=report,
            dry_run=dry_run,
            progress=progress,
        )


@contextmanager
def _saved(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The options, with arrays as calibration data in a file, as they come from the command line."""
    data = options.get("calibration_data")
    if not isinstance(data, np.ndarray | Mapping):
        yield options
        return
    with tempfile.TemporaryDirectory(prefix=ARRAYS) as folder:
        path = Path(folder) / ("arrays.npz" if isinstance(data, Mapping) else "array.npy")
        try:
            if isinstance(data, Mapping):
                with zipfile.ZipFile(path, "w") as archive:  # as numpy.savez does, but for inputs of any name
                    for name, array in data.items():
                        with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                            np.lib.format.write_array(stream, np.asarray(array))
            else:
                np.save(path, data)
        except OSError as error:
            raise OutputError(f"calibration_data cannot be kept in {folder}: {error.strerror or error}") from error
        yield options | {"calibration_data": path}


def _plan(plan: SlimPlan | str | Path) -> SlimPlan:
    return plan if isinstance(plan, SlimPlan) else SlimPlan.load(Path(plan))


def _refuse_beside_plan(options: Mapping[str, Any]) -> None:
    """A plan holds the options that decided it; only `input_shapes` may differ, since a re-export may rename inputs."""
    clash = [option_name(name) for name in RECORDED if name in options and name != "input_shapes"]
    if clash:
        raise UsageError(f"{', '.join(clash)} beside --plan: the plan holds its own, so leave one of the two out")


def make_settings(**options: Any) -> Settings:
    """`Settings` from loosely typed options. Raises UsageError for an unknown name or a bad value."""
    known = set(Settings.__dataclass_fields__)
    if unknown := sorted(set(options) - known):
        raise UsageError(f"unknown option {unknown[0]!r}: the options are {', '.join(sorted(known))}")
    for name, convert in _CONVERTED.items():
        try:
            if options.get(name) is not None:
                options[name] = convert(options[name])
            elif name in options:
                del options[name]
        except (TypeError, AttributeError) as error:
            shown = " ".join(f"{options[name]!r}".split())[:80]
            what = f"{option_name(name)}: {shown} is of a type that it does not take"
            raise UsageError(f"{what} ({type(options[name]).__name__})") from error
    for name in _SWITCHES:
        if not isinstance(options.get(name, False), bool):
            raise UsageError(f"{option_name(name)} {options[name]!r:.80}: must be True or False")
    try:
        return Settings(**options)
    except (TypeError, AttributeError) as error:
        raise UsageError(f"an option is of a type that it does not take: {error}") from error


def _several(value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(item, str) for item in found):
        raise TypeError
    return found


def _rules(value: Any) -> tuple[RatioRule, ...]:
    found = [value] if isinstance(value, str | RatioRule) else value
    return tuple(r if isinstance(r, RatioRule) else RatioRule.parse(r) for r in found)


def _shapes(value: Any) -> Mapping[str, tuple[int, ...]]:
    if isinstance(value, Mapping):
        return {name: tuple(shape) for name, shape in value.items()}
    return parse_input_shapes([value] if isinstance(value, str) else value)


def _libraries(value: Any) -> tuple[Path, ...]:
    found = [value] if isinstance(value, str | Path) else value
    return tuple(Path(library).absolute() for library in found)  # else searched in system folders


_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "ratio_for": _rules,
    "exclude": _several,
    "providers": _several,
    "allow_inexact": _several,
    "input_shapes": _shapes,
    "custom_ops": _libraries,
    "mean": lambda value: parse_numbers("mean", value),
    "std": lambda value: parse_numbers("std", value),
    "scale": lambda value: parse_numbers("scale", value, one=True)[0],
    "calibration_data": Path,
}
_SWITCHES = ("keep_batchnorm", "external_data")


def analyse(
    model: Model, *, input_shapes: dict[str, tuple[int, ...]] | None = None, allow_inexact: Sequence[str] = ()
) -> Analysis:
    """The channels of a model: cells, producers, consumers and refusals. Options as in `Settings`."""
    allowed = make_settings(allow_inexact=allow_inexact).allow_inexact
    source = load(model)
    input_specs(source.proto)  # refuses what cannot be fed
    graph = prepare(source)
    return analyse_channels(graph, probe_shapes(graph, source, input_shapes or {}), allowed)


def apply(model: Model, plan: SlimPlan | str | Path) -> onnx.ModelProto:
    """Replay a plan on the model that it was made for, without verification.

    Raises InputError if the plan does not fit, UnsupportedError above 2 GB (use `slim` with `plan` and `output`).
    """
    plan = plan if isinstance(plan, SlimPlan) else SlimPlan.load(Path(plan))
    source = load(model)
    return build(rewrite(prepare(source), plan), source, metadata=metadata(source, plan))
