"""`--compensation least-squares` and `--criterion greedy`, file to file: exact where that is possible, else better."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from textmodels import distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.compensation import least_squares
from onnxslim_merge.verify import speed
from onnxslim_merge.views import Views

FIT = {"compensation": "least-squares", "criterion": "greedy"}


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def calibration(tmp_path, model, samples=64, **sizes):
    """A file of seeded inputs for the model, and the inputs."""
    fed = feeds(model, {"N": samples, **sizes}, 7)
    np.savez(tmp_path / "data.npz", **fed)
    return tmp_path / "data.npz", fed


PLAIN = """g (float[N, 3, 9, 8] x) => (float[N, 4, P, Q] y)
<float[12,3,3,3] w, float[12] b, float[4,12,3,2] v, float[4] c>
{ h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  y = Conv <pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]> (h, v, c) }"""


def test_channels_that_span_the_removed_ones_reproduce_the_output(tmp_path):
    """Half of the rows are combinations of the others, without a constant: nothing may be lost."""
    model, rng = parse(PLAIN), np.random.default_rng(0)
    rows, mix = weights(model)["w"].copy(), rng.normal(size=(6, 6)).astype(np.float32)
    rows[6:] = np.einsum("ij,jklm->iklm", mix, rows[:6])
    model = replace_weights(model, {"w": rows, "b": np.zeros(12, np.float32)})
    data, fed = calibration(tmp_path, model)
    small = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, **FIT).model
    assert weights(small)["w"].shape[0] == 6
    assert distance(run(model, fed), run(small, fed)) <= 1e-4
    other = feeds(model, {"N": 3}, 99)
    assert distance(run(model, other), run(small, other)) <= 1e-4


def test_copies_of_any_positive_scale_come_back_behind_relu(tmp_path):
    text = PLAIN.replace("y = Conv", "r = Relu (h)\n  y = Conv").replace("(h, v, c)", "(r, v, c)")
    model, rng = parse(text), np.random.default_rng(1)
    rows, bias = (weights(model)[name].copy() for name in "wb")
    scale = rng.uniform(0.3, 3, 6).astype(np.float32)
    rows[6:], bias[6:] = rows[:6] * scale[:, None, None, None], bias[:6] * scale
    model = replace_weights(model, {"w": rows, "b": bias})
    small = onnxslim_merge.slim(model, ratio=0.5, **FIT).model  # on synthetic samples
    fed = feeds(model, {"N": 4}, 5)
    assert distance(run(model, fed), run(small, fed)) <= 1e-4


def unfolded(x, kernel, pads, strides, dilations):
    """Rows of windows by loops over output positions: (positions, channels * taps)."""
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    rows = [
        image[:, top : top + reach[0] : dilations[0], left : left + reach[1] : dilations[1]].ravel()
        for image in x
        for top in range(0, x.shape[2] - reach[0] + 1, strides[0])
        for left in range(0, x.shape[3] - reach[1] + 1, strides[1])
    ]
    return np.array(rows, np.float64)


def test_padding_stride_and_dilation_agree_with_a_direct_solve(tmp_path):
    """With many samples the ridge hardly matters: the error is that of plain least squares, to a thousandth."""
    model = parse(PLAIN)
    data, fed = calibration(tmp_path, model, 256)
    result = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, augment="none", **FIT)
    (hidden, y), small = run(tapped(model, "h"), fed)[::-1], run(result.model, fed)[0]
    kept = list(result.plan.cells[0].keep)
    features = unfolded(hidden[:, kept], (3, 2), [1, 0, 2, 1], [2, 1], [1, 2])
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    targets = np.moveaxis(y, 1, -1).reshape(-1, 4)
    direct = np.square(targets - features @ np.linalg.lstsq(features, targets, rcond=None)[0]).sum()
    ours = np.square(targets - np.moveaxis(small, 1, -1).reshape(-1, 4)).sum()
    assert direct <= ours * (1 + 1e-6)
    assert ours <= 1.001 * direct


def tapped(model, name):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return copy


NETS = {
    "grouped": """g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) <float[16,4,3,3] w, float[6,8,3,3] v>
{ h = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (h) y = Conv <group = 2, pads = [1, 1, 1, 1]> (r, v) }""",
    "transposed": """g (float[N, 4, 6, 6] x) => (float[N, 5, P, Q] y) <float[16,4,3,3] w, float[16,5,3,3] v>
{ h = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (h)
  y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (r, v) }""",
    "channels last": """g (float[N, 6, 6, 4] x) => (float[N, 6, 6, 5] y) <float[4,16] w, float[16] b, float[16,5] v>
{ m = MatMul (x, w) h = Add (m, b) r = Relu (h) y = MatMul (r, v) }""",
    "residual": """g (float[N, 4, 8, 8] x) => (float[N, 5, 8, 8] y)
