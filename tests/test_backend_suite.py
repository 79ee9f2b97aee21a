"""The single-node models of onnx's own backend suite, alone and between things that can be slimmed."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from textmodels import distance, run, silenced

import onnxslim_merge
from onnxslim_merge.errors import InputError, UnsupportedError, VerifyError
from onnxslim_merge.verify import speed

EVERYTHING = os.environ.get("BACKEND_SUITE") == "all"  # every case, input and reader: an hour on one core
STRIDE = 37
DEFECTS = {  # found so, once
    "test_spacetodepth_crd_mode_example", "test_rotary_embedding_interleaved_expanded",
    "test_attention_4d_gqa_attn_mask", "test_equal_string",
}  # fmt: skip
READERS = ("chain", "flat", "rows") if EVERYTHING else ("chain",)
RANDOM = re.compile("dropout|bernoulli|random|multinomial")
# what the runtime cannot do, or not with synthetic inputs; that the slimmed model fails would be ours
EXCUSED = re.compile("the (input|prepared) model does not (load|run) in|of the input model is not finite")
REASON = re.compile(r"\S+ \(\w+\): .+")  # node, operator, why
WIDTH = 5
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}
NUMBERS = FLOATS | {
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16,
    TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL,
}  # fmt: skip
# what leads to the node's input, until one gives finite outputs: any number, 0 to 1, over 1
DOMAINS: dict[str, tuple[str, ...]] = {"any": (), "unit": ("Sigmoid",), "large": ("Exp", "Exp")}


@pytest.fixture(autouse=True, scope="module")
def _no_timing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "measure", lambda *args, **options: [])
        yield


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes with NaN and overflows on purpose
        found = load_model_tests(kind="node")
    return [case for i, case in enumerate(found) if EVERYTHING or i % STRIDE == 0 or case.name in DEFECTS]


class Sandwich:
    """A case's model behind products that make one axis of some of its inputs, and before those that read its outputs.

    live: the made axis by input; none: the model alone. All other inputs become constants, but the first where none is
    made. domain: what the made values are like. reader: "chain" reads one axis of an output after the other, "flat" all
    of them at once, "rows" all but the first; of every output, or of one. first: the name of the first axis, if open.
    """

    def __init__(self, case: Any, live: Mapping[int, int], *, domain: str = "any", reader: str = "chain",
                 every: bool = False, first: str = "") -> None:  # fmt: skip
        self.rng, self.domain, self.reader, self.first = np.random.default_rng(0), domain, reader, first
        self.model = model = onnx.ModelProto()
        model.CopyFrom(case.model)
        model.ir_version = max(model.ir_version, 4)
        self.graph = model.graph
        inputs, outputs, nodes = (list(part) for part in (model.graph.input, model.graph.output, model.graph.node))
        for part in (model.graph.input, model.graph.output, model.graph.node, model.graph.value_info):
            del part[:]
        for slot, (value, data) in enumerate(zip(inputs, case.data_sets[0][0], strict=True)):
            if slot in live:
                self.make(slot, value, np.asarray(data).shape, live[slot])
            elif not is_tensor(value) or (not live and not slot):
                model.graph.input.append(value)
            else:
                self.constant(value.name, data)
        for index, node in enumerate(nodes):
            node.name = node.name or f"tested_{index}"
            model.graph.node.append(node)
        for index, (value, data) in enumerate(zip(outputs, case.data_sets[0][1], strict=False)):
            wanted = every or not self.graph.output
            if not live:
                model.graph.output.append(value)
            elif wanted and is_tensor(value) and value.type.tensor_type.elem_type in NUMBERS:
                self.read(index, value, np.asarray(data).shape)

    def constant(self, name: str, data: Any) -> str:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(data if isinstance(data, TensorProto) else numpy_helper.from_array(np.asarray(data)))
        tensor.name = name
        self.graph.initializer.append(tensor)
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.graph.node.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def make(self, slot: int, value: onnx.ValueInfoProto, shape: tuple[int, ...], axis: int) -> None:
        order = [a for a in range(len(shape)) if a != axis] + [axis]
        sizes: list[Any] = [*(shape[a] for a in order[:-1]), WIDTH] if len(shape) > 1 else [1, WIDTH]
        if self.first and axis:
            sizes[0] = self.first
        self.graph.input.append(helper.make_tensor_value_info(f"from_{slot}", TensorProto.FLOAT, sizes))
        at = self.node("MatMul", [f"from_{slot}", self.weight(f"maker_{slot}", WIDTH, shape[axis])], f"product_{slot}")
        at = self.node("Add", [at, self.weight(f"bias_{slot}", shape[axis])], f"made_{slot}")
        for index, op in enumerate(DOMAINS[self.domain]):
            at = self.node(op, [at], f"domain_{slot}_{index}")
        if (kind := value.type.tensor_type.elem_type) != TensorProto.FLOAT:
            at = self.node("Cast", [at], f"cast_{slot}", to=kind)
        if len(shape) > 1:
            self.node("Transpose", [at], value.name, perm=np.argsort(order).tolist())
        else:
            self.node("Reshape", [at, self.constant(f"vector_{slot}", np.array([-1]))], value.name)

    def read(self, index: int, value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
        at, rank, out = value.name, len(shape), [1, 3]
        if not np.prod(shape):
            return
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            at = self.node("Cast", [at], f"float_{index}", to=TensorProto.FLOAT)
        if self.reader == "chain" and rank > 1:
            for axis in range(1, rank):  # the last axis goes, and the one before it comes last
                one = self.node(
                    "MatMul", [at, self.weight(f"reader_{index}_{axis}", shape[-axis], 1)], f"r_{index}_{axis}"
                )
                at = self.node("Transpose", [one], f"t_{index}_{axis}", perm=[rank - 1, *range(rank - 1)])
            size, out = shape[0], [1] * (rank - 1) + [3]
        else:
            rows = self.reader == "rows" and rank > 1
            target = self.constant(f"flat_{index}", np.array([0 if rows else 1, -1]))
            at = self.node("Reshape", [at, target], f"flattened_{index}")
            size, out = int(np.prod(shape[rows:])), [None if rows else 1, 3]
        self.node("MatMul", [at, self.weight(f"reader_{index}", size, 3)], f"y_{index}")
        self.graph.output.append(helper.make_tensor_value_info(f"y_{index}", TensorProto.FLOAT, out))


def is_tensor(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type")


class Skipped(Exception):
    """This model says nothing about us."""


def inputs_of(case: Any, kinds: set[int]) -> dict[int, tuple[int, ...]]:
    """Shapes of the inputs that are arrays of `kinds`, by slot."""
    found = {}
    for slot, (value, data) in enumerate(zip(case.model.graph.input, case.data_sets[0][0], strict=True)):
        known = isinstance(data, np.ndarray) and is_tensor(value)
        if known and value.type.tensor_type.elem_type in kinds and data.size:
            found[slot] = data.shape
    return found


def sandwiches(case: Any) -> Iterator[tuple[str, Iterable[onnx.ModelProto]]]:
    """What is to be tried, by name: a model for each domain."""
    inputs, floats = inputs_of(case, NUMBERS), inputs_of(case, FLOATS)
    lives = [{slot: axis} for slot, shape in inputs.items() for axis, n in enumerate(shape[:4]) if n > 1]
    if not EVERYTHING:
        lives = [live for live in lives if min(inputs) in live]
    for axis in range(4):  # all at once, so that they have to agree
        together = {slot: axis for slot, shape in floats.items() if len(shape) > axis and shape[axis] > 1}
        lives += [together] if len(together) > 1 else []
    for live in lives:
        for reader in READERS:
            if reader != "rows" or 0 not in live.values():
                options: Any = {"reader": reader, "every": reader == "flat", "first": "N" if reader == "rows" else ""}
                name = f"{case.name}, {reader} behind {', '.join(f'axis {a} of input {s}' for s, a in live.items())}"
                yield name, (Sandwich(case, live, domain=d, **options).model for d in DOMAINS)


def feeds_of(model: onnx.ModelProto, case: Any, more: int = 0) -> dict[str, np.ndarray]:
    """The case's own data, and noise for what makes the rest; an open axis is as long as in the data, and `more`."""
    rng, found = np.random.default_rng(7), {}
    data = dict(zip((value.name for value in case.model.graph.input), case.data_sets[0][0], strict=True))
    longest = max((shape[0] for shape in inputs_of(case, NUMBERS).values() if shape), default=0)
    for value in model.graph.input:
        if value.name not in data:
            sizes = [d.dim_value or longest + more for d in value.type.tensor_type.shape.dim]
            found[value.name] = rng.standard_normal(sizes).astype(np.float32)
        elif isinstance(data[value.name], np.ndarray | np.generic):
            found[value.name] = np.asarray(data[value.name])
        else:
            raise Skipped(f"the data of {value.name} are no array")
    return found


