"""`--compensation least-squares` and `--criterion greedy`, file to file: exact where that is possible, else better."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textmodels import distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge import refitting
from onnxslim_merge.compensation import least_squares
from onnxslim_merge.compensation.onesided import Limits, one_sided
from onnxslim_merge.compensation.refittable import cutoff
from onnxslim_merge.compensation.ridge import fit, fit_again
from onnxslim_merge.compensation.stepwise import Stepwise
from onnxslim_merge.errors import OutputError, UsageError
from onnxslim_merge.parsing import LEAST_MEMORY, parse_size, size_text
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.readings import Reading, Sample
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


def test_one_note_says_it_of_all_quantised_layers():
    text = """g (float[N, 4] x) => (float[N, 3] y)
<float[4,8] w, int8[8,8] low, int8[8,3] last, float s = {0.02}, int8 z = {0}>
{ h = MatMul (x, w) r = Relu (h) v = DequantizeLinear (low, s, z) k = MatMul (r, v) q = Relu (k)
  u = DequantizeLinear (last, s, z) y = MatMul (q, u) }"""
    notes = onnxslim_merge.slim(parse(text), ratio=0.5, **FIT).report.notes
    (note,) = [note for note in notes if "its weights are quantised" in note and "refitted" in note]
    assert note.endswith(", and 1 more")


def test_who_fell_back_in_the_first_sweep_is_not_fitted_in_the_second(tmp_path, monkeypatch):
    """Nothing is held out any more that could choose a ridge."""
    start, steps = Stepwise.__init__, []

    def forgetful(self, *args, first=None, **options):
        if first is not None:
            first.found.clear()
        steps.append(self)
        start(self, *args, first=first, **options)

    monkeypatch.setattr(Stepwise, "__init__", forgetful)
    model = parse(PLAIN)
    data, _ = calibration(tmp_path, model, 64)
    onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, dry_run=True, **FIT)
    assert steps[-1].found == {}


def test_too_few_samples_are_said_and_merged(tmp_path):
    model = parse(PLAIN)
    data, _ = calibration(tmp_path, model, 3)
    result = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, **FIT)
    assert any("no least squares (3 samples are too few" in note for note in result.report.notes)
    chosen = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data)
    assert not any("--calibration-data, better still" in note for note in chosen.report.notes)
    assert any("chosen by --criterion consumer instead" in note for note in result.report.notes)
    done = {name: result.report.settings[name] for name in ("criterion", "compensation")}
    assert done == {"criterion": "consumer", "compensation": "mean+merge"}
    assert {name: result.plan.settings[name] for name in done} == done
    same = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, **done, donors="all")
    assert all(
        np.array_equal(a, b) for a, b in zip(weights(result.model).values(), weights(same.model).values(), strict=True)
    )


def test_what_failed_once_is_not_tried_again(tmp_path, monkeypatch):
    """Neither for the channels that were chosen otherwise: images may take long to make."""
    model, calls = parse(PLAIN), []
    found = refitting.least_squares
    monkeypatch.setattr(refitting, "least_squares", lambda *args: (calls.append(1), found(*args))[1])
    data, _ = calibration(tmp_path, model, 3)
    onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, dry_run=True, **FIT)
    assert len(calls) == 1


SPLIT = """g (float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z, float[N,2,8,8] k)
<int64[2] s = {8,8}, float[16,3,3,3] w, float[16] b, float[8,8,1,1] u, float[8] ga, float[8] be, float[8] m,
 float[8] var1, float[8,8,3,3] v, float[8] vb, float[2,8,3,3] t>
{ h = Conv <pads=[1,1,1,1]> (x, w, b)  r = Relu (h)  p, q = Split <axis=1> (r, s)  i = Conv (p, u)
  y = BatchNormalization (i, ga, be, m, var1)  z = Conv <pads=[1,1,1,1]> (q, v, vb)
  k = Conv <pads=[1,1,1,1]> (p, t) }"""


@pytest.mark.parametrize("memory", ["2GB", "64MiB"])
def test_a_reader_that_would_lose_all_its_channels_gets_one_back(tmp_path, memory):
    """Half of them are read where gamma is 0, as at the end of residual blocks that start from nothing."""
    model = parse(SPLIT)
    model = replace_weights(model, {"ga": np.zeros(8, np.float32), "t": np.zeros((2, 8, 3, 3), np.float32)})
    data, _ = calibration(tmp_path, model, 64)
    result = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, memory_limit=memory)
    assert weights(result.model)["u"].shape[1] >= 1
    fed = feeds(model, {"N": 3}, 99)
    assert distance(run(model, fed)[:1], run(result.model, fed)[:1]) <= 1e-5


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


# -- samples that are not what one would wish ------------------------------------------------------------------------

GUARDED = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[8,3,1,1] w, float[8] b, float[8,8,1,1] v, float zero, float[6,8,3,3] u, float[4,6,1,1] t>
{ h = Conv (x, w, b) s = Sqrt (h) m = Conv (s, v) n = IsNaN (m) g = Where (n, zero, m)
  k = Conv <pads = [1, 1, 1, 1]> (g, u) r = Relu (k) y = Conv (r, t) }"""