<float[12,4,1,1] s, float[12,12,3,3] a, float[12,12,3,3] b, float[12] pos1, float[12] m, float[12] be, float[12] var1,
 float[5,12,1,1] v>
{ i = Conv (x, s) p = Conv <pads = [1, 1, 1, 1]> (i, a) q = Relu (p) t = Conv <pads = [1, 1, 1, 1]> (q, b)
  n = BatchNormalization (t, pos1, be, m, var1) u = Add (n, i) r = Relu (u) y = Conv (r, v) }""",
    "flattened": """g (float[N, 4, 6, 6] x) => (float[N, 5] y) <float[12,4,3,3] w, float[108,5] v, float[5] c>
{ h = Conv (x, w) r = Relu (h) p = AveragePool <kernel_shape = [2, 2]> (r) f = Flatten (p) y = Gemm (f, v, c) }""",
    "concatenated": """g (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y)
<float[8,4,1,1] w, float[8,4,3,3] u, float[5,16,1,1] v>
{ a = Conv (x, w) b = Conv <pads = [1, 1, 1, 1]> (x, u) c = Concat <axis = 1> (a, b) r = Relu (c) y = Conv (r, v) }""",
    "swish": """g (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y) <float[16,4,3,3] w, float[5,16,1,1] v>
{ h = Conv <pads = [1, 1, 1, 1]> (x, w) s = Sigmoid (h) r = Mul (h, s) y = Conv (r, v) }""",
}


@pytest.mark.parametrize("name", NETS)
def test_every_consumer_is_served_better_than_by_merging(name, tmp_path):
    """On samples of the same kind that were not seen."""
    model = parse(NETS[name])
    data, _ = calibration(tmp_path, model, 256)
    new = feeds(model, {"N": 32}, 123)

    def error(**options):
        result = onnxslim_merge.slim(model, ratio=0.4, calibration_data=data, **options)
        assert any(len(cell.keep) < cell.size for cell in result.plan.cells)
        assert not [note for note in result.report.notes if "refitted" in note]
        (y,), (small,) = run(model, new), run(result.model, new)
        return float(np.square(y - small).mean())

    merged, refitted = error(compensation="mean+merge"), error(compensation="least-squares")
    assert refitted <= 0.95 * merged
    assert error(**FIT) <= 1.05 * refitted


def test_layers_that_lose_nothing_mend_what_earlier_ones_broke(tmp_path):
    """The last Gemm keeps all its channels, and yet changes."""
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[12,3,3,3] w, float[8,12,3,3] v, float[8,5] u, float[5] c>
{ h = Conv (x, w) r = Relu (h) [keep] k = Conv (r, v) s = Relu (k) p = GlobalAveragePool (s) f = Flatten (p)
  y = Gemm (f, u, c) }"""
    model = parse(text)
    data, _ = calibration(tmp_path, model, 512)
    result = onnxslim_merge.slim(model, ratio=0.5, exclude=("keep",), calibration_data=data, **FIT)
    before, after = weights(model)["u"], weights(result.model)["u"]
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 1e-3


def test_quantised_weights_are_left_and_said(tmp_path):
    text = """g (float[N, 4] x) => (float[N, 3] y)
<float[4,8] w, int8[8,3] low, float s = {0.02}, int8 z = {0}>
{ h = MatMul (x, w) r = Relu (h) v = DequantizeLinear (low, s, z) [last] y = MatMul (r, v) }"""
    result = onnxslim_merge.slim(parse(text), ratio=0.5, **FIT)
    assert any("last is not refitted (its weights are quantised)" in note for note in result.report.notes)


def test_too_few_samples_are_said_and_merged(tmp_path):
    model = parse(PLAIN)
    data, _ = calibration(tmp_path, model, 3)
    result = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, **FIT)
    assert any("no least squares (3 samples are too few" in note for note in result.report.notes)
    assert any("chosen by --criterion consumer instead" in note for note in result.report.notes)


def test_the_same_seed_gives_the_same_bytes_and_a_plan_replays(tmp_path):
    model = parse(PLAIN)
    one, two = (onnxslim_merge.slim(model, ratio=0.5, **FIT) for _ in range(2))
    assert one.model.SerializeToString() == two.model.SerializeToString()
    again = onnxslim_merge.slim(model, plan=one.plan)
    assert again.model.SerializeToString() == one.model.SerializeToString()


