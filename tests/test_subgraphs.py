"""Bodies of If, Loop and Scan are left as they are, and what they use stays whole; local functions are inlined."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from textmodels import distance, feeds, interface, parse, run, silenced, weights

import onnxslim_merge
from onnxslim_merge.verify import speed

TOLERANCE = 1e-4
# Conv a (10 channels) -> Conv b (8) -> `body` from r to u -> Conv y; what the body makes of r has 8 channels too.
OUTER = """g (float[N, 3, 6, 6] x, bool[1] flag) => (float[N, 4, P, Q] y)
<float[10, 3, 1, 1] wa, float[10] ba, float[8, 10, 1, 1] wb, float[8] bb, float[4, 8, 1, 1] wy{more}>
{{ a = Conv (x, wa, ba)
   e = Relu (a)
   b = Conv (e, wb, bb)
   r = Relu (b)
   {body}
   y = Conv (u, wy) }}"""


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def check(model: onnx.ModelProto, slims: str, *reasons: str, compensation: str = "none", **sizes: int):
    """Slim to half and compare with the twin, and with the original in which the consumers' columns are zero."""
    result = onnxslim_merge.slim(model, ratio=0.5, compensation=compensation, criterion="l2")
    lost = {output for cell in result.plan.cells if len(cell.keep) < cell.size for _, _, output in cell.producers}
    found = {(r.op_type, r.reason) for r in result.report.refusals}
    assert lost == set(slims.split()), found
    assert not [note for note in result.report.notes if "our bug" in note]
    assert result.report.twin_max_error <= TOLERANCE
    assert interface(result.model) == interface(model)
    onnx.checker.check_model(result.model, full_check=True)
    for reason in reasons:
        assert any(reason in f"{op}: {why}" for op, why in found), (reason, found)
    if compensation == "none":
        for seed in range(3):  # both branches of an If, some time
            fed = feeds(model, {"N": 2, "T": 5} | sizes, seed)
            silent = silenced(model, result.plan.masks, fed)
            assert distance(run(silent, fed, optimize=False), run(result.model, fed)) <= TOLERANCE
    return result


def outer(body: str, more: str = "") -> onnx.ModelProto:
    return parse(OUTER.format(body=body, more=f", {more}" if more else ""))


def if_node(then: str, other: str) -> str:
    return f"""u = If (flag) <then_branch = then () => (float[N, 8, P, Q] t) {{ {then} }},
                              else_branch = other () => (float[N, 8, P, Q] o) {{ {other} }}>"""


def bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [a.g for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


@pytest.mark.parametrize("compensation", ["none", "mean+merge"])
def test_what_an_if_captures_stays_and_the_rest_is_slimmed(compensation):
    model = outer(if_node("t = Neg (r)", "o = Abs (r)"))
    check(model, "a", "Relu: used inside a subgraph", compensation=compensation)


def test_weights_of_a_body_are_never_touched():
    text = if_node("t0 = Conv (r, wi) t = Tanh (t0)", "o = Conv (r, wi2)")
    model = outer(text, "float[8, 8, 1, 1] wi, float[8, 8, 1, 1] wi2")
    result = check(model, "a", "used inside a subgraph")
    assert {tuple(weights(result.model).get(n, np.zeros(0)).shape) for n in ("wi", "wi2")} <= {(8, 8, 1, 1), (0,)}


def test_a_weight_shared_with_a_body_freezes_its_outer_users():
    """`wb` makes b outside and is used inside: its rows and columns stay, so those of a too."""
    model = outer(if_node("t = Conv (e, wb)", "o = Relu (r)"))
    check(model, "", "used inside a subgraph")


def test_a_bias_shared_with_a_body_stays():
    model = outer(if_node("t = Conv (r, wi, bb)", "o = Identity (r)"), "float[8, 8, 1, 1] wi")
    check(model, "a", "used inside a subgraph")


def test_nested_bodies_capture_from_two_levels_up():
    inner = """z = If (flag) <then_branch = deep () => (float[N, 8, P, Q] d) { d = Mul (r, r) },
                              else_branch = deeper () => (float[N, 8, P, Q] d2) { d2 = Relu (r) }>
               t = Neg (z)"""
    check(outer(if_node(inner, "o = Abs (r)")), "a", "used inside a subgraph")


def test_an_intermediate_tensor_captured_two_levels_down_stays_too():
    inner = """z = If (flag) <then_branch = deep () => (float[N, 8, P, Q] d) { d = Conv (e, wi) },
                              else_branch = deeper () => (float[N, 8, P, Q] d2) { d2 = Conv (e, wi2) }>
               t = Neg (z)"""
    model = outer(if_node(inner, "o = Abs (r)"), "float[8, 10, 1, 1] wi, float[8, 10, 1, 1] wi2")
    check(model, "", "used inside a subgraph")


LOOP = """three = Constant <value = int64 {3}> ()
   go = Constant <value = bool {1}> ()
   u = Loop (three, go, r) <body = body (int64 i, bool c, float[N, 8, P, Q] s) => (bool c2, float[N, 8, P, Q] s2)
       { c2 = Identity (c) s1 = Conv (s, wi) s2 = Tanh (s1) }>"""


@pytest.mark.parametrize("compensation", ["none", "mean"])
def test_what_a_loop_carries_stays(compensation):
    model = outer(LOOP, "float[8, 8, 1, 1] wi")
    check(model, "a", "Loop: no rule for Loop", compensation=compensation)


def test_a_loop_that_captures_and_stacks():
    body = LOOP.replace("=> (bool c2, float[N, 8, P, Q] s2)", "=> (bool c2, float[N, 8, P, Q] s2, float[N, 8, P, Q] k)")
    body = body.replace("u = Loop", "u, stacked = Loop").replace("s2 = Tanh (s1)", "s2 = Add (s1, r) k = Abs (s2)")
    model = outer(body + " m = ReduceMax <axes = [0]> (stacked) ", "float[8, 8, 1, 1] wi")
    check(model, "a", "used inside a subgraph", "Loop: no rule for Loop")


def test_a_scan_over_time():
    """The input width of the scan stays; the layer in front of it loses its own inner width."""
    model = parse(
        """g (float[T, 6] x) => (float[T, 4] y)
        <float[6, 12] w1, float[12] b1, float[12, 5] w2, float[7] h0, float[5, 7] wi, float[7, 7] wh, float[7, 4] wy>
        { m = Gemm (x, w1, b1)
          r = Relu (m)
          p = MatMul (r, w2)
          h, u = Scan <num_scan_inputs = 1, body = step (float[7] s, float[5] xt) => (float[7] s2, float[7] out)
             { i = MatMul (xt, wi) j = MatMul (s, wh) k = Add (i, j) s2 = Tanh (k) out = Identity (s2) }> (h0, p)
          y = MatMul (u, wy) }"""
    )
    check(model, "m", "Scan: no rule for Scan")


def test_a_body_with_names_of_its_own_that_equal_outer_ones_elsewhere():
    """What a body calls `inner` is its own; an outer tensor of another name is not mixed up with it."""
    then = "inner = Conv (x, wi) t = Relu (inner)"
    model = outer(if_node(then, "o = Conv (x, wi2)") + " v = Add (u, r)", "float[8, 3, 1, 1] wi, float[8, 3, 1, 1] wi2")
    model.graph.node[-1].input[0] = "v"
    check(model, "a")


def test_an_if_with_a_constant_condition_is_inlined_or_left_alone():
    model = outer(
        "yes = Constant <value = bool {1}> () u = If (yes)"
        " <then_branch = then () => (float[N, 8, P, Q] t) { t = Conv (r, wi) },"
        "  else_branch = other () => (float[N, 8, P, Q] o) { o = Abs (r) }>",
        "float[8, 8, 1, 1] wi",
    )
    result = onnxslim_merge.slim(model, ratio=0.5, compensation="none")
    assert result.report.twin_max_error <= TOLERANCE
    assert {c.producers[0][2] for c in result.plan.cells if len(c.keep) < c.size} >= {"a"}


# -- local functions --------------------------------------------------------------------------------------------------


def with_functions(text: str, imports: str = '"" : 17, "own" : 1', seed: int = 0) -> onnx.ModelProto:
    """Graph and functions as text; initializers in `< >` get seeded values."""
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]>\n{text}")
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape).astype(np.float32) / np.sqrt(max(np.prod(shape[1:]), 1))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), value.name))
    del model.graph.value_info[:]
    return model


