"""Neuron Merging, mean shift, criteria and moments against numpy: planted redundancy must be recovered exactly."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special
from scipy.stats import norm
from textmodels import distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.channels.analysis import analyse_channels
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.compensation import Search, find_donors, solve
from onnxslim_merge.criteria import SCORES, best
from onnxslim_merge.model_io import build, load
from onnxslim_merge.planning import build_plan
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.select import kept_count
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.statistics.closed_form import closed_moments
from onnxslim_merge.values import Value, cell_values
from onnxslim_merge.verify import speed
from onnxslim_merge.views import Views


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def slim(model, **options):
    return onnxslim_merge.slim(model, **({"criterion": "l2", "compensation": "merge", "ratio": 0.4} | options))


# -- planted redundancy -----------------------------------------------------------------------------------------------

TOTAL, COPIES = 15, 6  # channels of every planted layer, and how many of them are copies: 0.4 of them
KEPT_RATIO = COPIES / TOTAL


def families(rng: np.random.Generator, total: int = TOTAL, copies: int = COPIES) -> np.ndarray:
    """For every channel the original that it copies; originals copy themselves. Copies stand anywhere."""
    source = np.arange(total)
    copied = rng.choice(total, copies, replace=False)
    source[copied] = rng.choice(np.setdiff1d(np.arange(total), copied), copies)
    return source


def scales(rng: np.random.Generator, source: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Factors that make every copy smaller than every original; 1 for originals."""
    own = source == np.arange(source.size)
    small = rng.uniform(0.05, 0.5, source.size) * norms[own].min() / norms[source]
    return np.where(own, 1.0, small)


def plant(model: onnx.ModelProto, layers: dict[str, tuple[str, ...]], seed: int) -> tuple[onnx.ModelProto, dict]:
    """Give every layer of `layers` copies. A layer is a list of "weight bias" pairs that share channels (axis 0).

    A Gemm has transB = 1. Returns the model and {layer: original of every channel}.
    """
    rng, values, sources = np.random.default_rng([seed, 1]), dict(weights(model)), {}
    for name, pairs in layers.items():
        source = sources[name] = families(rng)
        rows = [
            np.hstack([values[w].reshape(TOTAL, -1), values[b].reshape(TOTAL, 1)]) for w, b in map(str.split, pairs)
        ]
        scale = scales(rng, source, np.min([np.linalg.norm(r, axis=1) for r in rows], axis=0))
        for tensor in (t for pair in pairs for t in pair.split()):
            array = values[tensor]
            values[tensor] = (array[source] * scale.reshape(-1, *[1] * (array.ndim - 1))).astype(array.dtype)
    return replace_weights(model, values), sources


DENSE = """g (float[N, 7] x) => (float[N, 4] y)
<float[15, 7] w, float[15] b, float[15, 15] k, float[15] d, float[4, 15] v, float[4] c>
{ a = Gemm <transB = 1> (x, w, b)
  r = F (a)
  e = Gemm <transB = 1> (r, k, d)
  s = F (e)
  y = Gemm <transB = 1> (s, v, c) }"""
CONV = """g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y)
<float[15, 3, 3, 3] w, float[15] b, float[15, 15, 3, 3] k, float[15] d, float[4, 15, 3, 3] v, float[4] c,
 float[4, 18, 3, 3] v18, float[15, 15, 1, 1] p, float[15] q, float[15, 1, 1] pos>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  BODY }"""
TWO = {"a": ("w b",), "e": ("k d",)}
PLANTED = {
    "dense_relu": (DENSE.replace("F", "Relu"), TWO),
    "dense_leaky_relu": (DENSE.replace("F (", "LeakyRelu <alpha = 0.3> ("), TWO),
    "dense_linear": (DENSE.replace("F", "Neg"), TWO),
    "conv_relu": (CONV.replace("BODY", "r = Relu (a) e = Conv (r, k, d) s = Relu (e) y = Conv (s, v, c)"), TWO),
    "conv_max_pool": (
        CONV.replace("BODY", "m = MaxPool <kernel_shape = [2, 2]> (a) r = Relu (m) y = Conv (r, v, c)"),
        {"a": ("w b",)},
    ),
    "conv_average_pool": (
        CONV.replace("BODY", "r = Relu (a) m = AveragePool <kernel_shape = [2, 2]> (r) y = Conv (m, v, c)"),
        {"a": ("w b",)},
    ),
    "conv_residual": (
        CONV.replace(
            "BODY",
            """r = Relu (a)
               e = Conv <pads = [1, 1, 1, 1]> (r, k, d)
               s = Relu (e)
               f = Conv (s, p, q)
               t = Add (f, r)
               u = Relu (t)
               y = Conv (u, v, c)""",
        ),
        {"a": ("w b", "p q"), "e": ("k d",)},
    ),
    "conv_concat_with_the_input": (
        CONV.replace("BODY", "r = Relu (a) j = Concat <axis = 1> (r, x) y = Conv (j, v18, c)"),
        {"a": ("w b",)},
    ),
    "conv_two_readers": (
        CONV.replace(
            "BODY",
            """r = Relu (a)
               e = Conv (r, k, d)
               s = Relu (e)
               t = Conv (s, v)
               h = Conv (r, v2)
               z = Slice (h, lo, hi, ax)
               y = Sub (t, z)""",
        ).replace(
            "float[15, 1, 1] pos",
            "float[4, 15, 3, 3] v2, int64[2] lo = {1, 1}, int64[2] hi = {5, 5}, int64[2] ax = {2, 3}",
        ),
        TWO,
    ),
}
FLATTEN = """g (float[N, 3, 6, 6] x) => (float[N, 4] y)
<float[15, 3, 3, 3] w, float[15] b, float[4, 240] f, float[4] c>
{ a = Conv (x, w, b)
  r = Relu (a)
  t = Flatten (r)
  y = Gemm <transB = 1> (t, f, c) }"""
