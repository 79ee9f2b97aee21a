"""Calibration data that are scaled otherwise than the model reads them are doubted, and no others."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from test_least_squares import calibration, tapped
from test_pixels import FIRST, LAST, trained_on
from textmodels import parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.doubts import _unlike_training
from onnxslim_merge.pixels import Layer, Seen
from onnxslim_merge.samples import InputSpec, in_range, synthetic_samples
from onnxslim_merge.verify import speed


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def doubt(model, data):
    """What is said of the scale of these data, or None."""
    notes = onnxslim_merge.slim(model, calibration_data=data, dry_run=True).report.notes
    found = [note for note in notes if "the calibration data may be scaled wrongly" in note]
    assert len(found) <= 1
    return found[0] if found else None


def images(low, high, shape=(3, 12, 12), count=32, seed=7):
    """Dead leaves with pixels in a range."""
    spec = InputSpec("x", np.dtype(np.float32), ("N", *shape))
    made_up = synthetic_samples([spec], sizes={"x": shape}, count=count, seed=seed, images="dead leaves")
    return in_range(made_up, [spec], f"{low}:{high}").feeds[0]["x"]


@pytest.mark.parametrize("text", [FIRST, LAST])
@pytest.mark.parametrize(
    ("expected", "given", "said"),
    [((0, 255), (0, 255), None), ((0, 255), (0, 1), "0:255"), ((-1.8, 2.2), (-1.8, 2.2), None), ((0, 1), (0, 1), None)],
)
def test_data_that_are_scaled_otherwise_than_layers_expect_are_said(text, expected, given, said):
    """A hundred percent agreement on such data, and 19% accuracy, is what that cost once."""
    found = doubt(trained_on(text, *expected), images(*given, shape=(3, 12, 12) if text is FIRST else (12, 12, 3)))
    assert (found is None) == (said is None)
    assert said is None or f"with pixels of {said};" in found


@pytest.mark.parametrize(("real", "said"), [(0.5, False), (0.8, True)])
def test_means_near_zero_are_no_doubt_however_near_others_are(real, said, tmp_path, monkeypatch):
    model = trained_on(FIRST, 0, 1)
    data, _ = calibration(tmp_path, model, 16)
    monkeypatch.setattr("onnxslim_merge.doubts.outlying", lambda found: real)
    monkeypatch.setattr("onnxslim_merge.pixels.outlying", lambda found: 0.1)
    assert (doubt(model, data) is not None) == said


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_images_are_no_matter_of_scale(value):
    assert doubt(trained_on(FIRST, 0, 1), np.full((32, 3, 12, 12), value, np.float32)) is None


def test_lines_of_several_lengths_are_no_trouble(tmp_path):
    """Such a product has no channels: its last axis is the line."""
    model = parse("""g (float[N,T,8] x) => (float[N,T] y) <float[8,16] w, float[16] b, float[16] v>
    { h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }""")
    for length in (5, 7, 9):
        np.save(
            tmp_path / f"{length}.npy", np.random.default_rng(length).normal(size=(4, length, 8)).astype(np.float32)
        )
    assert doubt(model, tmp_path) is None


NORMALISED = """g (float[N, {shape}] x) => (float[N, 4] y)
<float[16,{kernel}] w, float[16] ga, float[16] be, float[16] m, float[16] var, float[16,4] u>
{{ h = {layer} (x, w) n = BatchNormalization (h, ga, be, m, var) r = Relu (n) {end} y = MatMul (f, u) }}"""
IMAGES = NORMALISED.format(
    shape="3,12,12", kernel="3,3,3", layer="Conv", end="p = GlobalAveragePool (r) f = Flatten (p)"
)
TABLE = NORMALISED.format(shape="20", kernel="20", layer="Gemm <transB = 1>", end="f = Identity (r)")


def trained_with(text, data):
    """A model whose BatchNormalization has seen these data."""
    model = parse(text)
    (_, h) = run(tapped(model, "h"), {"x": data})
    axes = (0, *range(2, h.ndim))
    return replace_weights(model, {"m": h.mean(axes), "var": h.var(axes)})


@pytest.mark.parametrize("text", [IMAGES, TABLE])
@pytest.mark.parametrize(("scale", "said"), [(1, False), (0.5, False), (2, False), (1 / 255, True), (57, True)])
def test_batchnorm_knows_the_spread_of_any_data(text, scale, said):
    rng = np.random.default_rng(0)
    make = lambda: images(-2, 2) if text is IMAGES else rng.normal(size=(64, 20)).astype(np.float32)  # noqa: E731
    model = trained_with(text, make())
    found = doubt(model, np.asarray(make() * scale, np.float32))
    assert (found is not None) == said
    assert not said or "the first BatchNormalizations" in found


def test_batchnorm_that_was_never_trained_and_few_samples_say_nothing():
    rng = np.random.default_rng(0)
    fresh = replace_weights(parse(TABLE), {"m": np.zeros(16, np.float32), "var": np.ones(16, np.float32)})
    assert doubt(fresh, rng.normal(size=(64, 20)).astype(np.float32) * 99) is None
    trained = trained_with(TABLE, rng.normal(size=(64, 20)).astype(np.float32))
    assert doubt(trained, rng.normal(size=(2, 20)).astype(np.float32) * 1e-3) is None


def test_batchnorm_whose_statistics_are_folded_into_its_scale_says_nothing():
    rng = np.random.default_rng(0)
    frozen = {"m": np.zeros(16, np.float32), "var": np.full(16, 1 - 1e-5, np.float32)}
    assert doubt(replace_weights(parse(TABLE), frozen), rng.normal(size=(64, 20)).astype(np.float32) * 99) is None


def test_mostly_empty_columns_are_no_doubt():
    """Few of them vary in what is looked at."""
    data = (np.random.default_rng(0).random((4096, 20)) < 0.0005).astype(np.float32)
    model = parse("""g (float[N,20] x) => (float[N,4] y)
    <float[20] ga, float[20] be, float[20] m, float[20] var, float[20,16] w, float[16,4] u>
    { n = BatchNormalization (x, ga, be, m, var) h = MatMul (n, w) r = Relu (h) y = MatMul (r, u) }""")
    assert doubt(replace_weights(model, {"m": data.mean(0), "var": data.var(0)}), data) is None


@pytest.mark.parametrize(
    ("text", "scale", "said"),
    [
        *((IMAGES, factor, said) for factor, said in ((2.7, False), (3.3, True), (1 / 2.7, False), (1 / 3.3, True))),
        *((TABLE, factor, said) for factor, said in ((9, False), (11, True), (1 / 9, False), (1 / 11, True))),
    ],
)
def test_spreads_of_images_may_differ_by_three_and_of_other_inputs_by_ten(text, scale, said):
    data = images(-2, 2) if text is IMAGES else np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32)
    found = doubt(trained_with(text, data), np.asarray(data * scale, np.float32))
    assert (found is not None and "the first BatchNormalizations" in found) == said


DEEP = """g (float[N,20] x) => (float[N,4] y) <float[20,16] w, float[16] ga, float[16] be, float[16] m, float[16] var,
float[16,16] v, float[16] gb, float[16] bb, float[16] mb, float[16] vb, float[16,16] z, float[16] gc, float[16] bc,
float[16] mc, float[16] vc, float[16,4] u>
{ h = MatMul (x, w) n = BatchNormalization (h, ga, be, m, var) r = Relu (n) k = MatMul (r, v)
  o = BatchNormalization (k, gb, bb, mb, vb) s = Relu (o) l = MatMul (s, z) p = BatchNormalization (l, gc, bc, mc, vc)
  t = Relu (p) y = MatMul (t, u) }"""


@pytest.mark.parametrize(("wrong", "said"), [("var", True), ("vb", True), ("vc", False)])
def test_the_first_two_batchnorms_tell(wrong, said):
    """One of them is off by 2,000 times: two together by 45, three would by 13."""
    data = np.random.default_rng(0).normal(size=(256, 20)).astype(np.float32)
    model = parse(DEEP)
    for tensor, mean, variance in (("h", "m", "var"), ("k", "mb", "vb"), ("l", "mc", "vc")):
        (_, made) = run(tapped(model, tensor), {"x": data})
        model = replace_weights(model, {mean: made.mean(0), variance: made.var(0)})
    assert doubt(model, data) is None
    ratio = np.float32(2000**2)
    assert (doubt(replace_weights(model, {wrong: weights(model)[wrong] / ratio}), data) is not None) == said


def test_more_rows_than_the_first_few_are_looked_at():
    """Sorted rows: what comes first spreads little."""
    data = np.random.default_rng(0).normal(size=(400, 20)).astype(np.float32)
    data[:20] *= 0.01
    assert doubt(trained_with(TABLE, data), data) is None


def test_silent_channels_and_epsilon_count():
    data = images(-2, 2)
    model = trained_with(IMAGES, data)
    gamma = weights(model)["ga"].copy()
    gamma[:7] = 0
    assert doubt(replace_weights(model, {"ga": gamma}), data) is None
    faint = parse(IMAGES.replace("BatchNormalization (h", "BatchNormalization <epsilon = 1.0> (h"))
    (_, h) = run(tapped(faint, "h"), {"x": data})
    spread = float(h.std()) / 0.1  # so that epsilon leaves a tenth of |gamma|
    faint = replace_weights(faint, {"w": weights(faint)["w"] / np.float32(spread), "be": np.zeros(16, np.float32)})
    (_, h) = run(tapped(faint, "h"), {"x": data})
    assert doubt(replace_weights(faint, {"m": h.mean((0, 2, 3)), "var": h.var((0, 2, 3))}), data) is None


BY_POSITION = [gs.Constant(name, np.full((2, 5), 0.5, np.float32)) for name in ("ga", "be", "m", "var")]


def test_statistics_by_position_are_no_trouble():
    """Files before opset 9 may have them (spatial = 0)."""
    layer = Layer("n", 1, gs.Node("BatchNormalization", inputs=[gs.Variable("h"), *BY_POSITION]))
    ones = np.ones(2)
    assert _unlike_training([Seen(layer, 64, 99 * ones, 99 * ones, ones > 0)], 3.0) is None


def test_a_doubt_comes_first_and_stays_with_the_plan():
    model, wrong = trained_on(FIRST, 0, 255), images(0, 1)
    made = onnxslim_merge.slim(model, calibration_data=wrong)
    assert "may be scaled wrongly" in made.report.notes[0]
    again = onnxslim_merge.slim(model, plan=made.plan).report.notes
    assert again[0].startswith("of the plan, when it was made: the calibration data may be scaled wrongly")
    right = onnxslim_merge.slim(model, plan=made.plan, calibration_data=images(0, 255)).report.notes
    assert not any("samples that layers were fitted to" in note for note in right)
    doubted = onnxslim_merge.slim(model, plan=made.plan, calibration_data=wrong).report.notes
    assert sum("may be scaled wrongly" in note for note in doubted) == 2
