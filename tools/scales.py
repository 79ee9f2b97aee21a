"""What first layers make of calibration images that are scaled rightly or wrongly: the numbers of decision 0014.

    python tools/scales.py SHARED

For each model of SHARED and each scale: how far what the first BatchNormalizations make spreads, for 1 in training; how
many spreads means lie from zero; the same on made-up images of the best range; and whether that is said.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import analysed
from onnxslim_merge.doubts import doubts, times_as_in_training
from onnxslim_merge.pixels import first_layers, looked_at, made_up, nearest_range, opened, outlying
from onnxslim_merge.samples import Samples, input_specs
from onnxslim_merge.settings import Settings
from paper_tables import load_score

MODELS = {
    "lenet300_100_fashionmnist": "fashion",
    "resnet20_cifar10_bn_op13": "cifar10-a",
    "resnet20_cifar10_folded_op17": "cifar10-a",
    "vgg16_cifar10_bn": "cifar10-b",
    "densenet_jw_cifar10_bn": "cifar10-b",
    "resnet8_cifar10_tf2onnx": "cifar10-raw",
    "vgglike_cifar10_tf2onnx": "cifar10-raw",
    "efficientnet_lite0_imagenet_bn": "imagenet",
}
COUNTS = (2, 4, 64)  # of images that are scaled rightly; of others the last


def main(shared: Path) -> None:
    """Print the table."""
    score, table = load_score(shared), Table("model", "images", "scale", "times training", "means", "best", "said")
    for name, task in MODELS.items():
        work = analysed(shared / "models" / f"{name}.onnx", Settings())
        ((spec,), probe, settings) = input_specs(work.source.proto), work.probes[0], Settings()
        layers = first_layers(work.graph)
        with opened(work.graph, work.source, settings, layers) as runner:
            trial = made_up([spec], settings, probe)
            best = min(nearest_range(runner, trial, [spec], layers)[0], outlying(looked_at(runner, trial, layers)))
            for count in COUNTS:
                raw = score.images(task, "calib", count)[0]
                pixels = raw.astype(np.float32)
                pixels = pixels.transpose(0, 2, 3, 1) if task == "cifar10-raw" else pixels
                scales = {"right": score.prepare(task, raw)}
                if count == COUNTS[-1]:
                    scales |= {"0:255": pixels, "0:1": pixels / 255, "-1:1": pixels / 127.5 - 1}
                for scale, images in scales.items():
                    given = Samples([{spec.name: np.ascontiguousarray(images, np.float32)}], count, "images")
                    seen = looked_at(runner, given, layers) or []
                    times = times_as_in_training(seen)
                    said = doubts(work.graph, work.source, settings, probe, given) is not None
                    row = (f"{count}", scale, "" if times is None else f"{times:.2f}", f"{outlying(seen):.2f}")
                    table.add_row(name, *row, f"{best:.2f}", "yes" if said else "no")
    Console(width=120).print(table)


if __name__ == "__main__":
    cyclopts.run(main)