PLANTED["conv_flatten_gemm"] = (FLATTEN, {"a": ("w b",)})
PLANTED["nhwc_flatten_gemm"] = (
    FLATTEN.replace("t = Flatten (r)", "h = Transpose <perm = [0, 2, 3, 1]> (r) t = Flatten (h)"),
    {"a": ("w b",)},
)


def kept_by_output(plan) -> dict[str, list[int]]:
    return {output: list(cell.keep) for cell in plan.cells for _, _, output in cell.producers}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PLANTED)
def test_planted_copies_are_merged_exactly(name, seed):
    text, layers = PLANTED[name]
    model, sources = plant(parse(text, seed=seed), layers, seed)
    result = slim(model, ratio=KEPT_RATIO)
    kept = kept_by_output(result.plan)
    for layer, source in sources.items():
        assert kept[layer] == np.flatnonzero(source == np.arange(TOTAL)).tolist()
    assert result.plan.notes == ()
    fed = feeds(model, {"N": 5}, seed)
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-4
    # and it is the merging that does it
    assert distance(run(model, fed), run(slim(model, ratio=KEPT_RATIO, compensation="none").model, fed)) > 1e-2


def plant_batchnorm(values: dict[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Copies in the folded sense: raw rows, statistics and gamma of a copy are its own, its folded row is s times."""
    rng = np.random.default_rng([seed, 2])
    source, new = families(rng), {name: array.astype(np.float64) for name, array in values.items()}
    own = source == np.arange(TOTAL)
    raw = new["w"].reshape(TOTAL, -1)
    small = scales(rng, source, np.linalg.norm(raw, axis=1))
    s = np.where(own, 1.0, rng.uniform(0.2, 2, TOTAL))  # of the folded row: the raw one alone is small
    new["w"] = new["w"][source] * small[:, None, None, None]
    fold = new["ga"] / np.sqrt(new["var"] + 1e-5)
    offset = new["be"] - new["me"] * fold
    factor = np.where(own, fold, s * fold[source] / small)
    new["ga"] = factor * np.sqrt(new["var"] + 1e-5)
    new["be"] = np.where(own, offset, s * offset[source]) + new["me"] * factor
    return {name: new[name].astype(values[name].dtype) for name in values}, source


@pytest.mark.parametrize("keep_batchnorm", [False, True])
@pytest.mark.parametrize("function", ["Relu", "LeakyRelu"])
@pytest.mark.parametrize("seed", range(2))
def test_copies_behind_batchnorm_are_merged_in_the_folded_sense(seed, function, keep_batchnorm):
    model = parse(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)
        <float[15, 3, 3, 3] w, float[15] ga, float[15] be, float[15] me, float[15] var, float[4, 15, 1, 1] v>
        {{ a = Conv (x, w)
           n = BatchNormalization (a, ga, be, me, var)
           r = {function} (n)
           y = Conv (r, v) }}""",
        seed=seed,
    )
    values, source = plant_batchnorm(weights(model), seed)
    model = replace_weights(model, values)
    result = slim(model, ratio=KEPT_RATIO, keep_batchnorm=keep_batchnorm)
    assert not [note for note in result.report.notes if "has no effect" in note]
    assert kept_by_output(result.plan)["a"] == np.flatnonzero(source == np.arange(TOTAL)).tolist()
    fed = feeds(model, {"N": 5}, seed)
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-4


def solved(model: onnx.ModelProto, kept: dict[str, np.ndarray], **options) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model that keeps `kept` (by cell name), compensated, and the notes; nothing is verified."""
    source = load(model)
    graph = prepare(source)
    analysis = analyse_channels(graph, probe_shapes(graph, source, {}))
    solution = solve(Views(analysis), kept, None, Settings(**{"compensation": "merge", **options}))
    plan = build_plan(analysis, kept, solution, {})
    return build(rewrite(graph, plan), source, metadata={}), plan.notes


# from r, 15 channels behind Relu, to u; posk is positive, j of any sign
TAILS = {
    "m = Mul (r, posk) u = Add (m, o)": True,
    "m = Mul (r, j) u = Add (m, o)": True,
    "m = Mul (r, posk) n = Add (m, o) u = MaxPool <kernel_shape = [2, 2]> (n)": True,
    "m = Mul (r, j) n = Add (m, o) u = GlobalAveragePool (n)": True,
    "m = Mul (r, j) n = Add (m, o) u = ReduceMean <axes = [2, 3]> (n)": True,
    "m = Mul (r, posk) n = Add (m, o) u = ReduceMax <axes = [2, 3]> (n)": True,
    "m = Mul (r, posk) n = Neg (m) u = Add (n, o)": True,
    "m = Mul (r, posk) u = ReduceSum (m, ax)": True,
    "m = ReduceSum (r, ax) u = Add (m, o)": True,
    "m = Sub (r, o) u = Div (m, posk)": True,
    "m = Mul (r, posk) n = Add (m, o) d = Dropout (n) u = Identity (d)": True,
    "m = Mul (r, posk) n = Add (m, o) u = Neg (n)": False,  # the offset turns round
    "m = Mul (r, posk) n = Add (m, o) u = ReduceSum (n, ax)": False,  # and here it is taken several times
    "m = Add (r, o) u = AveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 1], count_include_pad = 1> (m)": False,
    "m = Add (r, o) u = Relu (m)": False,
    "u = PRelu (r, posk)": None,
    "u = Conv <group = 15> (r, dw)": None,
    "m = Mul (r, posk) s = Sigmoid (m) u = Mul (r, s)": False,
    "h = Conv (x, wg) s = Sigmoid (h) u = Mul (r, s)": None,
}


@pytest.mark.parametrize("body", TAILS)
def test_scales_and_offsets_behind_the_function(body):
    """Either the algebra is exact, or nothing is merged and the report says so."""
    model = parse(
        f"""g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y)
        <float[15, 3, 3, 3] w, float[15] b, float[15, 1, 1] posk, float[15, 1, 1] o, float[15, 1, 1] j,
         int64[2] ax = {{2, 3}}, float[15, 1, 1, 1] dw, float[15, 3, 3, 3] wg, float[4, 15, 1, 1] v>
        {{ a = Conv (x, w, b)
           r = Relu (a)
           {body}
           y = Conv (u, v) }}"""
    )
    model, sources = plant(model, {"a": ("w b",)}, 0)
    small, notes = solved(model, {"Conv_a": np.flatnonzero(sources["a"] == np.arange(TOTAL))})
    if TAILS[body]:
        assert notes == ()
        fed = feeds(model, {"N": 5})
        assert distance(run(model, fed), run(small, fed)) <= 1e-4
    else:
        why = "treats each channel differently" if TAILS[body] is None else "follows a scale or offset per channel"
        assert len(notes) == 1
        assert why in notes[0]


def test_silu_as_exported_merges_equal_channels_only():
    """x Sigmoid(x) is one function of x for all channels, but not homogeneous: copies merge, scaled copies do not."""
    model = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y)
        <float[12, 3, 3, 3] w, float[12] b, float[4, 12, 1, 1] v>
        { a = Conv (x, w, b)
          s = Sigmoid (a)
          u = Mul (a, s)
          y = Conv (u, v) }"""
    )
    values = {name: array.copy() for name, array in weights(model).items()}
    for name in ("w", "b"):
        values[name][6:] = values[name][:6]
    fed = feeds(model, {"N": 3})
    equal = replace_weights(model, values)
    small, notes = solved(equal, {"Conv_a": np.arange(6)})
    assert notes == ()
    assert distance(run(equal, fed), run(small, fed)) <= 1e-5
    for name in ("w", "b"):
        values[name][6:] *= 0.2
    notes = solved(replace_weights(model, values), {"Conv_a": np.arange(6)})[1]
    assert "6 of 6 removed channels have no donor" in notes[0]


