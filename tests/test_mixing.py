"""Least squares channel by channel: exact where channels span each other, else better than merging."""

from __future__ import annotations

import numpy as np
import pytest
from test_least_squares import FIT, NETS, calibration
from textmodels import distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.channels.analysis import analyse_channels
from onnxslim_merge.compensation.mixing import Mixture
from onnxslim_merge.model_io import load
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.verify import speed
from onnxslim_merge.views import Views


@pytest.fixture(autouse=True)
def _mix(monkeypatch):
    """No consumer is solved weight by weight."""
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.hindrance", lambda *args: "asked")


@pytest.mark.parametrize("name", NETS)
def test_every_consumer_is_served_better_than_by_merging(name, tmp_path):
    """On samples of the same kind that were not seen."""
    model = parse(NETS[name])
    data, _ = calibration(tmp_path, model, 256)
    new = feeds(model, {"N": 32}, 123)

    def error(**options):
        result = onnxslim_merge.slim(model, ratio=0.4, calibration_data=data, **options)
        assert any(len(cell.keep) < cell.size for cell in result.plan.cells)
        (y,), (small,) = run(model, new), run(result.model, new)
        return float(np.square(y - small).mean()), result.report.notes

    merged, _ = error(compensation="mean+merge")
    mixed, notes = error(compensation="least-squares")
    assert any("is refitted channel by channel, not weight by weight (asked)" in note for note in notes)
    assert mixed <= 0.99 * merged
    assert error(**FIT)[0] <= 1.05 * mixed


BORDERS = {
    "padded": ("12,32,3,3", "Conv <pads = [1, 1, 1, 1]> (s, v)"),
    "padded and strided": ("12,32,3,2", "Conv <pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]> (s, v)"),
    "transposed": ("32,12,3,3", "ConvTranspose <strides = [2, 2]> (s, v)"),
}


@pytest.mark.parametrize("name", BORDERS)
def test_borders_that_read_zeros_do_not_spoil_the_intercept(name, tmp_path, monkeypatch):
    """Hardly anything has to be lost: what mixing loses is what a refit of all weights loses, give or take."""
    shape, layer = BORDERS[name]
    model = parse(f"""g (float[N, 4, 6, 6] x) => (float[N, 12, P, Q] y)
    <float[32,4,1,1] w, float[32] b, float[{shape}] v>
    {{ h = Conv (x, w, b) i = Sigmoid (h) s = Mul (h, i) y = {layer} }}""")
    data, _ = calibration(tmp_path, model, 256)
    new = feeds(model, {"N": 32}, 123)

    def error(**options):
        result = onnxslim_merge.slim(model, ratio=0.2, calibration_data=data, **options)
        (y,), (small,) = run(model, new), run(result.model, new)
        return float(np.square(y - small).mean() / y.var())

    mixed, merged = error(compensation="least-squares"), error(compensation="mean+merge")
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.hindrance", lambda *args: None)
    assert mixed <= 1.5 * error(compensation="least-squares")
    assert mixed <= 0.3 * merged


def test_the_ridge_of_a_few_among_many_is_chosen_by_these(tmp_path):
    """Three of 256 channels are combinations of others: the plain choice loses them, though it has all the others."""
    model = parse("""g (float[N, 40] x) => (float[N, 5] y) <float[40,256] w, float[256] b, float[256,5] v>
    { h = MatMul (x, w) a = Add (h, b) y = MatMul (a, v) }""")
    gone, w, v = [50, 103, 199], weights(model)["w"].copy(), weights(model)["v"].copy()
    w[:, gone], v[gone] = 0.01 * (w[:, [1, 2, 3]] + w[:, [4, 5, 6]]), 300 * v[gone]
    model = replace_weights(model, {"w": w, "b": np.zeros(256, np.float32), "v": v})
    data, _ = calibration(tmp_path, model, 256)
    options = {"criterion": "l1", "compensation": "least-squares", "threshold": 0.9999}  # which no donor reaches alone
    result = onnxslim_merge.slim(model, ratio=3 / 256, calibration_data=data, donors=1, **options)
    assert not {*gone} & {*result.plan.cells[0].keep}
    other = feeds(model, {"N": 32}, 9)
    assert distance(run(model, other), run(result.model, other)) <= 1e-3


