"""The command line: argv -> options -> `slim`; the report goes to stdout, all else to stderr, errors as one line."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TextIO

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from onnxslim_merge.api import slim
from onnxslim_merge.errors import OutputError, SlimError, UsageError, VerifyError
from onnxslim_merge.options import ImageOptions, RunOptions, SettingsOptions
from onnxslim_merge.provenance import version
from onnxslim_merge.report import Report, progress, render

NAME = "onnxslim-merge"
_NO_SETTINGS, _NO_IMAGES, _PLAIN = SettingsOptions(), ImageOptions(), RunOptions()
INTERNAL, INTERRUPTED = 8, 130  # the other exit codes stand at the classes in errors.py

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
    settings: Annotated[SettingsOptions, Parameter(name="*")] = _NO_SETTINGS,
    images: Annotated[ImageOptions, Parameter(name="*")] = _NO_IMAGES,
    run: Annotated[RunOptions, Parameter(name="*")] = _PLAIN,
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
        if "" in arguments:
            raise UsageError("one of the arguments is empty: is a variable of the shell not set?")
        with _one_line_warnings(), _terminable():
            code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:  # not from the parsed options: they may be what is wrong
            traceback.print_exception(error)
        code, text = _described(error)
        _say(text)
        return code


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which containers and job queues send, is an interrupt: nothing half-written is left."""
    before = signal.getsignal(signal.SIGTERM)
    mine = threading.current_thread() is threading.main_thread()
    if not mine or before in (signal.SIG_IGN, None):  # ignored by who started this, or not Python's
        yield
        return

    def stop(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of background jobs in a shell
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _described(error: BaseException) -> tuple[int, str]:
    """Exit code and message."""
    if isinstance(error, SlimError):
        return error.exit_code, str(error)
    if isinstance(error, CycloptsError):
        return UsageError.exit_code, f"{str(error).rstrip('.')}: see --help"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, MemoryError):
        return VerifyError.exit_code, f"not enough memory ({error}): try a smaller --memory-limit or --input-shapes"
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