def test_a_negative_scale_does_not_pass_a_max_pool():
    model = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y)
        <float[15, 3, 3, 3] w, float[15] b, float[15, 1, 1] j, float[4, 15, 1, 1] v>
        { a = Conv (x, w, b)
          r = Relu (a)
          m = Mul (r, j)
          u = MaxPool <kernel_shape = [2, 2]> (m)
          y = Conv (u, v) }"""
    )
    model, sources = plant(model, {"a": ("w b",)}, 0)
    source, positive = sources["a"], weights(model)["j"].ravel() > 0
    copies = source != np.arange(TOTAL)
    good = copies & positive & positive[source]
    assert good.any()
    assert (copies & ~good).any()
    small, notes = solved(model, {"Conv_a": np.flatnonzero(~good)})
    assert notes == ()
    fed = feeds(model, {"N": 5})
    assert distance(run(model, fed), run(small, fed)) <= 1e-4
    bad = np.flatnonzero(copies & ~positive)[:1]
    _, notes = solved(model, {"Conv_a": np.setdiff1d(np.arange(TOTAL), bad)})
    assert notes == ("Conv_a: 1 of 1 removed channels have no donor; plain removal instead",)


@pytest.mark.parametrize(("value", "merges"), [("0", True), ("1.5", False)])
def test_channels_that_a_pad_puts_in(value, merges):
    """In a parameter-free shortcut the new channels come from one branch alone, if the pads are zeros."""
    model = parse(
        f"""g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
        <float[5, 3, 1, 1] k, float[15, 3, 1, 1] w, float[15] b, float[4, 15, 1, 1] v,
         int64[8] pads = {{0, 0, 0, 0, 0, 10, 0, 0}}, float c = {{{value}}}>
        {{ a = Conv (x, w, b)
           e = Conv (x, k)
           p = Pad (e, pads, c)
           s = Add (a, p)
           r = Relu (s)
           y = Conv (r, v) }}"""
    )
    values = {name: array.copy() for name, array in weights(model).items()}
    copies, scale = np.arange(11, 15), np.array([0.5, 0.2, 0.3, 0.1])
    values["w"][copies] = values["w"][5:9] * scale[:, None, None, None]
    values["b"][copies] = values["b"][5:9] * scale
    model = replace_weights(model, values)
    name = next(c.name for c in onnxslim_merge.analyse(model).cells if c.size == 10)
    small, notes = solved(model, {name: np.arange(6)})  # of the ten channels 5 .. 14
    if merges:
        assert notes == ()
        fed = feeds(model, {"N": 3})
        assert distance(run(model, fed), run(small, fed)) <= 1e-5
    else:
        assert "adds values that do not come from the cell's producers alone" in notes[0]


SUM = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
<float[6, 3, 1, 1] w, float[6] b, float[6, 3, 1, 1] k, float[6] d, float[6, 1, 1] o, float[4, 6, 1, 1] v>
{ a = Conv (x, w, b)
  e = Conv (x, k, d)
  BODY
  y = Conv (u, v) }"""


@pytest.mark.parametrize("body", ["u = Add (a, e)", "u = Sum (e, a)"])
def test_the_value_of_a_linear_sum(body):
    """All rows side by side, one bias."""
    views, cells, v = cells_of(SUM.replace("BODY", body))
    value = cell_values(views, cells["Conv_a"])["u"]
    order = ("k", "w") if "Sum" in body else ("w", "k")
    assert np.allclose(value.matrix, np.hstack([v[name].reshape(6, 3) for name in order]))
    assert np.allclose(value.bias, v["b"] + v["d"])
    assert value.degree == Degree.LINEAR


