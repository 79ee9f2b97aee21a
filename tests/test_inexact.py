"""--allow-inexact layernorm: normalised channels leave, and the statistics are those of the channels that stay."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from textmodels import distance, feeds, parse, run, weights

import onnxslim_merge
from onnxslim_merge.errors import UsageError

LAYER_NORM = "n = LayerNormalization <axis = -1, epsilon = 0.01> (a, ga, be)"
IN_STEPS = """m = ReduceMean <axes = [-1]> (a) d = Sub (a, m) q = Pow (d, two) s = ReduceMean <axes = [-1]> (q)
    e = Add (s, eps) r = Sqrt (e) z = Div (d, r) g = Mul (z, ga) n = Add (g, be)"""
RMS_NORM = "n = RMSNormalization <axis = -1, epsilon = 0.01> (a, ga)"
RMS_IN_STEPS = """q = Pow (a, two) s = ReduceMean <axes = [-1]> (q) e = Add (s, eps) r = Sqrt (e) z = Div (a, r)
    n = Mul (z, ga)"""


def model(norm: str, opset: int = 17) -> onnx.ModelProto:
    return parse(
        f"""g (float[N, 5, 12] x) => (float[N, 5, 6] y)
        <float[12, 16] w, float[16] ga, float[16] be, float two = {{2}}, float eps = {{0.01}}, float[16, 6] v>
        {{ a = MatMul (x, w)
          {norm}
          y = MatMul (n, v) }}""",
        opset=opset,
        ir=8 if opset < 23 else 11,
    )


def by_hand(whole: onnx.ModelProto, keep: list[int]) -> onnx.ModelProto:
    """The same text with the removed channels cut out of every weight: no code of ours takes part."""
    small = onnx.ModelProto()
    small.CopyFrom(whole)
    cut = {"w": (slice(None), keep), "ga": (keep,), "be": (keep,), "v": (keep, slice(None))}
    for tensor in small.graph.initializer:
        if tensor.name in cut:
            values = numpy_helper.to_array(tensor)[cut[tensor.name]]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return small


@pytest.mark.parametrize(
    ("norm", "opset"), [(LAYER_NORM, 17), (IN_STEPS, 13), (RMS_NORM, 23), (RMS_IN_STEPS, 13)],
    ids=["layernorm", "layernorm_in_steps", "rmsnorm", "rmsnorm_in_steps"],
)  # fmt: skip
def test_what_is_left_is_the_model_of_the_kept_channels(norm, opset):
    whole = model(norm, opset)
    result = onnxslim_merge.slim(whole, ratio=0.5, compensation="none", allow_inexact="layernorm")
    (cell,) = (c for c in result.plan.cells if c.status == "slimmed")
    assert len(cell.keep) == 8
    assert result.report.twin_max_error <= 1e-4
    assert weights(result.model)["w"].shape == (12, 8)
    fed = feeds(whole, {"N": 3}, 1)
    # a hand-made slice and ours differ by rounding alone
    assert distance(run(by_hand(whole, list(cell.keep)), fed), run(result.model, fed)) <= 1e-5
    assert [note for note in result.report.notes if note.startswith("inexact, as allowed")]
    assert not [note for note in result.report.notes if "has no effect" in note]


@pytest.mark.parametrize(
    ("norm", "opset", "operator"),
    [(LAYER_NORM, 17, "LayerNormalization"), (IN_STEPS, 13, "ReduceMean"), (RMS_NORM, 23, "RMSNormalization")],
)
def test_without_the_option_it_stays_whole_and_says_why(norm, opset, operator):
    result = onnxslim_merge.slim(model(norm, opset), ratio=0.5)
    group = result.report.groups[0]
    assert group.channels_after == group.channels_before == 16
    assert re.search(rf"\({operator}\): {operator} works along this axis", group.reason)
    assert not [note for note in result.report.notes if "inexact" in note]


GATES = {
    "mean": "m = ReduceMean <axes = [-1]> (a) s = Sigmoid (m) n = Mul (a, s)",
    "mean_of_squares": "q = Mul (a, a) m = ReduceMean <axes = [-1]> (q) s = Sigmoid (m) n = Mul (a, s)",
    "mean_of_cubes": "q = Pow (a, three) m = ReduceMean <axes = [-1]> (q) e = Add (m, eps) r = Sqrt (e) n = Div (a, r)",
    "centred_only": "m = ReduceMean <axes = [-1]> (a) n = Sub (a, m)",
    "other_divided": "q = Pow (a, two) m = ReduceMean <axes = [-1]> (q) e = Add (m, eps) r = Sqrt (e) h = Relu (a)"
    " n = Div (h, r)",
    "mean_used_twice": "q = Pow (a, two) m = ReduceMean <axes = [-1]> (q) e = Add (m, eps) r = Sqrt (e) z = Div (a, r)"
    " n = Mul (z, m)",
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_other_means_over_channels_stay_frozen(gate):
    """Gates and centring average over channels too, but are no normalisation."""
    whole = parse(
        f"""g (float[N, 5, 12] x) => (float[N, 5, 6] y)
        <float[12, 16] w, float two = {{2}}, float three = {{3}}, float eps = {{9}}, float[16, 6] v>
        {{ a = MatMul (x, w) {gate} y = MatMul (n, v) }}""",
        opset=13,
    )
    result = onnxslim_merge.slim(whole, ratio=0.5, allow_inexact="layernorm")
    assert all(group.channels_after == group.channels_before for group in result.report.groups)


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_a_scale_of_more_axes_freezes(operator):
    whole = parse(
        f"""g (float[N, 5, 12] x) => (float[N, 5, 6] y) <float[12, 16] w, float[1, 16] ga, float[16, 6] v>
        {{ a = MatMul (x, w) n = {operator} <axis = -1> (a, ga) y = MatMul (n, v) }}""",
        opset=23,
        ir=11,
    )
    result = onnxslim_merge.slim(whole, ratio=0.5, allow_inexact="layernorm")
    assert all(group.channels_after == group.channels_before for group in result.report.groups)
    assert [note for note in result.report.notes if note.startswith("--allow-inexact has no effect")]
    assert not [group.reason for group in result.report.groups if "--allow-inexact" in group.reason]


def test_compensation_reaches_consumers_behind_the_norm():
    result = onnxslim_merge.slim(model(LAYER_NORM), ratio=0.5, compensation="mean", allow_inexact=["layernorm"])
    assert result.report.twin_max_error <= 1e-4
    assert result.plan.edits


def test_the_plan_remembers_it(tmp_path):
    whole = model(LAYER_NORM)
    first = onnxslim_merge.slim(whole, ratio=0.5, compensation="none", allow_inexact="layernorm")
    again = onnxslim_merge.slim(whole, plan=first.plan)
    assert again.model.graph == first.model.graph


def test_an_unknown_name_is_a_usage_error():
    with pytest.raises(UsageError, match="--allow-inexact 'softmax': choose layernorm"):
        onnxslim_merge.slim(model(LAYER_NORM), allow_inexact="softmax")
