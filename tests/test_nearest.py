"""Made-up samples that BatchNormalization chooses: nearer to what it saw in training, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textmodels import parse, replace_weights, run

from onnxslim_merge.channels.analysis import analyse_channels
from onnxslim_merge.model_io import build, load
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.samples import Pool, input_specs
from onnxslim_merge.samples.leaves import varied_leaves
from onnxslim_merge.statistics import nearest as module
from onnxslim_merge.statistics.nearest import herded, nearest

NORMED = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)
<float[6,3,1,1] w, float[6] pos1, float[6] be, float[6] m, float[6] var1, float[4,6,3,3] v>
{ h = Conv (x, w) n = BatchNormalization (h, pos1, be, m, var1) r = Relu (n) y = Conv (r, v) }"""
VECTORS = """g (float[N, 5] x) => (float[N, 4] y)
<float[5,6] w, float[6] pos1, float[6] be, float[6] m, float[6] var1, float[6,4] v>
{ h = MatMul (x, w) n = BatchNormalization (h, pos1, be, m, var1) r = Relu (n) y = MatMul (r, v) }"""
LOTS = 1 << 30


def chosen(model, count=32, *, pixels="normal", seed=0, batch=16, limit=LOTS):
    source = load(model)
    graph = prepare(source)
    probes = probe_shapes(graph, source, {})
    pool = Pool(input_specs(source.proto), probes[0].inputs, pixels, seed, count, probes[0].elements)
    found = nearest(build(graph, source), analyse_channels(graph, probes), pool, batch=batch, limit=limit)
    return pool, found


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
    pool, found = chosen(model)
    assert [len(feed["x"]) for feed in found] == [16, 16]
    assert off(model, found, mean, variance) < 0.5 * off(model, pool.feeds(range(32), 16), mean, variance)


def test_the_same_seed_gives_the_same_samples():
    one, two, other = (chosen(parse(NORMED), seed=seed)[1] for seed in (3, 3, 4))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0]["x"], other[0]["x"])


def test_none_is_there_twice():
    images = np.concatenate([feed["x"] for feed in chosen(parse(NORMED))[1]])
    assert len(np.unique(images, axis=0)) == 32


def test_pixels_are_in_their_range():
    images = np.concatenate([feed["x"] for feed in chosen(parse(NORMED), pixels="0:255")[1]])
    assert images.min() >= 0
    assert images.max() <= 255
    assert images.std() > 20


def test_a_fixed_batch_is_one_sample_of_the_pool():
    pool, found = chosen(parse(NORMED.replace("N,", "4,")))
    assert pool.step == 4
    assert [len(feed["x"]) for feed in found] == [4] * 8


def test_inputs_without_samples_are_those_of_the_first():
    text = (
        NORMED.replace("x)", "x, float[6, 1, 1] u)")
        .replace("(h, pos1", "(s, pos1")
        .replace("n =", "s = Add (h, u) n =")
    )
    _, found = chosen(parse(text))
    assert [feed["u"].shape for feed in found] == [(6, 1, 1)] * 2
    assert [len(feed["x"]) for feed in found] == [16, 16]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("g (float[N, 3] x) => (float[N, 4] y) <float[3,4] w> { y = MatMul (x, w) }", {}),
        (NORMED, {"limit": 100}),
        (NORMED.replace("h = Conv (x, w)", "i = Conv (x, w) z = Sub (i, i) h = Div (i, z)"), {}),
    ],
    ids=["no BatchNormalization", "no memory", "no finite numbers"],
)
def test_nobody_chooses(text, options):
    assert chosen(parse(text), **options)[1] is None


def test_a_model_too_large_for_one_piece_is_left(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 100)
    assert chosen(parse(NORMED))[1] is None


def test_silent_channels_do_not_count():
    """gamma is 0 in one: what it gives is beta, whatever it reads."""
    model = parse(NORMED)
    model = replace_weights(model, {"pos1": np.float32([1, 1, 0, 1, 1, 1])})
    assert chosen(model)[1] is not None


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