@pytest.mark.parametrize(
    ("body", "degree"),
    [
        ("p = Relu (a) u = Add (p, e)", Degree.HOMOGENEOUS),
        ("u = Sub (a, e)", Degree.HOMOGENEOUS),
        ("u = Max (a, e)", Degree.HOMOGENEOUS),
        ("u = Mean (a, e)", Degree.HOMOGENEOUS),
        ("p = Sigmoid (a) u = Add (p, e)", Degree.OTHER),
    ],
)
def test_the_value_of_another_sum(body, degree):
    """A donor has to stand in at both producers at once, biases and all: they become rows of their own."""
    views, cells, v = cells_of(SUM.replace("BODY", body))
    value = cell_values(views, cells["Conv_a"])["u"]
    blocks = [v["w"].reshape(6, 3), v["k"].reshape(6, 3), v["b"][:, None], v["d"][:, None]]
    assert np.allclose(value.matrix, np.hstack(blocks))
    assert not value.bias.any()
    assert value.degree == degree


def test_an_affine_map_goes_into_the_rows_while_all_is_linear():
    views, cells, v = cells_of(SUM.replace("BODY", "m = Mul (a, o) n = Sub (e, o) u = Add (m, n)"))
    value, o = cell_values(views, cells["Conv_a"])["u"], v["o"].ravel()
    assert np.allclose(value.matrix, np.hstack([v["w"].reshape(6, 3) * o[:, None], v["k"].reshape(6, 3)]))
    assert np.allclose(value.bias, v["b"] * o + v["d"] - o)


# -- the algebra itself, in float64 -----------------------------------------------------------------------------------


def in_float64(model: onnx.ModelProto, values: dict[str, np.ndarray]):
    """The analysis of `model`, with float64 weights: Conv has no such kernel, so nothing is run."""
    analysis = onnxslim_merge.analyse(model)
    for name, array in values.items():
        analysis.constants[name].values = array
    return analysis


