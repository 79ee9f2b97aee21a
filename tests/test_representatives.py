"""REPrune on models: clusters meet compensation, in cells of every kind; kernels; planted redundancy of any scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from test_merging import CONV, COPIES, DENSE, KEPT_RATIO, PLANTED, TOTAL, families, kept_by_output
from textmodels import distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.compensation import Donors, Search, find_donors, solve
from onnxslim_merge.criteria import choose, coverage, representatives
from onnxslim_merge.criteria.norms import ranked_rows
from onnxslim_merge.errors import UsageError
from onnxslim_merge.numerics import CPU
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import Statistics
from onnxslim_merge.values import Value
from onnxslim_merge.verify import speed
from onnxslim_merge.views import Views


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def slim(model, **options):
    return onnxslim_merge.slim(model, **({"criterion": "reprune", "compensation": "merge", "ratio": 0.4} | options))


def plant(model: onnx.ModelProto, layers: dict[str, tuple[str, ...]], seed: int, low: float, high: float):
    """Copies times *any* positive scale, larger than their originals too: (model, original of every channel)."""
    rng, values, sources = np.random.default_rng([seed, 3]), dict(weights(model)), {}
    for name, pairs in layers.items():
        source = sources[name] = families(rng)
        scale = np.where(source == np.arange(TOTAL), 1.0, np.exp(rng.uniform(np.log(low), np.log(high), TOTAL)))
        for tensor in (t for pair in pairs for t in pair.split()):
            array = values[tensor]
            values[tensor] = (array[source] * scale.reshape(-1, *[1] * (array.ndim - 1))).astype(array.dtype)
    return replace_weights(model, values), sources


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PLANTED)
def test_copies_of_any_scale_come_back_exactly(name, seed):
    text, layers = PLANTED[name]
    model, sources = plant(parse(text, seed=seed), layers, seed, 0.05, 20)
    result = slim(model, ratio=KEPT_RATIO, geometry="cosine")
    kept = kept_by_output(result.plan)
    for layer, source in sources.items():
        assert len(kept[layer]) == TOTAL - COPIES
        assert sorted(source[kept[layer]]) == sorted(set(source))  # one of each family
    assert result.plan.notes == ()
    fed = feeds(model, {"N": 5}, seed)
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-4


def test_euclidean_clusters_may_miss_copies_of_other_scales():
    text, layers = PLANTED["dense_relu"]
    wrong = 0.0
    for seed in range(3):
        model, _ = plant(parse(text, seed=seed), layers, seed, 0.05, 20)
        fed = feeds(model, {"N": 5}, seed)
        wrong = max(wrong, distance(run(model, fed), run(slim(model, ratio=KEPT_RATIO).model, fed)))
    assert wrong > 1e-2


@pytest.mark.parametrize("criterion", ["reprune", "reprune-kernel"])
def test_equal_copies_come_back_in_euclidean_geometry_too(criterion):
    for name in ("dense_relu", "conv_relu", "conv_residual"):
        text, layers = PLANTED[name]
        model, sources = plant(parse(text, seed=1), layers, 1, 1.0, 1.0)
        result = slim(model, ratio=KEPT_RATIO, criterion=criterion)
        kept = kept_by_output(result.plan)
        assert all(sorted(source[kept[layer]]) == sorted(set(source)) for layer, source in sources.items())
        fed = feeds(model, {"N": 5}, 1)
        assert distance(run(model, fed), run(result.model, fed)) <= 1e-4


def analysed(text: str, seed: int = 0) -> tuple[Views, dict[str, Cell], dict[str, np.ndarray]]:
    model = parse(text, seed=seed)
    analysis = onnxslim_merge.analyse(model)
    return Views(analysis), {cell.name: cell for cell in analysis.cells}, dict(weights(model))


@pytest.mark.parametrize("geometry", ["euclidean", "cosine"])
def test_a_removed_channel_goes_to_the_representative_of_its_cluster(geometry):
    views, cells, values = analysed(DENSE.replace("F", "Relu"))
    options = Settings(criterion="reprune", geometry=geometry, compensation="merge", threshold=-1)
    choice = choose(views, cells["Gemm_a"], 6, None, options)
    assert choice.clusters is not None
    assert sorted(choice.clusters[choice.kept]) == list(range(6))
    solved = solve(views, {"Gemm_a": choice.kept}, None, options, {"Gemm_a": choice.clusters})
    (new,) = solved.weights.values()
    rows = np.hstack([values["w"], values["b"][:, None]])
    norms, expected = np.linalg.norm(rows, axis=1), values["k"].astype(np.float64)
    for i in np.setdiff1d(np.arange(TOTAL), choice.kept):
        (donor,) = [j for j in choice.kept if choice.clusters[j] == choice.clusters[i]]
        expected[:, donor] += norms[i] / norms[donor] * values["k"][:, i]
    assert np.allclose(new[:, choice.kept], expected[:, choice.kept], atol=1e-5)
    # any other donor by cosine is another result: the clusters do decide
    free = solve(views, {"Gemm_a": choice.kept}, None, options)
    assert not np.allclose(next(iter(free.weights.values())), new, atol=1e-3)


GROUPED = """g (float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y)
<float[12, 8, 1, 1] w, float[12] b, float[12, 4, 3, 3] g, float[4, 12, 1, 1] v>
{ a = Conv (x, w, b)
  r = Relu (a)
  e = Conv <group = 3, pads = [1, 1, 1, 1]> (r, g)
  s = Relu (e)
  y = Conv (s, v) }"""
DEPTHWISE = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
<float[12, 3, 1, 1] w, float[12] b, float[12, 1, 3, 3] g, float[4, 12, 1, 1] v>
{ a = Conv (x, w, b)
  r = Relu (a)
  e = Conv <group = 12, pads = [1, 1, 1, 1]> (r, g)
  s = Relu (e)
  y = Conv (s, v) }"""
