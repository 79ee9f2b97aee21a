"""Neuron Merging's tables on real checkpoints, and what merging adds to plain removal.

    python tools/paper_tables.py SHARED lenet|vgg|mean [--first N]

SHARED is a folder with `models/`, `data/` and `score.py` as this project's developers have it beside their clone.
Prints one line for each criterion and compensation: top-1 on the labelled test set, in percent.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onnxslim_merge import slim

PAPER_VGG = (r"features\.(0|24|27|30|34|37|40)/=0.5",)  # 32, 64, 128, 128, 256 x 9
PUBLISHED = {  # LeNet-300-100, ratio 0.5, 0.6, 0.7, 0.8: (prune, merge)
    "l1": ((88.40, 85.17, 71.26, 66.76), (88.69, 86.92, 82.75, 80.02)),
    "l2": ((87.86, 83.03, 71.21, 63.90), (88.38, 88.07, 83.27, 77.11)),
    "l2-gm": ((88.08, 85.82, 78.38, 64.19), (88.57, 88.10, 86.39, 77.49)),
}


def load_score(shared: Path) -> ModuleType:
    """The scoring script of the shared folder, as a module."""
    spec = importlib.util.spec_from_file_location("score", shared / "score.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Scorer:
    """Slims one model and scores the result on the labelled test set."""

    def __init__(self, shared: Path, model: str, task: str, first: int | None) -> None:
        """Read the test set once."""
        self._score = load_score(shared)
        raw, self._labels = self._score.images(task, "test", first)
        self._inputs: np.ndarray = self._score.prepare(task, raw)
        self.model = shared / "models" / model

    def base(self) -> float:
        """Top-1 of the original, in percent."""
        return float(self._score.accuracy(str(self.model), self._inputs, self._labels))

    def __call__(self, **options: Any) -> tuple[float, float]:
        """(top-1 in percent, share of parameters kept)."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out.onnx"
            report = slim(self.model, output, **options).report
            accuracy = float(self._score.accuracy(str(output), self._inputs, self._labels))
        return accuracy, report.parameters.share or 1.0


def lenet(shared: Path, first: int | None) -> None:
    """Table 1 of the paper, and the largest difference from what was published and reproduced."""
    score = Scorer(shared, "lenet300_100_fashionmnist.onnx", "fashion", first)
    print(f"base {score.base():.2f}")
    for criterion, rows in PUBLISHED.items():
        for compensation, published in zip(("none", "merge"), rows, strict=True):
            found = [
                score(ratio=ratio, criterion=criterion, compensation=compensation, threshold=0.45)[0]
                for ratio in (0.5, 0.6, 0.7, 0.8)
            ]
            worst = max(abs(a - b) for a, b in zip(found, published, strict=True))
            print(
                f"{criterion:6} {compensation:6}", *(f"{v:.2f}" for v in found), f"  differs by {worst:.2f}", flush=True
            )


def vgg(shared: Path, first: int | None) -> None:
    """VGG-16 at the paper's widths."""
    score = Scorer(shared, "vgg16_cifar10_bn.onnx", "cifar10-b", first)
    print(f"base {score.base():.2f}")
    for criterion in PUBLISHED:
        for compensation in ("none", "merge", "mean", "mean+merge"):
            accuracy, kept = score(ratio=0, ratio_for=PAPER_VGG, criterion=criterion, compensation=compensation)
            print(f"{criterion:6} {compensation:10} {accuracy:.2f}  parameters kept {kept:.3f}", flush=True)


def mean(shared: Path, first: int | None) -> None:
    """Mean shift without data on ResNet-20, inner cells, first 1,000 test images unless told otherwise."""
    score = Scorer(shared, "resnet20_cifar10_bn_op13.onnx", "cifar10-a", first or 1000)
    print(f"base {score.base():.2f}")
    for criterion in ("consumer", "impact", "l1", "l2", "l2-gm"):
        for compensation in ("none", "merge", "mean", "mean+merge"):
            found = [
                score(ratio=ratio, scope="inner", criterion=criterion, compensation=compensation)[0]
                for ratio in (0.2, 0.3)
            ]
            print(f"{criterion:8} {compensation:10}", *(f"{v:.2f}" for v in found), flush=True)


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("table", choices=["lenet", "vgg", "mean"])
    parser.add_argument("--first", type=int, default=None)
    arguments = parser.parse_args()
    {"lenet": lenet, "vgg": vgg, "mean": mean}[arguments.table](arguments.shared, arguments.first)


if __name__ == "__main__":
    main()
