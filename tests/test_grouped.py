"""Grouped convolutions: equal counts, and criteria and compensation as of the dense convolution that they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmodels import dense, distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge
from onnxslim_merge.channels import registry

GROUPS, MEMBERS, OUTPUTS = 3, 4, 4


def model(seed: int = 0) -> onnx.ModelProto:
    """Conv a of 3 x 4 channels, grouped Conv d of 3 x 4, Conv y."""
    return parse(
        """g (float[N, 5, 6, 6] x) => (float[N, 4, P, Q] y)
        <float[12, 5, 1, 1] w, float[12] b, float[12, 4, 3, 3] k, float[12] c, float[4, 12, 1, 1] v>
        { a = Conv (x, w, b) r = Relu (a)
          d = Conv <group = 3, pads = [1, 1, 1, 1]> (r, k, c) q = Relu (d)
          y = Conv (q, v) }""",
        seed=seed,
    )


def without_groups(whole: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with a dense Conv, whose weight has zeros between groups."""
    copy = replace_weights(whole, {"k": dense(weights(whole)["k"], GROUPS)})
    next(a for n in copy.graph.node for a in n.attribute if a.name == "group").i = 1
    return copy


def changed(whole: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    values = weights(whole)[name].copy()
    change(values)
    return replace_weights(whole, {name: values})


def loud_first_half(values: np.ndarray) -> None:
    """Members 0 and 1 of each group are larger by far, in every row."""
    values.reshape(GROUPS, MEMBERS, -1)[:, 2:] *= 0.05


def kept(result, output: str) -> list[int]:
    return next(list(c.keep) for c in result.plan.cells if c.producers[0][2] == output)


def test_every_group_keeps_its_own_best():
    whole = model()
    rows = weights(whole)["w"].copy()
    loud = {0: [0, 3], 1: [1, 2], 2: [2, 3]}
    for group, members in loud.items():
        rows[[4 * group + m for m in members]] *= 10
    result = onnxslim_merge.slim(replace_weights(whole, {"w": rows}), criterion="l2", compensation="none")
    assert kept(result, "a") == [0, 3, 5, 6, 10, 11]
    assert weights(result.model)["k"].shape == (6, 2, 3, 3)
    assert result.report.twin_max_error <= 1e-4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(0.1, 0.9), st.integers(1, 3), st.sampled_from([1, 2, 6]))
def test_groups_stay_equal_whatever_is_asked(seed, ratio, least, multiple):
    """Also where --min-channels and --channel-multiple interfere: they count the channels of the whole cell."""
    options = {"min_channels": least, "channel_multiple": multiple, "compensation": "none"}
    result = onnxslim_merge.slim(model(seed), ratio=ratio, **options)
    for output in ("a", "d"):
        keep = np.array(kept(result, output))
        counts = np.bincount(keep // MEMBERS, minlength=GROUPS)
        assert (counts == counts[0]).all()
        assert keep.size >= least
        assert keep.size % np.gcd(multiple, 12) == 0 or keep.size == 12
    assert result.report.twin_max_error <= 1e-4


@pytest.mark.parametrize("criterion", ["consumer", "impact", "l1", "l2"])
@pytest.mark.parametrize("compensation", ["none", "mean", "merge", "mean+merge"])
def test_a_grouped_conv_is_treated_like_its_dense_twin(criterion, compensation, tmp_path):
    """Where the free choice of the dense model happens to be balanced, both are slimmed to the same function."""
    whole = changed(changed(model(3), "w", loud_first_half), "b", loud_first_half)
    whole = changed(changed(whole, "k", loud_first_half), "c", loud_first_half)
    whole = changed(whole, "v", lambda v: loud_first_half(v.T))
    whole = changed(whole, "k", lambda k: k.__setitem__((slice(None), slice(2, None)), 0.05 * k[:, 2:]))
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((64, 5, 6, 6)).astype(np.float32))
    options = {"ratio": 0.5, "criterion": criterion, "compensation": compensation, "calibration_data": data}
    grouped = onnxslim_merge.slim(whole, **options)
    plain = onnxslim_merge.slim(without_groups(whole), **options)
    assert kept(grouped, "a") == kept(plain, "a") == kept(grouped, "d") == [0, 1, 4, 5, 8, 9]
    if "merge" not in compensation:  # a dense Conv may take a donor of another group
        fed = feeds(whole, {"N": 3}, 1)
        assert distance(run(plain.model, fed), run(grouped.model, fed)) <= 1e-5
    assert grouped.report.twin_max_error <= 1e-4


