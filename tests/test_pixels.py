"""Which pixels a model expects is told from its layers where they say so clearly, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from test_least_squares import calibration, tapped
from textmodels import parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.errors import UsageError
from onnxslim_merge.samples import InputSpec, in_range, synthetic_samples
from onnxslim_merge.verify import speed

# {0}: the shape of images; {1}: what brings channels first
NET = """g (float[N, {0}] x) => (float[N, 4] y) <float[16,3,3,3] w, float[16] b, float[16,16,3,3] v, float[16] c,
float[16,4] u>
{{ {1} h = Conv (i, w, b) r = Relu (h) k = Conv (r, v, c) s = Relu (k) p = GlobalAveragePool (s) f = Flatten (p)
y = MatMul (f, u) }}"""
FIRST, LAST = (
    NET.format("3, 12, 12", "i = Identity (x)"),
    NET.format("12, 12, 3", "i = Transpose <perm = [0,3,1,2]> (x)"),
)


SPECS = [InputSpec("x", np.dtype(np.float32), ("N", 3, 12, 12))]


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def trained_on(text, low, high):
    """A model whose first layer is centred and scaled for pixels from low to high, as folding does that."""
    model = parse(text)
    w = weights(model)["w"] / (0.25 * (high - low))
    mean = low + 0.45 * (high - low)
    return replace_weights(model, {"w": w, "b": -mean * w.sum((1, 2, 3)) + 0.1 * weights(model)["b"]})


@pytest.mark.parametrize("text", [FIRST, LAST])
@pytest.mark.parametrize(("low", "high", "found"), [(0, 255, "0:255"), (-1.8, 2.2, "normal"), (-1, 1, "normal")])
def test_a_range_is_found_where_layers_expect_it(text, low, high, found):
    result = onnxslim_merge.slim(trained_on(text, low, high))
    assert result.plan.settings["pixels"] == found
    assert ("pixels 0:255" in result.report.fidelity_source) == (found == "0:255")


@pytest.mark.parametrize(("low", "high", "found"), [(0, 255, "0:255"), (-1.8, 2.2, "normal")])
def test_normalisation_behind_relu_tells_too_as_a_product_and_a_sum(low, high, found):
    """As converters from TensorFlow leave it; the layer in front of it has a bias of its own, which tells nothing."""
    model = parse("""g (float[N, 3, 12, 12] x) => (float[N, 16, 1, 1] y)
    <float[16,3,3,3] w, float[16] b, float[16,1,1] a, float[16,1,1] o>
    { h = Conv (x, w, b) r = Relu (h) m = Mul (r, a) s = Add (m, o) y = GlobalAveragePool (s) }""")
    samples = synthetic_samples(SPECS, sizes={"x": (3, 12, 12)}, count=64, seed=5, images="dead leaves")
    seen = in_range(samples, SPECS, f"{low}:{high}").feeds[0]["x"]
    (_, r) = run(tapped(model, "r"), {"x": seen})
    mean, spread = r.mean((0, 2, 3)), r.std((0, 2, 3)) + 1e-3
    model = replace_weights(model, {"a": (1 / spread)[:, None, None], "o": (-mean / spread)[:, None, None]})
    assert onnxslim_merge.slim(model).plan.settings["pixels"] == found


def test_what_is_asked_for_is_taken():
    model = trained_on(FIRST, 0, 255)
    result = onnxslim_merge.slim(model, pixels="-1:1", compensation="least-squares")
    assert "pixels -1:1" in result.report.fidelity_source
    assert not any("made-up images" in note for note in result.report.notes)
    result = onnxslim_merge.slim(model, compensation="least-squares")
    assert any("pixels of 0:255, as its layers expect" in note for note in result.report.notes)


def test_a_plan_of_data_says_nothing_of_pixels(tmp_path):
    """Replayed on another export, made-up images are those that this model expects."""
    model = trained_on(FIRST, 0, 255)
    data, _ = calibration(tmp_path, model)
    plan = onnxslim_merge.slim(model, calibration_data=data).plan
    assert plan.settings["pixels"] == "auto"
    model.doc_string = "another export"
    replayed = onnxslim_merge.slim(model, plan=plan)
    assert "pixels 0:255" in replayed.report.fidelity_source


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N, 8] x) => (float[N, 3] y) <float[8,9] w, float[9,3] v> "
        "{ h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }",
        "g (uint8[N, 3, 8, 8] i) => (float[N, 4, 6, 6] y) <float[9,3,3,3] w, float[4,9,1,1] v> "
        "{ x = Cast <to = 1> (i) h = Conv (x, w) r = Relu (h) y = Conv (r, v) }",
    ],
)
def test_pixels_without_effect_are_said(text):
    result = onnxslim_merge.slim(parse(text), pixels="0:255", compensation="least-squares")
    assert "0:255" not in result.report.fidelity_source
    assert any(note.startswith("--pixels has no effect") for note in result.report.notes)
    assert not any("made-up images" in note for note in result.report.notes)


def test_pixels_lie_in_their_range():
    samples = synthetic_samples(SPECS, sizes={"x": (3, 12, 12)}, count=64, seed=0, images="dead leaves")
    values = np.concatenate([feed["x"] for feed in in_range(samples, SPECS, "10:110").feeds])
    assert values.min() >= 10
    assert values.max() <= 110
    assert abs(values.mean() - 55) < 3
    assert 20 < values.std() < 27


@pytest.mark.parametrize("pixels", ["", "255", "255:0", "0:", "a:b", "0:inf", "nan:1", "0:1:2", 255, (0, 255), None])
def test_bad_ranges(pixels):
    with pytest.raises(UsageError, match="--pixels"):
        onnxslim_merge.Settings(pixels=pixels)


def test_a_plan_that_is_replayed_as_it_is_is_not_said_to_be_refitted(tmp_path):
    """Fitted to data, which the replay is not given, and does not need."""
    model = trained_on(FIRST, 0, 255)
    blind = onnxslim_merge.slim(model, compensation="least-squares", dry_run=True)
    assert any("refitted on made-up images with pixels of 0:255" in note for note in blind.report.notes)
    data, _ = calibration(tmp_path, model, 32)
    result = onnxslim_merge.slim(model, calibration_data=data)
    again = onnxslim_merge.slim(model, plan=result.plan)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    assert not any("refitted on" in note for note in again.report.notes)
