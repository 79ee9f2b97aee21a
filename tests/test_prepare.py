from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.backend.test.loader import load_model_tests

from onnxslim_merge.errors import InputError, UnsupportedError, VerifyError
from onnxslim_merge.model_io import Source, build, full_check, load, to_graph
from onnxslim_merge.model_io.importing import graphs_in
from onnxslim_merge.prepare import canonical, prepare
from onnxslim_merge.prepare.canonical import name_nodes, sort_nodes
from onnxslim_merge.prepare.optimizer import optimized
from onnxslim_merge.runtime import Runner

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
OPSET_17 = '<ir_version: 8, opset_import: ["" : 17]>\n'


def text(body: str, header: str = OPSET_17) -> Source:
    return load(parser.parse_model(header + body))


def random_feeds(model: onnx.ModelProto, seed: int = 0, sizes: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """Inputs of any type: normal floats, small non-negative integers, true booleans (masks keep all).

    Unknown dimensions: 2 for the first axis, else 64; `sizes` fixes them by "input/axis".
    """
    rng = np.random.default_rng(seed)
    initializers = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in initializers:
            continue
        kind = value.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        shape = [
            (sizes or {}).get(f"{value.name}/{axis}") or max(dim.dim_value, 0) or (2 if axis == 0 else 64)
            for axis, dim in enumerate(kind.shape.dim)
        ]
        if dtype.kind == "b":
            feeds[value.name] = np.ones(shape, bool)
        elif dtype.kind in "iu":
            feeds[value.name] = rng.integers(0, 5, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def relative_error(source: Source, graph: gs.Graph, feeds: dict[str, np.ndarray]) -> float:
    """Largest difference over all outputs, relative to the output's largest value; also checks the built model."""
    model = build(graph, source)
    full_check(model)
    expected, found = Runner(source.path or source.proto).run(feeds), Runner(model).run(feeds)
    assert list(expected) == list(found)
    worst = 0.0
    for name, value in expected.items():
        assert value.shape == found[name].shape
        assert value.dtype == found[name].dtype
        scale = np.abs(value.astype(np.float64)).max(initial=1e-30)
        worst = max(worst, np.abs(value.astype(np.float64) - found[name].astype(np.float64)).max(initial=0) / scale)
    return worst


def assert_canonical(source: Source, graph: gs.Graph) -> None:
    assert not {node.op for node in graph.nodes} & {"Constant", "Dropout"}
    names = [node.name for body in graphs_in(graph) for node in body.nodes]
    assert all(names)
    assert len(names) == len(set(names))
    origin = {node.name for node in source.proto.graph.node if node.name}
    named = {node.name.partition(".own.")[0] for node in graph.nodes if not node.name.startswith(f"{node.op}_")}
    assert named <= origin
    model = build(graph, source)
    assert model.opset_import == source.proto.opset_import
    assert model.ir_version == source.proto.ir_version
    assert model.graph.output == source.proto.graph.output
    slots = Counter(
        id(tensor)
        for body in graphs_in(graph)
        for node in body.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant) and max(tensor.shape, default=1) == tensor.values.size
    )
    assert set(slots.values()) <= {1}


@pytest.fixture(params=["optimizer", "fold alone"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of folding: ONNX Runtime's optimizer, and our own for what it cannot save."""
    if request.param == "fold alone":
        monkeypatch.setattr(canonical, "optimized", lambda *_: None)
    return str(request.param)


# ------------------------------------------------------------------------------------------------------- whole models

FILES = sorted(SHARED.glob("*.onnx")) + sorted(SHARED.glob("wide/*.onnx"))
FEEDS = {"silero_vad_16k_op15": {"input/1": 576, "state/1": 2}}
NODES_AT_MOST = {  # what the folding of shape chains has to reach
    "resnet20_cifar10_bn_op13": 75,
    "resnet20_cifar10_fp16_op17": 56,
    "efficientnet_lite0_imagenet_bn": 143,
    "ppocr_v2_cls": 233,
    "ultraface_slim320": 138,
    "mnist8_cntk": 11,
    "magika_standard_v3_3": 101,  # 95 and six copies of shapes that several nodes used
}


@pytest.mark.shared
@pytest.mark.skipif(not FILES, reason="the models of ../shared are not there")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shared_models_stay_equal(path: Path) -> None:
    source = load(path)
    graph = prepare(source)
    assert_canonical(source, graph)
    feeds = random_feeds(source.proto, sizes=FEEDS.get(path.stem))
    if "sr" in feeds:
        feeds["sr"] = np.array(16000, np.int64)
    assert relative_error(source, graph, feeds) <= 1e-5  # measured: 0.0 everywhere
    ops = Counter(node.op_type for node in source.proto.graph.node)
    after = Counter(node.op for node in graph.nodes)
    for op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "DequantizeLinear", "If", "GRU"):
        assert after[op] == ops[op]
    weights = {node.input[1] for node in source.proto.graph.node if node.op_type in ("Conv", "Gemm")}
    if path.stem != "mnist8_cntk":  # weights there come out of a Reshape
        assert weights <= {node.inputs[1].name for node in graph.nodes if node.op in ("Conv", "Gemm")}
    assert len(graph.nodes) <= NODES_AT_MOST.get(path.stem, len(source.proto.graph.node))


def test_every_operator_of_the_backend_suite(way: str) -> None:
    """Single-node models, all inputs but the first made constants, so that whatever can be folded is."""
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes with NaN and overflows on purpose
        cases = load_model_tests(kind="node")
    for case in cases[:: 12 if way == "optimizer" else 20]:
        source = _baked(case)
        if source is None:
            continue
        graph = prepare(source)
        names = {value.name for value in source.proto.graph.input}
        pairs = zip(case.model.graph.input, case.data_sets[0][0], strict=False)
        feeds = {value.name: data for value, data in pairs if value.name in names}
        try:
            expected = Runner(source.proto).run(feeds)
        except VerifyError:
            continue
        found = Runner(build(graph, source)).run(feeds)
        # half precision: ONNX Runtime drops the Casts between neighbours, so a folded half is rounded once more
        half = any("16" in str(value) for value in [*feeds.values(), case.name])
        tolerance = 1e-2 if half else 1e-5
        for name, value in expected.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                same = np.allclose(value, found[name], rtol=tolerance, atol=tolerance / 10, equal_nan=True)
            else:
                same = str(value) == str(found[name])
            if not same and "dropout" not in case.name and "bernoulli" not in case.name:
                failures.append((case.name, name))
    assert failures == []


def _baked(case: object) -> Source | None:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    values = list(model.graph.input)
    del model.graph.input[:]
    for index, (value, data) in enumerate(zip(values, case.data_sets[0][0], strict=False)):
        if index and isinstance(data, np.ndarray):
            model.graph.initializer.append(numpy_helper.from_array(data, value.name))
        else:
            model.graph.input.append(value)
    model.ir_version = max(model.ir_version, 4)
    try:
        return load(model)
    except InputError:
        return None


# --------------------------------------------------------------------------------------------------- constants, shapes

CHAINS = {
    "static size through float": (
        """agraph (float[N, 10, 4] x) => (float[N, 5, 4] y) <int64 one = {1}, float half = {0.5}, int64[1] zero = {0},
           int64[1] ax = {1}>
        { s = Shape (x)  g = Gather (s, one)  f = Cast <to = 1> (g)  h = Mul (f, half)  i = Cast <to = 7> (h)
          e = Unsqueeze (i, zero)  y = Slice (x, zero, e, ax) }""",
        ["Slice"],
    ),
    "flatten with a dynamic batch": (
        """agraph (float[N, 3, 4] x) => (float[N, 12] y) <int64 zero = {0}, int64[1] rest = {-1}, int64[1] ax = {0}>
        { s = Shape (x)  n = Gather (s, zero)  u = Unsqueeze (n, ax)  c = Concat <axis = 0> (u, rest)
          y = Reshape (x, c) }""",
        None,
    ),
    "slice of a shape": (
        """agraph (float[N, 3, 4] x) => (float[3, 4] y) <int64[1] one = {1}, int64[1] three = {3}, int64[1] ax = {0}>
        { s = Shape (x)  d = Slice (s, one, three, ax)  m = ReduceMax <axes = [0], keepdims = 0> (x)
          y = Reshape (m, d) }""",
        ["ReduceMax", "Reshape"],
    ),
    "shape with start and end": (
        """agraph (float[N, 3, 4] x) => (float[3, 4] y)
        { d = Shape <start = 1, end = 3> (x)  m = ReduceMax <axes = [0], keepdims = 0> (x)  y = Reshape (m, d) }""",
        ["ReduceMax", "Reshape"],
    ),
    "value_float": (
        """agraph (float[N, 3] x) => (float[N, 3] y)
        { a = Constant <value_float = 2.0> ()  b = Constant <value_floats = [1.0, 2.0, 3.0]> ()
          c = Mul (a, b)  d = Constant <value_int = 3> ()  e = CastLike (d, c)  f = Add (c, e)  y = Mul (x, f) }""",
        ["Mul"],
    ),
}


def test_a_negative_size_means_any(way: str) -> None:
    source = text(CHAINS["flatten with a dynamic batch"][0])
    for value in [*source.proto.graph.input, *source.proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = -1
    graph = prepare(source)
    assert list(graph.inputs[0].shape) == [None, 3, 4]
    assert relative_error(source, graph, random_feeds(source.proto)) == 0
    assert build(graph, source).graph.input == source.proto.graph.input


@pytest.mark.parametrize("name", CHAINS)
def test_chains_fold_exactly(name: str, way: str) -> None:
    body, ops = CHAINS[name]
    source = text(body)
    graph = prepare(source)
    if ops is not None:
        assert [node.op for node in graph.nodes] == ops
    assert_canonical(source, graph)
    assert relative_error(source, graph, random_feeds(source.proto)) == 0


def test_constants_have_the_type_of_their_attribute(way: str) -> None:
    source = text("agraph (float[N] x) => (float[N] y) { c = Constant <value_float = 0.1> ()  y = Mul (x, c) }")
    (node,) = prepare(source).nodes
    assert node.inputs[1].values.dtype == np.float32
    assert node.inputs[1].values == np.float32(0.1)


def test_random_numbers_are_not_folded(way: str) -> None:
    source = text("""agraph (float[4] x) => (float[4] y) { r = RandomNormal <shape = [4], seed = 1.0> ()
        s = RandomUniformLike (r)  t = Add (r, s)  y = Add (x, t) }""")
    assert sorted(node.op for node in prepare(source).nodes) == ["Add", "Add", "RandomNormal", "RandomUniformLike"]


def test_quantised_weights_are_not_folded(way: str) -> None:
    source = text("""agraph (float[N, 2] x) => (float[N, 2] y)
        <int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}, float t = {0.1}>
        { w = DequantizeLinear (q, s, z)  a = QuantizeLinear (x, t, z)  b = DequantizeLinear (a, t, z)
          r = Relu (b)  c = QuantizeLinear (r, t, z)  d = DequantizeLinear (c, t, z)  y = MatMul (d, w) }""")
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == [node.op_type for node in source.proto.graph.node]
    assert_canonical(source, graph)
    assert relative_error(source, graph, random_feeds(source.proto)) == 0


def test_results_much_bigger_than_their_operands_stay(way: str) -> None:
    source = text("""agraph (float[4096, 2048] x) => (float[4096, 2048] y) <int64[2] n = {4096, 2048}>
        { c = ConstantOfShape (n)  y = Add (x, c) }""")
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == ["ConstantOfShape", "Add"]


def test_weights_pass_untouched_and_uncopied() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = parser.parse_model(
        OPSET_17 + "agraph (float[N, 64] x) => (float[N, 64] y) { a = MatMul (x, w)  t = Identity (a)  y = Relu (t) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    source = load(model)
    before = to_graph(source)
    after = optimized(before, source)
    assert after is not None
    assert [node.op for node in after.nodes] == ["MatMul", "Relu"]
    assert after.nodes[0].inputs[1].values is before.nodes[0].inputs[1].values
    assert [tensor.name for tensor in after.inputs] == ["x"]


def test_newest_versions_are_folded_without_onnx_runtime() -> None:
    body = CHAINS["static size through float"][0]
    newest = onnx.defs.onnx_opset_version()
    source = text(body, f'<ir_version: {onnx.IR_VERSION}, opset_import: ["" : {newest}]>\n')
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == ["Slice"]
    assert graph.nodes[0].inputs[2].values.tolist() == [5]
    assert graph.ir_version == onnx.IR_VERSION
    assert graph.opset == newest


# ------------------------------------------------------------------------------------------- Identity, Dropout, outputs


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("(float[N] x) => (float[N] y) { a = Identity (x)  b = Relu (a)  c = Identity (b)  y = Neg (c) }", "Relu Neg"),
        ("(float[N] x) => (float[N] y) { a = Relu (x)  y = Identity (a) }", "Relu"),
        ("(float[N] x) => (float[N] y) { y = Identity (x) }", "Identity"),
        (
            "(float[N] x) => (float[N] y, float[N] z) { a = Relu (x)  y = Identity (a)  z = Identity (a) }",
            "Relu Identity",
        ),
        ("(float[N] x) => (float[N] a, float[N] y) { a = Relu (x)  y = Identity (a) }", "Relu Identity"),
        ("(float[N] x) => (float[N] y, float[N] z) { a = Relu (x)  y = Identity (a)  z = Neg (a) }", "Relu Neg"),
        ("(float[N] x) => (float[N] y) <float r = {0.5}> { a, m = Dropout (x, r)  y = Neg (a) }", "Neg"),
        ("(float[N] x, float[N] unused) => (float[N] y) { y = Neg (x) }", "Neg"),
        ("(float[N] x) => (float[N] y, float[2] c) <float[2] c = {1, 2}> { y = Neg (x) }", "Neg"),
        ("(float[N] x) => (float[N] y, float[N] x) { y = Neg (x) }", "Neg"),
    ],
)
def test_copies_are_dropped_and_the_interface_stays(body: str, ops: str, way: str) -> None:
    source = text("agraph " + body)
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == ops.split()
    assert relative_error(source, graph, {n: np.array([1, -2], np.float32) for n in random_feeds(source.proto)}) == 0


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("(float[N] x) => (float[N] y, bool[N] m) { a, m = Dropout (x)  y = Neg (a) }", 17),
        ("(float[N] x) => (float[N] y) <float r = {0.5}, bool t = {1}> { a = Dropout (x, r, t)  y = Neg (a) }", 17),
        ("(float[N] x, bool t) => (float[N] y) <float r = {0.5}> { a = Dropout (x, r, t)  y = Neg (a) }", 17),
    ],
)
def test_a_dropout_that_matters_stays(body: str, opset: int, way: str) -> None:
    source = text("agraph " + body, f'<ir_version: 8, opset_import: ["" : {opset}]>\n')
    assert [node.op for node in prepare(source).nodes] == ["Dropout", "Neg"]


