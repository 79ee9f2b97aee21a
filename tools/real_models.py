"""Real files at one ratio, all cells, defaults otherwise: parameters, MACs, agreement, task score. A markdown table.

python tools/real_models.py SHARED [--ratio 0.3] [--first 2000]
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

from onnxslim_merge import slim
from paper_tables import load_score

FILES = {  # file: task of score.py, or None
    "resnet20_cifar10_folded_op17": "cifar10-a",
    "resnet20_cifar10_bn_op13": "cifar10-a",
    "resnet20_cifar10_dynamo": "cifar10-a",
    "resnet20_cifar10_fp16_op17": "cifar10-a",
    "densenet_jw_cifar10_bn": "cifar10-b",
    "vgglike_cifar10_tf2onnx": "cifar10-raw",
    "resnet8_cifar10_tf2onnx": "cifar10-raw",
    "efficientnet_lite0_imagenet_bn": "imagenet",
    "wide/mtcnn_pnet": None,
    "wide/mtcnn_rnet": None,
    "wide/mtcnn_onet": None,
    "wide/super_resolution_espcn": None,
    "wide/mnist8_cntk": None,
    "wide/ultraface_slim320": None,
    "wide/ppocr_v2_cls": None,
}


def main() -> None:
    """Slim each file and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--first", type=int, default=2000, help="test images for the task score")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    score = load_score(arguments.shared)
    print("| file | parameters kept | MACs kept | twin error | relative L2 | agreement | score before | score after |")
    print("|---|---|---|---|---|---|---|---|")
    for name, task in FILES.items():
        source = arguments.shared / "models" / f"{name}.onnx"
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out.onnx"
            report = slim(source, output, ratio=arguments.ratio).report
            scores = ["", ""]
            if task is not None:
                raw, labels = score.images(task, "test", arguments.first)
                inputs = score.prepare(task, raw)
                scores = [f"{score.accuracy(str(path), inputs, labels):.2f}" for path in (source, output)]
        found = report.fidelity
        agreement = "" if found is None or found.top1_agreement is None else f"{found.top1_agreement:.2f}"
        distance = "" if found is None or found.relative_l2 is None else f"{found.relative_l2:.3f}"
        cells = [
            name, f"{report.parameters.share:.3f}", f"{report.macs.share:.3f}", f"{report.twin_max_error:.1e}",
            distance, agreement, *scores,
        ]  # fmt: skip
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
