"""Defects that a review once found, each as the smallest model that showed it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from textmodels import parse, run

import onnxslim_merge
from onnxslim_merge.channels.registry import find_rule
from onnxslim_merge.channels.scope import Scope
from onnxslim_merge.errors import InputError, UsageError, VerifyError
from onnxslim_merge.select import kept_count
from onnxslim_merge.verify import gates


def assert_clean(result) -> None:
    assert not [note for note in result.report.notes if "our bug" in note]
    assert result.report.twin_max_error <= 1e-4
    assert any(g.status == "slimmed" for g in result.report.groups)


@pytest.mark.parametrize("layer", ["MatMul ({0}, w{1})", "Gemm <beta = 0.0> ({0}, w{1}, c{1})"])
def test_mean_shift_into_a_layer_without_bias_before_batchnorm(layer: str):
    """The Add that is put in for the shift is the bias that BatchNormalization is folded into."""
    weights = ", ".join(
        f"float[8,8] w{i}, float[8] c{i}, float[8] pos{i}, float[8] be{i}, float[8] m{i}, float[8] var{i}"
        for i in range(3)
    )
    body, last = "", "x"
    for i in range(3):
        body += f"h{i} = {layer.format(last, i)} n{i} = BatchNormalization (h{i}, pos{i}, be{i}, m{i}, var{i})\n"
        body += f"r{i} = Relu (n{i})\n"
        last = f"r{i}"
    model = parse(f"g (float[N,8] x) => (float[N,8] y) <{weights}> {{ {body} y = Identity ({last}) }}")
    result = onnxslim_merge.slim(model, ratio=0.5, compensation="mean")
    assert_clean(result)
    assert not [n for n in result.model.graph.node if n.op_type == "BatchNormalization"]


def test_mean_shift_into_a_bias_that_is_a_matrix():
    model = parse("""g (float[N,3,6] x) => (float[N,4,5] y)
    <float[8,3,1] wa, float[6,10] t1, float[10,5] t2, float[8,5] k, float[4,8,1] wb>
    { a = Conv (x, wa)  b = MatMul (a, t1)  r = Relu (b)  d = MatMul (r, t2)  e = Add (d, k)  f = Relu (e)
      y = Conv (f, wb) }""")
    assert_clean(onnxslim_merge.slim(model, ratio=0.5, compensation="mean"))


def test_names_that_are_taken():
    model = parse("""g (float[N,3,6,6] x) => (float[N,4,6,6] y)
    <float[8,3,1,1] w, float[8] pos, float[8] be, float[8] m, float[8] var, float[8,1,1] "c.bias", float[4,8,1,1] v>
    { [c] a = Conv (x, w)  n = BatchNormalization (a, pos, be, m, var)  s = Add (n, "c.bias")  r = Relu (s)
      y = Conv (r, v) }""")
    for compensation in ("none", "mean"):
        assert_clean(onnxslim_merge.slim(model, ratio=0.5, compensation=compensation))


def test_discrete_outputs_are_judged_too(monkeypatch: pytest.MonkeyPatch):
    """A wrong rule in front of integers: they change, and rounding does not excuse it."""

    def let_through(c: Scope) -> None:
        c.give(list(c.labels(0)))

    def wrong(op_type: str, domain: str):
        return let_through if op_type == "Softmax" else find_rule(op_type, domain)

    monkeypatch.setattr("onnxslim_merge.channels.analysis.find_rule", wrong)
    model = parse("""g (float[N,6] x) => (int64[N,9] y) <float[6,12] w, float[12,9] v, float[1] k = {50.0}>
    { [a] h = MatMul (x, w)  s = Softmax <axis = 1> (h)  t = MatMul (s, v)  u = Mul (t, k)  y = Cast <to = 7> (u) }""")
    report = onnxslim_merge.slim(model, ratio=0.7, compensation="none").report
    assert any("our bug" in note for note in report.notes)


def test_given_input_shapes_do_not_switch_off_the_second_size():
    """16 channels x T positions fold into rows of 32: which channel is where depends on T."""
    model = parse("""g (float[N,6,T] x) => (float[P,4] y) <float[16,6,1] w, int64[2] s = {-1, 32}, float[32,4] v>
    { a = Conv (x, w)  r = Relu (a)  t = Reshape (r, s)  y = MatMul (t, v) }""")
    for shapes in ({}, {"x": (1, 6, 2)}):
        report = onnxslim_merge.slim(model, ratio=0.5, input_shapes=shapes, dry_run=True).report
        assert {g.status for g in report.groups} == {"frozen"}


def test_indices_of_gather_freeze():
    model = parse("""g (float[N,4] x) => (float[N,3] y) <float[4,10] w, float[5,2] table, float[20,3] v>
    { [a] h = MatMul (x, w)  s = Sigmoid (h)  i = Cast <to = 7> (s)  e = Gather (table, i)  f = Flatten (e)
      y = MatMul (f, v) }""")
    result = onnxslim_merge.slim(model, ratio=0.5, compensation="none")
    assert next(g for g in result.report.groups if g.name == "a").status == "frozen"
    assert not [note for note in result.report.notes if "our bug" in note]


def test_half_precision_fill_values():
    model = parse("""g (float16[N,3,6,6] x) => (float16[N,4,6,6] y) <float16[8,3,1,1] w, float16[4,8,1,1] v>
    { h = Shape (x)  k = ConstantOfShape <value = float16[1] {1}> (h)  z = Add (x, k)  a = Conv (z, w)  r = Relu (a)
      y = Conv (r, v) }""")
    assert_clean(onnxslim_merge.slim(model, ratio=0.5))


HALF = """g (float16[N,3,16,16] x) => (float16[N,10] y)
<float16[64,3,3,3] w, float16[64] pos1, float16[64] be, float16[64] m, float16[64] var1, float16[64,64,3,3] w2,
 float16[64] pos2, float16[64] be2, float16[64] m2, float16[64] var2, float16[10,64,1,1] v>
{ h = Conv <pads=[1,1,1,1]> (x, w)  n = BatchNormalization (h, pos1, be, m, var1)  r = Relu (n)
  i = Conv <pads=[1,1,1,1]> (r, w2)  o = BatchNormalization (i, pos2, be2, m2, var2)  s = Relu (o)
  p = GlobalAveragePool (s)  q = Conv (p, v)  y = Flatten (q) }"""


@pytest.mark.parametrize("seed", range(3))
def test_batchnorm_is_folded_into_half_precision_up_to_its_rounding(seed):
    """Folded weights differ from the product by up to 2^-11 of it: 2e-4 to 5e-4 of the output."""
    result = onnxslim_merge.slim(parse(HALF, seed=seed), ratio=0.5, compensation="none")
    assert not [node for node in result.model.graph.node if node.op_type == "BatchNormalization"]
    assert_clean(result)
    assert any("rounds them once more: outputs differ by" in note for note in result.report.notes)


def test_rounding_does_not_excuse_what_is_wrong_before_folding(monkeypatch):
    judged = []
    monkeypatch.setattr(gates, "HALF_TOLERANCE", 1.0)
    real = gates.Judge.graph_outputs

    def wrong(self, graph, label, **options):
        found = real(self, graph, label, **options)
        if label == "the slimmed model":
            judged.append(label)
            return [{name: value * np.float16(1.01) for name, value in outputs.items()} for outputs in found]
        return found

    monkeypatch.setattr(gates.Judge, "graph_outputs", wrong)
    with pytest.raises(VerifyError, match="differs from its full-size twin"):
        onnxslim_merge.slim(parse(HALF), ratio=0.5, compensation="none")
    assert len(judged) > 1  # with and without folding


def test_half_precision_weights_behind_casts_are_found():
    model = parse("""g (float[N,64,4,4] x) => (float[N,4,4,4] y) <float16[1024,64,3,3] w, float[4,1024,1,1] v>
    { c = Cast <to = 1> (w)  [a] b = Conv <pads = [1,1,1,1]> (x, c)  r = Relu (b)  y = Conv (r, v) }""")
    result = onnxslim_merge.slim(model, ratio=0.5, dry_run=True)
    assert (result.report.groups[0].channels_before, result.report.groups[0].channels_after) == (1024, 512)


def test_multiples_remove_nothing_where_nothing_may_go():
    assert kept_count(18, 0.0, 1, 8) == 18
    assert kept_count(20, 0.9, 10, 8) == 16
    assert kept_count(20, 0.9, 1, 8) == 8
    assert kept_count(6, 0.5, 1, 8) == 6


def test_silu_stays_inner():
    model = parse("""g (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] w, float[4,8,1,1] v>
    { [a] b = Conv (x, w)  s = Sigmoid (b)  u = Mul (b, s)  y = Conv (u, v) }""")
    report = onnxslim_merge.slim(model, ratio=0.5, scope="inner", dry_run=True).report
    assert report.groups[0].channels_after == 4


def test_replay_beside_a_frozen_sibling_and_not_on_other_shapes():
    text = """g (float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,8,6,6] z)
    <float[16,3,{k},{k}] w, int64[2] s = {{8, 8}}, float[4,8,1,1] v>
    {{ [a] b = Conv <pads = [{p},{p},{p},{p}]> (x, w)  c, z = Split <axis = 1> (b, s)  r = Relu (c)
       y = Conv (r, v) }}"""
    first = parse(text.format(k=1, p=0))
    plan = onnxslim_merge.slim(first, ratio=0.5).plan
    again = onnx.ModelProto()
    again.CopyFrom(first)
    again.producer_name = "another exporter"
    replayed = onnxslim_merge.slim(again, plan=plan)
    assert [c.keep for c in replayed.plan.cells] == [c.keep for c in plan.cells]
    assert any("another file" in note for note in replayed.report.notes)
    assert {g.status for g in replayed.report.groups} == {"slimmed", "frozen"}
    with pytest.raises(InputError, match="no partner"):
        onnxslim_merge.slim(parse(text.format(k=3, p=1)), plan=plan)


def test_notes_where_the_checks_say_nothing_or_nothing_goes():
    """The channels reach the output times zero: no input can tell whether they are right."""
    model = parse("""g (float[N,3,6,6] x) => (float[N,4,6,6] y)
    <float[8,3,1,1] w, float[4,8,1,1] v, float[1] zero = {0.0}>
    { a = Conv (x, w)  r = Relu (a)  b = Conv (r, v)  y = Mul (b, zero) }""")
    blind = onnxslim_merge.slim(model, ratio=0.5).report
    assert any("the checks say nothing" in note for note in blind.notes)
    whole = onnxslim_merge.slim(model, ratio=0).report
    assert any("nothing was removed" in note for note in whole.notes)
    assert not any("compensated" in note for note in whole.notes)
    assert blind.input_shapes["x"][1:] == (3, 6, 6)


def test_wrong_types_are_usage_errors():
    model = parse("g (float[N,3] x) => (float[N,4] y) <float[3,4] w> { y = MatMul (x, w) }")
    for option, value in (("ratio", "0.5"), ("channel_multiple", "8"), ("min_channels", 2.5), ("lam", None)):
        with pytest.raises(UsageError, match="number"):
            onnxslim_merge.slim(model, **{option: value})
    with pytest.raises(UsageError, match="input-shapes"):
        onnxslim_merge.slim(model, input_shapes={"x": (1, "a")})
    with pytest.raises(InputError, match="no model"):
        onnxslim_merge.slim(123)


def test_macs_of_a_model_without_batch_axis():
    model = parse(
        "g (float[3,8] x) => (float[4,8] y) <float[16,3] w, float[4,16] v> { h = MatMul (w, x) y = MatMul (v, h) }"
    )
    assert onnxslim_merge.slim(model, ratio=0).report.macs.before == 16 * 3 * 8 + 4 * 16 * 8


def test_a_weight_and_its_transpose_are_not_written_twice():
    model = parse("""g (float[N,128] x) => (float[N,128] y) <float[128,192] w, float[192] b>
    { [a] h = Gemm (x, w, b)  r = Relu (h)  t = Transpose <perm = [1, 0]> (w)  y = MatMul (r, t) }""")
    result = onnxslim_merge.slim(model, ratio=0.25, compensation="none")
    assert result.report.size_bytes.after <= 1.05 * result.report.size_bytes.before
    fed = {"x": np.ones((2, 128), np.float32)}
    assert [a.shape for a in run(result.model, fed)] == [(2, 128)]
    assert sum(numpy_helper.to_array(t).size for t in result.model.graph.initializer) <= 128 * 192 + 192
