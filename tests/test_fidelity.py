"""Comparing outputs, and the interface gate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_merge.errors import UnsupportedError, UsageError, VerifyError
from onnxslim_merge.verify.fidelity import check_interface, compare_outputs, max_relative_error

RNG = np.random.default_rng(0)
A = RNG.standard_normal((6, 5)).astype(np.float32)
B = A + 0.1 * RNG.standard_normal((6, 5)).astype(np.float32)


def batches(array, *cuts, name="y"):
    return [{name: part} for part in np.split(array, cuts)]


def test_numbers_equal_numpy_on_the_whole():
    result = compare_outputs(batches(A, 2, 5), batches(B, 2, 5))
    a, b = A.astype(float).ravel(), B.astype(float).ravel()
    assert result.relative_l2 == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert result.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert result.max_abs == pytest.approx(np.abs(b - a).max())
    assert result.top1_agreement == pytest.approx(np.mean(A.argmax(1) == B.argmax(1)))
    assert result.equal_share is None
    assert [output.name for output in result.outputs] == ["y"]
    assert max_relative_error(batches(A, 2), batches(B, 2)) == pytest.approx(np.abs(b - a).max() / np.abs(a).max())


@given(scale=st.floats(0.01, 100), cut=st.integers(1, 5))
def test_scaling_the_output(scale, cut):
    result = compare_outputs(batches(A, cut), batches(A.astype(float) * scale, cut))
    assert result.relative_l2 == pytest.approx(abs(scale - 1), abs=1e-6)
    assert result.cosine == pytest.approx(1)
    assert result.top1_agreement == 1
    assert max_relative_error(batches(A), batches(A.astype(float) * scale)) == pytest.approx(abs(scale - 1), abs=1e-6)


def test_float16_sums_do_not_overflow():
    big = np.full((2, 300), 60000, np.float16)
    assert compare_outputs([{"y": big}], [{"y": -big}]).relative_l2 == pytest.approx(2)
    assert compare_outputs([{"y": big}], [{"y": -big}]).cosine == pytest.approx(-1)


def test_zero_references():
    zero, one = [{"y": np.zeros(4)}], [{"y": np.ones(4)}]
    same, other = compare_outputs(zero, zero), compare_outputs(zero, one)
    assert (same.relative_l2, same.cosine, same.max_abs) == (0, 1, 0)
    assert (other.relative_l2, other.cosine, other.max_abs) == (2, 0, 1)
    assert compare_outputs(one, zero).cosine == 0
    assert max_relative_error(zero, [{"y": np.full(4, 3.0)}]) == 3


def test_overall_is_the_worst_and_discrete_outputs_count_equal_elements():
    old = {"y": np.ones((2, 2)), "z": np.ones(3), "ids": np.array([1, 2, 3, 4]), "ok": np.array([True, False])}
    new = {"y": np.ones((2, 2)), "z": np.full(3, 1.5), "ids": np.array([1, 2, 3, 5]), "ok": np.array([True, False])}
    result = compare_outputs([old, old], [new, new])
    assert result.relative_l2 == pytest.approx(0.5)
    tilted = old | {"y": np.array([[1.0, 1.0], [1.0, 0.0]])}
    assert compare_outputs([old], [tilted]).cosine == pytest.approx(np.sqrt(0.75))
    assert result.equal_share == 0.75
    assert {o.name: o.equal_share for o in result.outputs} == {"y": None, "z": None, "ids": 0.75, "ok": 1.0}
    assert result.outputs[2].relative_l2 is None
    assert result.top1_agreement is None  # two outputs could be meant
    assert max_relative_error([old], [new]) == pytest.approx(0.5)
    large = {"z": np.full(3, 4.0)}  # the largest reference of all batches counts
    assert max_relative_error([large, {"z": np.ones(3)}], [large, {"z": np.full(3, 1.5)}]) == 0.125
    assert max_relative_error([{"ids": old["ids"]}], [{"ids": new["ids"]}]) == 0.25


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 3, 2)])
def test_no_top1_for_what_are_no_class_scores(shape):
    only = [{"y": RNG.standard_normal(shape)}]
    assert compare_outputs(only, only).top1_agreement is None
    with pytest.raises(UsageError, match="--score-output y: top-1 agreement needs"):
        compare_outputs(only, only, score_output="y")


def test_score_output_names_one_of_many():
    old = [{"boxes": A[:, :4], "scores": A}]
    new = [{"boxes": A[:, :4], "scores": -A}]
    result = compare_outputs(old, new, score_output="scores")
    assert result.top1_agreement == 0
    assert [o.top1_agreement for o in result.outputs] == [None, 0]
    with pytest.raises(UsageError, match="no such output; the model has boxes, scores"):
        compare_outputs(old, new, score_output="score")


def test_what_cannot_be_compared_is_refused():
    bad = A.copy()
    bad[3, 1] = np.nan
    with pytest.raises(VerifyError, match="output y of the slimmed model is not finite"):
        compare_outputs([{"y": A}], [{"y": bad}])
    with pytest.raises(VerifyError, match="output y of the original is not finite"):
        max_relative_error([{"y": bad}], [{"y": A}])
    with pytest.raises(VerifyError, match=r"changed from float32 \[6, 5\] to float32 \[5, 5\]"):
        compare_outputs([{"y": A}], [{"y": A[:5]}])
    with pytest.raises(VerifyError, match=r"float32 .* to int64"):
        compare_outputs([{"y": A}], [{"y": A.astype(np.int64)}])
    with pytest.raises(VerifyError, match="outputs changed from y to z"):
        compare_outputs([{"y": A}], [{"z": A}])
    with pytest.raises(VerifyError, match="different numbers of batches"):
        compare_outputs([{"y": A}, {"y": A}], [{"y": A}])
    with pytest.raises(VerifyError, match="no samples"):
        compare_outputs([], [])
    with pytest.raises(UnsupportedError, match="output y is no tensor"):
        compare_outputs([{"y": [A]}], [{"y": [A]}])


def test_batches_are_streamed():
    asked = []

    def outputs(who):
        for index in range(3):
            asked.append((who, index))
            yield {"y": A}

    assert compare_outputs(outputs("old"), outputs("new")).max_abs == 0
    assert asked == [(who, index) for index in range(3) for who in ("old", "new")]


TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3] x, int64[2] i) => (float[N, 3] y, int64[2] j) { y = Relu (x)  j = Identity (i) }"""

