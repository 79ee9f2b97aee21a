"""Calibration data that are scaled otherwise than the model reads them are doubted, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from test_least_squares import calibration, tapped
from test_pixels import FIRST, LAST, trained_on
from textmodels import parse, replace_weights, run

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
    """Few of their channels vary in what is looked at."""
    data = (np.random.default_rng(0).random((4096, 20)) < 0.0005).astype(np.float32)
    assert doubt(trained_with(TABLE, data), data[:64]) is None