@pytest.mark.parametrize("opset", [6, 7, 10, 12])
def test_dropout_of_every_opset_goes(opset: int, way: str) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    source = text("agraph (float[N] x) => (float[N] y) { a = Dropout (x)  y = Neg (a) }", header)
    assert [node.op for node in prepare(source).nodes] == ["Neg"]


# ------------------------------------------------------------------------------------------ what the optimizer must not


def test_scales_biases_and_batchnorm_stay_apart() -> None:
    source = text("""agraph (float[N, 1, 4, 4] x) => (float[N, 2] y)
        <float[2,1,1,1] w = {1, 2}, float[2] g = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 1}, float[2] v = {1, 2},
         float[2,1,1] s = {2, 3}, float[2,1,1] o = {1, 1}, float[2,2] f = {1, 2, 3, 4}, float[2] h = {1, 2}>
        { c = Conv (x, w)  n = BatchNormalization (c, g, b, m, v)  p = Mul (n, s)  q = Add (p, o)  r = Relu (q)
          a = GlobalAveragePool (r)  l = Flatten (a)  k = MatMul (l, f)  y = Add (k, h) }""")
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == [node.op_type for node in source.proto.graph.node]
    assert [node.inputs[1].name for node in graph.nodes if len(node.inputs) > 1] == ["w", "g", "s", "o", "f", "h"]
    assert relative_error(source, graph, random_feeds(source.proto)) == 0