CHANGED = {
    "input name": (lambda t: t.replace("x", "xx"), "inputs changed from x, i to xx, i"),
    "input order": (
        lambda t: t.replace("(float[N, 3] x, int64[2] i)", "(int64[2] i, float[N, 3] x)"),
        "inputs changed",
    ),
    "output gone": (lambda t: t.replace(", int64[2] j)", ")"), "outputs changed from y, j to y"),
    "dtype": (lambda t: t.replace("float", "float16"), r"input x changed from float \[N, 3\] to float16 \[N, 3\]"),
    "rank": (lambda t: t.replace("[N, 3] y", "[N, 3, 1] y"), r"output y changed .* to float \[N, 3, 1\]"),
    "fixed size": (lambda t: t.replace("[N, 3] x", "[N, 4] x"), r"to float \[N, 4\]"),
    "symbol": (lambda t: t.replace("[N, 3] y", "[M, 3] y"), r"to float \[M, 3\]"),
    "now fixed": (lambda t: t.replace("[N, 3] x", "[1, 3] x"), r"to float \[1, 3\]"),
    "now unknown": (lambda t: t.replace("[N, 3] x", "[?, 3] x"), r"to float \[\?, 3\]"),
    "no rank": (lambda t: t.replace("float[N, 3] y", "float[] y"), "output y changed"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_interface_changes_are_found(case):
    change, message = CHANGED[case]
    with pytest.raises(VerifyError, match=message):
        check_interface(onnx.parser.parse_model(TEXT), onnx.parser.parse_model(change(TEXT)))


def test_interface_ignores_what_is_inside_and_initializers_listed_as_inputs():
    header = '<ir_version: 3, opset_import: ["" : 17]>'
    old = header + "g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul (x, w) }"
    new = header + "g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }"
    check_interface(onnx.parser.parse_model(old), onnx.parser.parse_model(new))
