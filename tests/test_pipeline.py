"""The stages together: amounts, scopes, several inputs and outputs, the search for a guilty cell, statistics."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from textmodels import parse

import onnxslim_merge
from onnxslim_merge.channels.registry import find_rule
from onnxslim_merge.channels.scope import Scope
from onnxslim_merge.errors import UsageError, VerifyError
from onnxslim_merge.verify.bisect import MOST, exonerate

CHAIN = """g (float[N, 4] x) => (float[N, 3] y)
<float[64,4] w1, float[64] b1, float[40,64] w2, float[40] b2, float[3,40] w3, float[3] b3>
{ [fc1] h1 = Gemm<transB=1>(x, w1, b1)  r1 = Relu(h1)
  [fc2] h2 = Gemm<transB=1>(r1, w2, b2) r2 = Relu(h2)
  [fc3] y = Gemm<transB=1>(r2, w3, b3) }"""

TWO_BY_TWO = """g (float[N, 3, 8, 8] image, float[N, 5] extra) => (float[N, 4] scores, float[N, 6, 4, 4] map)
<float[8,3,3,3] wc, float[8] bc, float[6,8,1,1] wm, float[8,5] we, float[8] be, float[4,8] wh, float[4] bh>
{ c = Conv<pads=[1,1,1,1], strides=[2,2]>(image, wc, bc)  r = Relu(c)  map = Conv(r, wm)
  p = GlobalAveragePool(r)  f = Flatten(p)
  e = Gemm<transB=1>(extra, we, be)  s = Add(f, e)  t = Relu(s)  scores = Gemm<transB=1>(t, wh, bh) }"""

RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 4] y)
<float[16,3,3,3] w0, float[16,16,3,3] w1, float[16,16,3,3] w2, float[4,16] wf>
{ [stem] a = Conv<pads=[1,1,1,1]>(x, w0)  b = Relu(a)
  [inner] c = Conv<pads=[1,1,1,1]>(b, w1)  d = Relu(c)  [outer] e = Conv<pads=[1,1,1,1]>(d, w2)
  f = Add(b, e)  h = Relu(f)  p = GlobalAveragePool(h)  q = Flatten(p)  [head] y = Gemm<transB=1>(q, wf) }"""


def kept(report) -> dict[str, tuple[int, int, str]]:
    return {g.name: (g.channels_before, g.channels_after, g.status) for g in report.groups}


def shape_of(model: onnx.ModelProto, name: str) -> list[int]:
    return list(next(t.dims for t in model.graph.initializer if t.name == name))


def test_two_inputs_and_two_outputs_share_channels_and_stay():
    model = parse(TWO_BY_TWO)
    result = onnxslim_merge.slim(model, ratio=0.5)
    assert shape_of(result.model, "wc") == [4, 3, 3, 3]
    assert shape_of(result.model, "we") == [4, 5]
    assert shape_of(result.model, "wm") == [6, 4, 1, 1]
    assert [o.name for o in result.report.fidelity.outputs] == ["scores", "map"]
    assert result.report.fidelity.top1_agreement is None
    named = onnxslim_merge.slim(model, ratio=0.5, score_output="scores").report
    assert 0 <= named.fidelity.top1_agreement <= 1


def test_later_ratio_for_wins_and_names_are_searched():
    report = onnxslim_merge.slim(parse(CHAIN), ratio=0, ratio_for=["fc.=0.25", "^w2$=0.5"], dry_run=True)
    assert kept(report.report) == {"fc1": (64, 48, "slimmed"), "fc2": (40, 20, "slimmed"), "fc3": (3, 3, "frozen")}
    assert [c.amount for c in report.plan.cells][:2] == ["--ratio-for fc.=0.25", "--ratio-for ^w2$=0.5"]


def test_exclude_minimum_and_multiples():
    model = parse(CHAIN)
    groups = kept(onnxslim_merge.slim(model, ratio=0.5, exclude="fc2", min_channels=50, dry_run=True).report)
    assert groups["fc1"] == (64, 50, "slimmed")
    assert groups["fc2"] == (40, 40, "excluded")
    multiples = kept(onnxslim_merge.slim(model, ratio=0.45, channel_multiple=16, dry_run=True).report)
    assert (multiples["fc1"][1], multiples["fc2"][1]) == (32, 16)
    automatic = kept(onnxslim_merge.slim(model, ratio=0.45, channel_multiple="auto", dry_run=True).report)
    assert (automatic["fc1"][1], automatic["fc2"][1]) == (32, 24)


def test_regex_without_a_match_is_an_error():
    with pytest.raises(UsageError, match="no_such_layer"):
        onnxslim_merge.slim(parse(CHAIN), ratio_for="no_such_layer=0.5", dry_run=True)
    with pytest.raises(UsageError, match="no_such_layer"):
        onnxslim_merge.slim(parse(CHAIN), exclude="no_such_layer", dry_run=True)


def test_inner_scope_leaves_the_residual_stream_unless_an_option_names_it():
    model = parse(RESIDUAL)
    inner = kept(onnxslim_merge.slim(model, ratio=0.5, scope="inner", dry_run=True).report)
    assert inner == {"stem": (16, 16, "kept"), "inner": (16, 8, "slimmed"), "head": (4, 4, "frozen")}
    named = onnxslim_merge.slim(model, ratio=0.5, scope="inner", ratio_for="outer=0.25", dry_run=True)
    assert kept(named.report)["stem"] == (16, 12, "slimmed")


