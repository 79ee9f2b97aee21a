"""Cells: what belongs together, what is inner, and what `--scope inner` leaves alone."""

from __future__ import annotations

import pytest
from textmodels import parse

import onnxslim_merge
from onnxslim_merge.verify import speed

HEAD = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[6, 3, 1, 1] w, float[6, 3, 1, 1] w2, float[6, 6, 1, 1] k, float[6, 6, 1, 1] k2, float[5, 6, 1, 1] k5,
 float[6, 1, 1] o, float[4, 6, 1, 1] v, float[4, 12, 1, 1] v12, float[4, 9, 1, 1] v9>
"""
# text: {output of the first producer: (size, producers, inner)} of every cell that is not frozen
NETWORKS = {
    "{ a = Conv (x, w) r = Relu (a) y = Conv (r, v) }": {"a": (6, 1, True)},
    "{ a = Conv (x, w) r = Relu (a) s = Mul (r, o) y = Conv (s, v) }": {"a": (6, 1, True)},
    "{ a = Conv (x, w) e = Conv (a, k5) f = Relu (e) y = ConvTranspose (f, t5) }": {
        "a": (6, 1, True), "e": (5, 1, True)
    },
    "{ a = Conv (x, w) e = Conv (x, w2) s = Add (a, e) y = Conv (s, v) }": {"a": (6, 2, False)},
    "{ a = Conv (x, w) r = Relu (a) s = Add (a, r) y = Conv (s, v) }": {"a": (6, 1, True)},
    "{ a = Conv (x, w) e = Conv (x, w2) s = Mul (a, e) y = Conv (s, v) }": {"a": (6, 2, False)},
    "{ a = Conv (x, w) e = Conv (x, w2) s = Max (a, e) y = Conv (s, v) }": {"a": (6, 2, False)},
    "{ a = Conv (x, w) e = Conv (x, w2) j = Concat <axis = 1> (a, e) y = Conv (j, v12) }": {
        "a": (6, 1, False), "e": (6, 1, False)
    },
    "{ a = Conv (x, w) j = Concat <axis = 1> (a, x) y = Conv (j, v9) }": {"a": (6, 1, True)},
    "{ a = Conv (x, w) e = Conv (a, k) s = Add (a, e) f = Conv (s, k2) y = Conv (f, v) }": {
        "a": (6, 2, False), "f": (6, 1, True)
    },
}  # fmt: skip


@pytest.mark.parametrize("body", NETWORKS)
def test_cells(body):
    model = parse((HEAD + body).replace("float[4, 9, 1, 1] v9", "float[4, 9, 1, 1] v9, float[5, 4, 1, 1] t5"))
    analysis = onnxslim_merge.analyse(model)
    found = {
        analysis.producers[cell.producers[0]].output: (cell.size, len(cell.producers), cell.inner)
        for cell in analysis.cells
        if cell.refusal is None
    }
    assert found == NETWORKS[body]


def test_scope_inner_leaves_the_others_alone(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    model = parse(HEAD + "{ a = Conv (x, w) e = Conv (a, k) s = Add (a, e) f = Conv (s, k2) y = Conv (f, v) }")
    for scope, expected in (("inner", {"f": 3, "a": 6}), ("all", {"f": 3, "a": 3})):
        plan = onnxslim_merge.slim(model, scope=scope, compensation="none").plan
        kept = {cell.producers[0][2]: len(cell.keep) for cell in plan.cells}
        assert {name: kept[name] for name in expected} == expected
    reasons = [cell.reason for cell in onnxslim_merge.slim(model, scope="inner", compensation="none").plan.cells]
    assert "nothing to remove: --scope inner" in reasons


def test_one_label_class_may_sit_on_several_rows_of_one_producer():
    """Two halves that are added leave together: five labels on ten rows."""
    text = """g (float[N, 3] x) => (float[N, 4] y)
    <float[3, 10] w, float[5, 4] v, int64[1] o = {0}, int64[1] m = {5}, int64[1] z = {10}, int64[1] one = {1}>
    { a = Gemm (x, w)
      d = Slice (a, o, m, one)
      e = Slice (a, m, z, one)
      s = Add (d, e)
      y = Gemm (s, v) }"""
    analysis = onnxslim_merge.analyse(parse(text))
    assert [(c.size, c.refusal is None) for c in analysis.cells] == [(5, True), (4, False)]
