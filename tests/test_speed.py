"""Interleaved timing; no test here depends on how fast anything is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim_merge.errors import VerifyError
from onnxslim_merge.runtime import CPU, CUDA
from onnxslim_merge.verify import speed
from onnxslim_merge.verify.speed import interleaved, measure, ratio_interval

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
BEFORE = onnx.parser.parse_model(HEADER + "g (float[N] x) => (float[N] y) { a = Sin (x)  b = Cos (a)  y = Exp (b) }")
AFTER = onnx.parser.parse_model(HEADER + "g (float[N] x) => (float[N] y) { a = Sin (x)  y = Cos (a) }")
FEED = {"x": np.ones(4, np.float32)}


class FakeRunner:
    """A session on a machine with one GPU that takes no integers: `x` of int64 leaves all nodes to the CPU."""

    def __init__(self, model, *, providers, **keywords):
        self.nodes = {providers[0]: 2} if model.graph.input[0].type.tensor_type.elem_type == 1 else {CPU: 2}
        assert keywords["tf32"]
        assert providers[-1] == CPU

    def run(self, feeds):
        return {}

    def nodes_per_provider(self):
        return self.nodes


def test_measures_both_models_and_counts_their_nodes(tmp_path):
    onnx.save(AFTER, tmp_path / "after.onnx")
    (result,) = measure(BEFORE, tmp_path / "after.onnx", FEED, (CPU, CPU), min_pairs=7, budget_s=0)
    assert (result.provider, result.requested, result.pairs) == (CPU, CPU, 7)
    assert (result.nodes_before, result.nodes_after) == ({CPU: 3}, {CPU: 2})
    assert result.before_ms > 0
    assert result.speedup == pytest.approx(result.before_ms / result.after_ms)
    assert 0 < result.speedup_low <= result.speedup_high


def test_each_provider_gets_a_row(monkeypatch):
    monkeypatch.setattr(speed, "Runner", FakeRunner)
    results = measure(BEFORE, AFTER, FEED, (CUDA, CPU), min_pairs=2, budget_s=0)
    assert [(r.provider, r.requested) for r in results] == [(CUDA, CUDA), (CPU, CPU)]
    assert [r.nodes_before for r in results] == [{CUDA: 2}, {CPU: 2}]


def test_never_claims_a_provider_that_ran_nothing(monkeypatch):
    monkeypatch.setattr(speed, "Runner", FakeRunner)
    integers = onnx.parser.parse_model(HEADER + "g (int64[N] x) => (int64[N] y) { y = Abs (x) }")
    (result,) = measure(integers, integers, FEED, (CUDA,), min_pairs=2, budget_s=0)
    assert (result.provider, result.requested) == (CPU, CUDA)
    (result,) = measure(integers, integers, FEED, (CUDA, CPU), min_pairs=2, budget_s=0)
    assert (result.provider, result.requested) == (CPU, CPU)
    (result,) = measure(BEFORE, integers, FEED, (CUDA,), min_pairs=2, budget_s=0)
    assert (result.provider, result.requested) == (CPU, CUDA)  # the slimmed model lost its node there


def test_a_model_without_any_kernel_left_is_measured():
    constant = onnx.parser.parse_model(HEADER + "g (float[1] x) => (float[1] y) <float[1] c = {2}> { y = Neg (c) }")
    (result,) = measure(constant, constant, {"x": np.ones(1, np.float32)}, (CPU,), min_pairs=2, budget_s=0)
    assert (result.provider, result.nodes_after) == (CPU, {})


def test_a_model_that_fails_is_named():
    broken = onnx.parser.parse_model(HEADER + "g (float[N] x) => (float[N] y) { y = Nonsense (x) }")
    with pytest.raises(VerifyError, match="the slimmed model does not load"):
        measure(BEFORE, broken, FEED, (CPU,), min_pairs=1, budget_s=0)


def test_pairs_are_interleaved_in_seeded_random_order():
    def order(seed):
        log = []
        seconds = interleaved([lambda: log.append(0), lambda: log.append(1)], min_pairs=40, budget_s=0, seed=seed)
        assert seconds.shape == (40, 2)
        assert (seconds >= 0).all()
        return np.array(log).reshape(40, 2)

    first = order(1)
    assert (first.sum(axis=1) == 1).all()  # each pair runs each task once
    assert 0 < first[:, 0].sum() < 40  # and neither always goes first
    np.testing.assert_array_equal(first, order(1))
    assert not np.array_equal(first, order(2))


def test_times_belong_to_their_task(monkeypatch):
    clock = 0.0

    def run(seconds):
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock)
    seconds = interleaved([lambda: run(2.0), lambda: run(0.5)], min_pairs=3, budget_s=20, seed=0)
    np.testing.assert_allclose(seconds, [[2.0, 0.5]] * 8)  # 8 pairs of 2.5 s fill 20 s
    assert len(interleaved([lambda: run(4.0)], min_pairs=15, budget_s=1, seed=0)) == 5  # very slow: ten seconds, then 5
    assert len(interleaved([lambda: run(2.0)], min_pairs=3, budget_s=1, seed=0)) == 3


@settings(max_examples=20)
@given(ratio=st.floats(0.1, 10), noise=st.floats(0.001, 0.2))
def test_interval_holds_the_ratio_and_shrinks_with_pairs(ratio, noise):
    rng = np.random.default_rng(0)
    seconds = np.exp(noise * rng.standard_normal((400, 2))) * [ratio, 1.0]
    low, high = ratio_interval(seconds, seed=0)
    few_low, few_high = ratio_interval(seconds[:10], seed=0)
    middle = np.median(seconds[:, 0]) / np.median(seconds[:, 1])
    assert low <= middle <= high
    assert high - low < few_high - few_low
    assert low * (1 - noise) < ratio < high * (1 + noise)