def test_stage_times_add_up_to_the_run():
    report = onnxslim_merge.slim(parse(CHAIN)).report
    assert {"load", "prepare", "probe", "analyse", "select", "merge", "rewrite", "verify"} <= report.stages.keys()
    assert sum(report.stages.values()) <= report.elapsed_s


@pytest.mark.parametrize("guilty", [set(), {"c"}, {"a", "h"}, {"d", "e", "f"}])
def test_search_finds_exactly_the_guilty_cells(guilty: set[str]):
    cells = {name: np.arange(3) for name in "abcdefgh"}
    innocent, found = exonerate(cells, lambda some: not guilty & some.keys())
    assert set(found) == guilty
    assert innocent.keys() == cells.keys() - guilty


def test_search_gives_up_when_nothing_is_right_or_too_much_is_wrong():
    cells = {str(i): np.arange(3) for i in range(3 * MOST)}
    with pytest.raises(VerifyError, match="before any channel"):
        exonerate(cells, lambda some: False)
    with pytest.raises(VerifyError, match="also without"):
        exonerate(cells, lambda some: not some)


def test_a_wrong_rule_costs_its_cell_only(monkeypatch: pytest.MonkeyPatch):
    """A rule lets channels through a Softmax over them: the twin sees it, the cell stays whole, the run goes on."""
    model = parse("""g (float[N, 4] x) => (float[N, 3] y)
    <float[8,4] w1, float[8,8] w2, float[3,8] w3>
    { [a] h = Gemm<transB=1>(x, w1)  r = Relu(h)  [b] k = Gemm<transB=1>(r, w2)
      s = Softmax<axis=1>(k)  [c] y = Gemm<transB=1>(s, w3) }""")
    honest = onnxslim_merge.slim(model, ratio=0.5, compensation="none").report
    assert kept(honest)["b"] == (8, 8, "frozen")

    def let_through(c: Scope) -> None:
        c.give(list(c.labels(0)))

    def wrong(op_type: str, domain: str):
        return let_through if op_type == "Softmax" else find_rule(op_type, domain)

    monkeypatch.setattr("onnxslim_merge.channels.analysis.find_rule", wrong)
    report = onnxslim_merge.slim(model, ratio=0.5, compensation="none").report
    assert kept(report)["a"] == (8, 4, "slimmed")
    assert kept(report)["b"][:2] == (8, 8)
    assert any("our bug" in note and "b" in note for note in report.notes)


def test_calibration_data_changes_the_measured_means(tmp_path):
    """Without BatchNormalization the mean comes from the inputs: constant inputs make the mean shift exact."""
    model = parse(CHAIN)
    constant = np.tile(np.array([[0.5, -1, 2, 0.25]], np.float32), (16, 1))
    np.savez(tmp_path / "x.npz", x=constant)
    given = onnxslim_merge.slim(model, ratio=0.5, compensation="mean", calibration_data=tmp_path / "x.npz").report
    assert given.fidelity.relative_l2 < 1e-5  # rounding of fp32 sums
    plain = onnxslim_merge.slim(model, ratio=0.5, compensation="none", calibration_data=tmp_path / "x.npz").report
    assert plain.fidelity.relative_l2 > 1e-2
    assert given.samples == 16
    assert any("only 16 calibration samples" in note for note in given.notes)
    assert not any("calibration samples" in note for note in plain.notes)


def test_dynamic_axes_stay_dynamic():
    model = parse("""g (float[N, 3, H, W] x) => (float[N, 4, H, W] y) <float[8,3,1,1] w1, float[4,8,1,1] w2>
    { a = Conv(x, w1)  b = Relu(a)  y = Conv(b, w2) }""")
    small = onnxslim_merge.slim(model, ratio=0.5).model
    dims = [d.dim_param or d.dim_value for d in small.graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["N", 4, "H", "W"]


def test_auto_refits_with_data_and_shifts_means_only_where_something_tells_them(tmp_path):
    """The default is least squares with data, `mean+merge` behind BatchNormalization, else `merge`, by all donors."""
    plain = parse(CHAIN)
    normalised = parse("""g (float[N, 4] x) => (float[N, 3] y)
    <float[4,16] w, float[16] pos, float[16] be, float[16] me, float[16] var, float[16,3] v>
    { a = MatMul(x, w)  n = BatchNormalization(a, pos, be, me, var)  r = Relu(n)  y = MatMul(r, v) }""")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 4), np.float32))
    for model, data, expected in (
        (plain, None, "merge"),
        (plain, tmp_path / "x.npy", "least-squares"),
        (normalised, None, "mean+merge"),
    ):
        asked = onnxslim_merge.slim(model, calibration_data=data)
        named = onnxslim_merge.slim(model, calibration_data=data, compensation=expected, donors="all")
        criterion = "greedy" if expected == "least-squares" else "consumer"
        found = tuple(asked.plan.settings[name] for name in ("criterion", "compensation", "donors"))
        assert found == (criterion, expected, "all")
        assert asked.model.graph.initializer == named.model.graph.initializer
        assert any("means of removed channels are lost" in n for n in asked.report.notes) == (expected == "merge")
