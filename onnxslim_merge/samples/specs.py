"""What a model's inputs look like, which of their first axes are batch axes, and samples cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxslim_merge.errors import UnsupportedError

Dim = int | str | None
Feed = dict[str, np.ndarray]  # by input
HELD_OUT = 8  # of least squares, every eighth batch chooses the ridge, and never joins the others


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One real input: `shape` holds fixed sizes, symbolic names, or None where the model says nothing."""

    name: str
    dtype: np.dtype
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        """For messages: `x float32 [N, 3, 32, 32]`."""
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'string' if self.dtype.kind == 'O' else self.dtype.name} [{dims}]"


@dataclass(frozen=True, slots=True)
class Samples:
    """Batches of feeds (input name -> array), the number of samples in all of them, and where they came from.

    pixels: "normal" or their range, if images of floats were made up; else "".
    """

    feeds: list[dict[str, np.ndarray]]
    count: int
    source: str
    pixels: str = ""

    def in_float32(self) -> Samples:
        """The same samples, fp16 and bf16 as fp32."""

        def single(array: np.ndarray) -> np.ndarray:
            half = array.dtype == np.float16 or str(array.dtype) == "bfloat16"
            return array.astype(np.float32) if half else array

        return replace(self, feeds=[{n: single(a) for n, a in f.items()} for f in self.feeds])

    def first(self, count: int, specs: Sequence[InputSpec]) -> Samples:
        """At least the first `count` samples, in whole batches (a fixed batch size cannot be cut)."""
        batching = Batching.of(specs)
        kept: list[dict[str, np.ndarray]] = []
        taken = 0
        for feed in self.feeds:
            if taken >= count:
                break
            kept.append(feed if batching.fixed else batching.rows(feed, 0, count - taken))
            taken += batching.size_of(kept[-1])
        return replace(self, feeds=kept, count=taken)


@dataclass(frozen=True, slots=True)
class Batching:
    """Which inputs have the samples on axis 0, and the batch size if the model fixes it.

    Inputs whose first axis is dynamic are batched, unless that symbol is another input's later axis (a sequence
    length, or a batch that another input has elsewhere). Where all first sizes are fixed, inputs with the first one's
    are. All others are the same for every sample of a batch. No input batched: one feed is one sample.
    """

    names: frozenset[str]
    fixed: int | None

    @classmethod
    def of(cls, specs: Sequence[InputSpec]) -> Batching:
        """Read the batching off the inputs of one model."""
        later = {dim for spec in specs for dim in spec.shape[1:] if isinstance(dim, str)}
        first = {spec.name: spec.shape[0] for spec in specs if spec.shape}
        dynamic = [name for name, dim in first.items() if not isinstance(dim, int) and dim not in later]
        sizes = [dim for dim in first.values() if isinstance(dim, int)]
        if not sizes or len(sizes) < len(first):
            return cls(frozenset(dynamic), None)
        return cls(frozenset(name for name, dim in first.items() if dim == sizes[0]), sizes[0])

    def size_of(self, feed: Mapping[str, np.ndarray]) -> int:
        """Number of samples in one feed; 1 where no input has a batch axis."""
        return next((len(array) for name, array in feed.items() if name in self.names), 1)

    def rows(self, feed: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Samples start..stop of one feed; unbatched inputs stay whole."""
        return {name: array[start:stop] if name in self.names else array for name, array in feed.items()}

    def cut(self, feed: Mapping[str, np.ndarray], batch: int) -> Iterator[dict[str, np.ndarray]]:
        """Pieces of `batch` samples, or of exactly the fixed size (the rest is dropped then)."""
        total = self.size_of(feed)
        step = self.fixed or batch
        end = total - total % step if self.fixed else total
        for start in range(0, end, step):
            yield self.rows(feed, start, min(start + step, end))


def input_specs(proto: onnx.ModelProto) -> list[InputSpec]:
    """The graph's inputs that a caller must feed: those that are not initializers (IR 3 lists both), in order.

    Raises UnsupportedError for inputs that are no tensors (sequences, maps, optionals), have an unknown rank, or are of
    a type that numpy does not have (bfloat16, float8, int4).
    """
    initializers = {tensor.name for tensor in proto.graph.initializer}
    initializers |= {sparse.values.name for sparse in proto.graph.sparse_initializer}
    return [_spec(value) for value in proto.graph.input if value.name not in initializers]


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(f"input {value.name} is no dense tensor: only models with tensor inputs are supported")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise UnsupportedError(f"input {value.name} has an unknown rank: export the model with input shapes")
    if tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise UnsupportedError(f"input {value.name} has no element type: the model is not valid for any runtime")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind == "V":  # one of ml_dtypes
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnsupportedError(f"input {value.name} is of {kind}, which ONNX Runtime cannot be fed: export as float32")
    return InputSpec(value.name, dtype, _dims(tensor.shape))


def _dims(shape: onnx.TensorShapeProto) -> tuple[Dim, ...]:
    """Sizes as int, names as str; some old exporters write a dynamic size as 0 or -1."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or None)
        for dim in shape.dim
    )


def is_float(dtype: np.dtype) -> bool:
    """Whether `dtype` is a floating-point kind, ml_dtypes' bfloat16, float8 and float4 included."""
    return dtype.name.startswith(("float", "bfloat"))