@pytest.mark.parametrize("seed", range(4))
def test_merged_columns_in_float64(seed):
    """Whichever member of a family stays: W' x' = W x for every x whose copies are s times their originals."""
    rng = np.random.default_rng(seed)
    source = families(rng)
    s = np.where(source == np.arange(TOTAL), 1.0, rng.uniform(0.1, 3, TOTAL))
    base, bias = rng.standard_normal((TOTAL, 3, 3, 3)), rng.standard_normal(TOTAL)
    w, b = base[source] * s[:, None, None, None], bias[source] * s
    v, f = rng.standard_normal((4, TOTAL, 3, 3)), rng.standard_normal((5, TOTAL * 16))
    model = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, 2, 2] y, float[N, 5] t)
        <float[15, 3, 3, 3] w, float[15] b, float[4, 15, 3, 3] v, float[5, 240] f>
        { a = Conv (x, w, b)
          r = Relu (a)
          y = Conv (r, v)
          h = Flatten (r)
          t = Gemm <transB = 1> (h, f) }"""
    )
    analysis = in_float64(model, {"w": w, "b": b, "v": v, "f": f})
    kept = np.array([rng.choice(np.flatnonzero(source == original)) for original in np.unique(source)])
    kept.sort()
    solution = solve(Views(analysis), {"Conv_a": kept}, None, Settings(compensation="merge"))
    x = np.abs(rng.standard_normal((TOTAL, 16)))[source] * s[:, None]  # (channel, place)
    for index, flat in ((0, v.reshape(4, TOTAL, 9)), (1, f.reshape(5, TOTAL, 16))):
        consumer = next(i for i, c in enumerate(analysis.consumers) if c.output == ("y", "t")[index])
        new = solution.weights[consumer]
        assert new.dtype == np.float64
        new = new.reshape(flat.shape)
        places = x[:, : flat.shape[2]]
        full = np.einsum("oct,ct->o", flat, places)
        assert np.allclose(
            np.einsum("oct,ct->o", new[:, kept], places[kept]), full, rtol=0, atol=1e-12 * np.abs(full).max()
        )
        assert np.array_equal(
            new[:, np.setdiff1d(np.arange(TOTAL), kept)], flat[:, np.setdiff1d(np.arange(TOTAL), kept)]
        )
    assert solution.biases == {}


def test_a_double_model_is_merged_exactly():
    model, sources = plant(parse(DENSE.replace("F", "Relu").replace("float[", "double["), seed=3), TWO, 3)
    result = slim(model, ratio=KEPT_RATIO)
    fed = feeds(model, {"N": 50}, 3)
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-12
    assert kept_by_output(result.plan)["a"] == np.flatnonzero(sources["a"] == np.arange(TOTAL)).tolist()


def test_columns_by_hand():
    """Neuron Merging on paper: w2 = 0.5 w0 with equal bias ratio, so column 0 gains 0.5 times column 2."""
    model = parse(
        """g (float[N, 2] x) => (float[N, 2] y)
        <float[3, 2] w = {4, 0, 0, 3, 2, 0}, float[3] b = {2, 1, 1}, float[3, 2] v = {1, 2, 3, 4, 5, 6}>
        { a = Gemm <transB = 1> (x, w, b)
          r = Relu (a)
          y = Gemm (r, v) }"""
    )
    small = weights(slim(model, ratio=0.34).model)
    assert small["w"].tolist() == [[4, 0], [0, 3]]
    assert small["b"].tolist() == [2, 1]
    assert small["v"].tolist() == [[1 + 0.5 * 5, 2 + 0.5 * 6], [3, 4]]


# -- what is no exact algebra -----------------------------------------------------------------------------------------

SIGMOID = """g (float[N, 7] x) => (float[N, 4] y) <float[15, 7] w, float[15] b, float[15, 4] v, float[4] c>
{ a = Gemm <transB = 1> (x, w, b)
  r = Sigmoid (a)
  y = Gemm (r, v, c) }"""


def test_behind_a_sigmoid_duplicates_are_merged_exactly():
    rng = np.random.default_rng(0)
    model, source = parse(SIGMOID), families(rng)
    values = weights(model)
    model = replace_weights(model, {"w": values["w"][source], "b": values["b"][source]})
    small, notes = solved(model, {"Gemm_a": np.unique(source)})
    assert notes == ()
    fed = feeds(model, {"N": 9})
    assert distance(run(model, fed), run(small, fed)) <= 1e-5


def test_behind_a_sigmoid_no_donor_is_scaled():
    model, sources = plant(parse(SIGMOID), {"a": ("w b",)}, 0)
    analysis = onnxslim_merge.analyse(model)
    views = Views(analysis)
    cell = next(c for c in analysis.cells if c.name == "Gemm_a")
    value = cell_values(views, cell)["r"]
    assert value.degree == Degree.OTHER
    kept = np.flatnonzero(sources["a"] == np.arange(TOTAL))
    removed = np.setdiff1d(np.arange(TOTAL), kept)
    loose = find_donors(value, kept, removed, Search(-1.0, 0.85))
    assert set(np.unique(loose.scale)) <= {0.0, 1.0}
    strict = find_donors(value, kept, removed, Search(0.9, 0.85))
    assert (strict.donor == -1).all()  # parallel rows of other lengths are not alike
    assert (find_donors(cell_values(views, cell)["a"], kept, removed, Search(0.9, 0.85)).donor >= 0).all()


@pytest.mark.parametrize(
    ("compensation", "function"), [("mean", "Relu"), ("mean", "Sigmoid"), ("mean", "Clip"), ("mean+merge", "Relu")]
)
def test_mean_shift_is_exact_for_constant_channels(compensation, function):
    """Dead and saturated channels: rows of zeros with a small bias, so that l2 removes them."""
    model = parse(
        f"""g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y)
        <float[15, 3, 3, 3] w, float[15] b, float[4, 15, 1, 1] v, float[4] c, float hi = {{0.02}}, float lo = {{-1}}>
        {{ a = Conv (x, w, b)
           r = {"Clip (a, lo, hi)" if function == "Clip" else function + " (a)"}
           y = Conv (r, v, c) }}"""
    )
    values = {name: array.copy() for name, array in weights(model).items()}
    constant = [1, 4, 6, 7, 11, 13]
    values["w"][constant] = 0
    values["b"][constant] = [0.05, -0.05, 0.04, 0.03, 0.01, -0.02]
    model = replace_weights(model, values)
    result = slim(model, compensation=compensation)
    assert set(range(TOTAL)) - set(kept_by_output(result.plan)["a"]) == set(constant)
    fed = feeds(model, {"N": 4}, 1)
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-5
    assert distance(run(model, fed), run(slim(model, compensation="none").model, fed)) > 1e-3


@pytest.mark.parametrize(
    "slot", ["Gemm (h, f)", "Gemm (h, f, c)", "Gemm <alpha = -2.0, beta = 0.5> (h, f, one)", "MatMul (h, f)"]
)
def test_mean_shift_in_closed_form_and_wherever_a_bias_can_go(slot):
    """gamma = 0 behind BatchNormalization: the channel is its beta, which no input has to tell."""
    model = parse(
        f"""g (float[N, 3, 4, 4] x) => (float[N, 5] y)
        <float[15, 3, 3, 3] w, float[15] ga, float[15] be, float[15] me, float[15] var, float[60, 5] f, float[5] c,
         float[1] one>
        {{ a = Conv (x, w)
           n = BatchNormalization (a, ga, be, me, var)
           r = Sigmoid (n)
           h = Flatten (r)
           y = {slot} }}"""
    )
    values = {name: array.copy() for name, array in weights(model).items()}
    constant = [0, 3, 8, 9, 10, 14]
    values["ga"][constant] = 0
    values["w"][constant] *= 1e-2
    model = replace_weights(model, values)
    result = slim(model, compensation="mean")
    assert set(range(TOTAL)) - set(kept_by_output(result.plan)["a"]) == set(constant)
    fed = feeds(model, {"N": 4}, 1)
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-5


def test_mean_shift_at_two_axes_of_one_tensor():
    """Each consumer asks for the means along its own axis; here both kinds of channels are constant."""
    model = parse(
        """g (float[6, 7] x) => (float[3, 1] y, float[1, 4] t)
        <float[10, 6] w, float[10, 1] b, float[7, 9] k, float[9] d, float[3, 10] q, float[9, 4] v, float[9, 1] p,
         float[1, 10] o>
        { a = MatMul (w, x)
          e = MatMul (a, k)
          r = Sigmoid (e)
          f = MatMul (q, r)
          y = MatMul (f, p)
          h = MatMul (r, v)
          t = MatMul (o, h) }"""
    )
    result = onnxslim_merge.slim(model, compensation="mean", criterion="impact", ratio=0.5)
    assert all(np.isfinite(a).all() for a in run(result.model, feeds(model, {})))
    values = {name: array.copy() for name, array in weights(model).items()}
    values["k"][:, 5:] = 0  # four channels of the columns are 0.5 everywhere in r,
    values["q"] += 0.3 - values["q"].mean(1, keepdims=True)  # and, all rows of q having one sum, constant in f
    model = replace_weights(model, values)
    small = onnxslim_merge.slim(model, compensation="mean", criterion="l2", ratio=0.45, exclude="MatMul_a").model
    fed = feeds(model, {})
    assert distance(run(model, fed), run(small, fed)) <= 1e-5


# -- donors -----------------------------------------------------------------------------------------------------------


def value_of(rows, bias=None, **more) -> Value:
    rows = np.array(rows, np.float64)
    return Value((rows,), np.zeros(len(rows)) if bias is None else np.array(bias, np.float64), **more)


@given(st.floats(0.01, math.pi - 0.01), st.floats(0.05, 0.9), st.booleans())
def test_a_donor_needs_the_cosine_of_the_threshold(angle, other, conv):
    value = value_of([[1.0, 0.0], [2 * math.cos(angle), 2 * math.sin(angle)]], is_conv=conv)
    threshold = math.cos(angle)
    kept, removed = np.array([0]), np.array([1])
    found = find_donors(value, kept, removed, Search(threshold - 1e-6, 0.85))
    assert found.donor[:, 0].tolist() == [0]
    assert found.scale[:, 0].tolist() == pytest.approx([2.0])
    assert find_donors(value, kept, removed, Search(threshold + 1e-6, 0.85)).donor[:, 0].tolist() == [-1]
    assume(abs(other - threshold) > 1e-6)
    assert (find_donors(value, kept, removed, Search(other, 0.85)).donor[0, 0] >= 0) == (threshold > other)


@pytest.mark.parametrize(("conv", "threshold"), [(False, 0.45), (True, 0.1)])
def test_default_thresholds_are_the_papers(conv, threshold):
    for cosine, expected in ((threshold - 0.01, -1), (threshold + 0.01, 0)):
        value = value_of([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], is_conv=conv)
        assert find_donors(value, np.array([0]), np.array([1]), Search(None, 0.85)).donor[:, 0].tolist() == [expected]


def test_dense_donors_look_at_weight_and_bias():
    # without its bias, row 2 would be parallel to row 0; with it, to row 1
    value = value_of([[1, 0], [1, 0.2], [1, 0]], [0, 2, 2])
    assert find_donors(value, np.array([0, 1]), np.array([2]), Search(0.45, 0.85)).donor[:, 0].tolist() == [1]


def test_the_score_of_convolutions_weighs_the_bias():
    """cos(2, 0) = 1 with a bad bias, cos(2, 1) = 0.8 with the right one: lam decides."""
    value = value_of([[1, 0], [0.8, 0.6], [2, 0]], [5, 1, 2], is_conv=True)
    kept, removed = np.array([0, 1]), np.array([2])
    for lam, donor in ((0.9, 0), (0.5, 1), (1.0, 0), (0.0, 1)):
        # scores: 0: lam (1 - 1) + (1 - lam) 1; 1: lam (1 - 0.8) + (1 - lam) 0
        assert (lam * 0.2 < (1 - lam)) == (donor == 1)
        found = find_donors(value, kept, removed, Search(0.1, lam))
        assert found.donor[:, 0].tolist() == [donor]
        assert found.scale[:, 0].tolist() == [2.0]


def test_the_cheapest_candidate_must_pass_the_cosine_test_itself():
    value = value_of([[1, 0], [0, 1], [2, 0.1]], [9, 0.1, 0.2], is_conv=True)
    assert find_donors(value, np.array([0, 1]), np.array([2]), Search(0.1, 0.0)).donor[:, 0].tolist() == [-1]


def test_rows_of_zeros_neither_give_nor_take():
    value = value_of([[0, 0], [1, 0], [0, 0]])
    assert find_donors(value, np.array([0, 1]), np.array([2]), Search(-1.0, 0.85)).donor[:, 0].tolist() == [-1]
    assert find_donors(value, np.array([0]), np.array([1]), Search(-1.0, 0.85)).donor[:, 0].tolist() == [-1]


def test_scale_and_offset_of_a_tail():
    """value = a f + c: x_i = s a_i f + c_i = (s a_i / a_j) x_j + c_i - (s a_i / a_j) c_j."""
    value = value_of(
        [[1, 0], [3, 0]], degree=Degree.HOMOGENEOUS, scale=np.array([2.0, 5.0]), offset=np.array([1.0, 7.0])
    )
    found = find_donors(value, np.array([0]), np.array([1]), Search(0.45, 0.85))
    assert found.scale[:, 0].tolist() == [3 * 5 / 2]
    assert found.offset.tolist() == [7 - 7.5]


# -- criteria ---------------------------------------------------------------------------------------------------------


def cells_of(text: str, seed: int = 0):
    model = parse(text, seed=seed)
    analysis = onnxslim_merge.analyse(model)
    values = {name: array.astype(np.float64) for name, array in weights(model).items()}
    return Views(analysis), {cell.name: cell for cell in analysis.cells}, values


def scores(name, views, cell, statistics=None, carries_mean=False):
    return SCORES[name](views, cell, statistics, carries_mean)


def norms_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    distances = [[math.dist(a, b) for b in rows] for a in rows]
    return {"l1": np.abs(rows).sum(1), "l2": np.sqrt((rows**2).sum(1)), "l2-gm": np.sum(distances, axis=1)}


NORMS = ("l1", "l2", "l2-gm")


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_rows_as_found(name):
    views, cells, v = cells_of(DENSE.replace("F", "Relu"))
    expected = norms_of(np.hstack([v["w"], v["b"][:, None]]))[name]
    assert np.allclose(scores(name, views, cells["Gemm_a"]), expected)


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_raw_rows_without_bias_where_batchnorm_is_known(name):
    views, cells, v = cells_of(
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 3, 1, 1] w, float[6] b, float[6] ga, float[6] be, float[6] me, float[6] var, float[2, 6, 1, 1] v>
        { a = Conv (x, w, b)
          n = BatchNormalization (a, ga, be, me, var)
          y = Conv (n, v) }"""
    )
    assert np.allclose(scores(name, views, cells["Conv_a"]), norms_of(v["w"].reshape(6, 3))[name])