def test_equal_layers_are_not_merged() -> None:
    source = text("""agraph (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 4}>
        { a = MatMul (x, w)  b = MatMul (x, w)  c = MatMul (x, v)  d = Add (a, b)  y = Add (c, d) }""")
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == ["MatMul", "MatMul", "MatMul", "Add", "Add"]
    assert [node.inputs[1].name for node in graph.nodes[:3]] == ["w", "w", "v"]
    assert graph.nodes[0].inputs[1] is graph.nodes[1].inputs[1]


@pytest.mark.parametrize(
    ("op", "opset"),
    [
        ("GroupNormalization <num_groups = 2> (x, s, s)", 21),
        ("LayerNormalization (x, x)", 17),
        ("HardSwish (x)", 17),
        ("Mish (x)", 18),
        ("Gelu (x)", 20),
        ("MeanVarianceNormalization (x)", 17),
    ],
)
def test_operators_that_onnx_runtime_expands_stay_whole(op: str, opset: int) -> None:
    source = text(
        f"""agraph (float[2, 4, 8] x) => (float[2, 4, 8] y, float[2, 4, 8] z) <float[4] s = {{1, 2, 3, 4}}>
        {{ y = {op}  z = Neg (x) }}""",
        f'<ir_version: 8, opset_import: ["" : {opset}]>\n',
    )
    assert sorted(node.op for node in prepare(source).nodes) == sorted([op.split(maxsplit=1)[0], "Neg"])


