"""One real run of the prepared model at small sizes: the shape of every tensor, and the value of small integer ones."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

from onnxslim_merge.errors import UsageError, VerifyError
from onnxslim_merge.model_io import Source, runnable
from onnxslim_merge.runtime import Runner

SPACE = (224, 64, 96, 128, 256, 320)
ODD = (97, 131, 113, 149, 103, 127)  # tried first at the second run, one for each axis: what holds by luck shows
LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Probe:
    """Shapes and small integer values by tensor name, at the sizes of `inputs`; `batch` samples (1 if it is fixed)."""

    inputs: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    batch: int = 1

    @property
    def elements(self) -> int:
        """Of the inputs of one sample."""
        return sum(int(np.prod(shape)) for shape in self.inputs.values()) // max(self.batch, 1)


@dataclass(frozen=True, slots=True)
class _Free:
    """A size that the model leaves open. Axes with the same `key` are equal; `batch`: it leads its tensor."""

    key: str
    batch: bool


_Patterns = dict[str, list[int | _Free]]


def probe_shapes(
    graph: gs.Graph, source: Source, given: Mapping[str, tuple[int, ...]], custom_ops: Sequence[Path] = ()
) -> tuple[Probe, ...]:
    """Run `graph` at one choice of its open sizes, and at a second one where there is one that runs, odd if it can be.

    Raises UsageError for an `--input-shapes` that does not fit, VerifyError if no choice of sizes runs.
    """
    patterns = _patterns(graph, given)
    free = {axis.key: axis for shape in patterns.values() for axis in shape if isinstance(axis, _Free)}
    spaces = SPACE if any(not axis.batch for axis in free.values()) else SPACE[:1]
    with _tapped(graph, source, custom_ops) as runner:
        first, used = _first_that_runs(runner, graph, patterns, [(b, s) for s in spaces for b in (2, 1)], given)
        if not free:
            return (first,)
        others = [(3, s) for s in (0, *(s for s in spaces if s != used[1]), used[1])]
        try:
            return (first, _first_that_runs(runner, graph, patterns, others, {})[0])
        except VerifyError:
            return (first,)


def probe_at(graph: gs.Graph, source: Source, like: Probe, custom_ops: Sequence[Path] = ()) -> Probe:
    """Run `graph`, which has the same inputs, at the sizes of `like`."""
    with _tapped(graph, source, custom_ops) as runner:
        return _run(runner, graph, like.inputs, _patterns(graph, {}))


def _run(runner: Runner, graph: gs.Graph, sizes: Mapping[str, tuple[int, ...]], patterns: _Patterns) -> Probe:
    feeds = {t.name: _feed(t.dtype, sizes[t.name]) for t in graph.inputs}
    led = [sizes[name][0] for name, shape in patterns.items() if shape and isinstance(shape[0], _Free)]
    return _read(feeds, runner.run(feeds), led[0] if led else 1)


def _patterns(graph: gs.Graph, given: Mapping[str, tuple[int, ...]]) -> _Patterns:
    if unknown := set(given) - {t.name for t in graph.inputs}:
        names = ", ".join(t.name for t in graph.inputs)
        raise UsageError(f"--input-shapes {sorted(unknown)[0]}: no such input; the model has {names}")
    leading = {_key(t.name, 0, t.shape[0]) for t in graph.inputs if t.shape}
    return {t.name: _pattern(t, given.get(t.name), leading) for t in graph.inputs}


def _pattern(tensor: gs.Tensor, given: tuple[int, ...] | None, leading: set[str]) -> list[int | _Free]:
    """The fixed and open sizes of an input; `given` must fit them."""
    shape = list(tensor.shape or ())
    free = [_Free(key := _key(tensor.name, axis, size), key in leading) for axis, size in enumerate(shape)]
    found = [size if isinstance(size, int) and size > 0 else axis for size, axis in zip(shape, free, strict=True)]
    if given is not None and (
        len(given) != len(found)
        or any(isinstance(size, int) and size != want for size, want in zip(found, given, strict=True))
    ):
        raise UsageError(f"--input-shapes {tensor.name}: {list(given)} does not fit the model's {shape}")
    return found


def _key(name: str, axis: int, symbol: object) -> str:
    return symbol if isinstance(symbol, str) and symbol and symbol != "?" else f"{name}.{axis}"


def _first_that_runs(
    runner: Runner,
    graph: gs.Graph,
    patterns: _Patterns,
    choices: Sequence[tuple[int, int]],
    given: Mapping[str, tuple[int, ...]],
) -> tuple[Probe, tuple[int, int]]:
    failure: VerifyError | None = None
    keys = dict.fromkeys(a.key for shape in patterns.values() for a in shape if isinstance(a, _Free) and not a.batch)
    odd = dict(zip(keys, itertools.cycle(ODD), strict=False))
    for batch, space in choices:
        sizes = {
            name: given.get(name)
            or tuple(a if isinstance(a, int) else batch if a.batch else space or odd[a.key] for a in shape)
            for name, shape in patterns.items()
        }
        try:
            return _run(runner, graph, sizes, patterns), (batch, space)
        except VerifyError as error:
            failure = failure or error
    shapes = {name: [a if isinstance(a, int) else "?" for a in shape] for name, shape in patterns.items()}
    raise VerifyError(f"{failure} (inputs {shapes}; give sizes that it accepts with --input-shapes NAME:1,3,224,224)")


def _feed(dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Small noise for floats, zeros for everything else: valid as an index everywhere."""
    if np.dtype(dtype).kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)


def _read(feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, Any], batch: int) -> Probe:
    tensors = {name: v for name, v in {**feeds, **outputs}.items() if isinstance(v, np.ndarray)}
    values = {name: v for name, v in tensors.items() if v.dtype.kind in "iu" and v.size <= LIMIT}
    return Probe({n: v.shape for n, v in feeds.items()}, {n: v.shape for n, v in tensors.items()}, values, batch)


@contextmanager
def _tapped(graph: gs.Graph, source: Source, custom_ops: Sequence[Path]) -> Iterator[Runner]:
    """A session, as written and without copies of weights, that gives every tensor of the top level."""
    have = {t.name for t in graph.outputs}
    names = [t.name for node in graph.nodes for t in node.outputs if t.name and t.name not in have]
    with runnable(graph, source) as model:
        if isinstance(model, Path):
            proto = onnx.load(model, load_external_data=False)
            with tempfile.NamedTemporaryFile(dir=model.parent, suffix=".onnx", delete=False) as file:
                target: Path | onnx.ModelProto = Path(file.name)
                file.write(tap(proto, names).SerializeToString())
        else:
            target = tap(model, names)
        yield Runner(target, optimize=False, lean=True, custom_ops=custom_ops, label="the prepared model")


def tap(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """`model` with the tensors `names` as further outputs, whose types ONNX Runtime infers. Edits `model`."""
    have = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    return model


def read_by(node: onnx.NodeProto) -> list[str]:
    """What a node reads, by itself or inside its bodies."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            own |= {name for item in body.node for name in item.output}
            found += [name for item in body.node for name in read_by(item) if name not in own]
            found += [output.name for output in body.output if output.name not in own]
    return found