@pytest.mark.parametrize("weight", ["w", "k"])
def test_scaled_copies_within_a_group_are_merged_exactly(weight):
    """Of inputs of the grouped Conv, and of its outputs."""
    whole = model(5)
    scale = {"w": "b", "k": "c"}

    def copies(values: np.ndarray) -> None:
        parts = values.reshape(GROUPS, MEMBERS, -1)
        parts[:, 2:] = 0.5 * parts[:, :2]

    whole = changed(changed(whole, weight, copies), scale[weight], copies)
    result = onnxslim_merge.slim(
        whole, ratio=0, ratio_for=f"^{weight}$=0.5", criterion="l2", compensation="merge", threshold=0.99
    )
    assert kept(result, {"w": "a", "k": "d"}[weight]) == [0, 1, 4, 5, 8, 9]
    fed = feeds(whole, {"N": 3}, 1)
    assert distance(run(whole, fed), run(result.model, fed)) <= 1e-5


def test_rows_of_different_groups_are_no_donors():
    """They read different inputs, so equal weights make different channels."""
    whole = model(7)

    def copies(values: np.ndarray) -> None:
        parts = values.reshape(GROUPS, OUTPUTS, -1)
        parts[1], parts[2] = parts[0], parts[0]

    whole = changed(changed(whole, "k", copies), "c", copies)
    result = onnxslim_merge.slim(
        whole, ratio=0, ratio_for="^k$=0.5", criterion="l2", compensation="merge", threshold=0.999
    )
    assert [note for note in result.report.notes if "6 of 6 removed channels have no donor" in note]


