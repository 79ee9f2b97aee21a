"""The closed world: whatever is removed from a model of `cases`, the result is exact, by our twin and by an oracle."""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from textmodels import distance, feeds, interface, parse, replace_weights, run, silenced, weights

import onnxslim_merge
from onnxslim_merge import sampling
from onnxslim_merge.channels import registry
from onnxslim_merge.channels.labels import along, reshape
from onnxslim_merge.channels.registry import registered
from onnxslim_merge.model_io import load
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.prepare import prepare
from onnxslim_merge.settings import Compensation, Criterion
from onnxslim_merge.verify import speed
from rules.cases import CASES, Case

for _file in sorted(Path(__file__).parent.glob("cases_*.py")):  # each adds its cases to CASES
    importlib.import_module(f"rules.{_file.stem}")

TOLERANCE = 1e-4
SEEDS = range(int(os.environ.get("RULE_SEEDS", "1")))  # for a long search: RULE_SEEDS=20 pytest tests/rules -n 2
CRITERIA = ("l1", "l2", "l2-gm", "consumer", "impact", "reprune", "reprune-kernel", "greedy")
COMPENSATIONS = ("none", "mean", "merge", "mean+merge", "least-squares")


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    """Latency is not the question here, and takes longer than everything else."""
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    monkeypatch.setattr(sampling, "FITTED", (16, 16))  # nor how well least squares do


def model_of(case: Case, seed: int) -> onnx.ModelProto:
    return parse(case.text, opset=case.opset, ir=case.ir, seed=seed)


def slimmed_producers(plan: SlimPlan) -> set[str]:
    """The output names of the producers that lose channels."""
    return {output for cell in plan.cells if len(cell.keep) < cell.size for _, _, output in cell.producers}


@pytest.mark.parametrize(
    ("case", "seed"), list(product(CASES, SEEDS)), ids=lambda v: v.name if isinstance(v, Case) else str(v)
)
def test_what_is_left_is_exact(case, seed):
    model = model_of(case, seed)
    rng = np.random.default_rng([seed, len(case.name), *case.name.encode()])
    # plain removal always; the other four take turns from case to case, and from seed to seed
    for compensation in (COMPENSATIONS[0], COMPENSATIONS[1 + (CASES.index(case) + seed) % 4]):
        options = {
            "ratio": float(rng.uniform(0.2, 0.8)),
            "criterion": str(rng.choice(CRITERIA)),
            "compensation": compensation,
            "keep_batchnorm": not case.left and bool(rng.integers(2)),
        }
        if "merge" in compensation:
            options["donors"] = ("auto", "all", 2)[rng.integers(3)]
        result = onnxslim_merge.slim(model, **options)
        assert not [note for note in result.report.notes if "our bug" in note], options
        assert not [r.reason for r in result.report.refusals if "please report" in r.reason], options
        assert result.report.twin_max_error <= TOLERANCE, options
        assert slimmed_producers(result.plan) == set(case.slims.split()), options
        assert all(cell.reason for cell in result.plan.cells if len(cell.keep) == cell.size), options
        check_model(case, model, result.model, seed)
        if compensation == "none":
            assert not case.slims or elements(result.model) < elements(model)
            check_oracle(case, model, result.plan, result.model, seed)
    check_refusals(case, result.report.refusals)


def check_model(case: Case, model: onnx.ModelProto, small: onnx.ModelProto, seed: int) -> None:
    """It is a valid model with the same interface, is smaller where it should be, and runs at every size."""
    onnx.checker.check_model(small, full_check=True)
    assert interface(small) == interface(model)
    for sizes in case.sizes:
        assert all(np.isfinite(a).all() for a in run(small, feeds(model, sizes, seed)))
    found = Counter(node.op_type for node in small.graph.node)
    assert {op: found[op] for op in case.left} == dict(case.left)


def elements(model: onnx.ModelProto) -> int:
    """Of all initializers. Merging may grow them: what two nodes shared, each then has for itself."""
    return sum(array.size for array in weights(model).values())