ATTENTION = """g (float[N, 5, 12] x) => (float[N, 5, 12] y)
<float[12, 24] wq, float[24] bq, float[12, 24] wk, float[12, 24] wv, float[24, 12] wo,
 int64[4] heads = {0, 0, 6, 4}, int64[3] flat = {0, 0, -1}>
{ q0 = MatMul (x, wq)
  q1 = Add (q0, bq)
  k0 = MatMul (x, wk)
  v0 = MatMul (x, wv)
  q2 = Reshape (q1, heads)
  k2 = Reshape (k0, heads)
  v2 = Reshape (v0, heads)
  q = Transpose <perm = [0, 2, 1, 3]> (q2)
  k = Transpose <perm = [0, 2, 3, 1]> (k2)
  v = Transpose <perm = [0, 2, 1, 3]> (v2)
  s = MatMul (q, k)
  p = Softmax <axis = -1> (s)
  o = MatMul (p, v)
  t = Transpose <perm = [0, 2, 1, 3]> (o)
  u = Reshape (t, flat)
  y = MatMul (u, wo) }"""
BATCHNORM = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
<float[12, 3, 3, 3] w, float[12] ga, float[12] be, float[12] me, float[12] var, float[12, 12, 1, 1] k,
 float[4, 12, 1, 1] v>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w)
  n = BatchNormalization (a, ga, be, me, var)
  r = Relu (n)
  c = Conv (r, k)
  t = Add (c, r)
  y = Conv (t, v) }"""
KINDS = {"grouped": GROUPED, "depthwise": DEPTHWISE, "attention": ATTENTION, "batchnorm": BATCHNORM}


@pytest.mark.parametrize("geometry", ["euclidean", "cosine"])
@pytest.mark.parametrize("compensation", ["none", "mean", "merge", "mean+merge"])
@pytest.mark.parametrize("criterion", ["reprune", "reprune-kernel"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_cell_and_compensation(name, criterion, compensation, geometry):
    model = parse(KINDS[name], seed=2)
    options = {"kernel_cut": "layer"} if criterion == "reprune-kernel" else {}
    result = slim(model, ratio=0.34, criterion=criterion, compensation=compensation, geometry=geometry, **options)
    assert result.report.twin_max_error <= 1e-4
    assert not [note for note in result.report.notes if "our bug" in note]
    slimmed = [cell for cell in result.plan.cells if len(cell.keep) < cell.size]
    assert slimmed
    if name == "grouped":  # each group keeps as many
        groups = np.array(slimmed[0].keep) // 4
        assert len(set(np.bincount(groups, minlength=3))) == 1
    if name == "attention":
        assert [(cell.size, len(cell.keep)) for cell in slimmed] == [(6, 4)]
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize(
    "amount", [{"channel_multiple": 4}, {"min_channels": 11}, {"ratio_for": "a=0.5", "ratio": 0.0}]
)
def test_amounts_hold(amount):
    options = {"ratio": 0.4, "scope": "all"} | amount
    kept = [
        [len(cell.keep) for cell in slim(parse(DENSE.replace("F", "Relu")), criterion=c, **options).plan.cells]
        for c in ("l2", "reprune", "reprune-kernel")
    ]
    assert kept[0] == kept[1] == kept[2] != [15, 15]


# -- kernels ----------------------------------------------------------------------------------------------------------


def test_kernels_are_those_of_each_input_channel():
    views, cells, values = analysed(CONV.replace("BODY", "r = Relu (a) e = Conv (r, k, d) y = Conv (e, v, c)"))
    cell = cells["Conv_a"]
    found = views.kernels(cell, cell.producers[0])
    assert np.array_equal(found, values["w"].reshape(15, 3, 9).swapaxes(0, 1))
    views, cells, values = analysed(DENSE.replace("F", "Relu"))
    cell = cells["Gemm_a"]
    assert np.array_equal(views.kernels(cell, cell.producers[0]), values["w"].T[..., None])
    views, cells, values = analysed(ATTENTION)
    (cell,) = [cell for cell in cells.values() if cell.refusal is None]
    kernels = views.kernels(cell, cell.producers[0])
    assert np.array_equal(kernels, values["wq"].reshape(12, 6, 4))


def test_kernels_hold_all_weights_of_the_ranked_rows():
    scaled = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[12, 3, 3, 3] w, float[12] b, float[12, 1, 1] pos, float[4, 12, 1, 1] v>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w, b) m = Mul (a, pos) y = Conv (m, v) }"""
    for text in (*KINDS.values(), scaled):
        views, cells, _ = analysed(text)
        for cell in cells.values():
            if cell.refusal is not None:
                continue
            banks, skipped = coverage._banks(views, cell, Settings())
            rows = ranked_rows(views, cell)
            assert skipped == 0
            assert sum(np.square(bank).sum() for bank in banks) == pytest.approx(np.square(rows).sum())


