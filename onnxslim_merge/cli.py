"""The command line: argv -> options -> `slim`; the report goes to stdout, all else to stderr, errors as one line."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from cyclopts import App, CycloptsError, Group, Parameter, Token
from rich.console import Console

from onnxslim_merge.api import slim
from onnxslim_merge.errors import OutputError, SlimError, UsageError
from onnxslim_merge.image_options import ImageOptions
from onnxslim_merge.provenance import version
from onnxslim_merge.report import Report, progress, render
from onnxslim_merge.settings import Compensation, Criterion, Geometry, Inexact, KernelCut, Scope, Settings

NAME = "onnxslim-merge"
INTERNAL, INTERRUPTED = 8, 130  # the other exit codes stand at the classes in errors.py

_DEFAULT, _NO_IMAGES = Settings(), ImageOptions()
_AMOUNT = Group("How much", sort_key=1)
_METHOD = Group("How", sort_key=2)
_MODEL = Group("The model and its inputs", sort_key=3)
_PLAN = Group("Plan and report", sort_key=5)  # 4: image_options.py
_RUN = Group("Messages", sort_key=6)


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    """Strictly: cyclopts itself rounds 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


def _whole_or_word(type_: Any, tokens: Sequence[Token]) -> int | str:
    return tokens[0].value if tokens[0].value.isalpha() else _whole(type_, tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsOptions:
    """The options that become `Settings`; None, () and False mean: not given, so that its default holds."""

    ratio: Annotated[
        float | None,
        Parameter(group=_AMOUNT, help=f"Share of channels removed from every cell. (default {_DEFAULT.ratio})"),
    ] = None
    scope: Annotated[
        Scope | None,
        Parameter(
            group=_AMOUNT,
            help="inner: only channels of one layer that meet no other's, as streams, gates and heads do."
            f" (default {_DEFAULT.scope})",
        ),
    ] = None
    ratio_for: Annotated[
        tuple[str, ...],
        Parameter(group=_AMOUNT, help="REGEX=R: the share for cells with a matching producer; the last one wins."),
    ] = ()
    exclude: Annotated[
        tuple[str, ...], Parameter(group=_AMOUNT, help="REGEX: cells with a matching producer stay whole.")
    ] = ()
    min_channels: Annotated[
        int | None,
        Parameter(group=_AMOUNT, converter=_whole, help=f"Least channels of a cell. (default {_DEFAULT.min_channels})"),
    ] = None
    channel_multiple: Annotated[
        int | Literal["auto"] | None,
        Parameter(
            group=_AMOUNT,
            converter=_whole_or_word,
            help="N: keep the nearest multiple of N channels; auto: 8 for fp32, 16 for fp16 and int8, 1 below 32"
            f" channels. (default {_DEFAULT.channel_multiple})",
        ),
    ] = None
    criterion: Annotated[
        Criterion | None,
        Parameter(
            group=_METHOD,
            help="Which channels stay. consumer came out best on real models (docs/criteria.md); l2-gm where all is"
            " fully connected; reprune where filters repeat each other, with --geometry cosine at any scale;"
            " greedy, with least-squares, where accuracy counts more than minutes."
            f" (default {_DEFAULT.criterion})",
        ),
    ] = None
    geometry: Annotated[
        Geometry | None,
        Parameter(
            group=_METHOD,
            help="Of reprune and reprune-kernel: filters as they are, or divided by their norms."
            f" (default {_DEFAULT.geometry})",
        ),
    ] = None
    kernel_cut: Annotated[
        KernelCut | None,
        Parameter(
            group=_METHOD,
            help="Of reprune-kernel: as many clusters in each input channel, or one height for a layer."
            f" (default {_DEFAULT.kernel_cut})",
        ),
    ] = None
    compensation: Annotated[
        Compensation | None,
        Parameter(
            group=_METHOD,
            help="What the next layers get for those that go; least-squares: refitted on samples, the best and"
            " the slowest; auto: merge by all donors, and the mean if"
            f" BatchNormalization or data tells it. (default {_DEFAULT.compensation})",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        Parameter(
            group=_METHOD,
            help="Least cosine for merging, or correlation of the fit by several donors. (default 0.45 fully connected,"
            " 0.1 with a convolution; several: 0)",
        ),
    ] = None
    lam: Annotated[
        float | None,
        Parameter(group=_METHOD, help=f"Weight of the cosine when convolutions are merged. (default {_DEFAULT.lam})"),
    ] = None
    donors: Annotated[
        int | Literal["auto", "representative", "all"] | None,
        Parameter(
            group=_METHOD,
            converter=_whole_or_word,
            help="How many channels stand in for one in merging: N or all, several by least squares; representative of"
            f" its cluster, with reprune. (default {_DEFAULT.donors}: all with --compensation auto; else 1, or with"
            " reprune representative)",
        ),
    ] = None
    allow_inexact: Annotated[
        tuple[Inexact, ...],
        Parameter(group=_METHOD, help="Cut channels that LayerNormalization averages over, though that is not exact."),
    ] = ()
    keep_batchnorm: Annotated[
        bool, Parameter(group=_METHOD, help="Do not fold BatchNormalization into the weights.")
    ] = False
    seed: Annotated[
        int | None, Parameter(group=_METHOD, converter=_whole, help=f"For synthetic inputs. (default {_DEFAULT.seed})")
    ] = None
    input_shapes: Annotated[
        tuple[str, ...], Parameter(group=_MODEL, help="NAME:1,3,224,224: the sizes at which an input is tried.")
    ] = ()
    calibration_data: Annotated[
        Path | None,
        Parameter(
            group=_MODEL,
            help="Real inputs: .npz keyed by input name, .npy, an image, or a folder of them. (default synthetic ones)",
        ),
    ] = None
    providers: Annotated[
        tuple[str, ...],
        Parameter(group=_MODEL, help="Where speed is measured, as in cpu,cuda. (default cuda if it runs)"),
    ] = ()
    score_output: Annotated[
        str | None, Parameter(group=_MODEL, help="The output with class scores, where there are several outputs.")
    ] = None
    device: Annotated[
        str | None,
        Parameter(
            group=_MODEL,
            help="Where reprune's distances and merges are computed: cpu; cuda or cuda:N with torch; torch on the CPU."
            f" (default {_DEFAULT.device})",
        ),
    ] = None
    custom_ops: Annotated[
        tuple[Path, ...], Parameter(group=_MODEL, help="LIB: a library of custom operators for ONNX Runtime.")
    ] = ()
    external_data: Annotated[
        bool, Parameter(group=_MODEL, help="Write the weights to OUT.data, as is done above 2 GB.")
    ] = False

    def given(self) -> dict[str, Any]:
        """What was given, by the names of `Settings`."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["providers"] = tuple(word for text in self.providers for word in text.split(","))
        return {name: v for name, v in found.items() if v is not None and v is not False and v != ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options that say what to do with plan and report."""

    dry_run: Annotated[
        bool, Parameter(group=_PLAN, help="Show what would be done; no model is written. As without OUT.")
    ] = False
    save_plan: Annotated[Path | None, Parameter(group=_PLAN, help="Write the plan, and its arrays as .npz.")] = None
    plan: Annotated[
        Path | None, Parameter(group=_PLAN, help="Replay a saved plan on the same model, or on a re-export of it.")
    ] = None
    report: Annotated[Path | None, Parameter(group=_PLAN, help="Write the report as JSON.")] = None
    verbose: Annotated[bool, Parameter(group=_RUN, help="Report all groups, refusals and the time of each stage.")] = (
        False
    )
    debug: Annotated[bool, Parameter(group=_RUN, help="Show the traceback of an error.")] = False


app = App(
    name=NAME,
    version=version,
    usage=f"Usage: {NAME} IN [OUT] [OPTIONS]",
    help="Make an ONNX model structurally smaller by Neuron Merging, and prove what was lost and won.",
    default_parameter=Parameter(negative=(), show_default=False),
    suppress_keyboard_interrupt=False,
)


@app.default
def slim_command(
    model: Annotated[Path, Parameter(name="IN", help="The ONNX model.")],
    output: Annotated[Path | None, Parameter(name="OUT", help="The smaller model; without it, a dry run.")] = None,
    /,
    *,
    settings: Annotated[SettingsOptions, Parameter(name="*")] = SettingsOptions(),
    images: Annotated[ImageOptions, Parameter(name="*")] = _NO_IMAGES,
    run: Annotated[RunOptions, Parameter(name="*")] = RunOptions(),
) -> int:
    """Slim IN, verify the result, write it to OUT and print the report."""
    with progress(Console(stderr=True)) as show:
        result = slim(
            model,
            output,
            plan=run.plan,
            save_plan=run.save_plan,
            report=run.report,
            dry_run=run.dry_run or output is None,
            progress=show,
            **settings.given(),
            **images.given(),
        )
    _print(result.report, verbose=run.verbose)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: `sys.argv`); returns the exit code. Raises nothing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _one_line_warnings():
            code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:  # not from the parsed options: they may be what is wrong
            traceback.print_exception(error)
        code, text = _described(error)
        _say(text)
        return code


def _described(error: BaseException) -> tuple[int, str]:
    """Exit code and message."""
    if isinstance(error, SlimError):
        return error.exit_code, str(error)
    if isinstance(error, CycloptsError):
        return UsageError.exit_code, f"{str(error).rstrip('.')}: see --help"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    what = f"internal error ({type(error).__name__}: {error})"
    return INTERNAL, f"{what}: please report this; --debug shows the traceback"


def _say(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    print(f"{NAME}: {' '.join(text.split())}", file=sys.stderr)


class _Stdout(Console):
    """A console that leaves a closed pipe to the caller; rich would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again."""
        raise  # noqa: PLE0704 - called while it is handled


def _print(report: Report, *, verbose: bool) -> None:
    """The report on stdout; a reader that went away is no error. Raises OutputError if stdout cannot be written."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of nodes may hold anything
    try:
        render(report, _Stdout(), verbose=verbose)
    except BrokenPipeError:
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        raise OutputError(f"the report cannot be printed: {error.strerror or error}; --report writes a file") from error


def _discard_stdout() -> None:
    """Nothing more can be written; what is buffered must not fail again at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings meant for users become one line on stderr, each once; those for developers stay away."""
    shown: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if (text := str(message)) not in shown:
            shown.add(text)
            _say(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
