"""What a rule sees of one node, and the words with which it claims: nothing here slices anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_merge.channels import counting
from onnxslim_merge.channels.claims import (
    BiasSlot,
    Carrier,
    Consumer,
    Contraction,
    Count,
    Flow,
    Producer,
    Refusal,
    Window,
)
from onnxslim_merge.channels.labels import Arrays, Ids, along, blocks, lift, on_axis, rows, varying
from onnxslim_merge.channels.walk import Element, Walk

# where batch or positions and channels share an axis, constants pick other channels at another size
STRETCHES = "channels are picked from an axis whose length depends on the input's size"


class Scope:
    """One node during the walk. Slots are input positions; absent optional inputs answer `has` with False."""

    def __init__(self, node: gs.Node, walk: Walk) -> None:
        """Look at `node` in the state of `walk`."""
        self.node, self.walk, self.space = node, walk, walk.space
        self.op: str = node.op
        self.name: str = node.name
        self.opset = walk.opset
        self._names: list[str] = [str(tensor.name) for tensor in node.inputs]  # rules ask often

    # -- looking ------------------------------------------------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or `default`."""
        value = self.node.attrs.get(name)
        return default if value is None else value

    def has(self, slot: int) -> bool:
        """Whether input `slot` is present."""
        return slot < len(self._names) and bool(self._names[slot])

    def tensor(self, slot: int) -> str:
        """The name of input `slot`."""
        return self._names[slot]

    def output(self, index: int = 0) -> str:
        """The name of output `index`."""
        return str(self.node.outputs[index].name)

    def outputs(self) -> int:
        """How many outputs are used or named."""
        return sum(bool(t.name) for t in self.node.outputs)

    def shape(self, slot: int) -> tuple[int, ...]:
        """The shape of input `slot` at the probe."""
        return self.walk.shapes[self.tensor(slot)]

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of output `index` at the probe."""
        return self.walk.shapes[self.output(index)]

    def is_constant(self, slot: int) -> bool:
        """Whether input `slot` is present and constant."""
        return self.has(slot) and self.tensor(slot) in self.walk.constants

    def constant(self, slot: int) -> NDArray[np.float64]:
        """The values of constant input `slot` as float64."""
        return np.asarray(self.walk.constants[self.tensor(slot)].values).astype(np.float64)

    def integers(self, slot: int) -> list[int] | None:
        """The integers of input `slot`: constant, or as seen at the probe; None where unknown."""
        name = self.tensor(slot)
        if name in self.walk.constants:
            return [int(v) for v in np.asarray(self.walk.constants[name].values).ravel()]
        value = self.walk.values.get(name)
        return None if value is None else [int(v) for v in value.ravel()]

    def labels(self, slot: int) -> Arrays:
        """The label arrays of input `slot`."""
        return self.walk.labels.get(self.tensor(slot), []) if self.has(slot) else []

    def stretches(self, slot: int, axis: int) -> bool:
        """Whether `axis` of input `slot` has another length when the input has another size."""
        return (self.tensor(slot), axis) in self.walk.stretching

    def axis_labels(self, slot: int, axis: int) -> Ids | None:
        """The one factor along `axis` of input `slot`, shape (n,); None where there is none.

        Several factors, or a rectangle, freeze: no rule that asks for one vector can serve them.
        """
        found = on_axis(self.labels(slot), axis)
        if len(found) == 1 and len(varying(found[0])) == 1:
            return found[0].ravel()
        self.refuse(found, slot, axis, f"{self.op} needs one channel axis here, not several factors or a rectangle")
        return None

    # -- refusing -----------------------------------------------------------------------------------------------------

    def refuse(self, arrays: Arrays, slot: int | None, axis: int | None, reason: str) -> None:
        """Freeze `arrays` of input `slot` (None: of the output) for `reason`."""
        tensor = self.output() if slot is None else self.tensor(slot)
        self.walk.refuse(arrays, Refusal(tensor, axis, self.name, self.op, reason))

    def freeze_axis(self, slot: int, axis: int, reason: str) -> None:
        """Freeze what varies along `axis` of input `slot`."""
        self.refuse(on_axis(self.labels(slot), axis), slot, axis, reason)

    def freeze_all(self, reason: str) -> None:
        """Freeze everything that the node touches; its outputs carry no labels."""
        for slot in range(len(self.node.inputs)):
            self.refuse(self.labels(slot), slot, None, reason)

    # -- passing on ---------------------------------------------------------------------------------------------------

    def give(self, arrays: Arrays, index: int = 0) -> None:
        """The label arrays of output `index`; an empty tensor has no channels."""
        self.walk.labels[self.output(index)] = [a for a in arrays if a.size]

    def flow(self, kind: Any, slots: Sequence[int], index: int = 0, **more: Any) -> None:
        """How the value of output `index` comes from the inputs `slots`."""
        inputs = tuple(self.tensor(s) for s in slots)
        self.walk.flows[self.output(index)] = Flow(kind, inputs, node=self.name, **more)

    def unite(self, parts: Sequence[tuple[int, Arrays, bool]], axis: int | None = None) -> Arrays:
        """Unite the arrays of several inputs, `parts` = (slot, arrays, whether the input has elements there).

        All present inputs must carry arrays of equal shapes; otherwise what is labelled is frozen. Returns the union.
        """
        sized = [(slot, arrays) for slot, arrays, real in parts if real]
        if not any(arrays for _, arrays in sized):
            return []
        shapes = [[a.shape for a in arrays] for _, arrays in sized]
        if all(s == shapes[0] for s in shapes):
            for _, arrays in sized[1:]:
                for a, b in zip(sized[0][1], arrays, strict=True):
                    self.space.unite(a, b)
            return sized[0][1]
        for slot, arrays in sized:
            self.refuse(arrays, slot, axis, "meets an axis without channels, or channels laid out otherwise")
        return max((arrays for _, arrays in sized), key=len)

    def axes(self, spec: str) -> None:
        """Einsum-like claim, such as `n i *, o i *, o -> n o *`: equal letters unite, `*` stands for axes that freeze.

        `...` stands for leading axes that are passed on from the first term to the output.
        """
        left, right = spec.split("->")
        places: dict[str, list[tuple[int, int]]] = {}
        passed: Arrays = []
        rank = len(self.out_shape())
        for slot, term in enumerate(left.split(",")):
            if not self.has(slot):
                continue
            letters = _letters(term.split(), len(self.shape(slot)))
            if len(letters) != len(self.shape(slot)):
                return self.freeze_all(f"input {slot} of {self.op} has {len(self.shape(slot))} axes")
            for axis, letter in enumerate(letters):
                if letter == "*":
                    self.freeze_axis(slot, axis, f"{self.op} mixes this axis")
                elif letter == "...":
                    # what also varies along an axis with a letter is refused there, and does not fit the output
                    found = on_axis(self.labels(slot), axis)
                    found = [a for a in found if all(letters[x] == "..." for x in varying(a))]
                    passed += [a for a in found if not any(a is b for b in passed)]
                else:
                    places.setdefault(letter, []).append((slot, axis))
        united = {letter: self._unite_letter(spots) for letter, spots in places.items()}
        out = _letters(right.split(), rank)
        given = [along(ids, axis, rank) for axis, letter in enumerate(out) if (ids := united.get(letter)) is not None]
        self.give(given + passed)
        return None

    def _unite_letter(self, spots: list[tuple[int, int]]) -> Ids | None:
        parts = []
        for slot, axis in spots:
            ids = self.axis_labels(slot, axis)
            parts.append((slot, [] if ids is None else [ids], self.shape(slot)[axis] > 1))
        united = self.unite(parts, spots[0][1])
        return united[0] if united else None

    def elementwise(self, slots: Sequence[int], without: Sequence[int] = ()) -> Arrays:
        """Broadcast the arrays of `slots` against each other, as the values do; returns those of the output.

        without: leave out what varies along these axes of the output.
        """
        rank = len(self.out_shape())
        inputs = [(s, (1,) * (rank - len(self.shape(s))) + self.shape(s)) for s in slots]
        arrays = {s: [lift(a, rank) for a in self.labels(s)] for s in slots}
        arrays = {s: [a for a in found if not set(varying(a)) & set(without)] for s, found in arrays.items()}
        result: Arrays = []
        for block in blocks([a for group in arrays.values() for a in group]):
            parts = [
                (s, [a for a in arrays[s] if block & set(varying(a))], any(shape[x] > 1 for x in block))
                for s, shape in inputs
            ]
            result += self.unite(parts, min(block))
        return result

    def keep_axis(self, slot: int, axis: int) -> None:
        """Of input `slot`, only whole slices along `axis` may leave where an array varies along further axes too."""
        found = [self.space.collapse(a) for a in self.labels(slot)]
        for array in found:
            others = [x for x in varying(array) if x != axis]
            if array.shape[axis] > 1 and others:
                corner = array[tuple(slice(0, 1) if x in others else slice(None) for x in range(array.ndim))]
                self.space.unite(array, corner)
        self.walk.labels[self.tensor(slot)] = [self.space.collapse(a) for a in found]

    def whole_slices(self, array: Ids, axis: int) -> Ids:
        """`array` for a node that takes one slice of `axis`: the 3 of a fused q, k, v, say, of which none may leave.

        Along the longest axis of a rectangle one may, unless all are taken one by one: the walk ties all others.
        """
        axes, takers = varying(array), len(self.node.inputs[0].outputs)
        if len(axes) > 1 and axis in axes and (array.shape[axis] < max(array.shape) or takers >= array.shape[axis]):
            self.space.unite(array, np.take(array, [0], axis))
        return self.space.collapse(array)

    def joins(self, slots: Sequence[int]) -> None:
        """Remember that activations with different channels meet here. To be said before they are united."""
        live = [s for s in slots if not self.is_constant(s) and self.labels(s)]
        roots = [np.concatenate([self.space.find(a).ravel() for a in self.labels(s)]) for s in live]
        # the usual case first: it needs no sorting
        if any(not (np.array_equal(r, roots[0]) or set(r.tolist()) == set(roots[0].tolist())) for r in roots[1:]):
            self.walk.joins += [a for s in live for a in self.labels(s)]

    # -- claiming -----------------------------------------------------------------------------------------------------

    def bias(self, slot: int | None, axis: int, gain: float = 1.0, vector: bool = False) -> BiasSlot:
        """The bias slot of this node; with slot None, that of the constant Add that alone uses the output, if any."""
        rank, output = len(self.out_shape()), self.node.outputs[0]
        if slot is None and output.name not in self.walk.exposed and len(output.outputs) == 1:
            user = output.outputs[0]
            other = [s for s, t in enumerate(user.inputs) if t.name in self.walk.constants]
            if user.op == "Add" and len(other) == 1 and len(self.walk.shapes.get(user.outputs[0].name, ())) == rank:
                return BiasSlot(user.name, other[0], axis, rank, str(user.outputs[0].name))
        return BiasSlot(self.name, slot, axis, rank, self.output(), gain, vector)

    def produces(self, slot: int, axis: int, bias: BiasSlot, gain: float = 1.0, groups: int = 1) -> None:
        """`axis` of constant input `slot` makes the channels of output 0."""
        ids = self.axis_labels(slot, axis)
        labels = np.empty(0, np.int64) if ids is None else ids
        self.walk.producers.append(
            Producer(self.name, self.op, self.tensor(slot), slot, axis, labels, self.output(), bias, gain, groups)
        )

    def carries(self, slot: int, axis: int, bias: BiasSlot) -> None:
        """`axis` of constant input `slot` holds the channels of output 0, whoever makes them."""
        self.walk.carriers.append(Carrier(self.name, self.tensor(slot), slot, axis, self.output(), bias))

    def consumes(
        self,
        x: tuple[int, int],
        weight: tuple[int, int, int],
        bias: BiasSlot | None,
        gain: float = 1.0,
        tap_gain: float = 1.0,
        groups: int = 1,
        window: Window | None = None,
    ) -> None:
        """Input x = (slot, axis) is contracted with constant weight = (slot, axis, out_axis)."""
        ids, (slot, axis, out_axis) = self.axis_labels(*x), weight
        self.walk.reads[self.name, slot] = axis
        if ids is not None:
            self.walk.consumers.append(
                Consumer(self.name, self.op, self.tensor(x[0]), x[0], x[1], self.tensor(slot), slot, axis, out_axis,
                         ids, self.output(), bias, gain, tap_gain, groups, window=window)
            )  # fmt: skip

    def contracts(self, x: tuple[int, int], y: tuple[int, int] | None = None, kind: Any = "sum") -> None:
        """Input x = (slot, axis) is summed over, without weights, against input y = (slot, axis) if that is given."""
        ids = self.axis_labels(*x)
        if y is not None:
            other = self.axis_labels(*y)
            parts = [(s, [] if v is None else [v], self.shape(s)[a] > 1) for (s, a), v in ((x, ids), (y, other))]
            united = self.unite(parts, x[1])
            ids = united[0] if united else None
        if ids is not None:
            self.walk.contractions.append(Contraction(self.name, self.tensor(x[0]), x[0], x[1], ids, kind))

    def counts_attribute(self, name: str, arrays: Arrays, axis: int, index: int | None = None) -> None:
        """Attribute `name` (or element `index` of it) holds how many indices of `arrays` there are along `axis`."""
        self.walk.counts.append(Count(self.name, name, index, rows(arrays, axis)))

    def element(self, slot: int, index: int) -> Element:
        """Where element `index` of integer input `slot` comes from."""
        elements = self.walk.elements.get(self.tensor(slot))
        return elements[index] if elements is not None and index < len(elements) else None

    def counted(self, element: Element) -> Arrays:
        """The arrays whose number an element was computed from."""
        return counting.read(self.walk, element)

    def read(self, slot: int, index: int) -> Arrays:
        """`counted` for element `index` of integer input `slot`, which may be absent."""
        return self.counted(self.element(slot, index)) if self.has(slot) else []

    def counts_element(self, slot: int, index: int, arrays: Arrays, axis: int) -> bool:
        """Element `index` of integer input `slot` holds how many indices of `arrays` there are along `axis`.

        A number that the graph derives from the shape of the same channels follows by itself. False: neither holds.
        """
        return counting.judge(self.walk, self.element(slot, index), arrays, axis)


def _letters(term: list[str], rank: int) -> list[str]:
    """Expand the one `*` or `...` of a term to the axes that the other letters leave."""
    for wild in ("*", "..."):
        if wild in term:
            at = term.index(wild)
            return term[:at] + [wild] * (rank - len(term) + 1) + term[at + 1 :]
    return term