def test_past_a_stated_amount_of_work_small_input_channels_are_left_out(monkeypatch):
    monkeypatch.setattr(coverage, "EXACT_WORK", 2 * 15**2)
    model = parse(CONV.replace("BODY", "r = Relu (a) y = Conv (r, v, c)"))
    result = slim(model, criterion="reprune-kernel")
    assert any("1 input channels with small weights were not clustered" in note for note in result.report.notes)


def test_too_many_rows_are_reported(monkeypatch):
    monkeypatch.setattr(representatives, "EXACT_ROWS", 10)
    result = slim(parse(DENSE.replace("F", "Relu")))
    assert any("too many for one clustering" in note for note in result.report.notes)


# -- several donors ---------------------------------------------------------------------------------------------------


def planted_mixture(seed: int):
    """A linear layer in which six rows are mixtures of all others."""
    rng, model = np.random.default_rng(seed), parse(DENSE.replace("F", "Identity"), seed=seed)
    values = {name: array.copy() for name, array in weights(model).items()}
    for w, b in (("w", "b"), ("k", "d")):
        gone = rng.choice(TOTAL, COPIES, replace=False)
        rest = np.setdiff1d(np.arange(TOTAL), gone)
        mix = 0.1 * rng.normal(size=(COPIES, rest.size))
        for tensor in (w, b):
            values[tensor][gone] = mix @ values[tensor][rest]
    return replace_weights(model, values)


def test_all_donors_rebuild_mixtures_exactly_where_nothing_is_between():
    model = planted_mixture(0)
    fed = feeds(model, {"N": 5}, 0)
    errors = {
        n: distance(run(model, fed), run(slim(model, criterion="l2", donors=n).model, fed)) for n in (1, 3, "all")
    }
    assert errors["all"] <= 1e-4
    assert errors[1] > 10 * errors["all"]
    several = slim(model, criterion="l2", donors=9).model  # as many as are kept
    assert distance(run(model, fed), run(several, fed)) <= 1e-4


def relu_layer(seed: int):
    views, cells, values = analysed(DENSE.replace("F", "Relu"), seed)
    options = {"criterion": "l2", "compensation": "merge"}
    kept = {"Gemm_e": choose(views, cells["Gemm_e"], 9, None, Settings(**options)).kept}
    rows = np.hstack([values["k"], values["d"][:, None]])
    x = np.random.default_rng(seed).normal(size=(20_000, rows.shape[1]))  # standard normal, as the fit has it
    return views, kept, options, np.maximum(x @ rows.T, 0), values["v"]


