"""Calibration data that are scaled otherwise than the model reads them are doubted, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from test_least_squares import calibration, tapped
from test_pixels import FIRST, LAST, trained_on
from textmodels import parse, replace_weights, run, weights

import onnxslim_merge
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


@pytest.mark.parametrize(
    ("expected", "given", "said"),
    [
        ((-1, 1), (0, 255), True),
        ((-1, 1), (-1, 1), False),
        ((0, 255), (0, 255), False),
        ((-100, 100), (-100, 100), False),
    ],
)
def test_pixels_beside_which_biases_are_nothing_are_said(expected, given, said):
    """Then means and spreads grow alike, and means alone tell nothing where filters look for edges."""
    found = doubt(looks_for_edges(*expected), images(*given))
    assert (found is not None) == said
    assert not said or "biases of the first layers are" in found


def test_large_pixels_are_no_doubt_where_a_model_has_no_biases():
    model = looks_for_edges(-1, 1)
    model = replace_weights(model, {"b": np.zeros(16, np.float32), "c": np.zeros(16, np.float32)})
    assert doubt(model, images(0, 255)) is None


def looks_for_edges(low, high):
    """A model whose first filters have mean 0, and whose second layer is centred for pixels from low to high."""
    model = parse(FIRST)
    w, b = (weights(model)[name] for name in "wb")
    model = replace_weights(model, {"w": (w - w.mean((1, 2, 3), keepdims=True)) / (0.25 * (high - low)), "b": 0.05 * b})
    bare = replace_weights(model, {"c": np.zeros(16, np.float32)})
    _, k = run(tapped(bare, "k"), {"x": images(low, high)})
    return replace_weights(model, {"c": -k.mean((0, 2, 3))})


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


@pytest.mark.parametrize(
    ("inputs", "extra", "bias"),
    [
        ("float[2,3,12,12] x", {}, "float[2,4] c"),
        ("float[2,3,12,12] x, int64[2] i", {"i": np.full(32, 9999)}, "float[1,4] c"),
        ("float[2,3,12,12] x, string[2] i", {"i": np.full(32, "word")}, "float[4] c"),
    ],
)
def test_other_inputs_and_biases_of_any_shape_are_no_trouble(inputs, extra, bias):
    """Numbers that reach thousands are ids here, and no pixels."""
    model = parse(f"""g ({inputs}) => (float[2,4] y) <float[16,3,3,3] w, float[16] b, float[16,4] u, {bias}>
    {{ h = Conv (x, w, b) r = Relu (h) p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, u, c) }}""")
    w = weights(model)["w"]
    model = replace_weights(model, {"w": w - w.mean((1, 2, 3), keepdims=True), "b": np.full(16, 0.01, np.float32)})
    found = doubt(model, {"x": images(0, 15), **extra})
    assert found is None or "reach" not in found