@pytest.mark.parametrize("name", NORMS)
def test_norms_fold_constant_scales_and_alpha(name):
    views, cells, v = cells_of(
        """g (float[N, 5] x) => (float[N, 2] y)
        <float[6, 5] w, float[6] b, float[6] k, float[6] o, float[6, 2] v>
        { a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)
          m = Mul (a, k)
          n = Add (m, o)
          r = Relu (n)
          y = Gemm (r, v) }"""
    )
    rows = np.hstack([0.5 * v["w"] * v["k"][:, None], (2 * v["b"] * v["k"] + v["o"])[:, None]])
    assert np.allclose(scores(name, views, cells["Gemm_a"]), norms_of(rows)[name])


@pytest.mark.parametrize("name", NORMS)
def test_norms_leave_out_a_bias_that_differs_by_position(name):
    """As long as the channels, but along another axis: it is no bias of theirs."""
    views, cells, v = cells_of(
        """g (float[N, 6, 5] x) => (float[N, 6, 2] y) <float[5, 6] w, float[6, 1] b, float[6, 2] v>
        { a = MatMul (x, w)
          e = Add (a, b)
          r = Relu (e)
          y = MatMul (r, v) }"""
    )
    assert np.allclose(scores(name, views, cells["MatMul_a"]), norms_of(v["w"].T)[name])


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_coupled_cells(name):
    """Each producer's rows by their mean norm, then side by side: neither layer drowns the other."""
    views, cells, v = cells_of(PLANTED["conv_residual"][0])
    blocks = [np.hstack([v[w].reshape(15, -1), v[b][:, None]]) for w, b in (("w", "b"), ("p", "q"))]
    rows = np.hstack([block / np.linalg.norm(block, axis=1).mean() for block in blocks])
    assert np.allclose(scores(name, views, cells["Conv_a"]), norms_of(rows)[name])


