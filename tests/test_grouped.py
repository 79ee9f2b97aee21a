"""Grouped convolutions: equal counts, and criteria and compensation as of the dense convolution that they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmodels import dense, distance, feeds, parse, replace_weights, run, weights

import onnxslim_merge

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
