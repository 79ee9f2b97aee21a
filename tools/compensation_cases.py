"""What tools/compensation.py measures: methods, models and amounts, and the models that are made on the fly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxslim_merge import slim
from onnxslim_merge.files import write_atomically
from onnxslim_merge.settings import RatioRule
from paper_tables import PAPER_VGG

BLIND, SEEING = "no data", "images"  # modes
MODES = (BLIND, SEEING)
IMAGES = 512  # the first of the calibration images are given to methods; agreement is measured on the others
GROWTH_RATIO = 0.5
WIDTHS = (16, 32, 64)  # of the networks that are made on the fly


@dataclass(frozen=True, slots=True)
class Method:
    """Options of a run. modes: those in which it can give different results; tier: 0 is measured first."""

    options: dict[str, Any]
    tier: int
    modes: tuple[str, ...] = MODES


METHODS = {
    "greedy": Method({"criterion": "greedy", "compensation": "least-squares"}, 0),
    "least-squares": Method({"criterion": "consumer", "compensation": "least-squares"}, 1),
    "auto": Method({}, 1, (BLIND,)),  # with images it is `greedy`
    "merge, all": Method({"compensation": "merge", "donors": "all"}, 1, (BLIND,)),
    "none": Method({"compensation": "none"}, 2, (BLIND,)),
    "mean": Method({"compensation": "mean"}, 2),
    "merge": Method({"compensation": "merge"}, 2, (BLIND,)),
}  # the criterion is `consumer`, which looks at no data, where it is not named
TIERS = sorted({method.tier for method in METHODS.values()})


@dataclass(frozen=True, slots=True)
class Column:
    """One amount. model, images: instead of the case's."""

    options: dict[str, Any]
    model: str = ""
    images: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One model at several amounts, the most telling first.

    model: a file of SHARED, "folded:NAME" or "deep:LAYERS". task: of score.py. methods: () = all.
    images: how many calibration images methods may see. scored: whether the result is run on the test set.
    """

    model: str
    task: str
    columns: Mapping[str, Column]
    images: int = IMAGES
    modes: tuple[str, ...] = MODES
    methods: tuple[str, ...] = ()
    scored: bool = True

    def wants(self, method: str, mode: str) -> bool:
        """Whether a method is measured here, in this mode."""
        return method in (self.methods or METHODS) and mode in self.modes and mode in METHODS[method].modes


def _ratios(*ratios: float, **options: Any) -> dict[str, Column]:
    return {f"{ratio:g}": Column({"ratio": ratio} | options) for ratio in ratios}


def _only(pattern: str, *ratios: float) -> dict[str, Column]:
    """Only layers with such names."""
    return {f"{r:g}": Column({"ratio": 0.0, "ratio_for": (RatioRule(pattern, r),)}) for r in ratios}


PAPER = {"paper": Column({"ratio": 0.0, "ratio_for": tuple(map(RatioRule.parse, PAPER_VGG))})}
VGG, RESNET, EFFICIENTNET = "vgg16_cifar10_bn", "resnet20_cifar10_bn_op13", "efficientnet_lite0_imagenet_bn"
PHOTOGRAPHS = 128  # for calibration; there are no others
INNER = {"scope": "inner"}
GROWN = {"ratio": GROWTH_RATIO, "scope": "inner"}
FITTED = ("least-squares", "greedy")

CASES = {
    "vgg16 paper": Case(VGG, "cifar10-b", PAPER),
    "vgg16 folded paper": Case(f"folded:{VGG}", "cifar10-b", PAPER, modes=(BLIND,)),
    "resnet20 bn inner": Case(RESNET, "cifar10-a", _ratios(0.3, 0.5, 0.2, **INNER)),
    "resnet20 folded inner": Case("resnet20_cifar10_folded_op17", "cifar10-a", _ratios(0.3, 0.5, 0.2, **INNER)),
    "lenet": Case("lenet300_100_fashionmnist", "fashion", _ratios(0.5, 0.8, 0.7, 0.6)),
    "resnet20 bn all": Case(RESNET, "cifar10-a", _ratios(0.3, 0.5, 0.2)),
    "resnet8": Case("resnet8_cifar10_tf2onnx", "cifar10-raw", _ratios(0.3, 0.5, 0.2)),
    "vgglike": Case("vgglike_cifar10_tf2onnx", "cifar10-raw", _ratios(0.3, 0.5, 0.2)),
    "vgglike dense": Case("vgglike_cifar10_tf2onnx", "cifar10-raw", _only("dense", 0.3, 0.5, 0.7)),  # as onnxsim does
    "densenet inner": Case("densenet_jw_cifar10_bn", "cifar10-b", _ratios(0.3, 0.5, 0.2, **INNER)),
    "densenet all": Case("densenet_jw_cifar10_bn", "cifar10-b", _ratios(0.3, 0.5, 0.2)),
    "efficientnet inner": Case(EFFICIENTNET, "imagenet", _ratios(0.2, 0.3, 0.1, **INNER), PHOTOGRAPHS),
    "efficientnet all": Case(EFFICIENTNET, "imagenet", _ratios(0.2, 0.3, 0.1), PHOTOGRAPHS),
    "vgg16": Case(VGG, "cifar10-b", _only("features", 0.3, 0.5, 0.1, 0.2, 0.4)),
    "growth, images": Case(
        RESNET, "cifar10-a", {f"{n}": Column(GROWN, images=n) for n in (64, 128, 256, 512, 1024)},
        modes=(SEEING,), methods=FITTED, scored=False,
    ),
    "growth at 256 MiB, images": Case(
        RESNET, "cifar10-a", {f"{n}": Column(GROWN | {"memory_limit": "256MiB"}, images=n) for n in (64, 256, 1024)},
        modes=(SEEING,), methods=FITTED, scored=False,
    ),
    "growth, layers": Case(
        "deep:8", "cifar10-a", {f"{n}": Column(GROWN, f"deep:{n}") for n in (8, 20, 32, 56)}, 128,
        modes=(SEEING,), methods=FITTED, scored=False,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where the inputs of measurements lie: the folder of the developers, and one for what is made of it."""

    shared: Path
    cache: Path

    def model(self, name: str) -> Path:
        """The file of a case, made if need be."""
        kind, _, rest = name.rpartition(":")
        if not kind:
            return self.shared / "models" / f"{name}.onnx"
        path = self.cache / f"{kind} {rest}.onnx"
        if not path.exists():
            made = deep(int(rest)) if kind == "deep" else folded(self.model(rest))
            write_atomically(path, made.SerializeToString())
        return path


