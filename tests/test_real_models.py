"""Real exported files of ../shared: the cells of ResNet-20, the paper's own table, and fifteen files end to end."""

from __future__ import annotations

import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path

import onnx
import pytest
from textmodels import interface

import onnxslim_merge
from onnxslim_merge.verify import speed

SHARED = Path(__file__).resolve().parents[2] / "shared"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the models and data of ../shared are not here"),
]


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


def test_cells_of_resnet20():
    """Padded shortcuts make one group of 64 labels and three cells: 16 on ten producers, 16 on six, 32 on three."""
    analysis = onnxslim_merge.analyse(SHARED / "models" / "resnet20_cifar10_bn_op13.onnx")
    free = [cell for cell in analysis.cells if cell.refusal is None]
    inner = [cell for cell in free if cell.inner]
    assert sorted((c.size, len(c.producers)) for c in free if not c.inner) == [(16, 6), (16, 10), (32, 3)]
    assert sorted((c.size, len(c.producers)) for c in inner) == [(16, 1)] * 3 + [(32, 1)] * 3 + [(64, 1)] * 3
    assert [(c.size, c.refusal.reason) for c in analysis.cells if c.refusal] == [(10, "graph output")]


@cache
def score():
    """The functions of ../shared/score.py."""
    spec = importlib.util.spec_from_file_location("score", SHARED / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def fashion():
    raw, labels = score().images("fashion", "test", None)
    return score().prepare("fashion", raw), labels


# Kim et al., NeurIPS 2020, table 2 (l1, l2), reproduced; l2-gm from a sketch of ours. (prune, merge)
PAPER = {
    ("l1", 0.5): (88.40, 88.69),
    ("l2", 0.5): (87.86, 88.38),
    ("l2-gm", 0.5): (88.08, 88.57),
    ("l1", 0.8): (66.76, 80.02),
}


@pytest.mark.parametrize(("criterion", "ratio"), PAPER)
def test_the_papers_table_on_the_authors_checkpoint(criterion, ratio, tmp_path):
    for compensation, expected in zip(("none", "merge"), PAPER[criterion, ratio], strict=True):
        path, options = tmp_path / f"{compensation}.onnx", {}
        if compensation == "merge":
            options["threshold"] = 0.45
        onnxslim_merge.slim(
            SHARED / "models" / "lenet300_100_fashionmnist.onnx",
            path,
            criterion=criterion,
            ratio=ratio,
            compensation=compensation,
            **options,
        )
        assert score().accuracy(str(path), *fashion()) == pytest.approx(expected, abs=0.05)


# file: the largest share of parameters that may be left at ratio 0.3, all cells
FILES = {
    "resnet20_cifar10_bn_op13": 0.56,
    "resnet20_cifar10_folded_op17": 0.56,
    "resnet20_cifar10_dynamo": 0.56,
    "resnet20_cifar10_fp16_op17": 0.56,
    "densenet_jw_cifar10_bn": 0.54,
    "vgglike_cifar10_tf2onnx": 0.52,
    "resnet8_cifar10_tf2onnx": 0.51,
    "efficientnet_lite0_imagenet_bn": 0.59,
    "wide/mtcnn_pnet": 0.6,
    "wide/mtcnn_rnet": 0.6,
    "wide/mtcnn_onet": 0.6,
    "wide/super_resolution_espcn": 0.6,
    "wide/mnist8_cntk": 0.65,
    "wide/ultraface_slim320": 0.65,
    "wide/ppocr_v2_cls": 0.6,
}


@pytest.mark.parametrize("name", FILES)
def test_real_files_go_through(name):
    path = SHARED / "models" / f"{name}.onnx"
    result = onnxslim_merge.slim(path, ratio=0.3, criterion="l2", compensation="merge")
    assert result.report.twin_max_error <= 1e-4
    assert not [note for note in result.report.notes if "our bug" in note]
    assert not [r for r in result.report.refusals if "please report" in r.reason]
    assert result.report.parameters.after / result.report.parameters.before <= FILES[name]
    onnx.checker.check_model(result.model, full_check=True)
    original = onnx.load(path)
    if original.ir_version >= 4 and len(original.graph.input) == len(result.model.graph.input):
        assert interface(result.model) == interface(original)
    assert [o.name for o in result.model.graph.output] == [o.name for o in original.graph.output]


@pytest.mark.parametrize("name", ["efficientnet_lite0_imagenet_bn", "densenet_jw_cifar10_bn"])
def test_batchnorm_is_folded_wherever_it_stands_behind_a_conv(name):
    result = onnxslim_merge.slim(
        SHARED / "models" / f"{name}.onnx", ratio=0.3, criterion="l2", compensation="none", scope="inner"
    )
    makers = {output: node for node in result.model.graph.node for output in node.output}
    reads = Counter(name for node in result.model.graph.node for name in node.input)
    left = [n.input[0] for n in result.model.graph.node if n.op_type == "BatchNormalization" and reads[n.input[0]] == 1]
    assert [makers[tensor].name for tensor in left if makers[tensor].op_type == "Conv"] == []
