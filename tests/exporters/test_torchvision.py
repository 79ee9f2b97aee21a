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


def shufflenet() -> torch.nn.Module:
    return torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=CLASSES)


def resnext() -> torch.nn.Module:
    """Grouped convolutions, one block of each width."""
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.resnet.ResNet(block, [1, 1, 1, 1], CLASSES, groups=8, width_per_group=4)


def vit() -> torch.nn.Module:
    """Few heads, each wider than there are heads."""
    return torchvision.models.VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=192, num_classes=CLASSES
    )


def swin() -> torch.nn.Module:
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=CLASSES
    )


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Give every bias and BatchNorm values of its own, fit the statistics to noise (so that activations keep a sane
    scale), and switch to eval mode.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.min() == parameter.max():  # ViT's head starts with zeros, which would hide everything
                parameter.normal_(0, 0.2)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum = 1.0
        model.train()(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


def export_legacy(model: torch.nn.Module, path: Path) -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # this exporter knows no symbol for it
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


# What is kept of all parameters at half width. Streams that LayerNormalization averages over stay, and the width of the
# transformers' heads.
KEPT = {
    two_convs: 0.45, resnet18: 0.27, mobilenet_v2: 0.27, shufflenet: 0.35, resnext: 0.28, vit: 0.62, swin: 0.6,
}  # fmt: skip


@pytest.mark.parametrize("build", KEPT)
def test_goes_through_at_half_width(build: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    """From both exporters, to the same widths."""
    kept = [slimmed(build, export, tmp_path) for export in (export_legacy, export_dynamo)]
    assert kept[0] == pytest.approx(kept[1], abs=0.02)
    assert max(kept) <= KEPT[build]


def slimmed(
    build: Callable[[], torch.nn.Module], export: Callable[[torch.nn.Module, Path], None], folder: Path
) -> float:
    """The share of parameters kept, of a result that is checked."""
    torch.manual_seed(0)
    path = folder / f"{export.__name__}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        export(randomise(build()), path)

    result = onnxslim_merge.slim(path, ratio=0.5, compensation="none")

    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.twin_max_error <= 1e-4
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        (y,) = session.run(None, {"x": rng.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)})
        assert y.shape == (batch, CLASSES)
        assert np.isfinite(y).all()
    return result.report.parameters.after / result.report.parameters.before
