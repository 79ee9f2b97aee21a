"""Least squares channel by channel: exact where channels span each other, else better than merging."""

from __future__ import annotations

import numpy as np
import pytest
from test_least_squares import FIT, NETS, calibration
from textmodels import distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.verify import speed


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

    Without a constant, which the taps of a ConvTranspose do not spread evenly.
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
