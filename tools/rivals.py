"""One tool on one model, in a process of its own; what happened goes into a JSON file, failures included.

    python tools/rivals.py TOOL NAME EXPORTER RESULT SCRATCH [--source FILE] [--ratio 0.5]

Tools: `ours` (this package), `inexact` (the same with --allow-inexact layernorm), `torch-pruning` on the torch module,
`plain` (the same without being told of attention heads), `onnxsim`. The JSON file is written anew before every step, so
that a process that is killed leaves behind how far it came.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np

BATCHES = (1, 3)
CLASSES = {"classification": 1000, "segmentation": 21}
LAST_LAYERS = ("cls_logits", "bbox_pred", "bbox_reg", "bbox_ctrness")  # of the detectors that are no SSD
REASONS = 5  # how many reasons for refusals are kept
DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_}  # others as numpy does
TASKS = {  # of score.py in SHARED, where the file has a labelled test set
    "lenet300_100_fashionmnist": "fashion", "resnet20_cifar10_bn_op13": "cifar10-a",
    "resnet20_cifar10_dynamo": "cifar10-a", "resnet20_cifar10_folded_op17": "cifar10-a",
    "resnet20_cifar10_fp16_op17": "cifar10-a", "densenet_jw_cifar10_bn": "cifar10-b", "vgg16_cifar10_bn": "cifar10-b",
    "resnet8_cifar10_tf2onnx": "cifar10-raw", "vgglike_cifar10_tf2onnx": "cifar10-raw",
    "wide/mlperftiny_resnet8_qdq": "cifar10-int8", "efficientnet_lite0_imagenet_bn": "imagenet",
}  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Job:
    """One tool on one model. exporter: script, dynamo, torch (no file), or file (`name` is one of SHARED)."""

    tool: str
    name: str
    exporter: str
    source: Path | None
    ratio: float
    scratch: Path


class Journal:
    """What is known so far, kept in a file from step to step."""

    def __init__(self, job: Job, path: Path) -> None:
        """Begin anew at `path`."""
        self.path = path
        self.facts: dict[str, Any] = {
            "tool": job.tool, "model": job.name, "exporter": job.exporter, "ratio": job.ratio, "step": "start",
            "error": None,
        }  # fmt: skip

    def step(self, name: str) -> None:
        """Note what is tried next; "done" at the end."""
        self.facts["step"] = name
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The tool's own work: its seconds, even if it fails."""
        self.step("slim")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.facts["seconds"] = time.perf_counter() - start


def ours(job: Job, journal: Journal, **options: Any) -> None:
    """onnxslim_merge.slim through the public interface, and what its report says.

    Random weights of torchvision models have no means worth carrying; trained files get the default.
    """
    from onnxslim_merge import slim

    assert job.source is not None
    output = job.scratch / "slim.onnx"
    compensation = "auto" if job.exporter == "file" else "none"
    with journal.timed():
        result = slim(job.source, output, ratio=job.ratio, compensation=compensation, **options)
    report, fidelity = result.report, result.report.fidelity
    assert fidelity is not None
    reasons = Counter(f"{refusal.op_type}: {refusal.reason}" for refusal in report.refusals)
    journal.facts |= {
        "before": report.parameters.before, "after": report.parameters.after,
        "macs_before": report.macs.before, "macs_after": report.macs.after,
        "twin": report.twin_max_error, "groups": dict(Counter(group.status for group in report.groups)),
        "refusals": len(report.refusals), "reasons": reasons.most_common(REASONS),
        "kept": Counter(group.reason for group in report.groups if group.reason).most_common(REASONS),
        "speedup": [speed.speedup for speed in report.speed],
        "notes": list(report.notes), "stages": dict(report.stages),
        "compensation": result.plan.settings["compensation"], "top1": fidelity.top1_agreement,
        "cosine": fidelity.outputs[0].cosine, "equal_share": fidelity.outputs[0].equal_share,
    }  # fmt: skip
    try_file(output, job, journal, report.input_shapes if job.exporter == "file" else None)
    if job.exporter == "file" and job.name in TASKS:
        score(output, job, journal)