CONSUMED = """g (float[N, 5] x) => (float[N, 2] y, float[N, 4] t)
<float[6, 5] w, float[2, 6] v, float[6, 3] q, float[3] ga, float[3] be, float[3] me, float[3] var, float[3, 4] z>
{ a = Gemm <transB = 1> (x, w)
  r = Relu (a)
  y = Gemm <transB = 1, alpha = 3.0> (r, v)
  m = MatMul (r, q)
  n = BatchNormalization (m, ga, be, me, var)
  t = MatMul (n, z) }"""


def energies(v: dict[str, np.ndarray]) -> np.ndarray:
    scale = np.abs(v["ga"]) / np.sqrt(v["var"] + 1e-5)
    return 9 * (v["v"] ** 2).sum(0) + (v["q"] ** 2 * scale**2).sum(1)


def test_consumer_is_the_norm_of_the_columns_in_units_of_the_batchnorm_behind():
    views, cells, v = cells_of(CONSUMED)
    assert np.allclose(scores("consumer", views, cells["Gemm_a"]), np.sqrt(energies(v)))


@pytest.mark.parametrize("carries_mean", [False, True])
def test_impact_weighs_the_columns_with_the_channel(carries_mean):
    views, cells, v = cells_of(CONSUMED)
    mean, second = np.linspace(-1, 1, 6), np.linspace(1, 3, 6)
    asked = []

    def measure(wanted):
        asked.append(list(wanted))
        return dict.fromkeys(wanted, (mean, second))

    statistics = Statistics(views, [cells["Gemm_a"]], measure, spread=True)
    found = scores("impact", views, cells["Gemm_a"], statistics, carries_mean)
    assert len(asked) == 1
    assert np.allclose(found, np.sqrt(energies(v) * (second - mean**2 if carries_mean else second)))


def test_impact_by_hand():
    """Two positions of each channel behind Flatten, with moments of their own."""
    views, cells, _ = cells_of(
        """g (float[N, 1, 3] x) => (float[N, 1] y) <float[2, 1, 2] w = {1, 1, 1, 1}, float[1, 4] v = {1, 2, 3, 4}>
        { a = Conv (x, w)
          f = Flatten (a)
          y = Gemm <transB = 1> (f, v) }"""
    )
    moments = np.array([0.0, 1.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0, 4.0])
    statistics = Statistics(views, list(cells.values())[:1], lambda wanted: dict.fromkeys(wanted, moments), spread=True)
    found = scores("impact", views, cells["Conv_a"], statistics)
    assert (found**2).tolist() == pytest.approx([1 * 1 + 4 * 2, 9 * 3 + 16 * 4])
    found = scores("impact", views, cells["Conv_a"], statistics, carries_mean=True)
    assert (found**2).tolist() == pytest.approx([1 * 1 + 4 * 1, 9 * 2 + 16 * 4])


def cell_of(size: int, rows: np.ndarray | None = None) -> Cell:
    return Cell("c", np.arange(size), (0,), True, None, rows)


def test_choose_keeps_the_largest_and_the_lower_index_of_equals():
    assert best(cell_of(5), np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 2]
    assert best(cell_of(5), np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 4).tolist() == [1, 2, 3, 4]


def test_choose_takes_equally_many_of_each_part():
    scores = np.array([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])
    assert best(cell_of(6, np.array([[0, 1, 2], [3, 4, 5]])), scores, 4).tolist() == [0, 1, 4, 5]
    assert best(cell_of(6, np.array([[0, 2, 4], [1, 3, 5]])), scores, 2).tolist() == [0, 1]


