"""Train the demo model, LeNet-300-100 on Fashion-MNIST, and export it with a small slice of the data.

    python tools/train_reference.py [--data FOLDER] [--out models] [--epochs 30] [--seed 0]

FOLDER holds the four standard .gz files; the default is where Debian's package dataset-fashion-mnist puts them.
Needs torch, onnx and onnxruntime. About a minute on two cores. The seed fixes the result up to the order of additions.
"""

from __future__ import annotations

import argparse
import gzip
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from demo import INPUT, accuracy, preprocess

DEBIAN_DATA = Path("/usr/share/datasets/fashion-mnist")
FLOOR = 89.5
BATCH = 128
SLICE_TEST = 1000
SLICE_CALIBRATION = 256


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of uint8: (n,) labels or (n, 28, 28) images."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def build() -> nn.Sequential:
    """LeNet-300-100; the module names become the ONNX node and initializer names."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    )


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> nn.Sequential:
    """Adam with decoupled weight decay and a cosine schedule; returns the last epoch's model, in eval mode."""
    torch.manual_seed(seed)
    x = torch.from_numpy(preprocess(images))
    y = torch.from_numpy(labels.astype(np.int64))
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1:2d}/{epochs}: training loss {total / len(x):.4f}", flush=True)
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write `model` as ONNX, opset 17, with a dynamic batch axis N, and run the full checker on the file."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=[INPUT],
        output_names=["logits"],
        dynamic_axes={INPUT: {0: "N"}, "logits": {0: "N"}},
    )
    onnx.checker.check_model(path, full_check=True)


def main() -> None:
    """Train, export, write the slice, print the measured accuracy; exit 1 if it is below the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN_DATA, help="folder of the four .gz files")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train_x = read_idx(args.data / "train-images-idx3-ubyte.gz")
    train_y = read_idx(args.data / "train-labels-idx1-ubyte.gz")
    test_x = read_idx(args.data / "t10k-images-idx3-ubyte.gz")
    test_y = read_idx(args.data / "t10k-labels-idx1-ubyte.gz")

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "lenet_300_100_fashionmnist.onnx"
    export(train(train_x, train_y, args.epochs, args.seed), path)
    np.savez_compressed(
        args.out / "fashion_mnist_slice.npz",
        x_test=test_x[:SLICE_TEST],
        y_test=test_y[:SLICE_TEST],
        x_calib=train_x[:SLICE_CALIBRATION],
    )

    measured = accuracy(path, test_x, test_y)
    print(f"{path}: {measured:.2f}% of all {len(test_x)} test images", flush=True)
    print(f"first {SLICE_TEST}: {accuracy(path, test_x[:SLICE_TEST], test_y[:SLICE_TEST]):.2f}%")
    if measured < FLOOR:
        raise SystemExit(f"accuracy is below {FLOOR}%")


if __name__ == "__main__":
    main()
