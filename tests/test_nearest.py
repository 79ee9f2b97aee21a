"""Made-up samples that BatchNormalization chooses: nearer to what it saw in training, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textmodels import feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge import sampling
from onnxslim_merge.channels.analysis import analyse_channels
from onnxslim_merge.compensation import least_squares
from onnxslim_merge.errors import VerifyError
from onnxslim_merge.model_io import build, load
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.runtime import Runner
from onnxslim_merge.samples import Pool, input_specs, leaves
from onnxslim_merge.samples.leaves import varied_leaves
from onnxslim_merge.statistics import nearest as module
from onnxslim_merge.statistics.nearest import herded, nearest
from onnxslim_merge.statistics.tracks import Tracks

NORMED = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)
<float[6,3,1,1] w, float[6] pos1, float[6] be, float[6] m, float[6] var1, float[4,6,3,3] v>
{ h = Conv (x, w) n = BatchNormalization (h, pos1, be, m, var1) r = Relu (n) y = Conv (r, v) }"""
VECTORS = """g (float[N, 5] x) => (float[N, 4] y)
<float[5,6] w, float[6] pos1, float[6] be, float[6] m, float[6] var1, float[6,4] v>
{ h = MatMul (x, w) n = BatchNormalization (h, pos1, be, m, var1) r = Relu (n) y = MatMul (r, v) }"""
LOTS = 1 << 30


def chosen(model, count=32, *, pixels="normal", seed=0, batch=16, memory=LOTS, whole=True):
    """The pool, the samples, and why there are none."""
    source = load(model)
    graph = prepare(source)
    probes = probe_shapes(graph, source, {})
    pool = Pool(input_specs(source.proto), probes[0].inputs, pixels, seed, count, probes[0].elements)
    proto = build(graph, source) if whole else None
    return pool, *nearest(proto, analyse_channels(graph, probes), pool, batch=batch, memory=memory)


def mean_and_square(model, feeds):
    """Of what BatchNormalization reads, over all samples and positions."""
    from test_least_squares import tapped

    h = np.concatenate([run(tapped(model, "h"), feed)[1] for feed in feeds])
    rows = np.moveaxis(h, 1, -1).reshape(-1, h.shape[1]).astype(np.float64)
    return rows.mean(0), np.square(rows).mean(0)


def off(model, feeds, mean, variance):
    """The distance of both from those of training, as it is to be made small."""
    seen, square = mean_and_square(model, feeds)
    centred = square - 2 * mean * seen + mean**2
    return np.hypot(np.linalg.norm((seen - mean) / variance**0.5), np.linalg.norm(centred / variance - 1))


@pytest.mark.parametrize("text", [NORMED, VECTORS], ids=["images", "vectors"])
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_those_stay_that_are_nearest(text, opset):
    """The file was trained on dark samples of little contrast; of the pool few are."""
    model = parse(text, opset=opset)
    dark = [{"x": 0.5 * feed["x"] - 0.4} for feed in chosen(model)[0].feeds(range(1000, 1064), 64)]
    mean, square = mean_and_square(model, dark)
    variance = square - mean**2
    model = replace_weights(model, {"m": mean.astype(np.float32), "var1": variance.astype(np.float32)})
    pool, found, _ = chosen(model)
    assert [len(feed["x"]) for feed in found] == [16, 16]
    assert off(model, found, mean, variance) < 0.5 * off(model, pool.feeds(range(32), 16), mean, variance)


def test_the_same_seed_gives_the_same_samples():
    pools, (one, two, other), _ = zip(*(chosen(parse(NORMED), seed=seed) for seed in (3, 3, 4)), strict=True)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0]["x"], other[0]["x"])
    mine, others = (pools[i].feeds([0], 1)[0]["x"] for i in (0, 2))
    assert not np.allclose(mine, others)


def test_none_is_there_twice():
    images = np.concatenate([feed["x"] for feed in chosen(parse(NORMED))[1]])
    assert len(np.unique(images, axis=0)) == 32


def test_pixels_are_in_their_range():
    images = np.concatenate([feed["x"] for feed in chosen(parse(NORMED), pixels="0:255")[1]])
    assert images.min() >= 0
    assert images.max() <= 255
    assert images.std() > 20


def test_a_fixed_batch_is_one_sample_of_the_pool():
    pool, found, _ = chosen(parse(NORMED.replace("N,", "4,")))
    assert pool.step == 4
    assert [len(feed["x"]) for feed in found] == [4] * 8