@pytest.mark.parametrize("seed", range(3))
def test_all_donors_are_the_least_squares_fit_behind_relu(seed):
    views, kept, options, h, v = relu_layer(seed)
    keep = kept["Gemm_e"]

    def wrong(**more):
        solved = solve(views, kept, None, Settings(**options, **more))
        (new,) = solved.weights.values()
        return np.linalg.norm(h @ v.T - h[:, keep] @ new[:, keep].T) / np.linalg.norm(h @ v.T)

    optimum = np.linalg.lstsq(h[:, keep], h @ v.T, rcond=None)[0]
    best = np.linalg.norm(h @ v.T - h[:, keep] @ optimum) / np.linalg.norm(h @ v.T)
    assert best <= wrong(donors="all") <= 1.02 * best  # 20,000 samples against their expectation
    assert wrong(donors="all") < wrong(donors=3) < wrong(donors=1)


def test_no_fit_where_a_layer_reads_the_inputs_themselves():
    """Pixels from 0 to 255 are no standard normal numbers; a single donor, and what is linear, need no spread."""
    model = parse(DENSE.replace("F", "Relu"))
    for donors, told in ((1, False), (3, True), ("all", True)):
        notes = slim(model, criterion="l2", donors=donors).report.notes
        assert any(n.startswith("Gemm_a: no merging (its layer reads the model's inputs") for n in notes) == told
        assert not any("Gemm_e" in note and "reads the model's inputs" in note for note in notes)
    moved = parse(
        DENSE.replace("F", "Relu")
        .replace("Gemm <transB = 1> (x, w, b)", "Gemm <transB = 1> (z, w, b)")
        .replace("{ a =", "{ t = Sub (x, half) z = Neg (t) a =")
        .replace("float[4] c>", "float[4] c, float half = {0.5}>")
    )
    assert any("reads the model's inputs" in note for note in slim(moved, donors="all").report.notes)


def test_donors_want_sense():
    with pytest.raises(UsageError, match="--donors 0: must be at least 1"):
        Settings(donors=0)
    with pytest.raises(UsageError, match="--donors 'few': choose a number or auto, representative, all"):
        Settings(donors="few")
    with pytest.raises(UsageError, match="only --criterion reprune"):
        Settings(donors="representative")
    with pytest.raises(UsageError, match="--device 'gpu': choose cpu, cuda, cuda:N or torch"):
        Settings(device="gpu")


