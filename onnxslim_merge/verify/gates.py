"""The gates that a slimmed model passes before it may appear, and what is reported beside them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.errors import InternalError, VerifyError
from onnxslim_merge.model_io import Source, full_check, is_half_precision, runnable, to_float32
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import Samples
from onnxslim_merge.verify.fidelity import (
    Fidelity,
    check_interface,
    compare_outputs,
    largest_errors,
    max_relative_error,
)
from onnxslim_merge.verify.quantised import (
    has_quantisers,
    output_steps,
    shaken_scales,
    within_a_step,
)
from onnxslim_merge.verify.twin import TOLERANCE, build_twin

Outputs = list[dict[str, Any]]
PREPARED_TOLERANCE = 1e-5  # folding constants re-orders nothing: only rounding inside fused kernels remains
HALF_TOLERANCE = 1e-2  # the prepared graph is compared in fp16 itself, whose rounding is 1e-3 a step
LARGE = 1 << 30  # bytes
ROUNDING = 8  # times what a change of the inputs' last bits does: sums in another order differ a little more
OUTPUT_BYTES = 1 << 30  # reference outputs that are held at once, while sessions run one after another


@dataclass(frozen=True, slots=True)
class Twin:
    """max |small - twin| / max |twin| by output (1 - share equal if discrete).

    excused: rounding explains it; folded: of these, that of weights of fp16 into which BatchNormalization was folded.
    """

    errors: Mapping[str, float]
    excused: frozenset[str] = frozenset()
    folded: frozenset[str] = frozenset()

    @property
    def error(self) -> float:
        """The worst error that is not excused."""
        return max((error for name, error in self.errors.items() if name not in self.excused), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether the small model is the twin."""
        return self.error <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Judge:
    """What all checks of one run share."""

    source: Source
    graph: gs.Graph
    samples: Samples
    few: Samples
    custom_ops: Sequence[Path] = ()

    def outputs(
        self, model: onnx.ModelProto | Path, samples: Samples, label: str, optimize: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Outputs of one session, batch by batch."""
        runner = Runner(model, custom_ops=self.custom_ops, label=label, lean=True, optimize=optimize)
        for feeds in samples.feeds:
            yield runner.run(feeds)

    def graph_outputs(self, graph: gs.Graph, label: str, *, shake: bool = False) -> Outputs:
        """Outputs of a graph on the few samples, in fp32; `shake`: with their last bits changed, and those of scales.

        Quantisers run as they are written: fused, they round in other places.
        """
        single, source, samples = shaken_scales(graph) if shake else graph, self.source, self.few
        if is_half_precision(self.graph):
            single, source = to_float32(graph, self.source)
            samples = self.few.in_float32()
        with runnable(single, source) as model:
            return list(self.outputs(model, _shaken(samples) if shake else samples, label, not self.quantised))

    @property
    def quantised(self) -> bool:
        """Whether numbers are rounded to integers on their way."""
        return has_quantisers(self.graph)

    def original(self) -> onnx.ModelProto | Path:
        """The model as it was given."""
        return self.source.path or self.source.proto

    def check_prepared(self) -> None:
        """The canonical form equals the original. Raises InternalError, and VerifyError if that is not finite."""
        plain = not self.quantised
        reference = list(self.outputs(self.original(), self.few, "the input model", plain))
        for outputs in reference:
            for name, value in outputs.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise VerifyError(
                        f"output {name} of the input model is not finite (NaN or infinity) on {self.samples.source}"
                        " inputs: give others with --calibration-data"
                    )
        with runnable(self.graph, self.source) as model:
            prepared = list(self.outputs(model, self.few, "the prepared model", plain))
        error = max_relative_error(reference, prepared)
        if not error <= (HALF_TOLERANCE if is_half_precision(self.graph) else PREPARED_TOLERANCE):
            raise InternalError(f"preparation changed the model (relative error {error:.1e}): please report this")

    def twin(self, plan: SlimPlan, *, fold: bool = True) -> Twin:
        """Compare the final model with its twin; with `fold=False` the one before BatchNormalization is folded."""
        twin = self.graph_outputs(build_twin(self.graph, plan), "the full-size twin")
        self.let_go()
        small = self.graph_outputs(rewrite(self.graph, plan, fold=fold), "the slimmed model")
        self.let_go()
        errors = largest_errors(twin, small)
        excused = folded = frozenset[str]()
        if max(relative for relative, _ in errors.values()) > TOLERANCE:
            excused = self._rounding(plan, twin, errors) | self._steps(twin, small)
            if fold and plan.folds and is_half_precision(self.graph):
                folded = self._folded_in_half(plan, errors) - excused
        return Twin({name: relative for name, (relative, _) in errors.items()}, excused | folded, folded)

    def _rounding(self, plan: SlimPlan, twin: Outputs, errors: Mapping[str, tuple[float, float]]) -> frozenset[str]:
        """The outputs whose error fp32 rounding explains.

        An output such as a Sigmoid near 0 may be so small that the runtime's own rounding is more than TOLERANCE of
        it. How much rounding does to each output is measured: on the twin, with inputs that differ in the last bit.
        """
        shaken = largest_errors(
            twin, self.graph_outputs(build_twin(self.graph, plan), "the full-size twin", shake=True)
        )
        return frozenset(
            name
            for name, (relative, absolute) in errors.items()
            if relative > TOLERANCE and absolute <= ROUNDING * shaken[name][1]
        )

    def _folded_in_half(self, plan: SlimPlan, errors: Mapping[str, tuple[float, float]]) -> frozenset[str]:
        """The outputs whose error is that of folded weights, which are rounded to the 11 or 8 bits of their type.

        Before it is folded the model has to be the twin.
        """
        near = frozenset(name for name, (relative, _) in errors.items() if relative <= HALF_TOLERANCE)
        return near if near and self.twin(plan, fold=False).equal else frozenset()

    def _steps(self, twin: Outputs, small: Outputs) -> frozenset[str]:
        """The outputs of a quantised model that are the same but for a few steps."""
        steps = output_steps(self.graph) if self.quantised else {}
        return frozenset(name for name, step in steps.items() if within_a_step(twin, small, name, step))

    def let_go(self) -> None:
        """Graphs hold their nodes in cycles: for a large model their weights should go before the next one comes."""
        if self.source.size_bytes > LARGE:
            gc.collect()

    def require_twin(self, plan: SlimPlan) -> Twin:
        """`twin`. Raises VerifyError if it is not equal, saying whether folding is at fault."""
        found = self.twin(plan)
        if found.equal:
            return found
        exact = bool(plan.folds) and self.twin(plan, fold=False).equal
        hint = ", caused by folding BatchNormalization: try --keep-batchnorm" if exact else ""
        raise VerifyError(f"the slimmed model differs from its full-size twin (relative error {found.error:.1e}){hint}")

    def equals_twin(self, plan: SlimPlan) -> bool:
        """Whether the final model runs and equals its twin."""
        try:
            return self.twin(plan).equal
        except VerifyError:
            return False

    def fidelity(self, small: onnx.ModelProto | Path, score_output: str | None) -> tuple[Fidelity, int]:
        """How close the slimmed model comes to the original, and on how many samples."""
        reference, held, count = [], 0, 0
        for feeds, outputs in zip(
            self.samples.feeds, self.outputs(self.original(), self.samples, "the input model"), strict=True
        ):
            reference.append(outputs)
            held += sum(a.nbytes for a in outputs.values() if isinstance(a, np.ndarray))
            count += max((len(a) for a in feeds.values() if a.ndim), default=1)
            if held > OUTPUT_BYTES:
                break
        count = self.samples.count if len(reference) == len(self.samples.feeds) else count
        used = replace(self.samples, feeds=self.samples.feeds[: len(reference)], count=count)
        found = compare_outputs(reference, self.outputs(small, used, "the slimmed model"), score_output=score_output)
        return found, count


def check_file(source: Source, model: onnx.ModelProto | Path) -> None:
    """Full checker, and the same interface as the source. Raises VerifyError."""
    full_check(model)
    proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
    check_interface(source.proto, proto)


def _shaken(samples: Samples) -> Samples:
    rng = np.random.default_rng(0)

    def shaken(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        factor = 1 + np.finfo(array.dtype).eps * rng.choice([-2, 2], array.shape)
        return np.asarray(factor * array, array.dtype)

    return replace(samples, feeds=[{n: shaken(a) for n, a in f.items()} for f in samples.feeds])