def test_half_precision_is_fitted_in_single(tmp_path):
    text = PLAIN.replace("float[", "float16[")
    model = parse(text)
    data, _ = calibration(tmp_path, model)
    result = onnxslim_merge.slim(model, ratio=0.4, calibration_data=data, **FIT)
    assert weights(result.model)["v"].dtype == np.float16
    fed = feeds(model, {"N": 8}, 3)
    merged = onnxslim_merge.slim(model, ratio=0.4, calibration_data=data, compensation="mean+merge").model
    (y,), (small,), (other,) = (run(m, fed) for m in (model, result.model, merged))
    assert np.square(y - small, dtype=np.float32).mean() < np.square(y - other, dtype=np.float32).mean()


def test_batchnorm_says_what_the_data_are(tmp_path):
    """Inputs far from synthetic ones: what is fitted without them serves them all the same.

    Channels of the data differ in size by a factor of 30, which only the running statistics tell.
    """
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y)
<float[16,3,1,1] w, float[16] pos1, float[16] be, float[16] m, float[16] va, float[5,16,3,3] v>
{ h = Conv (x, w) n = BatchNormalization (h, pos1, be, m, va) r = Relu (n) y = Conv (r, v) }"""
    model, rng = parse(text), np.random.default_rng(0)
    real = {"x": (5 + rng.normal(size=(64, 3, 8, 8)) * np.array([10, 1, 0.3])[:, None, None]).astype(np.float32)}
    (h,) = run(tapped(model, "h"), real)[1:]
    model = replace_weights(model, {"m": h.mean((0, 2, 3)), "va": h.var((0, 2, 3))})
    errors = {}
    for options in ({"compensation": "least-squares"}, {"compensation": "merge"}, {"compensation": "none"}):
        small = onnxslim_merge.slim(model, ratio=0.5, **options).model
        (y,), (found,) = run(model, real), run(small, real)
        errors[options["compensation"]] = float(np.square(y - found).mean() / y.var())
    assert errors["least-squares"] < 0.8 * min(errors["merge"], errors["none"])


def test_without_its_statistics_batchnorm_serves_less_well(tmp_path, monkeypatch):
    """The same file, with what `corrections` finds thrown away."""
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y)
<float[16,3,1,1] w, float[16] pos1, float[16] be, float[16] m, float[16] va, float[5,16,3,3] v>
{ h = Conv (x, w) n = BatchNormalization (h, pos1, be, m, va) r = Relu (n) y = Conv (r, v) }"""
    model, rng = parse(text), np.random.default_rng(0)
    real = {"x": (20 + rng.normal(size=(64, 3, 8, 8))).astype(np.float32)}
    (h,) = run(tapped(model, "h"), real)[1:]
    model = replace_weights(model, {"m": h.mean((0, 2, 3)), "va": h.var((0, 2, 3))})

    def error():
        small = onnxslim_merge.slim(model, ratio=0.5, **FIT).model
        return float(np.square(run(model, real)[0] - run(small, real)[0]).mean())

    with_statistics = error()
    monkeypatch.setattr(least_squares, "corrections", lambda analysis, tracks: {})
    assert with_statistics < 0.8 * error()


def test_the_last_layer_before_a_sum_makes_up_for_the_other_branch(tmp_path, monkeypatch):
    """On the samples that it is fitted to, its own target alone leaves more of the sum."""
    text = """g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y)
<float[10,4,3,3] a, float[6,10,1,1] b, float[10,4,3,3] c, float[6,10,1,1] d, float[4,6,1,1] u>
{ e = Conv <pads = [1, 1, 1, 1]> (x, a) f = Relu (e) g = Conv (f, b)
  k = Conv (g, u) h = Conv <pads = [1, 1, 1, 1]> (k, c) i = Relu (h) j = Conv (i, d) y = Add (g, j) }"""
    model = parse(text)
    data, fed = calibration(tmp_path, model, 128)

    def error():
        small = onnxslim_merge.slim(model, ratio=0.5, scope="inner", calibration_data=data, **FIT).model
        return float(np.square(run(model, fed)[0] - run(small, fed)[0]).mean())

    both = error()
    monkeypatch.setattr(Views, "leads_to", lambda views, consumer: (consumer.output, None))
    assert both < 0.99 * error()