def test_batchnorm_behind_a_first_layer_tells_its_spread():
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[12, 3, 1, 1] w, float[12] ga, float[12] be, float[12] me, float[12] var, float[4, 12, 1, 1] v>
    { a = Conv (x, w) n = BatchNormalization (a, ga, be, me, var) r = Relu (n) y = Conv (r, v) }"""
    assert not any("no merging" in note for note in slim(parse(text), donors="all").report.notes)
    bare = text.replace("n = BatchNormalization (a, ga, be, me, var) r = Relu (n)", "r = Relu (a)")
    assert any("no merging" in note for note in slim(parse(bare), donors="all").report.notes)


# -- what a fit by several donors has to mind, on values by hand ------------------------------------------------------

SEVERAL = [3, None]


def mixture(**more) -> tuple[Value, np.ndarray]:
    """Five channels of which the last two are known mixtures of the first three, behind a linear function."""
    rng = np.random.default_rng(7)
    rows, bias, mix = rng.normal(size=(3, 8)), rng.normal(size=3), rng.normal(size=(2, 3))
    value = Value((np.vstack([rows, mix @ rows]),), np.concatenate([bias, mix @ bias]), **more)
    return value, mix


def fitted(value: Value, count: int | None, **more) -> Donors:
    return find_donors(value, np.arange(3), np.array([3, 4]), Search(count=count, **more))


@pytest.mark.parametrize("count", SEVERAL)
def test_a_fit_finds_the_mixture(count):
    value, mix = mixture()
    assert np.allclose(fitted(value, count).share(3).toarray(), mix, atol=1e-4)


@pytest.mark.parametrize("count", SEVERAL)
def test_a_fit_of_deviations_leaves_the_bias_to_the_mean(count):
    value, mix = mixture()
    shifted = replace(value, bias=value.bias + np.array([0, 0, 0, 5.0, -5.0]))
    assert np.allclose(fitted(shifted, count, centred=True).share(3).toarray(), mix, atol=1e-4)
    assert not np.allclose(fitted(shifted, count).share(3).toarray(), mix, atol=1e-1)


@pytest.mark.parametrize("count", SEVERAL)
@pytest.mark.parametrize("centred", [False, True])
def test_a_fit_behind_relu_is_that_of_normal_inputs(count, centred):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(5, 6))
    h = np.maximum(rng.normal(size=(400_000, 6)) @ rows.T, 0)
    h = h - h.mean(0) if centred else h
    expected = np.linalg.lstsq(h[:, :3], h[:, 3:], rcond=None)[0].T
    value = Value((rows,), np.zeros(5), degree=Degree.HOMOGENEOUS, nonlinear=True)
    found = fitted(value, count, centred=centred).share(3).toarray()
    assert np.allclose(found, expected, atol=0.01)  # 400,000 samples against their expectation


@pytest.mark.parametrize("count", SEVERAL)
def test_a_fit_minds_the_tail_of_every_donor(count):
    a, c = np.array([1.0, 2.0, 0.5, 3.0, 4.0]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    value, mix = mixture(scale=a, offset=c)
    found = fitted(value, count)
    scale = mix * a[3:, None] / a[:3]
    assert np.allclose(found.share(3).toarray(), scale, atol=1e-4)
    assert np.allclose(found.offset, c[3:] - scale @ c[:3], atol=1e-4)


@pytest.mark.parametrize("count", SEVERAL)
def test_a_fit_keeps_to_the_family_and_to_whom_it_may_use(count):
    value, _ = mixture(family=np.array([0, 0, 1, 0, 2]))
    share = fitted(value, count).share(3).toarray() != 0
    assert share.tolist() == [[True, True, False], [False, False, False]]
    value, _ = mixture(barred=np.array([False, True, False, False, True]))
    share = fitted(value, count).share(3).toarray() != 0
    assert share.tolist() == [[True, False, True], [False, False, False]]


@pytest.mark.parametrize("count", SEVERAL)
def test_a_fit_has_to_correlate_as_asked(count):
    value, _ = mixture()
    value.rows[0][4] = np.random.default_rng(8).normal(size=8)  # now like nothing else
    assert fitted(value, count).found.tolist() == [True, True]
    assert fitted(value, count, threshold=0.999).found.tolist() == [True, False]


def test_linear_functions_that_keep_no_constants_are_fitted_as_linear_ones():
    model = parse(DENSE.replace("F", "Neg"), seed=0)
    values = {name: array.copy() for name, array in weights(model).items()}
    values["k"][9:], values["d"][9:] = 0.1 * np.ones((6, 9)) @ values["k"][:9], 0.1 * values["d"][:9].sum()
    model = replace_weights(model, values)
    fed = feeds(model, {"N": 5}, 0)
    result = slim(model, criterion="l2", donors="all", ratio=0.0, ratio_for="e=0.4")
    assert distance(run(model, fed), run(result.model, fed)) <= 1e-4


def test_the_mean_of_every_donor_counts():
    """x_i ~ m_i + sum s (x_j - m_j): the bias takes m_i less all of s m_j."""
    rng = np.random.default_rng(0)
    donors = Donors(np.array([[0, 2]]), np.array([[0.5, -2.0]]), np.zeros(1))
    mean = rng.normal(size=(4, 3))
    assert np.allclose(donors.share(4) @ mean, 0.5 * mean[0] - 2 * mean[2])
    views, cells, values = analysed(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
        <float[12, 3, 1, 1] w, float[12] ga, float[12] be, float[12] me, float[12] var, float[4, 12, 1, 1] v>
        { a = Conv (x, w) n = BatchNormalization (a, ga, be, me, var) r = Relu (n) y = Conv (r, v) }"""
    )
    options = Settings(criterion="l2", compensation="mean+merge", donors="all")
    kept = {"Conv_a": choose(views, cells["Conv_a"], 7, None, options).kept}
    statistics = Statistics(views, [cells["Conv_a"]], lambda wanted: {}, spread=False)
    solved = solve(views, kept, statistics, options)
    consumer = next(i for i, c in enumerate(views.analysis.consumers) if c.weight == "v")
    (columns,) = [c for c in views.columns(cells["Conv_a"]) if c.consumer == consumer]
    means = statistics.at(cells["Conv_a"], columns).mean[:, 0]
    new, old = solved.weights[consumer].reshape(4, 12), values["v"].reshape(4, 12)
    keep = kept["Conv_a"]
    # the means of all outputs are what they were
    assert np.allclose(new[:, keep] @ means[keep] + solved.biases[consumer], old @ means, atol=1e-5)


