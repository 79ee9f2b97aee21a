"""Slim the demo model by the real command line, then print its accuracy before and after on a slice of test images.

    python tools/demo.py [OPTION ...]

Options go to `python -m onnxslim_merge` as they are, for example `--criterion l1 --verbose`; those that the demo sets
itself can be given otherwise.
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
OUT = Path("build", "demo")  # below ROOT
INPUT = "input"
SETTINGS = {"--ratio": "0.5"}


def preprocess(images: np.ndarray) -> np.ndarray:
    """Turn uint8 (n, 28, 28) into float32 (n, 1, 28, 28) between -1 and 1."""
    return ((images[:, None].astype(np.float32) / 255) - 0.5) / 0.5


def accuracy(model: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent on uint8 images (n, 28, 28), run by ONNX Runtime on the CPU."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(None, {INPUT: preprocess(images)})[0]
    return 100 * float((logits.argmax(1) == labels).mean())


def write_calibration(path: Path) -> None:
    """Save the slice's images without labels as what `--calibration-data` reads."""
    np.savez(path, **{INPUT: preprocess(np.load(SLICE)["x_calib"])})


def main() -> int:
    """Run the demo; returns the command's exit code."""
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    slim, calibration = OUT / "lenet_slim.onnx", OUT / "calibration.npz"
    write_calibration(ROOT / calibration)
    (ROOT / slim).unlink(missing_ok=True)

    given = sys.argv[1:]
    missing = [s for s in SETTINGS.items() if not any(g.split("=")[0] == s[0] for g in given)]
    paths = [MODEL.relative_to(ROOT), slim, "--calibration-data", calibration]
    arguments = [*map(str, paths), *(word for setting in missing for word in setting), *given]
    print("$ python -m onnxslim_merge", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "onnxslim_merge", *arguments], cwd=ROOT, check=False).returncode
    if code or not (ROOT / slim).exists():  # failed, or a dry run
        return code

    data = np.load(SLICE)
    before, after = (accuracy(path, data["x_test"], data["y_test"]) for path in (MODEL, ROOT / slim))
    print(f"Accuracy on {len(data['y_test'])} test images: {before:.1f}% before, {after:.1f}% after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
