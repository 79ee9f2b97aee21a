"""Saves that are all or nothing: a hidden folder beside the output, then renames."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.errors import InternalError, OutputError
from onnxslim_merge.model_io.exporting import INLINE_BYTES, assemble, constant_bytes, write_external
from onnxslim_merge.model_io.reading import Source, load
from onnxslim_merge.model_io.stores import InlineStore


class Staging:
    """A save under way.

    `write` puts the files at `model_path` (their final names, in a hidden folder), where they can be loaded and
    verified; `commit` moves them to their place.
    """

    def __init__(self, path: Path, folder: Path, *, external_data: bool) -> None:
        """`folder` is an empty folder on the file system of `path`. Use `staged_output`."""
        self.path = path
        self.model_path = folder / path.name
        self.external_data = external_data
        self._folder = folder
        self._files: list[Path] = []

    def write(self, graph: gs.Graph, source: Source, *, metadata: Mapping[str, str] | None = None) -> None:
        """Write the graph as `build` makes it, with external data if asked for or above 2 GB.

        The bytes depend on the arguments and the output's name alone. Raises OutputError.
        """
        _refuse_overwrite(self.path, source)
        if self.external_data or constant_bytes(graph) > INLINE_BYTES:
            _refuse_overwrite(_data_path(self.path), source)
            with _as_output_error(self.path):
                self._files = write_external(graph, source, self.model_path, metadata=metadata)
        else:
            self.write_model(assemble(graph, source, InlineStore(), metadata=metadata))

    def write_model(self, model: onnx.ModelProto) -> None:
        """Write a finished message (no external data). Raises OutputError."""
        with _as_output_error(self.path):
            self.model_path.write_bytes(model.SerializeToString(deterministic=True))
        self._files = [self.model_path]

    def size_bytes(self) -> int:
        """The size of what was written."""
        return sum(file.stat().st_size for file in self._files)

    def sha256(self) -> str:
        """The hash that `load` will give to what was written."""
        return load(self.model_path).sha256

    def commit(self) -> None:
        """Move the files to their place, data first. Raises OutputError; the old files are then as they were."""
        if not self._files:
            raise InternalError("commit without write: please report this")
        with _as_output_error(self.path):
            for file in self._files:
                _sync(file)
            self._replace()
            _sync(self.path.parent)
        self._files = []

    def _replace(self) -> None:
        """Rename each file over its target. Old data goes aside first, so that a failure can bring it back."""
        undo: list[tuple[Path, Path | None]] = []
        try:
            for file in self._files:
                target, backup = self.path.with_name(file.name), None
                if len(self._files) > 1 and file is not self._files[-1]:
                    backup = self._folder / (file.name + ".old") if target.exists() else None
                    undo.append((target, backup))
                    if backup is not None:
                        os.replace(target, backup)
                os.replace(file, target)
        except BaseException:  # Ctrl-C too: the old model must not be left with the new data
            for target, backup in undo:
                if backup is None:
                    target.unlink(missing_ok=True)
                elif backup.exists():
                    os.replace(backup, target)
            raise


@contextmanager
def staged_output(path: Path, *, external_data: bool = False, source: Source | None = None) -> Iterator[Staging]:
    """Open a save to `path`; without `commit`, whatever happens, no trace of it is left.

    `source` is the model that was read: neither it nor its data files may be overwritten (`write` checks it too).
    Raises OutputError if the folder is missing or not writable, if `path` is a directory or special file, if it is
    the source.
    """
    path = Path(path)
    parent = path.parent
    if not parent.is_dir():
        raise OutputError(f"{parent} is not an existing folder: create it first")
    if path.is_dir():
        raise OutputError(f"{path} is a directory: name a file, such as {path / 'model.onnx'}")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file: name another output")
    if source is not None:
        _refuse_overwrite(path, source)
        if external_data:
            _refuse_overwrite(_data_path(path), source)
    with _as_output_error(path):
        # mkdtemp's folder is private (0700), but the files in it get the usual permissions.
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    try:
        yield Staging(path, folder, external_data=external_data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _refuse_overwrite(path: Path, source: Source) -> None:
    if source.path is None:
        return
    for file in [source.path, *source.external_files()]:
        if path.resolve() == file.resolve() or (path.exists() and os.path.samefile(path, file)):
            raise OutputError(f"{path} belongs to the input model ({file}): choose another output")


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{path} cannot be written: the disk is full; nothing was changed") from error
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
