"""Which criterion and compensation should be the default without data?

    python tools/choose_default.py SHARED [--without-batchnorm]

Without labels: top-1 agreement with the original on unlabelled calibration images (`x_calib`), over the three files
that keep BatchNormalization, each at two amounts. The tool itself gets no data. Prints the agreement in percent for
each, and the mean; the best last.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bench import Bench
from onnxslim_merge.settings import Compensation, Criterion, Scope, Settings

COMPENSATIONS: tuple[tuple[Compensation, Any], ...] = (
    ("none", "auto"), ("mean", "auto"), ("merge", "auto"), ("mean+merge", "auto"),
    ("merge", "all"), ("mean+merge", "all"),
)  # fmt: skip
Models = tuple[tuple[str, str, int, tuple[tuple[Scope, float], ...]], ...]
MODELS: Models = (  # file, task, images, (scope, ratio) at which enough is left to compare
    ("resnet20_cifar10_bn_op13", "cifar10-a", 1024, (("inner", 0.3), ("all", 0.1))),
    ("densenet_jw_cifar10_bn", "cifar10-b", 512, (("inner", 0.3), ("all", 0.1))),
    ("efficientnet_lite0_imagenet_bn", "imagenet", 128, (("inner", 0.1), ("all", 0.03))),
)

WITHOUT_BATCHNORM: Models = (
    ("lenet300_100_fashionmnist", "fashion", 1024, (("all", 0.5), ("all", 0.7))),
    ("resnet20_cifar10_folded_op17", "cifar10-a", 1024, (("inner", 0.2), ("all", 0.1))),
    ("vgglike_cifar10_tf2onnx", "cifar10-raw", 1024, (("all", 0.1), ("all", 0.2))),
    ("resnet8_cifar10_tf2onnx", "cifar10-raw", 1024, (("inner", 0.2), ("all", 0.1))),
)


def rows(shared: Path, models: Models, only: list[str]) -> Iterator[tuple[str, str, list[float]]]:
    """(criterion, compensation, agreement in percent for each model and amount)."""
    benches = [(Bench(shared, name, task, first), amounts) for name, task, first, amounts in models]
    for criterion in only or get_args(Criterion):
        for compensation, donors in COMPENSATIONS:
            chosen = {"criterion": criterion, "compensation": compensation, "donors": donors}
            found = [
                bench.agreement(bench.model(bench.plan(Settings(scope=scope, ratio=ratio, **chosen))))
                for bench, amounts in benches
                for scope, ratio in amounts
            ]
            yield criterion, compensation + " all" * (donors == "all"), found


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--without-batchnorm", action="store_true", help="files whose means must be measured on noise")
    parser.add_argument("--criterion", action="append", default=[], help="only this one (repeatable)")
    arguments = parser.parse_args()
    models = WITHOUT_BATCHNORM if arguments.without_batchnorm else MODELS
    columns = [f"{name.split('_')[0]} {scope} {ratio}" for name, _, _, amounts in models for scope, ratio in amounts]
    print("columns:", ", ".join(columns))
    table = []
    for criterion, compensation, found in rows(arguments.shared, models, arguments.criterion):
        table.append((float(np.mean(found)), criterion, compensation))
        print(
            f"{criterion:14} {compensation:14}", *(f"{v:6.2f}" for v in found), f"  mean {table[-1][0]:.2f}", flush=True
        )
    print("best:", *max(table)[1:])


if __name__ == "__main__":
    main()
