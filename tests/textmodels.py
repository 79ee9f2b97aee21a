"""Models written as text, filled with seeded weights, and run: what several test files share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxslim_merge.plan import Mask

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}


def parse(text: str, *, opset: int = 17, seed: int = 0, ir: int = 8) -> onnx.ModelProto:
    """The model; initializers that are declared in `< >` without values get seeded ones.

    Names that start with `var` get values in [0.5, 2], `pos` in [0.5, 1.5], `tiny` a hundredth of that, others normal
    noise that keeps the size of activations; integers are those of quantised weights.
    """
    imports = f'"" : {opset}' + (', "com.microsoft" : 1' if "com.microsoft." in text else "")
    model = onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: [{imports}]>\n{text}")
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        kind = value.type.tensor_type.elem_type
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        values = _draw(rng, value.name, shape) if kind in FLOATS else _integers(rng, kind, shape, value.name)
        values = values.astype(helper.tensor_dtype_to_np_dtype(kind))
        model.graph.initializer.append(numpy_helper.from_array(values, value.name))
    del model.graph.value_info[:]
    return model


def _draw(rng: np.random.Generator, name: str, shape: Sequence[int]) -> np.ndarray:
    if name.startswith("var"):
        return rng.uniform(0.5, 2, shape)
    if name.startswith("pos"):
        return rng.uniform(0.5, 1.5, shape)
    if name.startswith("tiny"):
        return rng.uniform(0.005, 0.015, shape)
    fan_in = max(int(np.prod(shape[1:])), 1) if len(shape) > 1 else 2
    return rng.standard_normal(shape) / np.sqrt(fan_in)


def _integers(rng: np.random.Generator, kind: int, shape: Sequence[int], name: str) -> np.ndarray:
    """Quantised weights: over the whole range of the type, but not more than 8 bits of it.

    `low`: -40 to 40, so that kernels that add pairs of products in 16 bits do not overflow.
    """
    if name.startswith("low"):
        return rng.integers(-40, 41, shape)
    low, high = {TensorProto.UINT8: (0, 256), TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16)}.get(
        kind, (-128, 128)
    )
    return rng.integers(low, high, shape)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """All initializers by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def replace_weights(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of `model` in which some initializers have other values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return copy


def feeds(model: onnx.ModelProto, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded values for every input; `sizes` gives the symbolic dimensions."""
    rng, found = np.random.default_rng(seed), {}
    for value in model.graph.input:
        shape = [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
        kind = value.type.tensor_type.elem_type
        if kind in FLOATS:
            found[value.name] = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind))
        elif kind == TensorProto.BOOL:
            found[value.name] = np.asarray(rng.random(shape) < 0.5)
        else:
            found[value.name] = np.asarray(rng.integers(0, 2, shape)).astype(helper.tensor_dtype_to_np_dtype(kind))
    return found


def run(model: onnx.ModelProto, fed: Mapping[str, np.ndarray], *, optimize: bool = True) -> list[np.ndarray]:
    """All outputs in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(fed))


def distance(reference: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The largest of max |a - b| / max |a| over the outputs; infinite where shapes, types or NaNs differ."""
    worst = 0.0
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or (np.isfinite(a) != np.isfinite(b)).any():
            return float("inf")
        ok = np.isfinite(a)
        left, right = a[ok].astype(np.float64), b[ok].astype(np.float64)
        if left.size:
            worst = max(worst, float(np.abs(left - right).max() / max(np.abs(left).max(), 1e-12)))
    return worst


def interface(model: onnx.ModelProto) -> list[tuple[str, int, list[int | str]]]:
    """(name, element type, dimensions) of every input and output."""
    values = [*model.graph.input, *model.graph.output]
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in values
    ]


def silenced(model: onnx.ModelProto, masks: Iterable[Mask], fed: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of `model` with zeros in the weights, wherever `masks` say that a consumer loses channels.

    An oracle of its own beside the twin: it edits the file as it was given, and masks weights, not activations.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = {node.name or f"{node.op_type}_{node.output[0]}": node for node in copy.graph.node}
    for index, mask in enumerate(masks):
        node = nodes[mask.node]
        gone = np.delete(np.arange(mask.size), mask.keep)
        place = weight_place(node, mask.slot)
        if place is None or not is_constant(model, node.input[place[0]]):
            _silence_input(copy, node, mask, index)
            continue
        slot, axis = place
        values = np.array(constant_value(model, node.input[slot], fed))
        if (group := next((a.i for a in node.attribute if a.name == "group"), 1)) > 1:
            values = dense(values, group)
            next(a for a in node.attribute if a.name == "group").i = 1
        np.moveaxis(values, axis, 0)[gone] = 0
        node.input[slot] = f"silenced.{index}"
        copy.graph.initializer.append(numpy_helper.from_array(values, node.input[slot]))
    return copy


def dense(values: np.ndarray, group: int) -> np.ndarray:
    """The weight of the same Conv or ConvTranspose without groups: zeros between groups."""
    first, second = values.shape[:2]
    full = np.zeros((first, second * group, *values.shape[2:]), values.dtype)
    for g in range(group):
        rows = slice(g * first // group, (g + 1) * first // group)
        full[rows, g * second : (g + 1) * second] = values[rows]
    return full


def _silence_input(copy: onnx.ModelProto, node: onnx.NodeProto, mask: Mask, index: int) -> None:
    """Where no weight contracts the channels: zeros in the operand itself."""
    line = np.zeros([mask.size if a == mask.axis else 1 for a in range(mask.rank)], np.float32)
    np.moveaxis(line, mask.axis, 0)[list(mask.keep)] = 1
    copy.graph.initializer.append(numpy_helper.from_array(line, f"silencer.{index}"))
    names = [node.input[mask.slot], f"silencer.{index}"]
    node.input[mask.slot] = f"silenced.{index}"
    place = next(i for i, other in enumerate(copy.graph.node) if other is node or other == node)
    copy.graph.node.insert(place, helper.make_node("Mul", names, [f"silenced.{index}"]))


def weight_place(node: onnx.NodeProto, x_slot: int) -> tuple[int, int] | None:
    """(slot, axis) of the weight that contracts input `x_slot`, straight from the operator's definition."""
    if node.op_type == "MatMul":
        return 1 - x_slot, -1 if x_slot else -2
    integers = {"QLinearConv": 1, "QLinearMatMul": 0, "QGemm": int(any(a.name == "transB" for a in node.attribute))}
    if node.op_type in integers:
        return 3, integers[node.op_type]
    if node.op_type == "Einsum":
        return _einsum_place(next(a.s for a in node.attribute if a.name == "equation").decode(), x_slot)
    if node.op_type not in ("Gemm", "FusedMatMul", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"):
        return None
    assert x_slot == 0
    if node.op_type in ("Gemm", "FusedMatMul"):
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 1, int(transposed)
    return 1, {"Conv": 1, "ConvTranspose": 0, "LSTM": 2, "GRU": 2, "RNN": 2}[node.op_type]


def _einsum_place(equation: str, x_slot: int) -> tuple[int, int] | None:
    """Of a product of two, the axis of the other one whose letter is in both and is summed."""
    terms, _, out = equation.replace(" ", "").partition("->")
    parts = terms.split(",")
    if len(parts) != 2 or "..." in parts[1 - x_slot]:
        return None
    summed = [axis for axis, letter in enumerate(parts[1 - x_slot]) if letter in parts[x_slot] and letter not in out]
    return (1 - x_slot, summed[0]) if len(summed) == 1 else None


def is_constant(model: onnx.ModelProto, name: str) -> bool:
    """Whether a tensor depends on no graph input."""
    makers = {output: node for node in model.graph.node for output in node.output}
    given = {value.name for value in model.graph.input} - set(weights(model))
    seen, stack = set(), [name]
    while stack:
        seen.add(now := stack.pop())
        stack += [n for n in makers[now].input if n and n not in seen] if now in makers else []
    return not seen & given


def constant_value(model: onnx.ModelProto, name: str, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    if name in (found := weights(model)):
        return found[name]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return run(copy, fed, optimize=False)[-1]
