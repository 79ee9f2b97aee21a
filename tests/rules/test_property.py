"""The closed world: whatever is removed from any model of `cases`, the result is exact, by our twin and by an oracle."""

from __future__ import annotations

import os
import re
from collections import Counter
from itertools import product

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rules.cases import CASES, Case
from textmodels import distance, feeds, interface, parse, run, weights

import onnxslim_merge
from onnxslim_merge.channels.registry import registered
from onnxslim_merge.model_io import load
from onnxslim_merge.plan import Mask, SlimPlan
from onnxslim_merge.prepare import prepare
from onnxslim_merge.settings import Settings
from onnxslim_merge.verify import speed

TOLERANCE = 1e-4
SEEDS = range(int(os.environ.get("RULE_SEEDS", "1")))  # more for a long search: RULE_SEEDS=20 pytest tests/rules
CRITERIA = ("l1", "l2", "l2-gm", "consumer", "impact")
COMPENSATIONS = ("none", "mean", "merge", "mean+merge")


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    """Latency is not the question here, and takes longer than everything else."""
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def model_of(case: Case, seed: int) -> onnx.ModelProto:
    return parse(case.text, opset=case.opset, ir=case.ir, seed=seed)


def slimmed_producers(plan: SlimPlan) -> set[str]:
    """The output names of the producers that lose channels."""
    return {output for cell in plan.cells if len(cell.keep) < cell.size for _, _, output in cell.producers}


@pytest.mark.parametrize(("case", "seed"), list(product(CASES, SEEDS)), ids=lambda v: v.name if isinstance(v, Case) else str(v))
def test_what_is_left_is_exact(case, seed):
    model = model_of(case, seed)
    rng = np.random.default_rng([seed, len(case.name), *case.name.encode()])
    for compensation in COMPENSATIONS:
        options = {
            "ratio": float(rng.uniform(0.2, 0.8)),
            "criterion": str(rng.choice(CRITERIA)),
            "compensation": compensation,
            "keep_batchnorm": not case.left and bool(rng.integers(2)),
        }
        result = onnxslim_merge.slim(model, **options)
        assert not [note for note in result.report.notes if "our bug" in note], options
        assert not [r.reason for r in result.report.refusals if "please report" in r.reason], options
        assert result.report.twin_max_error <= TOLERANCE, options
        assert slimmed_producers(result.plan) == set(case.slims.split()), options
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
        assert distance(run(silent, fed, optimize=False), run(small, fed)) <= TOLERANCE


def silenced(model: onnx.ModelProto, masks: tuple[Mask, ...], fed) -> onnx.ModelProto:
    """A copy of `model` with zeros in the weights, wherever `masks` say that a consumer loses channels."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = {node.name or f"{node.op_type}_{node.output[0]}": node for node in copy.graph.node}
    for index, mask in enumerate(masks):
        node = nodes[mask.node]
        slot, axis = weight_place(node, mask.slot)
        values = np.array(constant_value(model, node.input[slot], fed))
        gone = np.delete(np.arange(mask.size), mask.keep)
        np.moveaxis(values, axis, 0)[gone] = 0
        node.input[slot] = f"silenced.{index}"
        copy.graph.initializer.append(numpy_helper.from_array(values, node.input[slot]))
    return copy


def weight_place(node: onnx.NodeProto, x_slot: int) -> tuple[int, int]:
    """(slot, axis) of the weight that contracts input `x_slot`, straight from the operator's definition."""
    if node.op_type == "MatMul":
        return 1 - x_slot, x_slot
    assert x_slot == 0
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 1, int(transposed)
    return 1, {"Conv": 1, "ConvTranspose": 0}[node.op_type]


def constant_value(model: onnx.ModelProto, name: str, fed) -> np.ndarray:
    if name in (found := weights(model)):
        return found[name]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return run(copy, fed, optimize=False)[-1]


def check_refusals(case: Case, refusals) -> None:
    """Every reason that the case names is there; what nothing may be removed from has a refusal."""
    for pattern in case.refused:
        assert any(re.search(pattern, r.reason) for r in refusals), (pattern, [r.reason for r in refusals])
    assert case.slims or refusals


def test_every_registered_operator_has_a_case():
    seen = {(n.domain or "", n.op) for case in CASES for n in prepare(load(model_of(case, 0))).nodes}
    assert set(registered()) - seen == set()


def test_settings_of_this_file_are_all_there_are():
    names = Settings.__annotations__
    assert names["criterion"] == "Criterion"
    for criterion, compensation in product(CRITERIA, COMPENSATIONS):
        Settings(criterion=criterion, compensation=compensation)
