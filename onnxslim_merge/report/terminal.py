"""The report on a terminal or in a pipe: 80 columns, ASCII, no truncated numbers; and progress on stderr."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from onnxslim_merge.report.model import Change, GroupReport, Report

ROW_LIMIT = 40
KIB = 1024
STYLES = {"slimmed": "green", "excluded": "yellow"}
PROVIDERS = {"CPUExecutionProvider": "CPU", "CUDAExecutionProvider": "CUDA", "TensorrtExecutionProvider": "TensorRT"}

NAME_LIMIT = 48
JOINED = re.compile(r"[^\s;()]+;[^\s;()]+;[^\s()]*[^\s(),:.]")  # names that a converter joined, in notes
Progress = Callable[[str], None]


def render(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print the totals, the fidelity, the groups and the notes; with `verbose` all groups, refusals and stage times."""
    console.print(_totals(report))
    console.print(_fidelity(report))
    if report.groups:
        console.print(_groups(report.groups, verbose=verbose))
    if report.settings:
        how = "criterion {criterion}, compensation {compensation}".format(**report.settings)
        console.print(f"{how}\n", highlight=False)
    for note in report.notes:
        text = JOINED.sub(lambda name: _short(name[0]), note)
        console.print(f"[yellow]note[/]  {escape(text)}", highlight=False, soft_wrap=not console.is_terminal)
    if report.refusals:
        console.print(_refusals(report) if verbose else _refusal_line(report), highlight=False)
    if verbose and report.stages:
        console.print(_stages(report))
    target = f"  {report.output.path}" if report.output.path else "  dry run: no model written"
    console.print(f"{report.elapsed_s:.1f} s{escape(target)}", highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, enabled: bool = True) -> Iterator[Progress]:
    """Yield a function that shows what is going on now (one line, a spinner and the time it took so far).

    Meant for stderr. Silent where `console` is no terminal or `enabled` is False; nothing of it stays on the screen.
    """
    if not (enabled and console.is_terminal):
        yield lambda stage: None
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(stage: str) -> None:
            bar.reset(task, description=stage, total=None)

        yield show


def _table(title: str, *headers: str) -> Table:
    """An empty table; the first column is text and may fold, the others are numbers and never do."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _totals(report: Report) -> Table:
    table = _table("onnxslim-merge " + escape(report.version), "", "before", "after", "after/before")
    for name, change, show in (
        ("parameters", report.parameters, _integer),
        ("MACs", report.macs, _integer),
        ("file size", report.size_bytes, _bytes),
    ):
        table.add_row(name, show(change.before), show(change.after), _share(change))
    for speed in report.speed:
        name, ratio = _provider(speed.provider), speed.after_ms / speed.before_ms
        table.add_row(f"latency, {name}", _ms(speed.before_ms), _ms(speed.after_ms), f"{ratio:.1%}")
        interval = f"{speed.speedup_low:.2f}-{speed.speedup_high:.2f}"
        table.add_row("  speedup, 95% interval", "", f"{speed.speedup:.2f}x", interval)
        if speed.requested != speed.provider:
            table.add_row(f"  {_provider(speed.requested)} ran no node of a model")
    return table


def _fidelity(report: Report) -> Table:
    """Numbers against the original's outputs; one row for each output where there are several."""
    source = f"{report.samples} samples, {report.fidelity_source}" if report.fidelity else "not measured"
    table = _table(
        "against the original: " + escape(source), "output", "rel. L2", "cosine", "max abs", "top-1", "equal"
    )
    for output in report.fidelity.outputs if report.fidelity else ():
        table.add_row(
            escape(output.name),
            _scientific(output.relative_l2),
            "-" if output.cosine is None else f"{output.cosine:.6f}",
            _scientific(output.max_abs),
            _percent(output.top1_agreement),
            _percent(output.equal_share),
        )
    table.add_row("full-size twin, max", _scientific(report.twin_max_error))
    return table


def _groups(groups: Iterable[GroupReport], *, verbose: bool) -> Table:
    """One row for each group, in the given order; where there are too many, equal ones become one row at the end."""
    named = [(g.name if verbose else _short(g.name), g) for g in groups]
    rows = [(escape(name), g.channels_before, g.channels_after, g.status, g.reason or "") for name, g in named]
    left_out = 0
    if not verbose and len(rows) > ROW_LIMIT:
        rows = _collapsed(rows, lambda row: row[3] != "slimmed")
    if not verbose and len(rows) > ROW_LIMIT:
        rows = _collapsed(rows, lambda row: row[3] == "slimmed")
    if not verbose and len(rows) > ROW_LIMIT:
        left_out = len(rows) - ROW_LIMIT
        rows = rows[:ROW_LIMIT]
    table = _table("groups of channels", "group", "channels")
    table.add_column("status", no_wrap=True)
    if any(row[-1] for row in rows):
        table.add_column("why", overflow="fold")
    for name, before, after, status, reason in rows:
        width = f"{before} -> {after}" if before != after else str(before)
        style = STYLES.get(status)
        cells = name, width, f"[{style}]{status}[/]" if style else escape(status), escape(reason)
        table.add_row(*cells[: len(table.columns)])
    if left_out:
        table.add_row(f"and {left_out} rows more: --verbose")
    return table


def _short(name: str) -> str:
    """The end of a long name, which tells nodes apart; converters join dozens of names with semicolons."""
    return name if len(name) <= NAME_LIMIT else "..." + name[3 - NAME_LIMIT :]


_Row = tuple[str, int, int, str, str]


def _collapsed(rows: list[_Row], chosen: Callable[[_Row], bool]) -> list[_Row]:
    """Chosen rows with the same channels, status and reason become one, `N groups`, behind the others."""
    same: dict[tuple[int, int, str, str], list[_Row]] = {}
    for row in filter(chosen, rows):
        same.setdefault(row[1:], []).append(row)
    merged = [(f"{len(found)} groups", *key) if len(found) > 1 else found[0] for key, found in same.items()]
    return [row for row in rows if not chosen(row)] + merged


def _refusal_line(report: Report) -> str:
    count = len(report.refusals)
    return f"{count} {'axis' if count == 1 else 'axes'} could not be touched: --verbose or --report says which and why"


def _refusals(report: Report) -> Table:
    """One row for each operator and reason; the JSON has every axis."""
    found: dict[tuple[str, str], list[str]] = {}
    for refusal in report.refusals:
        found.setdefault((refusal.op_type, refusal.reason), []).append(refusal.node or refusal.tensor)
    table = _table("axes that could not be touched", "why", "axes")
    table.add_column("operator", no_wrap=True)
    table.add_column("first node", overflow="fold")
    for (op_type, reason), nodes in found.items():
        table.add_row(escape(reason), str(len(nodes)), escape(op_type), escape(nodes[0]))
    return table


def _stages(report: Report) -> Table:
    table = _table("time", "stage", "seconds")
    for name, seconds in report.stages.items():
        table.add_row(escape(name), f"{seconds:.3f}")
    return table


def _provider(name: str) -> str:
    return PROVIDERS.get(name, name)


def _integer(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    if value is None or value < KIB:
        return "-" if value is None else f"{value} B"
    size, unit = float(value), "B"
    for unit in ("KiB", "MiB", "GiB"):  # noqa: B007 - the last unit tried is the one to show
        size /= KIB
        if size < KIB:
            break
    return f"{size:,.1f} {unit}"


def _share(change: Change) -> str:
    return "-" if change.share is None else f"{change.share:.1%}"


def _ms(value: float) -> str:
    return f"{value:,.3f} ms" if value < 100 else f"{value:,.1f} ms"


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