@pytest.mark.parametrize("options", [{}, {"criterion": "consumer"}, {"compensation": "mean+merge"}])
def test_numbers_that_are_not_finite_do_not_reach_the_weights(tmp_path, options):
    """The graph itself mends what a negative pixel makes of the square root; a sum of activations cannot."""
    model = replace_weights(parse(GUARDED), {"zero": np.float32(0)})
    rows = np.abs(weights(model)["w"])
    model = replace_weights(model, {"w": rows, "b": np.ones(8, np.float32)})
    pixels = np.random.default_rng(0).random((32, 3, 8, 8), np.float32)
    pixels[5, :, 2, 3] = -500
    np.savez(tmp_path / "data.npz", x=pixels)
    result = onnxslim_merge.slim(model, ratio=0.5, calibration_data=tmp_path / "data.npz", **options)
    assert all(np.isfinite(array).all() for array in weights(result.model).values())
    assert any("finite" in note for note in result.report.notes)
    assert not any("our bug" in note for note in result.report.notes)


def test_layers_too_wide_for_the_memory_are_merged_and_said(tmp_path):
    model = parse("""g (float[N, 4] x) => (float[N, 5] y) <float[4,2048] w, float[2048] b, float[2048,5] v>
    { h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }""")
    data, _ = calibration(tmp_path, model, 32)
    notes = onnxslim_merge.slim(model, calibration_data=data, memory_limit="64MiB").report.notes
    assert any("2048 features take --memory-limit 128MiB" in note for note in notes)
    notes = onnxslim_merge.slim(model, calibration_data=data, memory_limit="128MiB").report.notes
    assert not any("--memory-limit" in note for note in notes)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    model = parse(NETS["residual"])
    data, _ = calibration(tmp_path, model, 64)
    monkeypatch.setattr("onnxslim_merge.statistics.tracks.np.save", full)
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.parse_size", lambda size: 2**10)
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.hindrance", lambda *args: None)
    with pytest.raises(OutputError, match="--memory-limit"):
        onnxslim_merge.slim(model, calibration_data=data, **FIT)


@pytest.mark.parametrize(("size", "expected"), [("64MiB", 1 << 26), ("1.5 GB", 1_500_000_000), (1 << 30, 1 << 30)])
def test_sizes(size, expected):
    assert parse_size(size) == expected


@given(st.integers(LEAST_MEMORY, 1 << 50))
def test_sizes_that_are_said_suffice_and_are_not_much_more(needed):
    assert needed <= parse_size(size_text(needed)) <= max(1.1 * needed, needed + 2**20)


@pytest.mark.parametrize("size", ["9" * 400, "63MiB", "two", "-1GB", ""])
def test_bad_sizes(size):
    with pytest.raises(UsageError, match="--memory-limit"):
        onnxslim_merge.Settings(memory_limit=size)


# -- error that a Relu cuts off --------------------------------------------------------------------------------------