@pytest.mark.parametrize(("size", "count"), [("N", 512), ("4", 512), ("96", 768)])
def test_fixed_batches_count_as_so_many_samples_and_there_are_enough_of_them(size, count, monkeypatch):
    """To hold one of eight out; and their pixels count once for each sample."""
    seen = []
    monkeypatch.setattr(
        least_squares, "nearest", lambda model, analysis, pool, **_: (seen.append(pool), (None, "no"))[1]
    )
    model = parse(NORMED.replace("N,", f"{size},"))
    notes = onnxslim_merge.slim(model, ratio=0.5, compensation="least-squares", dry_run=True).report.notes
    assert (seen[0].count, seen[0].elements) == (count, 192)
    assert not any("too few" in note for note in notes)


def test_double_precision_is_chosen_for_and_corrected():
    model = parse(VECTORS.replace("float[", "double["))
    notes = onnxslim_merge.slim(model, ratio=0.5, compensation="least-squares", dry_run=True).report.notes
    assert not any("no least squares" in note or "does not choose" in note for note in notes)


def test_who_cannot_choose_for_an_error_is_said(monkeypatch):
    def broken(*args):
        raise VerifyError("it does not run")

    monkeypatch.setattr(module, "_rows", broken)
    notes = onnxslim_merge.slim(parse(NORMED), ratio=0.5, compensation="least-squares", dry_run=True).report.notes
    assert any("does not choose the samples that are made up (it does not run)" in note for note in notes)
    assert not any("no least squares" in note for note in notes)


def test_inputs_without_samples_are_the_same_in_all_batches():
    text = (
        NORMED.replace("x)", "x, float[6, 1, 1] u)")
        .replace("(h, pos1", "(s, pos1")
        .replace("n =", "s = Add (h, u) n =")
    )
    _, found, _ = chosen(parse(text))
    assert found[0]["u"].shape == (6, 1, 1)
    assert np.array_equal(found[0]["u"], found[1]["u"])
    assert [len(feed["x"]) for feed in found] == [16, 16]


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("g (float[N, 3] x) => (float[N, 4] y) <float[3,4] w> { y = MatMul (x, w) }", {}, None),
        (NORMED, {"memory": 10**4}, "that takes --memory-limit 1MiB"),
        (NORMED, {"whole": False}, "the model is too large"),
        (NORMED.replace("h = Conv (x, w)", "i = Conv (x, w) z = Sub (i, i) h = Div (i, z)"), {}, "not finite"),
    ],
    ids=["no BatchNormalization", "no memory", "too large", "no finite numbers"],
)
def test_nobody_chooses_for_a_reason(text, options, reason):
    _, found, why = chosen(parse(text), **options)
    assert found is None
    assert (why is None) if reason is None else (reason in why)


def test_the_memory_that_is_said_suffices():
    assert chosen(parse(NORMED), memory=2**20)[1] is not None


FRAMES = """g (float[N, 4, 3, 8, 8] x) => (float[N, 5] y)
<float[6,3,1,1] w, float[6] pos1, float[6] be, float[6] m, float[6] var1,
 int64[3] back = {-1, 4, 6}, float[5,4,1] v, float[5] pos2, float[5] be2, float[5] m2, float[5] var2>
{ s = Constant <value_ints = [-1, 3, 8, 8]> () f = Reshape (x, s) h = Conv (f, w)
  n = BatchNormalization (h, pos1, be, m, var1) r = Relu (n) p = GlobalAveragePool (r)
  q = Reshape (p, back) c = Conv (q, v) k = BatchNormalization (c, pos2, be2, m2, var2)
  y = ReduceMax <axes = [2], keepdims = 0> (k) }"""
TOKENS = """g (float[N, 3, 4, 4] x) => (float[N, 16, 5] y)
<float[6,3,1,1] w, float[6] pos1, float[6] be, float[6] m, float[6] var1, float[6,5] v, float[5] pos2, float[5] be2,
 float[5] m2, float[5] var2, int64[2] flat = {-1, 6}, int64[3] back = {-1, 16, 5}>
{ h = Conv (x, w) n = BatchNormalization (h, pos1, be, m, var1) t = Transpose <perm = [0, 2, 3, 1]> (n)
  f = Reshape (t, flat) l = MatMul (f, v) b = BatchNormalization (l, pos2, be2, m2, var2) y = Reshape (b, back) }"""


