"""The parts of least squares: rows of features, sums, ridges, the surgeon, and two networks run piece by piece."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from textmodels import parse, run

from onnxslim_merge.channels.claims import Consumer, Window
from onnxslim_merge.compensation.ridge import fit
from onnxslim_merge.criteria.surgeon import Term, surgeon
from onnxslim_merge.samples.leaves import LARGE, dead_leaves
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.tracks import Store, Tracks
from onnxslim_merge.statistics.windows import input_rows, output_rows

# -- rows ------------------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """(operator, attributes, kernel), of two spatial axes that differ in everything."""
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    strides = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    attributes = {"strides": strides, "dilations": draw(st.lists(st.integers(1, 2), min_size=2, max_size=2))}
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape"]))
    if padding == "pads":
        attributes["pads"] = draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))
    elif padding == "output_shape" and op == "ConvTranspose":
        attributes["output_shape"] = [7 * strides[0], 9 * strides[1]]
    elif padding != "output_shape":
        attributes |= {"auto_pad": padding, "dilations": [1, 1]}
    return op, attributes, kernel


@given(convolutions(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_times_weights_are_what_the_runtime_gives(case, seed):
    op, attributes, kernel = case
    rng, channels, outputs = np.random.default_rng(seed), 3, 4
    shape = (outputs, channels, *kernel) if op == "Conv" else (channels, outputs, *kernel)
    weight, x = (rng.normal(size=s).astype(np.float32) for s in (shape, (2, channels, 7, 9)))
    node = helper.make_node(op, ["h", "w"], ["y"], name="n", **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, 7, 9])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs, "H", "W"])
    same = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)  # an input's channels have no labels
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(same, "s")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "s"], ["h"]), node], "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        (y,) = run(model, {"x": x})
    except Exception:  # a kernel that does not fit its input
        return
    if y.size == 0:
        return
    consumer = consumer_of(model)
    channels_of_it = np.arange(channels)
    found = input_rows(consumer, x, (y.shape[0], *y.shape[2:]), None, channels_of_it)
    columns = np.moveaxis(weight, (consumer.axis, consumer.out_axis), (0, 1)).reshape(channels, outputs, -1)
    expected = output_rows(y, 1, None)
    np.testing.assert_allclose(found @ columns.transpose(2, 0, 1).reshape(-1, outputs), expected, atol=2e-5)
    some = rng.choice(len(found), max(len(found) // 2, 1), replace=False)
    part = input_rows(consumer, x, (y.shape[0], *y.shape[2:]), some, channels_of_it[::2])
    np.testing.assert_array_equal(part, found.reshape(len(found), -1, channels)[some][:, :, ::2].reshape(some.size, -1))


def consumer_of(model) -> Consumer:
    """What the rules claim of the node that alone reads channels."""
    import onnxslim_merge.model_io as model_io
    from onnxslim_merge.channels.analysis import analyse_channels
    from onnxslim_merge.prepare import prepare
    from onnxslim_merge.probe import probe_shapes

    source = model_io.load(model)
    graph = prepare(source)
    (consumer,) = analyse_channels(graph, probe_shapes(graph, source, {})).consumers
    return consumer


def test_rows_of_a_product_follow_its_axes():
    x = np.arange(24.0).reshape(2, 3, 4)
    consumer = Consumer("n", "MatMul", "x", 0, 2, "w", 1, 0, 1, np.arange(4), "y", None, window=Window())
    np.testing.assert_array_equal(input_rows(consumer, x, (2, 3), None, np.array([3, 1])), x.reshape(6, 4)[:, [3, 1]])
    with pytest.raises(ValueError, match="n: how its outputs"):
        input_rows(
            Consumer("n", "LSTM", "x", 0, 2, "w", 1, 0, 1, np.arange(4), "y", None), x, (2, 3), None, np.arange(4)
        )


# -- sums and ridges -------------------------------------------------------------------------------------------------


def gram(features, targets) -> Gram:
    found = Gram.zeros(features.shape[1], targets.shape[1])
    for part in range(0, len(features), 7):
        found.add(features[part : part + 7], targets[part : part + 7])
    return found


def test_errors_of_sums_are_those_of_rows():
    rng = np.random.default_rng(0)
    f, y, w, c = (rng.normal(size=s) + 1 for s in ((50, 6), (50, 3), (6, 3), 3))
    np.testing.assert_allclose(gram(f, y).errors(w, c), ((y - f @ w - c) ** 2).mean(0), rtol=1e-10)
    some, few = np.array([4, 1]), np.array([2])
    part = gram(f, y).of(some).giving(few)
    np.testing.assert_allclose(part.covariances[0], np.cov(f[:, some].T, bias=True), atol=1e-12)
    np.testing.assert_allclose(part.errors(w[some][:, few], c[few]), ((y - f[:, some] @ w[some] - c) ** 2).mean(0)[few])


def test_means_far_above_the_spread_cost_no_digits():
    """In float32, whose step at 10,000 is a thousandth: what is left are these steps, not sums of their squares."""
    rng = np.random.default_rng(4)
    f = (1e4 + rng.normal(size=(700, 5))).astype(np.float32)
    y = (f[:, :2] - 1e4 + 5).astype(np.float32)
    found, wide = gram(f, y), np.concatenate([f, y], axis=1, dtype=np.float64)
    expected = np.cov(wide.T, bias=True)
    np.testing.assert_allclose(np.concatenate(found.covariances, axis=1), expected[:5], atol=1e-6)
    weights = np.eye(5)[:, :2]
    np.testing.assert_allclose(found.errors(weights, np.full(2, 5 - 1e4)), 0, atol=1e-6)


def test_strong_ridges_are_found_where_samples_are_few():
    """The anchor is nearly right, and a third as many samples as features say little: no weak ridge would do."""
    rng = np.random.default_rng(6)
    w = rng.normal(size=(60, 3))
    f = rng.normal(size=(220, 60))
    y = f @ (1.1 * w) + 2 * rng.normal(size=(220, 3))
    found = fit(gram(f[:20], y[:20]), gram(f[20:], y[20:]), {"plain": w}, np.ones(3))
    assert found.strength is not None
    assert found.strength >= 0.3


def test_rows_of_zeros_count_as_rows():
    rng = np.random.default_rng(5)
    f, y = rng.normal(size=(60, 4)) + 3, rng.normal(size=(60, 2)) - 1
    found, expected = gram(f, y), gram(np.concatenate([f, np.zeros((23, 4))]), np.concatenate([y, np.zeros((23, 2))]))
    found.add_zeros(23)
    for one, other in zip((*found.means, *found.covariances), (*expected.means, *expected.covariances), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_fit_finds_weights_that_explain_everything():
    """The weakest ridge is weak enough, and the intercept takes the means: to a millionth of the targets."""
    rng = np.random.default_rng(1)
    f, w = rng.normal(size=(400, 30)) @ np.diag(np.geomspace(1, 1e-2, 30)), rng.normal(size=(30, 4))
    y = f @ w + 3
    found = fit(gram(f[:300], y[:300]), gram(f[300:], y[300:]), {"plain": 0 * w}, np.ones(4))
    assert np.abs(f @ found.weights + found.intercept - y).max() <= 1e-6 * np.abs(y).max()
    assert found.error <= 1e-12
    assert found.strength is not None


def test_noise_leaves_the_anchor_and_takes_the_better_one():
    rng = np.random.default_rng(2)
    f, w = rng.normal(size=(60, 40)), rng.normal(size=(40, 2))
    y = f @ w + 0.01 * rng.normal(size=(60, 2))
    anchors = {"wrong": w + 1, "right": w}
    found = fit(gram(f[:30], y[:30]), gram(f[30:], y[30:]), anchors, np.ones(2))
    assert found.anchor == "right"
    assert found.error <= found.errors["right"] <= 0.01 < found.errors["wrong"]
    assert np.abs(found.weights - w).max() <= 0.02


def test_features_that_do_not_vary_leave_the_anchor():
    f, y = np.ones((20, 3)), np.arange(20.0)[:, None]
    found = fit(gram(f[:10], y[:10]), gram(f[10:], y[10:]), {"plain": np.ones((3, 1))}, np.ones(1))
    assert found.strength is None
    np.testing.assert_array_equal(found.weights, np.ones((3, 1)))


# -- the surgeon -----------------------------------------------------------------------------------------------------


def problem(seed, channels=7, width=2, outputs=3):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(200, channels * width)) @ rng.normal(size=(channels * width,) * 2)
    return rows.T @ rows / 200, rng.normal(size=(channels * width, outputs)), np.arange(channels * width).reshape(-1, 2)


def loss(second, weights, kept):
    """What the best weights on `kept` features leave of tr(W' S W)."""
    new = np.zeros_like(weights)
    new[kept] = np.linalg.solve(second[np.ix_(kept, kept)], (second @ weights)[kept])
    return float(np.trace((weights - new).T @ second @ (weights - new)))


@pytest.mark.parametrize("delayed", [1, 2, 64])
@pytest.mark.parametrize("seed", range(5))
def test_prices_are_the_rise_of_the_error_at_every_step(seed, delayed, monkeypatch):
    monkeypatch.setattr("onnxslim_merge.criteria.surgeon.DELAYED", delayed)
    second, weights, blocks = problem(seed)
    term, gone, before = Term(second, weights, None, np.ones(3), blocks), [], 0.0
    for _ in range(4):
        left = [j for j in range(len(blocks)) if j not in gone]
        rises = {j: loss(second, weights, np.delete(np.arange(14), blocks[[*gone, j]].ravel())) - before for j in left}
        np.testing.assert_allclose(term.costs()[left], [rises[j] for j in left], rtol=1e-6)
        cheapest = min(left, key=lambda j: rises[j])
        before += rises[cheapest]
        term.remove(cheapest)
        gone.append(cheapest)
    kept, scores = surgeon([Term(second, weights, None, np.ones(3), blocks)], 7, 3)
    assert kept.tolist() == sorted(set(range(7)) - set(gone))
    assert sorted(gone, key=lambda j: scores[j]) == gone


def test_many_removals_with_delayed_updates_agree_with_one_solve():
    second, weights, blocks = problem(3, channels=150)
    second += 1e-3 * np.trace(second) / len(second) * np.eye(len(second))
    term, gone, before = Term(second, weights, None, np.ones(3), blocks), [], 0.0
    for _ in range(140):
        costs = term.costs()
        costs[gone] = np.inf
        before += costs.min()
        gone.append(int(costs.argmin()))
        term.remove(gone[-1])
    kept = np.delete(np.arange(300), blocks[gone].ravel())
    assert before == pytest.approx(loss(second, weights, kept), rel=1e-5)


def test_the_surgeon_keeps_parts_equal_and_counts_all_consumers():
    second, weights, blocks = problem(4, channels=8)
    rows = np.arange(8).reshape(2, 4)
    kept, _ = surgeon([Term(second, weights, None, np.ones(3), blocks)], 8, 4, rows)
    assert (kept < 4).sum() == (kept >= 4).sum() == 2
    other = np.zeros_like(weights)
    other[blocks[5]] = 100.0  # a second consumer that needs channel 5 badly
    kept, _ = surgeon([Term(second, w, None, np.ones(3), blocks) for w in (weights * [1, 1, 1], other)], 8, 1)
    assert kept.tolist() == [5]


def test_channels_that_a_consumer_does_not_read_cost_it_nothing():
    second, weights, blocks = problem(5)
    longer = np.concatenate([blocks, -np.ones((2, 2), np.int64)])
    longer[0, 1] = -1  # and one that it reads once only
    term = Term(second, weights, None, np.ones(3), longer)
    assert term.costs()[-2:].tolist() == [0, 0]
    single = loss(second, weights, np.arange(1, 14))
    assert term.costs()[0] == pytest.approx(single, rel=1e-6)
    term.remove(8)
    assert term.costs()[0] == pytest.approx(single, rel=1e-6)


# -- two networks ----------------------------------------------------------------------------------------------------

BRANCHES = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) <float[6,3,3,3] w, float[6,6,1,1] v, float[5,6] u>
{
  [a] a = Conv <pads = [1, 1, 1, 1]> (x, w)
  [r] r = Relu (a)
  [b] b = Conv (r, v)
  [s] s = Add (b, r)
  [p] p = GlobalAveragePool (s)
  [f] f = Flatten (p)
  [g] y = Gemm <transB = 1> (f, u)
}"""


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_pieces_give_what_the_whole_gives(limit):
    """In any order, from memory or from files, and with one node changed in the second network only."""
    model, rng = parse(BRANCHES), np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    changed = rng.normal(size=(6, 6, 1, 1)).astype(np.float32)
    other, line = parse(BRANCHES), np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)
    kept = [t for t in other.graph.initializer if t.name != "v"]
    del other.graph.initializer[:]
    other.graph.initializer.extend([*kept, numpy_helper.from_array(changed, "v"), numpy_helper.from_array(line, "l")])
    other.graph.node[2].output[0] = "bare"
    other.graph.node.insert(3, helper.make_node("Add", ["bare", "l"], ["b"]))
    seen = {}

    def visit(batch, original, slim):
        for name, array in {**{(0, n): a for n, a in original.items()}, **{(1, n): a for n, a in slim.items()}}.items():
            seen[name, batch] = np.array(array)

    with Tracks(model, feeds, taps=["r", "b", "s", "y"], changing=["b"], limit=limit) as tracks:
        tracks.taps = {"s", "y"}
        tracks.advance(["b"], ["r"], visit)
        tracks.put("b", 1, changed, line)
        tracks.peek(["y"], visit)
        ahead = {batch: seen[(1, "y"), batch] for batch in range(3)}
        tracks.taps = {"y"}
        tracks.advance(["s"], ["s"], visit)
        tracks.taps = set()
        tracks.advance(["y"], ["y"], visit)
        assert bool(tracks.store.spilled) == (limit == 0)
        assert tracks.store.held == 0
    for t, whole in enumerate((model, other)):
        whole.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in ("r", "b", "s"))
        for batch, feed in enumerate(feeds):
            expected = dict(zip(["y", "r", "b", "s"], run(whole, feed), strict=True))
            for name in (n for n in expected if ((t, n), batch) in seen):
                np.testing.assert_allclose(seen[(t, name), batch], expected[name], rtol=1e-5, atol=1e-6)
    for batch in range(3):
        np.testing.assert_allclose(ahead[batch], seen[(1, "y"), batch], rtol=1e-5, atol=1e-6)


def test_the_second_network_takes_from_the_first_what_is_made_at_the_same_time():
    model, feeds, seen = parse(BRANCHES), [{"x": np.ones((1, 3, 8, 8), np.float32)}], {}
    tracks = Tracks(model, feeds, taps=["y"], changing=["b"])
    tracks.taps = set()
    tracks.advance(["y"], ["y"], lambda batch, original, slim: seen.update(original=original["y"], slim=slim["y"]))
    np.testing.assert_allclose(seen["original"], run(model, feeds[0])[0], rtol=1e-6)  # pieces fuse other nodes
    np.testing.assert_allclose(seen["slim"], seen["original"], rtol=1e-6)


def test_each_node_runs_once_in_each_network(monkeypatch):
    import onnxslim_merge.statistics.tracks as module

    ran = []

    class Counting(module.Runner):
        def __init__(self, model, **more):
            super().__init__(model, **more)
            self.names = [node.name for node in model.graph.node]

        def run(self, feeds, outputs=None):
            ran.extend(self.names)
            return super().run(feeds, outputs)

    monkeypatch.setattr(module, "Runner", Counting)
    feeds = [{"x": np.ones((1, 3, 8, 8), np.float32)}]
    tracks = Tracks(parse(BRANCHES), feeds, taps=["r", "b", "y"], changing=["b"])
    for wanted in (["r"], ["b"], ["y"]):
        tracks.taps.discard(wanted[0])
        tracks.advance(wanted, wanted, lambda *_: None)
    assert sorted(ran) == sorted([*"arbspfg", *"bspfg"])


@given(
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "O"]),
    st.lists(st.sampled_from([0, 1, 3, 40, 70]), min_size=0, max_size=3),
    st.booleans(),
    st.sampled_from([0, 3000, 1 << 30]),
)
@settings(max_examples=60, deadline=None)
def test_arrays_come_back_from_memory_and_from_files(kind, shape, turned, limit):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    array = array.T if turned else array
    store = Store(limit)
    store.put(True, "a", 0, array)
    expected, found = array.copy(), store.get(True, "a", 0)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    store.drop(True, "a", 0)
    assert store.held == 0
    assert store.names(True) == []
    store.close()


def held(array):
    """What a store holds of it, and whether that lies on pages of its own."""
    store = Store(1 << 30)
    store.put(False, "a", 0, array)
    found = base = store.get(False, "a", 0)
    while isinstance(base, np.ndarray):
        base = base.base
    return found, isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


@pytest.mark.parametrize(("size", "pages"), [(256, True), (255, False)])  # else there would be too many of them
def test_what_is_large_lies_on_pages_that_the_system_takes_back(size, pages):
    array = np.arange(size * 256, dtype=np.float32).reshape(size, 256)
    found, own = held(array)
    np.testing.assert_array_equal(found, array)
    assert own == pages


def test_without_pages_arrays_are_held_as_they_are(monkeypatch):
    def full(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("onnxslim_merge.statistics.tracks.mmap", SimpleNamespace(mmap=full, ACCESS_COPY=3))
    array = np.ones((256, 256))
    assert held(array)[0] is array


def test_pieces_keep_no_memory_between_runs(monkeypatch):
    import onnxslim_merge.statistics.tracks as module

    arenas = []

    class Noting(module.Runner):
        def __init__(self, model, **more):
            super().__init__(model, **more)
            arenas.append(self.session.get_session_options().enable_cpu_mem_arena)

    monkeypatch.setattr(module, "Runner", Noting)
    tracks = Tracks(parse(BRANCHES), [{"x": np.ones((1, 3, 8, 8), np.float32)}], taps=["y"], changing=["b"])
    tracks.advance(["y"], ["y"], lambda *_: None)
    assert arenas == [False, False]


def test_leaves_are_seeded_and_have_edges():
    images = [dead_leaves(np.random.default_rng(s), (64, 3, 32, 32), 1, 0.2) for s in (0, 0, 1)]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()
    assert abs(float(images[0].mean())) <= 0.2
    assert 0.7 <= float(images[0].std()) <= 1.2
    steps = np.abs(np.diff(images[0], axis=3))
    assert np.median(steps) <= 0.2 * steps.std()  # flat almost everywhere, with jumps between
    assert dead_leaves(np.random.default_rng(0), (2, 16, 24, 1), 3, 0.2).shape == (2, 16, 24, 1)


def test_large_images_have_shapes_of_the_same_sizes():
    """They are painted at their own size, smaller ones at twice that: the same shapes at the limit and below it."""
    below, above = (dead_leaves(np.random.default_rng(0), (1, 3, side, side), 1, 0.2)[0] for side in (LARGE - 2, LARGE))
    near = above[:, ::8, ::8][:, :-1, :-1] - below[:, ::8, ::8][:, : LARGE // 8 - 1, : LARGE // 8 - 1]
    assert above.shape == (3, LARGE, LARGE)
    assert np.square(near).mean() < 0.1 * above.var()