def folded(path: Path) -> onnx.ModelProto:
    """The file with BatchNormalization folded, as slimming at ratio 0 leaves it."""
    model = slim(path, ratio=0.0, compensation="none").model
    assert model is not None
    del model.metadata_props[:]
    return model


@dataclass(slots=True)
class _Net:
    """A graph that grows node by node, with random weights."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One more node; returns its output."""
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, *shape: int) -> str:
        """One more constant, of such a size that activations neither vanish nor explode."""
        values = self.rng.standard_normal(shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))
        return self._constant(values)

    def bias(self, size: int) -> str:
        """Small numbers."""
        return self._constant(0.1 * self.rng.standard_normal(size))

    def _constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, size: tuple[int, int], kernel: int, stride: int) -> str:
        """(outputs, inputs) = size."""
        pads, shape = [kernel // 2] * 4, (*size, kernel, kernel)
        return self.add("Conv", x, self.weight(*shape), self.bias(size[0]), pads=pads, strides=[stride] * 2)

    def block(self, x: str, size: tuple[int, int], stride: int) -> str:
        """Two convolutions beside a shortcut, which has one of its own where sizes change; half of each in the sum."""
        inner = self.add("Relu", self.conv(x, size, 3, stride))
        outer = self.conv(inner, (size[0], size[0]), 3, 1)
        side = x if size[0] == size[1] and stride == 1 else self.conv(x, size, 1, stride)
        half = self._constant(np.full((1,), 0.7))
        return self.add("Relu", self.add("Mul", self.add("Add", outer, side), half))


def deep(layers: int) -> onnx.ModelProto:
    """A residual network for 32 x 32 images, 6 n + 2 layers deep, of random weights and without BatchNormalization."""
    net = _Net(np.random.default_rng(layers))
    x, inputs = net.add("Relu", net.conv("x", (WIDTHS[0], 3), 3, 1)), WIDTHS[0]
    for width in WIDTHS:
        for index in range((layers - 2) // 6):
            x = net.block(x, (width, inputs), 2 if index == 0 and width > WIDTHS[0] else 1)
            inputs = width
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.nodes.append(helper.make_node("Gemm", [x, net.weight(10, inputs), net.bias(10)], ["y"], transB=1))
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ("N", 3, 32, 32)), ("y", ("N", 10)))
    ]
    graph = helper.make_graph(net.nodes, f"deep {layers}", ends[:1], ends[1:], net.constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
