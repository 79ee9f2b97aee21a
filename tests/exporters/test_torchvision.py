"""Models as torch's two exporters really write them go through at half width."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxslim_merge

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch: make test-torch")

# A torchvision wheel built for CUDA cannot load its operators beside a CPU build of torch, and then fails on import for
# want of these two. They are never called here; the library must stay referenced.
OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torchvision = pytest.importorskip("torchvision", reason="needs torchvision: make test-torch")

SIZE = 64
CLASSES = 10


def two_convs() -> torch.nn.Module:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, CLASSES),
    )


def resnet18() -> torch.nn.Module:
    return torchvision.models.resnet18(weights=None, num_classes=CLASSES)


def mobilenet_v2() -> torch.nn.Module:
    return torchvision.models.mobilenet_v2(weights=None, num_classes=CLASSES)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Give every bias and BatchNorm values of its own, fit the statistics to noise (so that activations keep a sane
    scale), and switch to eval mode.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum = 1.0
        model.train()(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


def export_legacy(model: torch.nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.randn(1, 3, SIZE, SIZE),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
    )


def export_dynamo(model: torch.nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.randn(2, 3, SIZE, SIZE),),
        path,
        dynamo=True,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: "N"},),
        external_data=False,
        verbose=False,
    )


def parameters(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


@pytest.mark.parametrize("build", [two_convs, resnet18, mobilenet_v2])
@pytest.mark.parametrize("export", [export_legacy, export_dynamo])
def test_goes_through_at_half_width(
    build: Callable[[], torch.nn.Module], export: Callable[[torch.nn.Module, Path], None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        export(randomise(build()), path)

    result = onnxslim_merge.slim(path, ratio=0.5, compensation="none")

    onnx.checker.check_model(result.model, full_check=True)
    assert parameters(result.model) < 0.6 * parameters(onnx.load(path))
    assert result.report.twin_max_error <= 1e-4
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        (y,) = session.run(None, {"x": rng.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)})
        assert y.shape == (batch, CLASSES)
        assert np.isfinite(y).all()
