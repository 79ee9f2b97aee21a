"""Reading a model: every way in which a file can be wrong becomes one clear InputError."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper

from onnxslim_merge.errors import InputError
from onnxslim_merge.model_io.protos import external_path, is_external, tensors_of
from onnxslim_merge.runtime import one_line

# What a file that is no ONNX model often is, told by its first bytes.
_KNOWN = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` to fetch the model itself"),
    (0, b"PK\x03\x04", "a zip archive (a PyTorch or Keras file?): export it to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file (a Keras model?): export it to ONNX first"),
    (4, b"TFL3", "a TensorFlow Lite model: convert it to ONNX first"),
    (4, b"ORTM", "a model in ONNX Runtime's own format: use the .onnx file that it was made from"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model as it was read. `proto` is never edited; external tensors in it still point into files of `folder`.

    sha256: of the file's bytes and the sha256 of each external data file in order of location; of the deterministic
        serialization for a model given in memory.
    size_bytes: of all these files.
    """

    proto: onnx.ModelProto
    path: Path | None
    sha256: str
    size_bytes: int
    folder: Path

    def external_files(self) -> list[Path]:
        """The data files that the model refers to, each once, in order of location."""
        return _external_files(self.proto, self.folder)


def load(model: str | Path | onnx.ModelProto) -> Source:
    """Read and check a model; external data stays on disk.

    Raises InputError for a path that is missing or a directory; for a file that is empty, truncated, not ONNX, refused
    by onnx.checker; for external data that is missing or too short; for a ModelProto that refers to external data.
    """
    if not isinstance(model, str | Path | onnx.ModelProto):
        raise InputError(f"a {type(model).__name__} is no model: pass a path or an onnx.ModelProto")
    return _from_proto(model) if isinstance(model, onnx.ModelProto) else _from_path(Path(model))


def _from_proto(proto: onnx.ModelProto) -> Source:
    if any(is_external(tensor) for tensor in tensors_of(proto)):
        raise InputError("the ModelProto refers to external data files: pass the path of its .onnx file instead")
    _require_graph(proto, "the ModelProto")
    try:
        data = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:  # which of them depends on the protobuf version
        raise InputError("the ModelProto is above 2 GB: save it with external data and pass its path") from error
    _check(proto, proto, "the ModelProto")
    return Source(proto, None, hashlib.sha256(data).hexdigest(), len(data), Path())


def _from_path(path: Path) -> Source:
    data = _read(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX model, or was cut short ({_guess(data, error)})") from None
    _require_graph(proto, str(path), data)
    folder = path.parent
    for tensor in tensors_of(proto):
        if is_external(tensor):
            _check_external(tensor, folder, path)
    _check(path, proto, str(path))
    digest = hashlib.sha256(data)
    size = len(data)
    del data
    for file in _external_files(proto, folder):
        digest.update(_hash_of(file))
        size += file.stat().st_size
    return Source(proto, path, digest.hexdigest(), size, folder)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise InputError(f"{path} is a directory: pass the .onnx file in it") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path of the model") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path} is empty: export or download the model again")
    return data


def _guess(data: bytes, error: BaseException | None = None) -> str:
    for offset, mark, meaning in _KNOWN:
        if data[offset : offset + len(mark)] == mark:
            return f"it looks like {meaning}"
    return one_line(error, 120) if error is not None else "export or download it again"


def _require_graph(proto: onnx.ModelProto, what: str, data: bytes = b"") -> None:
    """Protobuf parses some garbage and some truncated files without a word: an empty message comes out."""
    if not proto.graph.output or not proto.ir_version:
        raise InputError(f"{what} holds no graph with outputs: not an ONNX model, or cut short ({_guess(data)})")


def _check(model: onnx.ModelProto | Path, proto: onnx.ModelProto, what: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:  # the checker takes an opset from the future for the newest one that it knows
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            raise InputError(f"{what} uses opset {entry.version}; onnx {onnx.__version__} knows 1 to {newest}")
    try:
        # By path for files: the checker then finds external data, and no second serialization is needed.
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{what} is refused by onnx.checker: {one_line(error)}") from None
    except Exception as error:  # the checker parses again in C++ and raises several unrelated classes for that
        raise InputError(f"{what} cannot be checked: {one_line(error)}") from error


def _check_external(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    info = external_data_helper.ExternalDataInfo(tensor)
    file = external_path(tensor, folder)
    if not info.location or not file.is_file():
        raise InputError(f"{path} needs external data for {tensor.name!r}: {file} does not exist; put it there")
    size = file.stat().st_size
    if (info.offset or 0) + (info.length or 0) > size:
        raise InputError(f"{path}: external data of {tensor.name!r} ends beyond {file} ({size} bytes): cut short?")


def _external_files(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    locations: Iterable[Path] = (external_path(t, folder) for t in tensors_of(proto) if is_external(t))
    return sorted(set(locations))


def _hash_of(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