CALLS = """g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y)
<float[10, 3, 1, 1] w, float[10] b, float[10, 10, 1, 1] k, float[4, 10, 1, 1] v>
{ a = own.layer (x, w, b)
  e = own.layer (a, k, b)
  y = Conv (e, v) }
"""
LAYER = '<opset_import: ["" : 17], domain: "own"> layer (i, f, c) => (o) { m = Conv (i, f, c) o = Relu (m) }'


def inlined_and_exact(model: onnx.ModelProto) -> None:
    result = onnxslim_merge.slim(model, ratio=0.5, compensation="none")
    assert result.report.twin_max_error <= TOLERANCE
    assert not result.model.functions
    lost = [cell for cell in result.plan.cells if len(cell.keep) < cell.size]
    assert sum(len(cell.producers) for cell in lost) == 2
    fed = feeds(model, {"N": 2})
    assert run(result.model, fed)[0].shape == run(model, fed)[0].shape


def test_a_function_with_a_conv_inside():
    inlined_and_exact(with_functions(CALLS + LAYER))


def test_nested_functions():
    nested = """<opset_import: ["" : 17, "own" : 1], domain: "own"> layer (i, f, c) => (o)
                { m = own.inner (i, f, c) o = Relu (m) }
                <opset_import: ["" : 17], domain: "own"> inner (i, f, c) => (o) { o = Conv (i, f, c) }"""
    inlined_and_exact(with_functions(CALLS + nested))


def test_a_function_of_another_opset():
    inlined_and_exact(with_functions(CALLS + LAYER.replace('"" : 17', '"" : 15')))


# -- what is no tensor of numbers -------------------------------------------------------------------------------------


def test_sequences_freeze_what_goes_in():
    model = parse(
        """g (float[N, 3, 6, 6] x, int64 at) => (float[N, 4, P, Q] y)
        <float[10, 3, 1, 1] wa, float[8, 10, 1, 1] wb, float[8, 10, 1, 1] wc, float[4, 8, 1, 1] wy>
        { a = Conv (x, wa)
          r = Relu (a)
          b = Conv (r, wb)
          c = Conv (r, wc)
          s = SequenceConstruct (b, c)
          u = SequenceAt (s, at)
          y = Conv (u, wy) }"""
    )
    check(model, "a", "SequenceConstruct")


def test_optional_values_freeze_what_goes_in():
    model = outer("s = Optional (r) u = OptionalGetElement (s)")
    check(model, "a", "Optional")


def test_strings_pass_by():
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"no", b"yes"])
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Gemm", ["r", "v"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
            helper.make_node("Gather", ["words", "best"], ["word"], axis=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("word", TensorProto.STRING, ["N"]),
        ],
        [
            numpy_helper.from_array(np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32), "w"),
            numpy_helper.from_array(np.random.default_rng(1).standard_normal((10, 2)).astype(np.float32), "v"),
            words,
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxslim_merge.slim(model, ratio=0.5, compensation="none")
    assert result.report.twin_max_error <= TOLERANCE
    assert weights(result.model)["w"].shape == (6, 5)