def test_groups_that_overlap_get_channels_back():
    """A shuffle whose members are no multiple of the groups behind it: what is given back keeps all groups equal."""
    whole = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
        <float[12, 3, 1, 1] w, int64[5] cut = {0, 3, 4, 6, 6}, int64[4] join = {0, -1, 6, 6},
         float[12, 4, 3, 3] k, float[4, 12, 1, 1] v>
        { a = Conv (x, w) s0 = Reshape (a, cut) s1 = Transpose <perm = [0, 2, 1, 3, 4]> (s0) s = Reshape (s1, join)
          d = Conv <group = 3, pads = [1, 1, 1, 1]> (s, k) y = Conv (d, v) }"""
    )
    result = onnxslim_merge.slim(whole, ratio=0.5, compensation="none")
    assert result.report.twin_max_error <= 1e-4
    assert kept(result, "d") != list(range(12))
    whole_cells = [g for g in result.report.groups if g.channels_after == g.channels_before]
    assert all(g.reason for g in whole_cells)


def test_groups_of_two_sizes_keep_equally_many_of_both():
    """24 channels that one Conv makes in 2 groups and the next reads in 3: parts of 4 fit both."""
    whole = parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, P, Q] y)
        <float[24, 2, 1, 1] w, float[12, 8, 3, 3] k, float[4, 12, 1, 1] v>
        { a = Conv <group = 2> (x, w) r = Relu (a) d = Conv <group = 3, pads = [1, 1, 1, 1]> (r, k) y = Conv (d, v) }"""
    )
    result = onnxslim_merge.slim(whole, ratio=0.5, compensation="none")
    keep = np.array(kept(result, "a"))
    assert np.bincount(keep // 12).tolist() == [6, 6]
    assert np.bincount(keep // 8).tolist() == [4, 4, 4]


def test_sizes_without_a_common_part_leave_what_one_of_them_allows():
    """15 channels in 3 and in 5 groups: no part of two channels fits both, but a choice may be found all the same."""
    whole = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y, float[N, 4, P, Q] z)
        <float[15, 3, 1, 1] w, float[6, 5, 1, 1] k, float[5, 3, 1, 1] k2, float[4, 6, 1, 1] v, float[4, 5, 1, 1] v2>
        { a = Conv (x, w) d = Conv <group = 3> (a, k) y = Conv (d, v) e = Conv <group = 5> (a, k2) z = Conv (e, v2) }"""
    )
    result = onnxslim_merge.slim(whole, ratio=0.4, compensation="none")
    assert result.report.twin_max_error <= 1e-4
    keep = np.array(kept(result, "a"))
    assert len(set(np.bincount(keep // 5, minlength=3))) == len(set(np.bincount(keep // 3, minlength=5))) == 1


def test_a_shuffled_cell_is_cut_by_the_groups_behind_it():
    """Each member lies twice in one group of the next Conv, once for each group in front of it."""
    whole = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y)
        <float[16, 3, 1, 1] w, int64[5] cut = {0, 2, 8, 6, 6}, int64[4] join = {0, -1, 6, 6},
         float[16, 8, 3, 3] k, float[4, 16, 1, 1] v>
        { a = Conv (x, w) s0 = Reshape (a, cut) s1 = Transpose <perm = [0, 2, 1, 3, 4]> (s0) s = Reshape (s1, join)
          d = Conv <group = 2, pads = [1, 1, 1, 1]> (s, k) y = Conv (d, v) }"""
    )
    result = onnxslim_merge.slim(whole, ratio=0.5, compensation="none")
    assert len(kept(result, "a")) == 4
    assert len([m for m in kept(result, "a") if m < 4]) == 2


def test_a_multiple_counts_what_a_channel_is_wide():
    """Of heads that are 6 wide, two are 12 channels, a multiple of 4: no need to keep four heads."""
    from rules import cases_transformer  # noqa: F401 - adds to CASES
    from rules.cases import CASES

    case = next(c for c in CASES if c.name == "attention")
    result = onnxslim_merge.slim(parse(case.text), ratio=0.5, compensation="none", channel_multiple=4)
    assert len(kept(result, "q0")) == 2


def test_a_guilty_cell_beside_a_group_is_found(monkeypatch):
    """While the culprit is searched, cells are tried without their neighbours: groups must stay equal then, too."""

    def passes(c):
        c.give(list(c.labels(0)))
        c.flow("private", [0])

    monkeypatch.setitem(registry._RULES, ("", "CumSum"), passes)
    whole = parse(
        """g (float[N, 3, 4, 4] x) => (float[N, 4, P, Q] y, float[N, 4, P, Q] z)
        <float[6, 3, 1, 1] w, float[6] b, float[10, 3, 1, 1] w2, float[10] b2, float[12, 8, 1, 1] k, float[12] b1,
         float[4, 12, 1, 1] v, float[4, 10, 1, 1] v2, int64 one = {1}>
        { a = Conv (x, w, b) e = Conv (x, w2, b2) j = Concat <axis = 1> (a, e) d = Conv <group = 2> (j, k, b1)
          y = Conv (d, v) s = CumSum (e, one) z = Conv (s, v2) }"""
    )
    result = onnxslim_merge.slim(whole, ratio=0.5, compensation="none")
    assert [note for note in result.report.notes if note.startswith("Conv_e") and "our bug" in note]
    assert kept(result, "e") == list(range(10))
    assert len(kept(result, "d")) == 6
    assert result.report.twin_max_error <= 1e-4