# -- amounts ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4096), st.floats(0, 0.999), st.integers(1, 64), st.sampled_from([1, 2, 8, 16]))
def test_kept_count(size, ratio, least, multiple):
    keep = kept_count(size, ratio, least, multiple)
    assert 1 <= keep <= size
    assert keep >= min(least, size) - multiple / 2
    assert keep % multiple == 0 or keep == size
    assert abs(keep - max(size * (1 - ratio), min(least, size))) <= max(0.5 + 1e-6, multiple / 2 + 0.5, multiple - 1)
    assert kept_count(size, 0.0, least, 1) == size
    assert keep <= kept_count(size, ratio / 2, least, multiple)


def test_kept_count_rounds_half_up_in_spite_of_binary_fractions():
    # 5 x (1 - 0.3) = 3.5, and 15 x 0.7 = 10.5, neither of which a float holds exactly
    assert [kept_count(n, 0.3) for n in (5, 15, 10, 3)] == [4, 11, 7, 2]
    assert [kept_count(n, 0.5) for n in (1, 2, 3, 300, 301)] == [1, 1, 2, 150, 151]
    assert [kept_count(64, r, 1, 8) for r in (0.3, 0.35, 0.95)] == [48, 40, 8]
    assert kept_count(7, 0.5, 1, 8) == 7
    assert kept_count(64, 0.99, 10, 1) == 10


# -- moments ----------------------------------------------------------------------------------------------------------

SAMPLES = 400_000
FUNCTIONS = {
    "u = Relu (n)": lambda z: np.maximum(z, 0),
    "u = Clip (n, lo, hi)": lambda z: np.clip(z, -0.25, 0.75),
    "u = Sigmoid (n)": special.expit,
    "m = Mul (n, k) u = Add (m, o)": lambda z: z,  # with k and o below
    "m = Mul (n, k) p = Add (m, o) u = Relu (p)": lambda z: np.maximum(z, 0),
    "r = Relu (n) m = Mul (r, k) u = Add (m, o)": lambda z: np.maximum(z, 0),
    "r = LeakyRelu <alpha = 0.2> (n) t = Transpose <perm = [0, 2, 3, 1]> (r) u = Transpose <perm = [0, 3, 1, 2]> (t)":
        lambda z: np.where(z > 0, z, 0.2 * z),
}  # fmt: skip
MOMENTS = """g (float[N, 3, 4, 4] x) => (float[N, 2, P, Q] y)
<float[6, 3, 1, 1] w, float[6] ga, float[6] be, float[6] me, float[6] var, float[6, 1, 1] k, float[6, 1, 1] o,
 float lo = {-0.25}, float hi = {0.75}, float[2, 6, 1, 1] v, float[6, 6, 1, 1] v2>
{ a = Conv (x, w)
  n = BatchNormalization (a, ga, be, me, var)
  BODY
  y = Conv (u, v) }"""


@pytest.mark.parametrize("body", FUNCTIONS)
def test_closed_moments_equal_monte_carlo(body):
    views, cells, v = cells_of(MOMENTS.replace("BODY", body))
    mean, second = closed_moments(views, cells["Conv_a"], "u")
    z = np.random.default_rng(0).standard_normal((SAMPLES, 1)) * v["ga"] + v["be"]
    k, o = v["k"].ravel(), v["o"].ravel()
    if "Mul" in body:
        drawn = FUNCTIONS[body](k * z + o) if "Mul (n" in body else k * FUNCTIONS[body](z) + o
    else:
        drawn = FUNCTIONS[body](z)
    # five standard errors of the drawn means, and 1e-4 for the grid
    for found, sample in ((mean, drawn), (second, drawn**2)):
        assert (np.abs(found - sample.mean(0)) <= 5 * sample.std(0) / math.sqrt(SAMPLES) + 1e-4).all()


def test_closed_moments_behind_relu_equal_the_formula():
    views, cells, v = cells_of(MOMENTS.replace("BODY", "u = Relu (n)"))
    mean, second = closed_moments(views, cells["Conv_a"], "u")
    b, g = v["be"], np.abs(v["ga"])
    cdf, pdf = norm.cdf(b / g), norm.pdf(b / g)
    assert np.allclose(mean, b * cdf + g * pdf, atol=1e-4)
    assert np.allclose(second, (b**2 + g**2) * cdf + b * g * pdf, atol=1e-4)


def test_average_pools_keep_means_and_hide_spreads():
    views, cells, _ = cells_of(MOMENTS.replace("BODY", "r = Relu (n) u = AveragePool <kernel_shape = [2, 2]> (r)"))
    mean, second = closed_moments(views, cells["Conv_a"], "u")
    assert np.allclose(mean, closed_moments(views, cells["Conv_a"], "r")[0])
    assert second is None


@pytest.mark.parametrize(
    "body",
    [
        "u = MaxPool <kernel_shape = [2, 2]> (n)",
        "e = Conv (x, v3) u = Add (n, e)",
        "p = AveragePool <kernel_shape = [2, 2]> (n) u = Relu (p)",
        "u = Softmax <axis = -1> (n)",
    ],
)
def test_no_closed_form_where_the_distribution_is_not_known(body):
    views, cells, _ = cells_of(MOMENTS.replace("BODY", body).replace("float[6, 6, 1, 1] v2", "float[6, 3, 1, 1] v3"))
    assert closed_moments(views, cells["Conv_a"], "u") is None


def test_no_closed_form_without_batchnorm():
    views, cells, _ = cells_of(CONV.replace("BODY", "r = Relu (a) y = Conv (r, v)"))
    assert closed_moments(views, cells["Conv_a"], "r") is None