@contextmanager
def excused() -> Iterator[None]:
    """Errors that say what the model, or the runtime, lacks."""
    try:
        yield
    except (InputError, UnsupportedError) as error:
        raise Skipped(str(error)) from None
    except VerifyError as error:
        if EXCUSED.search(str(error)):
            raise Skipped(str(error)) from None
        raise


def outcome(case: Any, model: onnx.ModelProto) -> str:
    """slimmed or frozen: what happened to the axes that are made. Raises Skipped; what else is raised is a defect."""
    with excused():
        onnxslim_merge.analyse(model)
    feeds = feeds_of(model, case)
    try:
        reference = run(model, feeds, optimize=False)
    except Exception as error:
        raise Skipped(f"does not run: {error}") from None
    if not all(np.isfinite(a).all() for a in reference if isinstance(a, np.ndarray) and a.dtype.kind == "f"):
        raise Skipped("not finite")
    with excused():
        result = onnxslim_merge.slim(model, ratio=0.5, compensation="none")
    assert not [note for note in result.report.notes if "our bug" in note]
    assert not [refusal for refusal in result.report.refusals if "please report" in refusal.reason]
    assert result.report.twin_max_error <= 1e-4
    onnx.checker.check_model(result.model, full_check=True)
    compare(case, model, result, feeds)
    if any(dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim):
        compare(case, model, result, feeds_of(model, case, more=1))
    made = [cell for cell in result.plan.cells if any(p[2].startswith("product_") for p in cell.producers)]
    for cell in made:
        assert len(cell.keep) < cell.size or REASON.fullmatch(cell.reason), cell.reason
    return "slimmed" if any(len(cell.keep) < cell.size for cell in made) else "frozen"