@pytest.mark.parametrize("text", [FRAMES, TOKENS], ids=["frames", "tokens"])
def test_axis_0_need_not_be_that_of_the_samples(text):
    _, found, _ = chosen(parse(text))
    assert [len(feed["x"]) for feed in found] == [16, 16]


def test_samples_that_run_together_are_told_apart(monkeypatch):
    """Axis 0 holds them in turn, position by position: rows of one number are not next to each other."""
    model = parse(TOKENS.replace("[0, 2, 3, 1]", "[2, 3, 0, 1]"))
    source = load(model)
    graph = prepare(source)
    known = module._known(analyse_channels(graph, probe_shapes(graph, source, {})))
    runner, pool = Runner(module._reduced(build(graph, source), known)), chosen(model)[0]
    together = module._rows(runner, pool, range(8), known)
    monkeypatch.setattr(module, "TOGETHER", 1)
    alone = module._rows(runner, pool, range(8), known)
    assert not np.allclose(alone[0], alone[1], atol=1e-3)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_pool_of_which_is_chosen_is_not_looked_at_again(monkeypatch):
    pool, first, _ = chosen(parse(NORMED))
    monkeypatch.setattr(module, "_known", None)
    again, _ = nearest(None, None, pool, batch=16, memory=LOTS)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))


def test_those_chosen_first_do_not_stand_first(monkeypatch):
    """Early ones are nearer than late ones, and batches that are held out should be like the others."""
    monkeypatch.setattr(module, "herded", lambda rows, count: np.arange(count))
    pool = chosen(parse(NORMED))[0]
    assert sorted(pool.chosen) == list(range(32))
    assert pool.chosen != sorted(pool.chosen)


def entries(model, feed):
    """What `nearest` knows of the samples of a feed, one by one."""
    source = load(model)
    graph = prepare(source)
    known = module._known(analyse_channels(graph, probe_shapes(graph, source, {})))
    runner = Runner(module._reduced(build(graph, source), known))
    return module._distances(runner.run(feed), known, len(feed["x"]))


@pytest.mark.parametrize("gamma", [1.0, 1e-2, 1e-4])
def test_entries_are_distances_in_units_of_training(gamma):
    """A mean far above the deviation costs no digits; epsilon makes the deviation less than |gamma|."""
    from test_least_squares import tapped

    model = parse(NORMED.replace("(h, pos1", "<epsilon = 0.5> (h, pos1"))
    scales, means = np.float32([gamma, 1, -1, 1, 1, 0]), np.ones(6, np.float32)
    model = replace_weights(model, {"pos1": scales, "be": means})
    feed = chosen(model)[0].feeds(range(4), 4)[0]
    found = entries(model, feed)
    given = {name: value.astype(np.float64) for name, value in weights(model).items()}
    h = run(tapped(model, "h"), feed)[1].astype(np.float64)
    z = (h - given["m"][:, None, None]) / np.sqrt(given["var1"])[:, None, None]  # of mean 0 and deviation 1 in training
    z = z * np.sign(scales)[:, None, None]
    expected = np.concatenate([z.mean((2, 3)), np.square(z).mean((2, 3)) - 1], 1) / np.sqrt(6)
    expected[:, [5, 11]] = 0  # silent
    np.testing.assert_allclose(found, expected, atol=2e-2 if gamma < 1e-3 else 1e-3)


def test_activations_of_any_size_do_not_break_the_choice():
    """Squares of 1e30, whose own squares float32 does not hold: no warning, and none twice."""
    model = parse(NORMED)
    pool, found, _ = chosen(replace_weights(model, {"w": 1e15 * weights(model)["w"]}))
    assert found is not None
    assert len(set(pool.chosen)) == 32


@pytest.mark.parametrize(("drawn", "many"), [(1 << 28, 256), (48 * 192, 64)])
def test_of_large_samples_fewer_are_made(drawn, many, monkeypatch):
    """8 times as many as 32, or twice as many where more would be too many numbers in all."""
    seen, rows = [], module._rows
    monkeypatch.setattr(module, "_rows", lambda *args: (seen.append(len(args[2])), rows(*args))[1])
    monkeypatch.setattr(module, "DRAWN", drawn)
    assert chosen(parse(NORMED))[1] is not None
    assert seen == [many]