def test_copies_among_many_channels_are_found(tmp_path):
    """Of 128 channels two go: one that another is a copy of, and the like."""
    model = parse("""g (float[N, 16] x) => (float[N, 5] y) <float[16,128] w, float[128] b, float[128,5] v>
    { h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }""")
    w, b, v = (weights(model)[name].copy() for name in "wbv")
    w[:, 77], b[77], v[77] = 0.7 * w[:, 3], 0.7 * b[3], 5 * v[77]
    model = replace_weights(model, {"w": w, "b": b, "v": v})
    data, _ = calibration(tmp_path, model, 256)
    result = onnxslim_merge.slim(model, ratio=2 / 128, calibration_data=data, **FIT)
    assert not any("too few" in note for note in result.report.notes)
    other = feeds(model, {"N": 32}, 9)
    assert distance(run(model, other), run(result.model, other)) <= 1e-3


@pytest.mark.parametrize(
    "end",
    [
        "y = Conv <strides = [2, 1], dilations = [1, 2]> (h, v)",
        "y = Conv <group = 2> (h, g)",
        "y = ConvTranspose <strides = [2, 2]> (h, t)",
        "f = Flatten (h) y = Gemm (f, u)",
    ],
)
def test_channels_that_span_the_removed_ones_reproduce_the_output(end, tmp_path):
    """Half of the rows, in each group of the consumer, are combinations of the others: nothing may be lost.

    A constant would not reach all outputs of a ConvTranspose alike.
    """
    shape = "[N, 5]" if "Flatten" in end else "[N, P, Q, R]"
    model = parse(f"""g (float[N, 3, 6, 6] x) => (float{shape} y)
    <float[12,3,3,3] w, float[12] b, float[4,12,3,2] v, float[4,6,3,2] g, float[12,4,3,2] t, float[432,5] u>
    {{ h = Conv <pads = [1, 1, 1, 1]> (x, w, b) {end} }}""")
    rng = np.random.default_rng(0)
    rows, bias = weights(model)["w"].copy(), weights(model)["b"] * ("ConvTranspose" not in end)
    for part in (slice(0, 6), slice(6, 12)):
        mix = rng.normal(size=(3, 3)).astype(np.float32)
        own = rows[part]
        own[3:] = np.einsum("ij,jklm->iklm", mix, own[:3])
    model = replace_weights(model, {"w": rows, "b": bias})
    data, _ = calibration(tmp_path, model)
    small = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, **FIT).model
    assert weights(small)["w"].shape[0] == 6
    other = feeds(model, {"N": 3}, 99)
    assert distance(run(model, other), run(small, other)) <= 1e-4


@pytest.mark.parametrize("outputs", [3, 20], ids=["fewer outputs than channels", "more"])
@pytest.mark.parametrize("fitted", [False, True])
def test_prices_are_the_rise_of_what_the_consumer_gives_where_channels_are_mixed_anew(fitted, outputs, monkeypatch):
    """Against a direct fit of all rows. The slimmed network's channels are noisy mixtures of the original's."""
    monkeypatch.setattr("onnxslim_merge.compensation.mixing.RIDGE", 1e-9)
    model = parse(f"""g (float[N, 4] x) => (float[N, {outputs}] y) <float[4,8] w, float[8] b, float[8,{outputs}] v>
    {{ h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }}""")
    source = load(model)
    graph = prepare(source)
    views = Views(analyse_channels(graph, probe_shapes(graph, source, {})))
    (cell,) = [cell for cell in views.analysis.cells if cell.size == 8]
    (columns,) = views.columns(cell)
    mixture = Mixture.start(views, cell, columns, np.ones(8, bool))
    rng = np.random.default_rng(0)
    y = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 8)) + 3
    x = y @ rng.normal(size=(8, 8)) + rng.normal(size=(400, 8))
    for batch in range(4):
        some = slice(100 * batch, 100 * (batch + 1))
        mixture.add(batch, 4, x[some].astype(np.float32), (y if fitted else x)[some].astype(np.float32), 0)
    (term,) = mixture.terms(fitted)
    v = weights(model)["v"].astype(np.float64)
    spread = np.square((y if fitted else x) - (y if fitted else x).mean(0)).mean(0) @ np.square(v).sum(1)

    def missed(kept):
        rows, targets = np.c_[x[:, kept], np.ones(400)], (y if fitted else x) @ v
        return np.square(targets - rows @ np.linalg.lstsq(rows, targets)[0]).sum(1).mean() / spread

    every = np.arange(8)
    rises = [missed(np.delete(every, i)) - missed(every) for i in every]
    np.testing.assert_allclose(term.costs(), rises, rtol=1e-3)
    term.remove(2)
    rises = [missed(np.delete(every, [2, i])) - missed(np.delete(every, 2)) for i in (0, 7)]
    np.testing.assert_allclose(term.costs()[[0, 7]], rises, rtol=1e-3)
