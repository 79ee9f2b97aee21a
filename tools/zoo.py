"""Torchvision models with random weights, and their files from both of torch's exporters.

Weights are random, but nothing is accidentally equal: every bias and every scale of a normalisation has values of its
own, and BatchNorm statistics are those of a random batch, with 20% noise, so that deep activations stay finite.

    python tools/zoo.py FOLDER [--models REGEX]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cyclopts
import torch

# A torchvision wheel built for CUDA cannot load its operators beside a CPU build of torch, and fails on import for want
# of these two. The library must stay referenced.
OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402

EXPORTERS = ("script", "dynamo")
SIZES = {"inception_v3": 299, "ssdlite320_mobilenet_v3_large": 320, "ssd300_vgg16": 300}
AUXILIARY = ("googlenet", "inception_v3")  # have classifiers for training only, which no file holds
NOISE = 0.2
KINDS = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "detection": torchvision.models.detection,
}


def names(kind: str) -> list[str]:
    """The models of one kind, as torchvision lists them."""
    return sorted(torchvision.models.list_models(module=KINDS[kind]))


def kind_of(name: str) -> str:
    """classification, segmentation or detection."""
    return next(kind for kind in KINDS if name in names(kind))


class Heads(torch.nn.Module):
    """What a detector computes before boxes are chosen: backbone and heads, as every deployment exports them."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Take these two parts of a torchvision detector, and nothing that the outputs do not depend on."""
        super().__init__()
        self.backbone = model.backbone
        self.head = model.head if hasattr(model, "head") else model.rpn.head

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Raw outputs of the heads (one-stage), or of the region proposal network on every level (two-stage)."""
        found = self.head(list(self.backbone(images).values()))
        if isinstance(found, dict):
            return [tensor for _, tensor in sorted(found.items())]
        return [tensor for level in found for tensor in level]


def build(name: str, seed: int = 0) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model in eval mode, and an example batch of two images."""
    torch.manual_seed(seed)
    options: dict[str, object] = {} if kind_of(name) == "classification" else {"weights_backbone": None}
    if name in AUXILIARY:
        options |= {"aux_logits": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None, **options)
    model = Heads(model) if kind_of(name) == "detection" else model
    size = SIZES.get(name, 224)
    randomise(model, torch.randn(4, 3, size, size))
    return model, torch.randn(2, 3, size, size)


def randomise(model: torch.nn.Module, batch: torch.Tensor) -> None:
    """Random biases and scales; BatchNorm statistics of `batch` with 20% noise; eval mode."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("layer_scale"):
                parameter.uniform_(0.1, 0.5)
            elif parameter.min() == parameter.max():  # ViT's head starts with zeros, which would hide everything
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        for norm in norms:
            norm.train()
            norm.momentum = None  # averages over all batches, that is, takes this one
            norm.reset_running_stats()
        model(batch)
        for norm in norms:
            norm.running_mean += NOISE * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= 1 + NOISE * (2 * torch.rand_like(norm.running_var) - 1)
    model.eval()


def export(name: str, exporter: str, path: Path) -> float:
    """Write `name` to `path` with a dynamic batch; returns seconds. Raises whatever the exporter raises."""
    model, example = build(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.backends.mha.set_fastpath_enabled(False)  # the older exporter knows no symbol for it
    start = time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "script":
            torch.onnx.export(
                model, (example,), str(path), dynamo=False, opset_version=17, input_names=["input"],
                dynamic_axes={"input": {0: "N"}},
            )  # fmt: skip
        else:
            torch.onnx.export(
                model, (example,), str(path), dynamo=True, input_names=["input"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},), verbose=False,
            )  # fmt: skip
    return time.perf_counter() - start


def path_of(folder: Path, name: str, exporter: str) -> Path:
    """Where a file of the zoo lies."""
    return folder / f"{name}.{exporter}" / "model.onnx"


def wanted(models: str, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[str]:
    """Names that match a regex."""
    yield from (name for kind in kinds for name in names(kind) if re.search(models, name))


def main(folder: Path, /, *, models: str = "", one: Annotated[str, cyclopts.Parameter(show=False)] = "") -> None:
    """Export what is not there yet, each in a process of its own."""
    if one:
        name, exporter = one.split(":")
        path = path_of(folder, name, exporter)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # so that a model is there whole or not at all
            seconds = export(name, exporter, path_of(Path(scratch), name, exporter))
            shutil.rmtree(path.parent, ignore_errors=True)
            path_of(Path(scratch), name, exporter).parent.rename(path.parent)
        print(f"{name} {exporter}: {seconds:.1f} s", flush=True)
        return
    for name in wanted(models):
        for exporter in EXPORTERS:
            if not path_of(folder, name, exporter).exists():
                failure = export_apart(folder, name, exporter)
                print(f"{name} {exporter}: {f'FAILED {failure}' if failure else 'exported'}", flush=True)


def export_apart(folder: Path, name: str, exporter: str) -> str:
    """Export in a process of its own; returns "" or the last line of what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, str(folder), "--one", f"{name}:{exporter}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]


if __name__ == "__main__":
    cyclopts.run(main)