def score(path: Path, job: Job, journal: Journal) -> None:
    """Accuracy of the original and of the file at `path` on the whole test set, in percent, by score.py of SHARED."""
    assert job.source is not None
    script = next((p / "score.py" for p in job.source.parents if (p / "score.py").exists()), None)
    if script is None:
        return
    journal.step("score")
    command = [sys.executable, script, TASKS[job.name], job.source, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    if done.returncode:  # Pillow may be missing, say: that is no fault of the model
        journal.facts["score_error"] = lines[-1][:300] if lines else "no word"
    else:
        journal.facts["score_before"], journal.facts["score_after"] = (float(line.split()[0]) for line in lines)


def inexact(job: Job, journal: Journal) -> None:
    """Ours, and LayerNormalization may lose channels although its mean then changes."""
    ours(job, journal, allow_inexact=("layernorm",))


def onnxsim(job: Job, journal: Journal) -> None:
    """onnxsim.simplify, which fuses BatchNormalization as its pruning expects, and apply_structured_pruning."""
    import onnx
    from onnxsim import apply_structured_pruning, simplify

    output = job.scratch / "slim.onnx"
    with journal.timed():
        simple, _ = simplify(str(job.source))
        small = apply_structured_pruning(simple, sparsity=job.ratio)
    journal.step("save")
    for name, model in (("before", simple), ("after", small)):
        large = model.ByteSize() > 1 << 30
        onnx.save(model, output, save_as_external_data=large, location="slim.data")
        journal.facts[name] = parameters(output)
        if name == "before":
            (job.scratch / "slim.data").unlink(missing_ok=True)  # onnx appends
    del simple, small, model
    try_file(output, job, journal, None)


def parameters(path: Path) -> int:
    """Elements of the weights of a file, by the rule of this package; values are not read."""
    import onnx
    import onnx_graphsurgeon as gs

    from onnxslim_merge.costs import count

    graph = gs.import_onnx(onnx.load(path, load_external_data=False))
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"):
            node.op = "Weighted"  # no MACs, which would need all shapes
    return count(graph, {}, batch=1).parameters


def try_file(path: Path, job: Job, journal: Journal, shapes: Shapes | None) -> None:
    """Load the file, run it at two batches (or at `shapes`), compare output shapes with the original's, check it."""
    import onnx

    journal.step("original")
    expected = run_file(job.source, shapes)
    journal.facts["original_finite"] = all(finite for _, finite in expected)
    journal.step("run")
    found = run_file(path, shapes)
    journal.facts["runs"] = True
    journal.facts["finite"] = all(finite for _, finite in found)
    journal.facts["same_shapes"] = [shape for shape, _ in found] == [shape for shape, _ in expected]
    journal.step("check")
    onnx.checker.check_model(str(path), full_check=True)
    journal.facts["checked"] = True


def run_file(path: Path | None, shapes: Shapes | None) -> list[tuple[tuple[int, ...], bool]]:
    """Shape of each output, and whether it is finite, for each batch."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for batch in BATCHES if shapes is None else (0,):
        rng = np.random.default_rng(batch)
        feeds: dict[str, Any] = {}
        for tensor in session.get_inputs():
            sizes = [size if isinstance(size, int) else batch for size in tensor.shape]
            dtype = np.dtype(DTYPES.get(kind := tensor.type.removeprefix("tensor(").removesuffix(")"), kind))
            values = rng.standard_normal(sizes if shapes is None else shapes[tensor.name])
            feeds[tensor.name] = (values if np.issubdtype(dtype, np.floating) else np.ones_like(values)).astype(dtype)
        for output in session.run(None, feeds):
            array = np.asarray(output)
            numbers = np.issubdtype(array.dtype, np.number)
            found.append((array.shape, not numbers or bool(np.isfinite(array).all())))
    return found


def torch_pruning(job: Job, journal: Journal, *, heads: bool = True) -> None:
    """MagnitudePruner on the torch module, the layers that make the outputs ignored; heads: tell it of attention."""
    import torch
    import torch_pruning as tp

    import zoo

    model, example = zoo.build(job.name)
    expected = output_shapes(model, example)
    ignored = last_layers(model, zoo.kind_of(job.name))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    journal.facts["before"] = sum(parameter.numel() for parameter in model.parameters())
    with journal.timed():
        pruner = tp.pruner.MagnitudePruner(
            model, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=job.ratio,
            ignored_layers=ignored, num_heads=attention_heads(model) if heads else {},
        )  # fmt: skip
        pruner.step()
    journal.facts["after"] = sum(parameter.numel() for parameter in model.parameters())
    journal.step("run")
    if hasattr(model, "conv_proj") and model.hidden_dim != model.conv_proj.out_channels:
        journal.facts["patched"] = "hidden_dim"  # as the example of Torch-Pruning does for torchvision's ViT
        model.hidden_dim = model.conv_proj.out_channels
    torch.manual_seed(1)
    for batch in BATCHES:
        found = output_shapes(model, torch.randn(batch, *example.shape[1:]), journal)
        journal.facts["same_shapes"] = [shape[1:] for shape in found] == [shape[1:] for shape in expected]
    journal.facts["runs"] = True


def plain(job: Job, journal: Journal) -> None:
    """Torch-Pruning that is not told of attention heads."""
    torch_pruning(job, journal, heads=False)


def output_shapes(model: Any, example: Any, journal: Journal | None = None) -> list[tuple[int, ...]]:
    """Shapes of all outputs; notes in `journal` whether they are finite."""
    import torch

    with torch.no_grad():
        found = model(example)
    outputs = list(found.values()) if isinstance(found, dict) else list(found) if isinstance(found, list) else [found]
    if journal:
        finite = all(bool(torch.isfinite(output).all()) for output in outputs)
        journal.facts["finite"] = journal.facts.get("finite", True) and finite
    return [tuple(output.shape) for output in outputs]


def last_layers(model: Any, kind: str) -> list[Any]:
    """The layers whose channels are the model's outputs."""
    if kind == "detection":
        found = [layer for path, layer in model.named_modules() if path.rpartition(".")[2] in LAST_LAYERS]
        return found or [model.head]  # an SSD: its whole head, as the example of Torch-Pruning does
    width = CLASSES[kind]
    return [m for m in model.modules() if width in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]


def attention_heads(model: Any) -> dict[Any, int]:
    """The layers that make queries, keys and values, and how many heads they have."""
    import torch

    heads: dict[Any, int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            heads[module] = module.num_heads
        elif hasattr(module, "qkv") and hasattr(module, "num_heads"):  # Swin
            heads[module.qkv] = module.num_heads
        elif hasattr(module, "to_qkv") and hasattr(module, "n_heads"):  # MaxViT
            heads[module.to_qkv] = module.n_heads
    return heads


TOOLS = {"ours": ours, "inexact": inexact, "torch-pruning": torch_pruning, "plain": plain, "onnxsim": onnxsim}


def main(tool: str, name: str, exporter: str, result: Path, scratch: Path, /, *,
         source: Path | None = None, ratio: float = 0.5) -> None:  # fmt: skip
    """Run one tool on one model and note what happened; exit code 0 if the note could be written."""
    warnings.simplefilter("ignore")
    job = Job(tool, name, exporter, source, ratio, scratch)
    journal = Journal(job, result)
    try:
        TOOLS[tool](job, journal)
        journal.facts["step"] = "done"
    except Exception as error:  # whatever a tool raises is a result
        text = str(error).strip().splitlines() or [""]
        journal.facts["error"] = f"{type(error).__name__}: {text[0][:300]}"
    journal.facts |= {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count(),
    }
    journal.save()


if __name__ == "__main__":
    cyclopts.run(main)