def test_a_replayed_plan_knows_its_clusters(tmp_path):
    """After `repair` gave channels back, clusters by the number of kept channels would be others."""
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[4, 3, 1, 1] w, float[12, 3, 1, 1] u, float[8, 8, 1, 1] g, float[4, 8, 1, 1] v>
    { a = Conv (x, w) b = Conv (x, u) c = Concat <axis = 1> (a, b) r = Relu (c) e = Conv <group = 2> (r, g)
      s = Relu (e) y = Conv (s, v) }"""
    clustered = 0
    for seed in range(4):
        model = parse(text, seed=seed)
        first = slim(model, ratio=0.25, ratio_for="Conv_a=0.75", threshold=-1.0, save_plan=tmp_path / "p.json")
        again = onnx.ModelProto()
        again.CopyFrom(model)
        again.doc_string = "exported anew"
        second = onnxslim_merge.slim(again, plan=tmp_path / "p.json")
        assert [cell.clusters for cell in first.plan.cells] == [cell.clusters for cell in second.plan.cells]
        clustered += sum(bool(cell.clusters) for cell in first.plan.cells)
        fed = feeds(model, {"N": 3}, seed)
        assert distance(run(first.model, fed), run(second.model, fed)) <= 1e-6
        assert not any("no donor" in note for note in second.report.notes)
    assert clustered


# -- what only the kernel form has ------------------------------------------------------------------------------------


def test_one_height_for_a_layer_gives_small_input_channels_fewer_clusters():
    kernels = np.random.default_rng(0).normal(size=(3, 20, 1)) * np.array([1.0, 0.01, 1.0])[:, None, None]
    for shape in ((3, 20, 1), (3, 20, 2)):
        bank = np.broadcast_to(kernels, shape).copy()
        bank[..., -1] += 0.001 * np.random.default_rng(1).normal(size=shape[:2])
        counts = [len(set(row)) for row in coverage._clusters(bank, 10, "layer", CPU).tolist()]
        assert max(counts) == 10
        assert counts[1] < 3
        assert [len(set(row)) for row in coverage._clusters(bank, 10, "channel", CPU).tolist()] == [10, 10, 10]


def test_cosine_divides_whole_filters():
    views, cells, _ = analysed(CONV.replace("BODY", "r = Relu (a) y = Conv (r, v, c)"))
    banks, _ = coverage._banks(views, cells["Conv_a"], Settings(geometry="cosine"))
    assert np.allclose(sum(np.square(bank).sum((0, 2)) for bank in banks), 1.0)


def test_who_comes_back_first():
    """Farthest from his centre; with kernels: who would cover most, then the larger."""
    views, cells, _ = analysed(DENSE.replace("F", "Relu"))
    for criterion in ("reprune", "reprune-kernel"):
        choice = choose(views, cells["Gemm_a"], 6, None, Settings(criterion=criterion))
        gone = np.setdiff1d(np.arange(TOTAL), choice.kept)
        assert len(set(choice.scores[gone])) == gone.size
        assert (choice.scores[gone] > 0).all()
    assert (choice.scores[gone] >= 1).any()  # whole numbers are clusters that nobody covers yet


def test_infinite_weights_do_not_stop_it():
    model = parse(DENSE.replace("F", "Relu"))
    values = {name: array.copy() for name, array in weights(model).items()}
    values["b"][3] = -np.inf  # a channel switched off
    for criterion in ("reprune", "reprune-kernel"):
        kept = slim(replace_weights(model, values), criterion=criterion, compensation="none").plan.cells[0].keep
        assert len(kept) == 9


def test_notes_of_one_kind_become_one():
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[8, 3, 1, 1] w, float[8, 1, 1, 1] k, float[8, 8, 1, 1] u, float[8, 1, 1, 1] l, float[4, 8, 1, 1] v>
    { a = Conv (x, w) b = Conv <group = 8> (a, k) c = Conv (b, u) d = Conv <group = 8> (c, l) y = Conv (d, v) }"""
    notes = [note for note in slim(parse(text), criterion="l2").report.notes if "no merging" in note]
    assert notes == ["Conv_a and 1 more: no merging (Conv_b treats each channel differently); plain removal instead"]
