"""Small files that appear whole or not at all, several of them together too."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from onnxslim_merge.errors import OutputError

ARRAYS = "onnxslim_merge.arrays."  # what the name of a folder begins with that holds arrays given from Python


def shown(path: Path) -> str:
    """What a path is called in messages: nobody knows of the file in which arrays given from Python lie."""
    return "calibration_data" if path.parent.name.startswith(ARRAYS) else str(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, fsync it and rename it. Raises OutputError, leaving no trace."""
    with written_together({path: data}):
        pass


@contextmanager
def written_together(files: Mapping[Path, bytes]) -> Iterator[None]:
    """Put all files in place, then run the body. If anything fails, the body too, every path is as it was before.

    Ctrl-C waits until all is done. Raises OutputError if a file cannot be written.
    """
    with _uninterrupted(), ExitStack() as stack:
        written = [(path, stack.enter_context(_temporary(path, data))) for path, data in files.items()]
        for path, temporary in written:
            stack.enter_context(_replaced(path, temporary))
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold the first Ctrl-C back until the body is done; the second one acts at once, in case a disk hangs."""
    usual = signal.getsignal(signal.SIGINT)
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield  # no handler of Python's, or none that could be replaced from here
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        if len(held) > 1:
            usual(number, frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if len(held) == 1:
            usual(*held[0])


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A finished hidden file beside `path` with the usual permissions, gone afterwards unless it was renamed."""
    temporary = None
    try:
        with _as_output_error(path):
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                temporary = Path(file.name)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
        yield temporary
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def _replaced(path: Path, temporary: Path) -> Iterator[None]:
    """Rename `temporary` over `path`; if the body fails, the old file comes back."""
    backup, existed = temporary.with_name(temporary.name + ".old"), os.path.lexists(path)
    try:
        with _as_output_error(path):
            if existed and not path.is_dir():
                os.replace(path, backup)
            os.replace(temporary, path)
        yield
    except BaseException:  # Ctrl-C too
        if os.path.lexists(backup):
            os.replace(backup, path)
        elif not existed:
            path.unlink(missing_ok=True)
        raise
    with suppress(OSError):
        backup.unlink(missing_ok=True)


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