def check_oracle(case: Case, model: onnx.ModelProto, plan: SlimPlan, small: onnx.ModelProto, seed: int) -> None:
    """Plain removal equals the original file in which the consumers' columns of removed channels are zero."""
    for sizes in case.sizes:
        fed = feeds(model, sizes, seed)
        silent = silenced(model, plan.masks, fed)
        # fused with a product, DequantizeLinear makes ONNX Runtime round activations too
        plain = "uantizeLinear" in case.text
        assert distance(run(silent, fed, optimize=False), run(small, fed, optimize=not plain)) <= TOLERANCE


def check_refusals(case: Case, refusals) -> None:
    """Every reason that the case names is there; what nothing may be removed from has a refusal."""
    for pattern in case.refused:
        assert any(re.search(pattern, r.reason) for r in refusals), (pattern, [r.reason for r in refusals])
    assert case.slims or refusals


def test_every_registered_operator_has_a_case():
    seen = {(n.domain or "", n.op) for case in CASES for n in prepare(load(model_of(case, 0))).nodes}
    assert set(registered()) - seen == set()


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("attention")], ids=lambda c: c.name)
def test_attention_loses_whole_heads(case):
    """The width of a head, which 1 / sqrt(d) belongs to, never changes."""
    model = model_of(case, 0)
    heads = next((a.i for n in model.graph.node for a in n.attribute if "num_heads" in a.name), None)
    if heads is not None or "root" not in weights(model) or "one_head" in case.name:
        pytest.skip("fused, without a scale, or without heads: its own case says what leaves")
    small = onnxslim_merge.slim(model, ratio=0.5, compensation="none").model
    shapes = [dict(_shapes(m, feeds(model, case.sizes[1]))) for m in (model, small)]
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    scores = next(n for n in small.graph.node if n.op_type == "MatMul" and len(shapes[1][n.output[0]]) == 4)
    assert shapes[1][scores.input[0]][-1] == shapes[0][scores.input[0]][-1]
    before, after = (s[softmax.output[0]][1] for s in shapes)
    assert after == (4 if "grouped_query" in case.name else int(before * 0.5 + 0.5))  # 2 of 3 key-value heads


def _shapes(model: onnx.ModelProto, fed):
    names = [output for node in model.graph.node for output in node.output]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n != "y")
    return zip([o.name for o in copy.graph.output], (a.shape for a in run(copy, fed, optimize=False)), strict=True)


def test_every_criterion_and_compensation_takes_part():
    assert {*CRITERIA, "auto"} == set(get_args(Criterion))  # auto: one of two of them
    assert {*COMPENSATIONS, "auto"} == set(get_args(Compensation))  # auto: mean where it is known


def test_a_part_never_loses_all_its_channels():
    """A Conv without input channels is no Conv: the best channel of a part comes back."""
    model = model_of(next(case for case in CASES if case.name == "split_uneven"), 0)  # 3 and 7 channels
    rows = weights(model)["w"].copy()
    rows[:3] *= [[[[1e-3]]], [[[3e-3]]], [[[2e-3]]]]
    bias = weights(model)["b"].copy()
    bias[:3] = 0
    result = onnxslim_merge.slim(replace_weights(model, {"w": rows, "b": bias}), ratio=0.5, criterion="l2")
    kept = result.plan.cells[0].keep
    norms = np.linalg.norm(np.hstack([rows.reshape(10, -1), bias[:, None]]), axis=1)
    assert set(kept) == {int(np.argmax(norms[:3])), *np.argsort(norms)[-5:].tolist()}
    assert len(kept) == 6


# Rules that are wrong on purpose: the twin must notice, the guilty layer is found and kept whole, the rest is slimmed.


