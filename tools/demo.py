"""Slim the demo model by the real command line, then print its accuracy before and after on a slice of test images.

    python tools/demo.py [OPTION ...]

Options go to `python -m onnxslim_merge` as they are, for example `--criterion l1 --verbose`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "lenet_300_100_fashionmnist.onnx"
SLICE = ROOT / "models" / "fashion_mnist_slice.npz"
OUT = ROOT / "build" / "demo"
INPUT = "input"


def preprocess(images: np.ndarray) -> np.ndarray:
    """Turn uint8 (n, 28, 28) into float32 (n, 1, 28, 28) between -1 and 1."""
    return ((images[:, None].astype(np.float32) / 255) - 0.5) / 0.5


def accuracy(model: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent on uint8 images (n, 28, 28), run by ONNX Runtime on the CPU."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(None, {INPUT: preprocess(images)})[0]
    return 100 * float((logits.argmax(1) == labels).mean())


def main() -> int:
    """Run the demo; returns the command's exit code."""
    OUT.mkdir(parents=True, exist_ok=True)
    slim, calibration = OUT / "lenet_slim.onnx", OUT / "calibration.npz"
    data = np.load(SLICE)
    np.savez(calibration, **{INPUT: preprocess(data["x_calib"])})

    arguments = [MODEL, slim, "--ratio", "0.5", "--calibration-data", calibration, *sys.argv[1:]]
    shown = [str(a.relative_to(ROOT)) if isinstance(a, Path) else a for a in arguments]
    print("$ python -m onnxslim_merge", *shown, flush=True)
    code = subprocess.run([sys.executable, "-m", "onnxslim_merge", *shown], cwd=ROOT, check=False).returncode
    if code:
        return code

    before, after = (accuracy(path, data["x_test"], data["y_test"]) for path in (MODEL, slim))
    print(f"Accuracy on {len(data['y_test'])} test images: {before:.1f}% before, {after:.1f}% after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
