"""How far two models' outputs are apart, and whether they look the same from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx

from onnxslim_merge.errors import UnsupportedError, UsageError, VerifyError
from onnxslim_merge.samples import is_float

Outputs = Mapping[str, Any]
CLASS_SCORE_RANK = 2


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """One output over all samples. Float outputs have the first three, discrete ones (int, bool, string) `equal_share`.

    relative_l2: |other - reference| / |reference|, Euclidean over all elements; the plain |difference| if the
    reference is all zero. cosine: 1 if both are all zero, 0 if only one is. max_abs: largest absolute difference.
    equal_share, top1_agreement: shares from 0 to 1.
    """

    name: str
    relative_l2: float | None
    cosine: float | None
    max_abs: float | None
    equal_share: float | None
    top1_agreement: float | None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """All outputs, and overall the worst of each number (None where no output has it)."""

    relative_l2: float | None
    cosine: float | None
    max_abs: float | None
    equal_share: float | None
    top1_agreement: float | None
    outputs: tuple[OutputFidelity, ...]


def compare_outputs(
    reference: Iterable[Outputs], other: Iterable[Outputs], *, score_output: str | None = None
) -> Fidelity:
    """Compare batches of outputs (name -> array) pairwise, in float64, one batch in memory at a time.

    Top-1 agreement is taken of `score_output`, else of the only output if it looks like class scores (float, rank 2,
    at least 2 columns). Raises VerifyError for outputs that are not finite or differ in name, shape or kind,
    UsageError if `score_output` is no such output, UnsupportedError for outputs that are no tensors.
    """
    sums = _accumulate(reference, other)
    if score_output is not None and score_output not in sums:
        raise UsageError(f"--score-output {score_output!r}: no such output; the model has {', '.join(sums)}")
    if score_output is not None and not sums[score_output].is_score:
        raise UsageError(
            f"--score-output {score_output}: top-1 agreement needs a float output of rank 2 with at least 2 columns"
        )
    only = score_output is None and len(sums) == 1
    outputs = tuple(total.result(name, scored=only or name == score_output) for name, total in sums.items())
    return Fidelity(
        relative_l2=_worst(max, [o.relative_l2 for o in outputs]),
        cosine=_worst(min, [o.cosine for o in outputs]),
        max_abs=_worst(max, [o.max_abs for o in outputs]),
        equal_share=_worst(min, [o.equal_share for o in outputs]),
        top1_agreement=_worst(min, [o.top1_agreement for o in outputs]),
        outputs=outputs,
    )


def max_relative_error(reference: Iterable[Outputs], other: Iterable[Outputs]) -> float:
    """The worst output's max |other - reference| / max |reference| over all batches: the twin gate's number.

    An all-zero reference makes it absolute; discrete outputs count 1 - share of equal elements. Same errors as
    `compare_outputs`.
    """
    return max(relative for relative, _ in largest_errors(reference, other).values())


def largest_errors(reference: Iterable[Outputs], other: Iterable[Outputs]) -> dict[str, tuple[float, float]]:
    """By output: what `max_relative_error` takes the worst of, and max |other - reference|; twice for discrete ones."""
    return {
        name: (total.max_relative, total.max_relative if total.discrete else total.max_abs)
        for name, total in _accumulate(reference, other).items()
    }


def check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Raise VerifyError where real inputs or outputs differ in name, order, dtype, rank, or a fixed or symbolic size.

    Initializers that are listed as inputs (IR 3) do not count as inputs.
    """
    constants = [{t.name for t in m.graph.initializer} for m in (before, after)]
    inputs = [[v for v in m.graph.input if v.name not in c] for m, c in zip((before, after), constants, strict=True)]
    outputs = [list(m.graph.output) for m in (before, after)]
    sides: dict[str, list[list[onnx.ValueInfoProto]]] = {"input": inputs, "output": outputs}
    for kind, (old, new) in sides.items():
        names = [value.name for value in old], [value.name for value in new]
        if names[0] != names[1]:
            raise VerifyError(f"the {kind}s changed from {', '.join(names[0])} to {', '.join(names[1]) or 'none'}")
        for a, b in zip(old, new, strict=True):
            was, now = _type_text(a.type), _type_text(b.type)
            if was != now:
                raise VerifyError(f"{kind} {a.name} changed from {was} to {now}")