def flatten_with_tile(c):
    ids = c.axis_labels(0, 1)
    c.give([along(np.tile(ids, c.out_shape()[1] // ids.size), 1, 2)])
    c.flow("move", [0])


def passes_through(c):
    c.give(list(c.labels(0)))
    c.flow("private", [0])


def conv_without_its_bias(c):
    c.axes("n i *, o i * -> n o *")
    bias = c.bias(2, 1, vector=True)
    c.produces(1, 0, bias)
    c.consumes((0, 1), (1, 1, 0), bias)


def concat_the_other_way_round(c):
    parts = [c.axis_labels(slot, 1) for slot in range(len(c.node.inputs))]
    c.give([along(np.concatenate(parts[::-1]), 1, len(c.out_shape()))])
    c.flow("move", [0, 1])


def reshape_without_its_count(c):
    c.give([reshape(a, c.shape(0), c.out_shape()) for a in c.labels(0)])
    c.flow("move", [0])


def add_that_unites_nothing(c):
    c.give(list(c.labels(0)))
    c.flow("private", [0])


# `body` leads from e to u, 10 channels; behind it stands either a Conv or, with a flattened u of 40, a Gemm
BROKEN = {
    "Flatten": (flatten_with_tile, "u = Flatten (e)", "y = Gemm (u, f)"),
    "Softmax": (passes_through, "u = Softmax <axis = 1> (e)", "y = Conv (u, v)"),
    "ReduceL2": (passes_through, "n = ReduceL2 <axes = [1]> (e) u = Div (e, n)", "y = Conv (u, v)"),
    "InstanceNormalization": (
        passes_through,
        """t = Transpose <perm = [0, 2, 1, 3]> (e)
           n = InstanceNormalization (t, two, two)
           u = Transpose <perm = [0, 2, 1, 3]> (n)""",
        "y = Conv (u, v)",
    ),
    "CumSum": (passes_through, "u = CumSum (e, one)", "y = Conv (u, v)"),
    "Concat": (
        concat_the_other_way_round,
        "s = Conv (r, k2) j = Concat <axis = 1> (e, s) u = Relu (j)",
        "y = Conv (u, vv)",
    ),
    "Reshape": (reshape_without_its_count, "u = Reshape (e, to)", "y = Conv (u, v)"),
    "Add": (add_that_unites_nothing, "s = Conv (r, k2) u = Add (e, s)", "y = Conv (u, v)"),
    "Gather": (passes_through, "u = Gather <axis = 1> (e, turned)", "y = Conv (u, v)"),
}


@pytest.mark.parametrize("op", BROKEN)
def test_the_twin_catches_a_wrong_rule(op, monkeypatch):
    wrong, body, last = BROKEN[op]
    monkeypatch.setitem(registry._RULES, ("", op), wrong)
    model = parse(
        f"""g (float[N, 3, 2, 2] x) => (float[{"N, 4" if "Gemm" in last else "N, 4, P, Q"}] y)
        <float[8, 3, 1, 1] w, float[8] b, float[10, 8, 1, 1] k, float[10] d, float[10, 8, 1, 1] k2,
         float[4, 10, 1, 1] v, float[4, 20, 1, 1] vv, float[40, 4] f, float[2] two, int64 one = {{1}},
         int64[4] to = {{-1, 10, 2, 2}}, int64[10] turned = {{9, 8, 7, 6, 5, 4, 3, 2, 1, 0}}>
        {{ a = Conv (x, w, b)
           r = Relu (a)
           e = Conv (r, k, d)
           {body}
           {last} }}"""
    )
    result = onnxslim_merge.slim(model, compensation="none", criterion="l2")
    assert [note for note in result.report.notes if note.startswith("Conv_e") and "our bug" in note]
    assert slimmed_producers(result.plan) == {"a"}
    assert result.report.twin_max_error <= TOLERANCE


def test_the_twin_catches_a_conv_that_forgets_its_bias(monkeypatch):
    monkeypatch.setitem(registry._RULES, ("", "Conv"), conv_without_its_bias)
    model = model_of(next(case for case in CASES if case.name == "conv_2d_asymmetric"), 0)  # its Conv a has no bias
    assert slimmed_producers(onnxslim_merge.slim(model).plan) == {"a"}
    model = model_of(next(case for case in CASES if case.name == "relu"), 0)
    result = onnxslim_merge.slim(model)
    assert [note for note in result.report.notes if note.startswith("Conv_a") and "our bug" in note]
    assert slimmed_producers(result.plan) == set()