def test_least_squares_look_at_the_chosen_samples_and_choose_them_once(monkeypatch):
    """All the way: the networks run on those, and the choice of channels and the refit take the same."""
    seen, calls, start, known = [], [], Tracks.__init__, module._known

    def spied(self, model, feeds, **options):
        seen.append(feeds)
        start(self, model, feeds, **options)

    monkeypatch.setattr(Tracks, "__init__", spied)
    monkeypatch.setattr(module, "_known", lambda analysis: (calls.append(1), known(analysis))[1])
    monkeypatch.setattr(sampling, "FITTED", (32, 32))
    model = parse(NORMED)
    onnxslim_merge.slim(model, ratio=0.5, compensation="least-squares", seed=5, dry_run=True)
    assert len(calls) == 1
    expected = chosen(model, 32, seed=5, batch=2)[1]
    assert seen
    assert all(np.array_equal(a["x"], b["x"]) for feeds in seen for a, b in zip(feeds, expected, strict=True))


def test_what_layers_are_refitted_on_is_said():
    """Chosen or not, images or not; nothing where data are given."""
    chosen = onnxslim_merge.slim(parse(NORMED), ratio=0.5, compensation="least-squares", dry_run=True).report.notes
    assert any(note.endswith("made-up samples, chosen by BatchNormalization") for note in chosen)
    table = parse("""g (float[N, 8] x) => (float[N, 3] y) <float[8,16] w, float[16,3] v>
    { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }""")
    plain = onnxslim_merge.slim(table, ratio=0.5, compensation="least-squares", dry_run=True).report.notes
    assert any("512 made-up samples: --calibration-data shows what real ones are" in note for note in plain)
    given = onnxslim_merge.slim(
        table, ratio=0.5, calibration_data=feeds(table, {"N": 64}, 1), dry_run=True
    ).report.notes
    assert not any("made-up" in note for note in given)


def test_who_does_not_choose_is_said(monkeypatch):
    monkeypatch.setattr(module, "SHARE", 10**9)
    notes = onnxslim_merge.slim(parse(NORMED), ratio=0.5, compensation="least-squares", dry_run=True).report.notes
    assert any("does not choose the samples that are made up (that takes --memory-limit" in note for note in notes)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 5))
def test_herding_takes_one_by_one_what_keeps_the_sum_nearest_to_zero(seed, count, size):
    rows = np.random.default_rng(seed).normal(0.3, 1, (12, size)).astype(np.float32)
    found, total, left = herded(rows.copy(), count), np.zeros(size), list(range(12))
    assert len(set(found.tolist())) == count
    for index in found.tolist():
        norms = {i: np.linalg.norm(total + rows[i]) for i in left}
        assert norms[index] <= min(norms.values()) * (1 + 1e-4) + 1e-6  # sums of float32
        left.remove(index)
        total = total + rows[index]


@pytest.mark.parametrize(("shape", "axis"), [((40, 3, 16, 24), 1), ((40, 24, 16, 1), 3)])
def test_varied_leaves_differ_in_contrast_and_brightness(shape, axis):
    images = varied_leaves(np.random.default_rng(0), shape, axis)
    assert images.shape == shape
    assert images.dtype == np.float32
    spread = images.reshape(40, -1).std(1)
    assert spread.max() > 3 * spread.min()
    assert np.ptp(images.reshape(40, -1).mean(1)) > 1


def test_varied_leaves_differ_in_sharpness(monkeypatch):
    """Half of them are blurred; else steps between neighbours, in units of the spread, differ by less than 4 times."""
    monkeypatch.setattr(leaves, "FINENESS", (0.02, 0.02))
    images = varied_leaves(np.random.default_rng(0), (40, 3, 32, 32), 1)
    steps = np.square(np.diff(images, axis=3)).mean((1, 2, 3)) / images.var((1, 2, 3))
    assert steps.max() > 10 * steps.min()


def test_varied_leaves_differ_in_fineness_and_colour(monkeypatch):
    seen, draw = [], leaves._image
    monkeypatch.setattr(leaves, "_image", lambda *args: (seen.append(args[-2:]), draw(*args))[1])
    varied_leaves(np.random.default_rng(0), (20, 3, 8, 8), 1)
    colour, finest = zip(*seen, strict=True)
    assert max(colour) > 2 * min(colour)
    assert max(finest) > 5 * min(finest)