def _type_text(proto: onnx.TypeProto) -> str:
    """`float32 [N, 3, ?]` for tensors; the flattened proto for sequences, maps and optionals."""
    if not proto.HasField("tensor_type"):
        return " ".join(str(proto).split())
    tensor = proto.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{kind} of unknown rank"
    dims = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return f"{kind} [{', '.join(dims)}]"


@dataclass(slots=True)
class _Total:
    """Running sums of one output."""

    discrete: bool
    is_score: bool
    sums: np.ndarray = field(default_factory=lambda: np.zeros(4))  # |a|^2, |b|^2, a.b, |a-b|^2
    max_abs: float = 0.0
    max_reference: float = 0.0
    elements: int = 0
    equal: int = 0
    rows: int = 0
    agreeing: int = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add one batch; both arrays have one shape and one kind."""
        self.elements += a.size
        if self.discrete:
            self.equal += int(np.count_nonzero(a == b))
            return
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        difference = y - x
        self.sums += (x @ x, y @ y, x @ y, difference @ difference)
        if x.size:
            self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
            self.max_reference = max(self.max_reference, float(np.abs(x).max()))
        if self.is_score:
            self.rows += len(a)
            self.agreeing += int(np.count_nonzero(a.argmax(axis=1) == b.argmax(axis=1)))

    @property
    def max_relative(self) -> float:
        if self.discrete:
            return 1 - self._equal_share
        return self.max_abs / (self.max_reference or 1.0)

    @property
    def _equal_share(self) -> float:
        return self.equal / self.elements if self.elements else 1.0

    def result(self, name: str, *, scored: bool) -> OutputFidelity:
        if self.discrete:
            return OutputFidelity(name, None, None, None, self._equal_share, None)
        a, b, ab, difference = (float(value) for value in self.sums)
        cosine = ab / np.sqrt(a) / np.sqrt(b) if a and b else float(a == b)
        agreement = self.agreeing / self.rows if scored and self.is_score and self.rows else None
        relative = float(np.sqrt(difference) / (np.sqrt(a) or 1.0))
        return OutputFidelity(name, relative, float(np.clip(cosine, -1, 1)), self.max_abs, None, agreement)


def _accumulate(reference: Iterable[Outputs], other: Iterable[Outputs]) -> dict[str, _Total]:
    totals: dict[str, _Total] = {}
    for old, new in zip_longest(reference, other):
        if old is None or new is None:
            raise VerifyError("the two models ran on different numbers of batches")
        if old.keys() != new.keys():
            raise VerifyError(f"the outputs changed from {', '.join(old)} to {', '.join(new)}")
        for name in old:
            _add(totals, name, old[name], new[name])
    if not totals:
        raise VerifyError("no samples to compare the two models on")
    return totals


def _add(totals: dict[str, _Total], name: str, a: object, b: object) -> None:
    for array in (a, b):
        if not isinstance(array, np.ndarray | np.generic):
            raise UnsupportedError(f"output {name} is no tensor ({type(array).__name__}): it cannot be compared")
    x, y = np.asarray(a), np.asarray(b)
    discrete = not is_float(x.dtype)
    if x.shape != y.shape or is_float(y.dtype) == discrete:
        raise VerifyError(f"output {name} changed from {x.dtype} {list(x.shape)} to {y.dtype} {list(y.shape)}")
    for array, model in ((x, "the original"), (y, "the slimmed model")):
        if not discrete and not np.isfinite(array).all():
            raise VerifyError(f"output {name} of {model} is not finite (NaN or infinity)")
    is_score = not discrete and x.ndim == CLASS_SCORE_RANK and x.shape[1] > 1
    totals.setdefault(name, _Total(discrete, is_score)).add(x, y)


def _worst(pick: Callable[[list[float]], float], values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return pick(known) if known else None
