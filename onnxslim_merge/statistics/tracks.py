"""Two networks side by side, the original and the one that is being slimmed, run piece by piece.

A compensation that looks at activations needs each tensor once, in the order of the graph, while the weights behind it
are not known yet. So no layer is run twice: a piece starts from what the last one left behind, kept for each batch in
memory, or in a temporary folder above a limit.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxslim_merge.errors import OutputError
from onnxslim_merge.probe import read_by
from onnxslim_merge.runtime import Runner

PAGES = 1 << 18  # bytes from which on an array gets pages of its own

Array = NDArray[Any]
Tensors = dict[str, Array]
Visit = Callable[[int, Mapping[str, Array], Mapping[str, Array]], None]


class Store:
    """Arrays by (network, tensor, batch); above `limit` bytes new ones lie in a temporary folder."""

    def __init__(self, limit: int) -> None:
        """Nothing held yet."""
        self.limit = limit
        self.held = self.spilled = 0
        self._arrays: dict[tuple[bool, str], dict[int, Array | Path]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, slim: bool, name: str, batch: int, array: Array) -> None:
        """Keep one array."""
        item: Array | Path = array
        if self.held + array.nbytes > self.limit and not array.dtype.hasobject:  # texts cannot be mapped
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxslim_merge.")
            self.spilled += 1
            item = Path(self._folder.name) / f"{self.spilled}.npy"
            try:
                np.save(item, array)
            except OSError as error:
                where = f"{self._folder.name} ({error.strerror or error})"
                raise OutputError(
                    f"activations cannot be kept in {where}: set TMPDIR or a higher --memory-limit"
                ) from error
        else:
            item = _on_pages(array)
            self.held += array.nbytes
        self._arrays.setdefault((slim, name), {})[batch] = item

    def get(self, slim: bool, name: str, batch: int) -> Array:
        """One array; from the folder it is mapped, not read."""
        item = self._arrays[slim, name][batch]
        return np.load(item, mmap_mode="r") if isinstance(item, Path) else item

    def drop(self, slim: bool, name: str, batch: int) -> None:
        """Forget one array."""
        item = self._arrays[slim, name].pop(batch)
        if isinstance(item, Path):
            item.unlink()
        else:
            self.held -= item.nbytes
        if not self._arrays[slim, name]:
            del self._arrays[slim, name]

    def close(self) -> None:
        """Forget everything, and remove the folder."""
        self._arrays.clear()
        self.held = 0
        if self._folder is not None:
            self._folder.cleanup()

    def names(self, slim: bool) -> list[str]:
        """The tensors of a network that are held."""
        return [name for network, name in self._arrays if network == slim]


class Tracks:
    """The model twice, on the same batches; the second one differs from the nodes `changing` on.

    taps: the tensors that will be asked for; what nothing of it needs is not run. `advance` moves both on.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Sequence[Mapping[str, Array]],
        *,
        taps: Iterable[str] = (),
        changing: Iterable[str] = (),
        limit: int = 1 << 31,
        custom_ops: Sequence[Path] = (),
    ) -> None:
        """Nothing has run yet. `limit`: bytes of activations in memory."""
        self.feeds, self.store, self.custom_ops = feeds, Store(limit), custom_ops
        self._model = model
        self._nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._given = {value.name for value in model.graph.input} - self._constants.keys()
        self._reads = [[name for name in read_by(node) if name not in self._constants] for node in self._nodes]
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._place = {node.name: i for i, node in enumerate(self._nodes)}
        self._readers: dict[str, list[int]] = {}
        for index, names in enumerate(self._reads):
            for name in names:
                self._readers.setdefault(name, []).append(index)
        self._dirty = self._behind([self._place[name] for name in changing])
        self.expect(taps)
        self._done: tuple[set[int], set[int]] = (set(), set())
        self._slimmed: dict[int, list[onnx.NodeProto]] = {}

    def __enter__(self) -> Tracks:
        """Files of tensors above the limit are gone at the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove them."""
        self.store.close()

    def expect(self, taps: Iterable[str]) -> None:
        """The tensors that will be asked for; to be called before anything runs."""
        self.taps = set(taps)
        self._relevant = self._before(self.taps)

    # -- changes --------------------------------------------------------------------------------------------------

    def put(self, node: str, slot: int, values: Array, added: Array | None = None) -> None:
        """In the slimmed network, constant input `slot` of `node` gets new values; `added` comes on top of output 0."""
        index = self._place[node]
        changed = onnx.NodeProto.FromString(self._nodes[index].SerializeToString())
        changed.input[slot] = self._constant(f"{node}.{slot}.slim", values)
        self._slimmed[index] = [changed]
        if added is not None:
            output, changed.output[0] = changed.output[0], f"{changed.output[0]}.bare"
            inputs = [changed.output[0], self._constant(f"{node}.added", added)]
            self._slimmed[index].append(helper.make_node("Add", inputs, [output], name=f"{node}.added"))

    def mask(self, node: str, slot: int, line: Array, fill: Array) -> None:
        """In the slimmed network, activation input `slot` of `node` is `fill`, of its type, where `line` is False."""
        index = self._place[node]
        *before, changed = self._slimmed.get(index, [self._nodes[index]])
        changed = onnx.NodeProto.FromString(changed.SerializeToString())
        source, changed.input[slot] = changed.input[slot], f"{node}.{slot}.masked"
        inputs = [self._constant(f"{node}.{slot}.mask", line), source, self._constant(f"{node}.{slot}.fill", fill)]
        chosen = helper.make_node("Where", inputs, [changed.input[slot]], name=changed.input[slot])
        self._slimmed[index] = [*before, chosen, changed]

    def correct(self, node: str, values: Mapping[int, Array]) -> None:
        """In both networks, constant inputs of `node`, by slot, get new values, in their own type."""
        inputs = self._nodes[self._place[node]].input
        for slot, array in values.items():
            kind = helper.tensor_dtype_to_np_dtype(self._constants[inputs[slot]].data_type)
            inputs[slot] = self._constant(f"{node}.{slot}.corrected", array.astype(kind))

    def _constant(self, name: str, values: Array) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    # -- running --------------------------------------------------------------------------------------------------

    def advance(self, original: Collection[str], slim: Collection[str], visit: Visit) -> None:
        """Run what `original` and `slim` (names of tensors) need, batch by batch, and show these to `visit`."""
        run = self._needed(original, slim)
        done = self._done[0] | run[0], self._done[1] | run[1]
        made = tuple({name for i in part for name in self._nodes[i].output if name} for part in run)
        keep = tuple([n for n in made[t] if self._is_needed(n, bool(t), done)] for t in (0, 1))
        asked = set(original) | {n for n in slim if not self.is_dirty(n)}, {n for n in slim if self.is_dirty(n)}
        across = {name for i in run[1] for name in self._reads[i] if not self.is_dirty(name)}, set[str]()
        pieces = [self._piece(run[t], {*keep[t], *((asked[t] | across[t]) & made[t])}, bool(t)) for t in (0, 1)]
        stale = [(t, n) for t in (False, True) for n in self.store.names(t) if not self._is_needed(n, t, done)]
        for batch in range(len(self.feeds)):
            found: list[Tensors] = [{}, {}]
            for t in (0, 1):
                found[t] = pieces[t](partial(self._fetch, bool(t), batch, found))
            full = [{n: self._fetch(bool(t), batch, found, n) for n in asked[t]} for t in (0, 1)]
            visit(batch, {n: full[0][n] for n in original}, {n: (full[0] | full[1])[n] for n in slim})
            for t in (0, 1):
                for name in keep[t]:
                    self.store.put(bool(t), name, batch, found[t][name])
            for network, name in stale:
                self.store.drop(network, name, batch)
        self._done = done

    def peek(self, slim: Collection[str], visit: Visit) -> None:
        """Show tensors of the slimmed network as it is now, without moving on."""
        run = self._needed((), slim)
        piece = self._piece(run[0] | run[1], {n for n in slim if self._maker.get(n) in run[0] | run[1]}, True)
        for batch in range(len(self.feeds)):
            found: list[Tensors] = [{}, {}]
            found[1] = piece(partial(self._fetch, True, batch, found))
            visit(batch, {}, {n: found[1][n] if n in found[1] else self._fetch(True, batch, found, n) for n in slim})

    def is_dirty(self, name: str) -> bool:
        """Whether a tensor differs between the networks."""
        return self._maker.get(name) in self._dirty

    def _fetch(self, slim: bool, batch: int, found: list[Tensors], name: str) -> Array:
        """A tensor as one of the networks sees it."""
        slim = slim and self.is_dirty(name)
        if name in found[slim]:
            return found[slim][name]
        if name in self._given:
            return self.feeds[batch][name]
        return self.store.get(slim, name, batch)

    def _needed(self, original: Iterable[str], slim: Iterable[str]) -> tuple[set[int], set[int]]:
        """The nodes of both networks that have to run for these tensors."""
        run: tuple[set[int], set[int]] = (set(), set())
        stack = [(False, name) for name in original] + [(True, name) for name in slim]
        while stack:
            network, name = stack.pop()
            index = self._maker.get(name)
            network = network and index in self._dirty
            if index is None or index in run[network] or index in self._done[network]:
                continue
            run[network].add(index)
            stack += [(network, other) for other in self._reads[index]]
        return run

    def _is_needed(self, name: str, slim: bool, done: tuple[set[int], set[int]]) -> bool:
        """Whether a tensor is asked for later, or read by a node that has not run."""
        if name in self.taps:
            return True
        readers = [i for i in self._readers.get(name, ()) if i in self._relevant]
        waits = any(i not in done[1] and i in self._dirty for i in readers)
        if slim:
            return waits
        return any(i not in done[0] for i in readers) or (waits and not self.is_dirty(name))

    def _piece(self, run: set[int], outputs: set[str], slim: bool) -> Callable[[Callable[[str], Array]], Tensors]:
        """A function that runs some nodes: it fetches their inputs, and returns `outputs`."""
        names = sorted(outputs)
        nodes = [node for i in sorted(run) for node in (self._slimmed.get(i) if slim else None) or [self._nodes[i]]]
        made = {name for node in nodes for name in node.output}
        reads = dict.fromkeys(name for node in nodes for name in read_by(node) if name not in made)
        inputs = [name for name in reads if name not in self._constants]
        held = [self._constants[name] for name in reads if name in self._constants]
        session: Runner | None = None

        def go(fetch: Callable[[str], Array]) -> Tensors:
            nonlocal session
            if not names:
                return {}
            feeds = {name: np.asarray(fetch(name)) for name in inputs}
            if session is None:
                given = [_typed(name, array) for name, array in feeds.items()]
                asked = [helper.make_empty_tensor_value_info(name) for name in names]
                graph = helper.make_graph(nodes, "piece", given, asked, held)
                model = helper.make_model(
                    graph, opset_imports=self._model.opset_import, functions=self._model.functions
                )
                model.ir_version = self._model.ir_version
                session = Runner(model, arena=False, custom_ops=self.custom_ops, label="a piece of the prepared model")
            return session.run(feeds, names)

        return go

    # -- the graph ------------------------------------------------------------------------------------------------

    def before(self, name: str) -> set[int]:
        """The places of all nodes that `name` depends on."""
        return self._before([name])

    def place(self, node: str) -> int:
        """Where `node` stands in the order of the graph."""
        return self._place[node]

    def _before(self, names: Iterable[str]) -> set[int]:
        found: set[int] = set()
        stack = list(names)
        while stack:
            index = self._maker.get(stack.pop())
            if index is not None and index not in found:
                found.add(index)
                stack += self._reads[index]
        return found

    def _behind(self, places: Iterable[int]) -> set[int]:
        found: set[int] = set()
        stack = list(places)
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack += [i for name in self._nodes[index].output for i in self._readers.get(name, ())]
        return found


def _on_pages(array: Array) -> Array:
    """A copy that the system takes back whole when it is dropped: an allocator's heap would be full of holes.

    Small arrays stay where they are, as the system may allow a process so many maps only, on Linux 65,530.
    """
    if array.nbytes < PAGES or array.dtype.hasobject:
        return array
    try:
        pages = mmap.mmap(-1, array.nbytes, access=mmap.ACCESS_COPY)
    except OSError:
        return array
    copy = np.frombuffer(pages, array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _typed(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)