def cut_off(seed, rows=400):
    """Samples in front of a Relu, a quarter of them held out; their sums, and the plain fit."""
    rng = np.random.default_rng(seed)
    f, y = rng.normal(size=(rows, 6)).astype(np.float32), rng.normal(size=(rows, 3)).astype(np.float32)
    y[:, 0] += f[:, 0] * 2
    scale, offset = np.array([1.5, -0.5, 1.0]), np.array([0.3, -0.2, 0.0])
    samples = [Sample(f[i::4], y[i::4], (scale * y + offset).astype(np.float32)[i::4], i == 3) for i in range(4)]
    sums = [Gram.zeros(6, 3), Gram.zeros(6, 3)]
    for sample in samples:
        sums[sample.held].add(sample.features.astype(float), sample.targets.astype(float))
    return samples, sums, fit(*sums, {"plain": np.zeros((6, 3))}, np.ones(3)), scale


@pytest.mark.parametrize("seed", range(3))
def test_outputs_that_gain_nothing_behind_the_function_keep_the_plain_fit(seed):
    samples, sums, found, scale = cut_off(seed)
    better = one_sided(found, sums[0], samples, Limits(0.0, np.inf, scale))
    assert better is not None
    weights, intercept, gaining = better
    assert gaining.any()

    def missed(weights, intercept):
        (sample,) = (s for s in samples if s.held)
        p = sample.before + scale * (sample.features @ weights + intercept - sample.targets)
        return np.square(np.maximum(p, 0) - np.maximum(sample.before, 0)).mean(0)

    after, before = missed(weights, intercept), missed(found.weights, found.intercept)
    assert (after[gaining] < before[gaining]).all()
    np.testing.assert_allclose(weights[:, ~gaining], found.weights[:, ~gaining], rtol=1e-12)


def test_few_rows_of_many_correct_nothing():
    """What a third of the rows say of the others is noise that grows from round to round."""
    samples, sums, found, scale = cut_off(0)
    some = [samples[0], samples[3]]  # 100 rows for 6 features, of 300
    assert one_sided(found, sums[0], some, Limits(0.0, np.inf, scale)) is None
    samples, sums, found, scale = cut_off(0, 1600)  # 400
    assert one_sided(found, sums[0], [samples[0], samples[3]], Limits(0.0, np.inf, scale)) is not None


@pytest.mark.parametrize("seed", range(3))
def test_aiming_at_what_is_left_lowers_the_distance_that_counts(seed):
    """Every round is a projection onto a convex set or a least-squares fit: the distance can only fall."""
    samples, sums, found, scale = cut_off(seed)
    limits, seen = Limits(0.0, np.inf, scale), [s for s in samples if not s.held]
    better = one_sided(found, sums[0], seen, limits, np.ones(3, bool))
    assert better is not None

    def distance_left(weights, intercept):
        total = 0.0
        for sample in seen:
            t, p = sample.before, sample.before + scale * (sample.features @ weights + intercept - sample.targets)
            total += np.square(np.where(t > 0, p - t, np.maximum(p, 0))).sum()
        return total

    assert distance_left(*better[:2]) < distance_left(found.weights, found.intercept)


# -- what is held out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["greedy", "consumer"])
@pytest.mark.parametrize("data", [True, False])
def test_a_second_sweep_holds_nothing_of_the_data_out(tmp_path, monkeypatch, data, criterion):
    """What was held out in the first sweep chose ridges only; of synthetic samples there could be more.

    Where channels are chosen before, that sweep does without mirror images.
    """
    model, start, seen = parse(PLAIN), Reading.start, []

    def spied(*args, **options):
        seen.append(start(*args, **options))
        return seen[-1]

    monkeypatch.setattr(Reading, "start", spied)
    path = calibration(tmp_path, model, 64)[0] if data else None
    onnxslim_merge.slim(model, ratio=0.5, calibration_data=path, dry_run=True, **FIT | {"criterion": criterion})
    first, last = seen[0], seen[-1]
    assert (first.holds, first.held[0].count > 0) == (True, True)
    assert (last.holds, last.held[0].count > 0) == (not data, not data)
    if data:
        times = 2 if criterion == "consumer" else 1
        assert last.train[0].count == times * (first.train[0].count + first.held[0].count)