def compare(case: Any, model: onnx.ModelProto, result: Any, feeds: Mapping[str, np.ndarray]) -> None:
    """The slimmed model equals the one whose consumers' columns are zeroed."""
    if RANDOM.search(case.name):
        return
    oracle = silenced(model, result.plan.masks, feeds)
    kinds = [value.type.tensor_type.elem_type for value in case.model.graph.input]
    for tensor in oracle.graph.initializer:
        if tensor.name.startswith("silencer."):  # float there, but the node under test may read another type
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kinds[0]))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    try:
        expected = run(oracle, feeds, optimize=False)
    except Exception as error:
        raise Skipped(f"does not run: {error}") from None  # the case has no room for another size
    found = run(result.model, feeds, optimize=False)
    half = any("16" in str(getattr(data, "dtype", "")) for data in [*case.data_sets[0][0], *case.data_sets[0][1]])
    floats = [isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in expected]
    pairs = [(a, b) for a, b, is_float in zip(expected, found, floats, strict=True) if is_float]
    assert distance([a for a, _ in pairs], [b for _, b in pairs]) <= (2e-2 if half else 1e-4)
    others = zip(expected, found, floats, strict=True)
    assert all(str(a) == str(b) for a, b, is_float in others if not is_float)


def first_outcome(case: Any, models: Iterable[onnx.ModelProto]) -> str:
    """The outcome of the first model that says something, or "skipped"."""
    for model in models:
        try:
            return outcome(case, model) if model.graph.output else "skipped"
        except Skipped as reason:
            if "not finite" not in str(reason):
                return "skipped"
    return "skipped"


def collect(tried: Iterable[tuple[Any, str, Iterable[onnx.ModelProto]]]) -> Counter[str]:
    """How often each outcome; fails with all defects at once."""
    found, defects = Counter[str](), []
    for case, name, models in tried:
        try:
            found[first_outcome(case, models)] += 1
        except Exception as error:
            defects.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    assert defects == []
    return found


def test_alone(cases: list[Any]) -> None:
    """Nothing crashes, and what comes out is the same: a lone node has no channels, or loses them exactly."""
    found = collect((case, case.name, [Sandwich(case, {}).model]) for case in cases)
    assert found["skipped"] <= 0.3 * found.total()


def test_between_products(cases: list[Any]) -> None:
    """Channels leave through the node, exactly, or are frozen with a reason that names a node and an operator."""
    found = collect((case, name, models) for case in cases for name, models in sandwiches(case))
    assert found["slimmed"] >= 0.15 * found.total()
    assert found["skipped"] <= 0.4 * found.total()  # most have no room for another batch