def test_constants_that_take_over_a_type_are_folded() -> None:
    """As torch's dynamo exporter writes a missing bias: of the type of the input."""
    source = text(
        """agraph (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12},
         double zero = {0}, int64[1] n = {4}>
        { h = Relu (x)  z = CastLike (zero, h)  b = Expand (z, n)  y = Conv (h, w, b) }""",
        '<ir_version: 8, opset_import: ["" : 18]>\n',
    )
    graph = prepare(source)
    assert [node.op for node in graph.nodes] == ["Relu", "Conv"]
    bias = graph.nodes[1].inputs[2].values
    assert (bias.dtype, bias.tolist()) == (np.float32, [0.0] * 4)


@pytest.mark.parametrize(
    "pool",
    [
        "Conv <pads = [1, 0, 0, 1]> (p, w)",
        "AveragePool <kernel_shape = [2, 2]> (p)",
        "AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (p)",
        "MaxPool <kernel_shape = [2, 2]> (p)",
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_padding_that_is_taken_into_its_user_is_exact(pool: str, sign: int, way: str) -> None:
    source = text(f"""agraph (float[N, 1, 5, 5] x) => (float[N, 1, A, B] y)
        <int64[8] pads = {{0, 0, 1, 2, 0, 0, 1, 0}}, float[1,1,2,2] w = {{1, 2, 3, 4}}>
        {{ p = Pad (x, pads)  y = {pool} }}""")
    feeds = {"x": sign * np.abs(random_feeds(source.proto, sizes={"x/0": 3})["x"])}  # negative: zeros win in MaxPool
    assert relative_error(source, prepare(source), feeds) <= 1e-6  # AveragePool sums in another order


def test_bodies_survive() -> None:
    source = text("""agraph (bool c, float[2] x, int64 n) => (float[2] y, float[2] z)
        <float[2] shared = {1, 2}, bool go = {1}>
        { a = Identity (x)
          y = If (c) <then_branch = t () => (float[2] p) { d = Constant <value_floats = [3.0, 4.0]> ()
                                                           p1 = Add (a, shared)  p = Mul (p1, d) },
                      else_branch = e () => (float[2] q) { q = Identity (a) }>
          z = Loop (n, go, x) <body = b (int64 i, bool k, float[2] v) => (bool l, float[2] w)
                               { l = Identity (k)  w = Add (v, shared) }> }""")
    graph = prepare(source)
    assert sorted(node.op for node in graph.nodes) == ["If", "Loop"]
    for c in (True, False):
        feeds = {"c": np.array(c), "x": np.array([1, 2], np.float32), "n": np.array(3)}
        assert relative_error(source, graph, feeds) == 0


def test_an_operator_that_onnx_runtime_does_not_know_is_kept() -> None:
    source = text(
        "agraph (float[N] x) => (float[N] y) { a = Identity (x)  b = org.d.Op <k = 1> (a)  y = Neg (b) }",
        '<ir_version: 8, opset_import: ["" : 17, "org.d" : 4]>\n',
    )
    graph = prepare(source)
    assert [(node.op, node.domain) for node in graph.nodes] == [("Op", "org.d"), ("Neg", None)]
    full_check(build(graph, source))


# ---------------------------------------------------------------------------------------------- names, copies, defaults


def test_names_are_kept_and_made_unique() -> None:
    source = text("""agraph (float[N] x) => (float[N] y)
        { [same] a = Relu (x)  [same] b = Neg (a)  c = Exp (b)  [Exp_c] d = Neg (c)  y = Neg (d) }""")
    assert [node.name for node in prepare(source).nodes] == ["same", "same_1", "Exp_c_1", "Exp_c", "Neg_y"]


def test_small_constants_are_owned_and_weights_are_shared() -> None:
    source = text("""agraph (float[N, 2] x, float[N, 2] z) => (float[N, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}, float[2, 1] col = {1, 2}, int64[2] n = {-1, 2}>
        { a = Gemm (x, w, b)  c = Gemm (z, w, b)  d = Reshape (a, n)  e = Reshape (c, n)  f = Add (d, e)
          g = MatMul (f, col)  h = MatMul (f, col)  i = Add (g, h)  y = Sub (b, i) }""")
    graph = prepare(source)
    assert_canonical(source, graph)
    names = [[t.name for t in node.inputs if isinstance(t, gs.Constant)] for node in graph.nodes]
    assert names == [["w", "b"], ["w", "b_copy"], ["n"], ["n_copy"], [], ["col"], ["col_copy"], [], ["b_copy_1"]]
    assert relative_error(source, graph, random_feeds(source.proto)) == 0


def test_defaults_are_written() -> None:
    source = text(
        """agraph (float[N, 3, 8, 8] x) => (float[N, 4] y)
        <float[6, 3, 3, 3] w, float[6, 4] f>
        { a = Conv (x, w)  b = MaxPool <kernel_shape = [2, 2]> (a)  c = LeakyRelu (b)  d = ReduceMean <axes = [2, 3],
          keepdims = 0> (c)  e = Gemm (d, f)  y = Softmax (e) }""".replace(
            "w,", f"w = {{{', '.join(['1'] * 162)}}},"
        ).replace("f>", f"f = {{{', '.join(['1'] * 24)}}}>")
    )
    conv, pool, leaky, _, gemm, softmax = prepare(source).nodes
    assert dict(conv.attrs) == {
        "auto_pad": "NOTSET",
        "group": 1,
        "kernel_shape": [3, 3],
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [0, 0, 0, 0],
    }
    assert pool.attrs["ceil_mode"] == 0
    assert pool.attrs["strides"] == [1, 1]
    assert leaky.attrs["alpha"] == pytest.approx(0.01)
    assert gemm.attrs == {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    assert softmax.attrs["axis"] == -1


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_defaults_belong_to_the_opset(opset: int) -> None:
    source = text(
        """agraph (float[N, 1, 8, 8] x) => (float[N, 64] y) { a = MaxPool <kernel_shape = [1, 1]> (x)
        b = AveragePool <kernel_shape = [1, 1]> (a)  c = Flatten (b)  y = Softmax (c) }""",
        f'<ir_version: 8, opset_import: ["" : {opset}]>\n',
    )
    graph = prepare(source)
    assert relative_error(source, graph, random_feeds(source.proto)) == 0
    assert graph.nodes[-1].attrs["axis"] == (-1 if opset >= 13 else 1)


def test_variables_know_type_and_shape_and_dynamic_axes_stay() -> None:
    source = text("""agraph (float[N, 3, H, 8] x) => (float[N, 4, A, B] y)
        <float[4, 3, 1, 1] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
        { a = Conv (x, w)  y = Relu (a) }""")
    graph = prepare(source)
    assert graph.nodes[0].outputs[0].shape == ["N", 4, None, 8]  # inference does not see that a 1x1 kernel keeps H
    assert graph.nodes[0].outputs[0].dtype == np.float32
    for size in (1, 7):
        feeds = random_feeds(source.proto, sizes={"x/0": size, "x/2": 5})
        assert relative_error(source, graph, feeds) == 0


def test_a_second_pass_changes_nothing() -> None:
    for body, _ in CHAINS.values():
        source = text(body)
        once = build(prepare(source), source)
        again = load(once)
        assert build(prepare(again), again).graph == once.graph


def test_order_is_mended_and_cycles_are_refused() -> None:
    source = text("agraph (float[N] x) => (float[N] y) { a = Relu (x)  b = Neg (a)  y = Add (b, a) }")
    graph = to_graph(source)
    graph.nodes.reverse()
    name_nodes(graph)
    sort_nodes(graph)
    assert [node.op for node in graph.nodes] == ["Relu", "Neg", "Add"]
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]
    with pytest.raises(UnsupportedError, match="cycle"):
        sort_nodes(graph)


def test_long_chains_do_not_recurse(way: str) -> None:
    count = 1200
    nodes = [helper.make_node("Relu" if i % 2 else "Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    source = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert len(prepare(source).nodes) == count


def test_the_result_does_not_depend_on_the_process(tmp_path: Path) -> None:
    source = text(CHAINS["flatten with a dynamic batch"][0])
    onnx.save(source.proto, tmp_path / "m.onnx")
    code = """import sys, hashlib
from onnxslim_merge.model_io import build, load
from onnxslim_merge.prepare import prepare
source = load(sys.argv[1])
print(hashlib.sha256(build(prepare(source), source).SerializeToString(deterministic=True)).hexdigest())"""
    expected = hashlib.sha256(build(prepare(source), source).SerializeToString(deterministic=True)).hexdigest()
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": root}
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [expected]