def test_a_fit_of_other_samples_keeps_anchor_and_ridge_in_all():
    """Of twice the rows, each needs half of it."""
    rng = np.random.default_rng(0)
    sums = [Gram.zeros(5, 2), Gram.zeros(5, 2)]
    for gram, rows in zip(sums, (100, 200), strict=True):
        f = rng.normal(size=(rows, 5))
        gram.add(f, f @ rng.normal(size=(5, 2)) + rng.normal(size=(rows, 2)))
    anchors = {"plain": np.ones((5, 2))}
    found = fit(sums[0], sums[0], anchors, np.ones(2))
    again = fit_again(sums[1], anchors, found)
    covariance, cross = sums[1].covariances
    ridge = np.diag(found.strength / 2 * np.diagonal(covariance))
    expected = np.linalg.solve(covariance + ridge, cross + ridge @ anchors["plain"])
    np.testing.assert_allclose(again.weights, expected, rtol=1e-9)
    f, y = sums[1].means
    np.testing.assert_allclose(again.intercept, y - f @ expected, rtol=1e-9)
    assert (again.strength, again.rows, again.anchor) == (found.strength, 100, "plain")


def test_nothing_is_fitted_where_nothing_goes(monkeypatch):
    monkeypatch.setattr(Stepwise, "run", lambda step: pytest.fail("it ran"))
    model = parse(PLAIN)
    given = {"calibration_data": feeds(model, {"N": 2}, 1)}
    for options in (given, given | {"augment": "crops"}, FIT):
        notes = onnxslim_merge.slim(model, ratio=0, dry_run=True, **options).report.notes
        assert not any("refitted" in note or "images" in note or "least squares" in note for note in notes)


def test_weights_choose_where_samples_are_too_few(tmp_path):
    """As many samples as channels: all can be made up for, in these samples."""
    model = parse("""g (float[N, 64] x) => (float[N, 24] y) <float[64,160] w, float[160] b, float[160,24] v>
    { h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }""")
    data, _ = calibration(tmp_path, model, 24)
    few = onnxslim_merge.slim(model, calibration_data=data)
    assert any("a refit to these samples does not hold on others (more or other" in note for note in few.report.notes)
    by_weights = onnxslim_merge.slim(model, calibration_data=data, criterion="consumer")
    assert few.plan.cells[0].keep == by_weights.plan.cells[0].keep
    data, _ = calibration(tmp_path, model, 4096)
    many = onnxslim_merge.slim(model, calibration_data=data)
    assert not any("too few" in note for note in many.report.notes)
    assert many.plan.cells[0].keep != by_weights.plan.cells[0].keep


@pytest.mark.parametrize(("compensation", "criterion"), [("least-squares", "greedy"), ("merge", "consumer")])
def test_greedy_chooses_wherever_layers_are_refitted(compensation, criterion):
    """Without data and BatchNormalization, too: decision 0013."""
    plan = onnxslim_merge.slim(parse(PLAIN), compensation=compensation, dry_run=True).plan
    assert (plan.settings["criterion"], plan.settings["compensation"]) == (criterion, compensation)


@pytest.mark.parametrize("end", ["Relu (h)", "Clip (h, low, high)"])
def test_a_layer_in_front_of_a_cut_off_is_fitted_for_it(tmp_path, monkeypatch, end):
    """What is missed behind it falls, on samples that no fit saw, against the same fit without that."""
    low, high = (0, np.inf) if end.startswith("Relu") else (-1, 1)
    model = parse(f"""g (float[N, 16] x) => (float[N, 8] y) <float[16,24] w, float[24] b, float[24,32] v, float[32] c,
    float low, float high, float[32,8] u>
    {{ a = MatMul (x, w) p = Add (a, b) r = Relu (p) m = MatMul (r, v) h = Add (m, c) z = {end} y = MatMul (z, u) }}""")
    model = replace_weights(model, {"low": np.float32(-1), "high": np.float32(1)})
    data, _ = calibration(tmp_path, model, 1024)
    other, sizes = feeds(model, {"N": 512}, 99), {"calibration_data": data, "exclude": ["m$"], **FIT}
    errors = []
    for cut in (cutoff, lambda views, consumer: None):
        monkeypatch.setattr("onnxslim_merge.compensation.stepwise.cutoff", cut)
        small = onnxslim_merge.slim(model, ratio=0.5, **sizes).model
        (_, t), (_, p) = run(tapped(model, "h"), other), run(tapped(small, "h"), other)
        errors.append(float(np.square(np.clip(p, low, high) - np.clip(t, low, high)).mean()))
    assert errors[0] < errors[1]
