"""SlimPlan: everything that the rewrite does, as plain data. JSON for the structure, an npz beside it for arrays.

The plan names tensors and nodes of the *prepared* graph; `rewrite.py` reads a plan and a graph, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.errors import InputError
from onnxslim_merge.files import written_together

FORMAT = 1


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell: `producers` = (node, weight, output) each, `shapes` of these weights; `keep` of `size` channels.

    clusters: of each channel, where channels of one cluster stand in for each other; else empty.
    """

    name: str
    producers: tuple[tuple[str, str, str], ...]
    shapes: tuple[tuple[int, ...], ...]
    size: int
    keep: tuple[int, ...]
    status: str
    reason: str
    amount: str
    clusters: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """Input `slot` of `node` becomes the constant `tensor` with the full-size values `array`.

    slot None: an Add of that constant is put behind output 0 of the node.
    """

    node: str
    slot: int | None
    tensor: str
    array: str


@dataclass(frozen=True, slots=True)
class Gather:
    """Constant `tensor` keeps the indices `keep` along `axis`.

    by: or those of `rows`, one line for each index of this other axis, which has been cut before; all equally many.
    """

    tensor: str
    axis: int
    keep: tuple[int, ...]
    by: int | None = None
    rows: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Number:
    """Attribute `name` of `node` (element `index`, None: all), or with node "" a constant's element, is `value`."""

    node: str
    name: str
    index: int | None
    value: int


@dataclass(frozen=True, slots=True)
class Renumber:
    """Of `size` positions `keep` stay: constant `tensor`, which lists some, drops the others and numbers anew."""

    tensor: str
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mask:
    """In the full-size twin, input `slot` of `node` is zero outside `keep` of the `size` indices along `axis`.

    fill: of integers, what stands for zero.
    kind: "mean", "layernorm" or "rmsnorm" where the node's statistics, too, are those of `keep` alone.
    """

    node: str
    slot: int
    axis: int
    rank: int
    size: int
    keep: tuple[int, ...]
    fill: float | None = None
    kind: str = "sum"


@dataclass(frozen=True, slots=True)
class Fold:
    """BatchNormalization `batchnorm` goes into `weight` (input `slot` of `node`, outputs on `axis`) and its bias.

    bias: (node, slot or None, output axis, rank, gain, vector). scale, offset: array names, full size.
    keep: the outputs kept.
    """

    node: str
    slot: int
    axis: int
    weight: str
    batchnorm: str
    bias: tuple[str, int | None, int, int, float, bool]
    bias_name: str
    scale: str
    offset: str
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SlimPlan:
    """A whole run. `settings`: what was asked, for the record and for replays on a re-export."""

    source_sha256: str
    settings: Mapping[str, Any]
    cells: tuple[CellPlan, ...] = ()
    edits: tuple[Edit, ...] = ()
    gathers: tuple[Gather, ...] = ()
    numbers: tuple[Number, ...] = ()
    renumbers: tuple[Renumber, ...] = ()
    masks: tuple[Mask, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    format: int = FORMAT

    def to_json(self) -> str:
        """The structure, without arrays; equal plans give equal text."""
        data = {name: value for name, value in _fields(self).items() if name != "arrays"}
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def arrays_path(path: Path) -> Path:
        """Where the arrays of the plan `path` lie: beside it, as .npz."""
        return path.with_suffix(".npz")

    def files(self, path: Path) -> dict[Path, bytes]:
        """What `save` writes, by path; the same bytes for equal plans."""
        blob = io.BytesIO()
        np.savez(blob, **{str(i): _storable(a) for i, a in enumerate(self.arrays.values())})  # type: ignore[arg-type]
        data = json.loads(self.to_json()) | {"arrays": [[name, str(a.dtype)] for name, a in self.arrays.items()]}
        data["sha256"] = _digest(data, blob.getvalue())
        text = json.dumps(data, indent=1, sort_keys=True) + "\n"
        return {self.arrays_path(path): blob.getvalue(), path: text.encode()}

    def save(self, path: Path) -> None:
        """Write `path` and its arrays, both or none. Raises OutputError if that is not possible."""
        with written_together(self.files(path)):
            pass

    @classmethod
    def load(cls, path: Path) -> SlimPlan:
        """Read what `save` wrote. Raises InputError if it is missing, of another format, or not as it was written."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise InputError(f"plan {path}: format {data['format']!r}, this version reads format {FORMAT}")
            blob = cls.arrays_path(path).read_bytes()
            if data.pop("sha256") != _digest(data, blob):
                raise InputError(f"plan {path}: it or its .npz was changed since --save-plan wrote them: save it again")
            with np.load(io.BytesIO(blob)) as stored:
                arrays = {name: _restored(stored[str(i)], dtype) for i, (name, dtype) in enumerate(data["arrays"])}
            return _build(data, arrays)
        except FileNotFoundError as error:
            raise InputError(f"plan {path}: {error.filename} does not exist") from None
        except OSError as error:
            raise InputError(f"plan {path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"plan {path}: not a plan written by --save-plan ({type(error).__name__}: {error})"
            ) from error


_PARTS: dict[str, type] = {
    "cells": CellPlan, "edits": Edit, "gathers": Gather, "numbers": Number, "masks": Mask, "folds": Fold,
    "renumbers": Renumber,
}  # fmt: skip


def _fields(plan: SlimPlan) -> dict[str, Any]:
    simple = {"source_sha256": plan.source_sha256, "settings": dict(plan.settings), "notes": list(plan.notes)}
    parts = {name: [asdict(item) for item in getattr(plan, name)] for name in _PARTS}
    return {**simple, **parts, "format": plan.format}


def _build(data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SlimPlan:
    parts: dict[str, Any] = {}
    for name, kind in _PARTS.items():
        parts[name] = tuple(kind(**_frozen(item)) for item in data[name])
    return SlimPlan(data["source_sha256"], data["settings"], **parts, notes=tuple(data["notes"]), arrays=dict(arrays))


def _digest(data: Mapping[str, Any], blob: bytes) -> str:
    """Of the structure, however it is laid out as text, and of the arrays' file."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode() + blob).hexdigest()


def _frozen(item: Mapping[str, Any]) -> dict[str, Any]:
    """Lists back to tuples, at every depth."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return {name: tuples(value) for name, value in item.items()}


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Npz knows no bfloat16: its bits travel as uint16."""
    return array.view(np.uint16) if array.dtype.kind == "V" and array.dtype.itemsize == 2 else array


def _restored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if str(array.dtype) == dtype:
        return array
    import ml_dtypes

    return array.view(np.dtype(getattr(ml_dtypes, dtype)))
