"""The report of one run: plain frozen data, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim_merge.files import write_atomically
from onnxslim_merge.verify.fidelity import Fidelity
from onnxslim_merge.verify.speed import Speed

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Change:
    """A number before and after; None = not known (a dry run writes no file)."""

    before: int | None
    after: int | None

    @property
    def share(self) -> float | None:
        """After as a share of before, where both are known and there was something."""
        return self.after / self.before if self.before and self.after is not None else None


@dataclass(frozen=True, slots=True)
class FileRef:
    """A model file: path and sha256 (None where there is none: a ModelProto in memory, a dry run)."""

    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One group of channels that live and die together. reason: why it was kept, or what is special about it."""

    name: str
    channels_before: int
    channels_after: int
    status: str  # "slimmed", "kept", "excluded", "frozen"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RefusalReport:
    """An axis that could not be touched, the node at which that was found, and why."""

    tensor: str
    axis: int | None
    node: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is known after a run; parts that were not measured are None or empty.

    input_shapes: the sizes at which the model was tried, by input. settings: those that decided the plan, "auto"
    resolved.
    samples, fidelity_source: how many samples `fidelity` was measured on, and where they came from.
    twin_max_error: max |small - twin| / max |twin|. stages: seconds by name, in order. elapsed_s: the whole run.
    """

    version: str
    source: FileRef
    output: FileRef
    parameters: Change
    macs: Change
    size_bytes: Change
    fidelity: Fidelity | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    samples: int = 0
    fidelity_source: str | None = None
    twin_max_error: float | None = None
    speed: tuple[Speed, ...] = ()
    groups: tuple[GroupReport, ...] = ()
    refusals: tuple[RefusalReport, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, numbers and None, in the order of the JSON file."""
        number = "relative_l2", "cosine", "max_abs", "top1_agreement", "equal_share"
        outputs = self.fidelity.outputs if self.fidelity else ()
        fidelity = {key: getattr(self.fidelity, key, None) for key in number}
        fidelity |= {"samples": self.samples, "source": self.fidelity_source}
        plain: dict[str, Any] = _plain(
            {
                "format": FORMAT,
                "version": self.version,
                "source": self.source,
                "output": self.output,
                "parameters": self.parameters,
                "macs": self.macs,
                "size_bytes": self.size_bytes,
                "input_shapes": self.input_shapes,
                "fidelity": fidelity | {"outputs": outputs},
                "twin_max_error": self.twin_max_error,
                "speed": self.speed,
                "groups": self.groups,
                "refusals": self.refusals,
                "notes": self.notes,
                "settings": self.settings,
                "stages": self.stages,
                "elapsed_s": self.elapsed_s,
            }
        )
        return plain

    def to_json(self) -> str:
        """The JSON text: stable key order, plain numbers, null for what is unknown or not finite."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON; `path` keeps its old content or has the new. Raises OutputError if it cannot be written."""
        write_atomically(path, self.to_json().encode())


def _plain(value: Any) -> Any:
    """`value` with dataclasses, tuples, paths and numpy scalars as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
