"""onnxsim and Torch-Pruning on the cases of tools/compensation.py, with the same inputs and as many parameters kept.

    VENV/bin/python tools/compensation_rivals.py run FOLDER SHARED [--cases REGEX] [--rivals REGEX] [--ratios 0.3 0.5]

VENV holds what CONTRIBUTING.md calls the test environment's packages and torch 2.13.0, torchvision, onnx2torch,
torch-pruning 1.6.1 and onnxsim 0.8.1; PYTHONPATH names this project. FOLDER is that of tools/compensation.py, which has
to have measured a case at a ratio before: its parameters are the target. What a tool raises is its result.

A rival has one ratio for all layers, which is searched until as many parameters are left, to 1% where whole channels
allow it. Torch-Pruning gets the module that onnx2torch makes of the simplified file (Reshape to two axes as Flatten,
MatMul by a constant as Linear, so that it can prune them), and may touch just those layers that lose channels in ours.
Its gradients are those of cross-entropy with the class that the network itself gives: there are no labels. onnxsim
cannot be told of layers. Both results are ONNX files, counted and scored as ours are.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import onnx
from onnx import helper, numpy_helper

import rivals
from bench import analysed
from compensation import Facts, Job, Journal, apart, attempt, cache_of, costs, key
from compensation_cases import BLIND, CASES, SEEING, Place
from onnxslim_merge.files import write_atomically
from onnxslim_merge.settings import Settings

BATCH = 64
TRIES, NEAR, EXACT = 12, 0.01, 1e-2  # of the search, and how far a converted network's outputs may be off
MOST = 0.98  # the highest ratio tried
_ALIVE: list[Any] = []  # what torch forgets otherwise
Slim = Callable[[Job, float], onnx.ModelProto]


def batches(job: Job) -> list[dict[str, np.ndarray]]:
    """The calibration inputs that ours get, cut into batches."""
    with np.load(job.calibration()) as arrays:
        ((name, inputs),) = arrays.items()
    return [{name: inputs[i : i + BATCH]} for i in range(0, len(inputs), BATCH)]


# -- onnxsim -----------------------------------------------------------------------------------------------------------


def onnxsim_magnitude(job: Job, ratio: float) -> onnx.ModelProto:
    """`apply_structured_pruning`."""
    from onnxsim import apply_structured_pruning, simplify

    return apply_structured_pruning(simplify(str(job.path))[0], sparsity=ratio)


def onnxsim_wanda(job: Job, ratio: float) -> onnx.ModelProto:
    """`apply_structured_wanda_pruning`, then `apply_pruning_finetune`."""
    from onnxsim import apply_pruning_finetune, apply_structured_wanda_pruning, simplify

    simple, data = simplify(str(job.path))[0], batches(job)
    small = apply_structured_wanda_pruning(simple, calibration_data=data, sparsity=ratio)
    return apply_pruning_finetune(simple, small, calibration_data=data)


# -- Torch-Pruning -----------------------------------------------------------------------------------------------------


@functools.cache
def load_torch() -> Any:
    """The modules torch, torch_pruning and onnx2torch, where torchvision was built for another torch, too."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # of a CUDA build, which does not load without them; never called
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _ALIVE.append(library)
    import onnx2torch
    import torch_pruning

    return torch, torch_pruning, onnx2torch


def converted(job: Job) -> Any:
    """The file as a torch module that gives the same, with gradients."""
    from onnxsim import simplify

    torch, _, onnx2torch = load_torch()
    model = onnx.shape_inference.infer_shapes(simplify(str(job.path), skip_fuse_bn=True)[0])
    module = onnx2torch.convert(tidied(model)).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    (inputs,) = batches(job)[0].values()
    with torch.no_grad():
        found = module(torch.from_numpy(inputs)).numpy()
    (expected,) = outputs_of(job.path.read_bytes(), inputs)
    if not np.allclose(found, expected, atol=EXACT * float(np.abs(expected).max())):
        raise ValueError(f"onnx2torch: the module's outputs differ by {np.abs(found - expected).max():.2g}")
    return module


def outputs_of(model: bytes, inputs: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
    return found


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Reshape to two axes as Flatten, MatMul of those by a constant as Gemm: as PyTorch would have written them."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.output)}
    for node in graph.node:
        if node.op_type == "Reshape" and ranks.get(node.output[0]) == 2:
            new = helper.make_node("Flatten", node.input[:1], node.output, name=node.name, axis=1)
        elif node.op_type == "MatMul" and ranks.get(node.output[0]) == 2 and node.input[1] in constants:
            weight = numpy_helper.to_array(constants[node.input[1]]).T
            name = f"{node.input[1]}, transposed for {node.output[0]}"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
            new = helper.make_node("Gemm", [node.input[0], name], node.output, name=node.name, transB=1)
        else:
            continue
        node.CopyFrom(new)
    return model


def ours(job: Job) -> set[bytes]:
    """The weights that lose output channels in ours, as they are in the file and transposed."""
    work = analysed(job.path, Settings(**(job.column.options | {"criterion": "l2", "compensation": "none"})))
    tensors, found = work.graph.tensors(), set[bytes]()
    for cell in work.plan(check=False).cells:
        for _, weight, _ in cell.producers if len(cell.keep) < cell.size else ():
            values = np.asarray(tensors[weight].values)
            found |= {values.tobytes(), np.ascontiguousarray(values.T).tobytes()}
    return found


def ignored(module: Any, prunable: set[bytes]) -> list[Any]:
    """The layers that must keep their outputs; depthwise convolutions follow those before them."""
    torch, _, _ = load_torch()
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    layers = [m for m in layers if getattr(m, "groups", 1) == 1]
    found = [m for m in layers if m.weight.detach().numpy().tobytes() not in prunable]
    if len(found) == len(layers):
        raise ValueError("none of the layers that lose channels in ours is a layer of the module")
    return found


def gradients(module: Any, data: list[dict[str, np.ndarray]], importance: Any) -> None:
    """Of cross-entropy with the network's own classes: summed, or for `importance` (Hessian) sample by sample."""
    torch, _, _ = load_torch()
    if importance is not None:
        importance.zero_grad()
    for (inputs,) in (feed.values() for feed in data):
        losses = own_losses(torch, module(torch.from_numpy(inputs)))
        if importance is None:
            losses.sum().backward()
            continue
        for loss in losses:
            module.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(module)


def own_losses(torch: Any, outputs: Any) -> Any:
    """Cross-entropy with the highest class, of logits or of probabilities."""
    shares = bool((outputs >= 0).all()) and bool(torch.allclose(outputs.sum(1), torch.ones(len(outputs))))
    logs = outputs.clamp_min(1e-12).log() if shares else outputs.log_softmax(1)
    return torch.nn.functional.nll_loss(logs, outputs.argmax(1), reduction="none")


def pruned(job: Job, ratio: float, *, by: str = "Magnitude", norm: bool = False) -> onnx.ModelProto:
    """Torch-Pruning's pruner with one of its importances; norm: BatchNormalization estimated anew on the inputs."""
    torch, _, _ = load_torch()
    module, data = converted(job), batches(job)
    if norm and not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        raise ValueError("no BatchNormalization in the file")
    return exported(pruned_module(module, job, ratio, data, by=by, norm=norm), data)


def pruned_module(
    module: Any, job: Job, ratio: float, data: list[dict[str, np.ndarray]], *, by: str, norm: bool
) -> Any:
    """The module, smaller."""
    torch, pruning, _ = load_torch()
    example = torch.from_numpy(next(iter(data[0].values()))[:2])
    importance = getattr(pruning.importance, f"Group{by}Importance")()
    pruner = pruning.pruner.BasePruner(
        module, example, importance=importance, pruning_ratio=ratio, ignored_layers=ignored(module, ours(job))
    )
    if by != "Magnitude":
        gradients(module, data, importance if by == "Hessian" else None)
    pruner.step()
    if norm:
        estimate(module, data)
    return module


def estimate(module: Any, data: list[dict[str, np.ndarray]]) -> None:
    """Running statistics of BatchNormalization, all anew."""
    torch, _, _ = load_torch()
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
    with torch.no_grad():
        for (inputs,) in (feed.values() for feed in data):
            module(torch.from_numpy(inputs))
    module.eval()


def exported(module: Any, data: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """As an ONNX file with a free batch, BatchNormalization folded where the exporter can."""
    torch, _, _ = load_torch()
    example = torch.from_numpy(next(iter(data[0].values()))[:2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "N"}, "y": {0: "N"}}}
        torch.onnx.export(module.eval(), (example,), str(path), dynamo=False, **names)
        return onnx.load(path)


# -- search ------------------------------------------------------------------------------------------------------------


def torch_counts(job: Job) -> Callable[[float], int]:
    """Parameters that Torch-Pruning leaves at a ratio, which no importance changes."""
    module, data = converted(job), batches(job)[:1]

    def count(ratio: float) -> int:
        small = pruned_module(copy.deepcopy(module), job, ratio, data, by="Magnitude", norm=False)
        return parameters(exported(small, data))

    return count


def onnxsim_counts(job: Job) -> Callable[[float], int]:
    """Parameters that onnxsim leaves at a ratio, calibrated or not."""
    return lambda ratio: parameters(onnxsim_magnitude(job, ratio))


def parameters(model: onnx.ModelProto) -> int:
    """Counted as ours are."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, path := Path(folder) / "model.onnx")
        return rivals.parameters(path)


def search(count: Callable[[float], int], target: int) -> float:
    """The ratio that leaves `target` parameters, or nearly."""
    low, high, best = 0.0, MOST, (float("inf"), 0.0)
    for _ in range(TRIES):
        ratio = (low + high) / 2
        found = count(ratio)
        best = min(best, (abs(found / target - 1), ratio))
        if best[0] < NEAR / 2:
            break
        low, high = (ratio, high) if found > target else (low, ratio)
    return best[1]


def torch_pruning(by: str, *, norm: bool = False) -> Slim:
    """Torch-Pruning in one of its kinds."""
    return lambda job, ratio: pruned(job, ratio, by=by, norm=norm)


RIVALS: Mapping[str, tuple[str, Slim, Callable[[Job], Callable[[float], int]]]] = {
    "onnxsim wanda, finetune": (SEEING, onnxsim_wanda, onnxsim_counts),
    "Torch-Pruning taylor, BatchNorm anew": (SEEING, torch_pruning("Taylor", norm=True), torch_counts),
    "Torch-Pruning taylor": (SEEING, torch_pruning("Taylor"), torch_counts),
    "Torch-Pruning hessian": (SEEING, torch_pruning("Hessian"), torch_counts),
    "onnxsim magnitude": (BLIND, onnxsim_magnitude, onnxsim_counts),
    "Torch-Pruning magnitude": (BLIND, torch_pruning("Magnitude"), torch_counts),
}


def measured(job: Job, name: str, target: int) -> Facts:
    """Search the ratio, slim once more against the clock, and score."""
    warnings.simplefilter("ignore")
    _, slim, counts = RIVALS[name]
    facts: Facts = {"target": target, "ratio": search(counts(job), target)}
    with costs(facts):
        model = slim(job, facts["ratio"])
    facts["after"] = parameters(model)
    return facts | job.score(model.SerializeToString())


app = cyclopts.App(help=__doc__, help_format="plaintext")


@app.command
def one(
    shared: Path, cache: Path, case: str, rival: str, column: str, target: int, result: Path, /, *, threads: int = 1
) -> None:
    """Make one measurement and write it to RESULT: what `run` starts."""
    import json

    if threads and "torch" in rival.lower():
        load_torch()[0].set_num_threads(threads)
    facts = attempt(lambda: measured(Job.of(Place(shared, cache), case, column, threads), rival, target))
    write_atomically(result, json.dumps(facts).encode())


def targets(folder: Path, names: list[str]) -> Iterator[tuple[str, str, int, int]]:
    """(case, column, parameters before, parameters of ours) of what ours has measured, what matters most first."""
    known = {name: Journal(folder, name).found for name in names}
    for rank in range(max(len(CASES[name].columns) for name in names)):
        for name in names:
            for column in list(CASES[name].columns)[rank : rank + 1]:
                mine = (facts for at, facts in known[name].items() if at.endswith(f" | {column}") and "after" in facts)
                if facts := next(mine, None):
                    yield name, column, facts["before"], facts["after"]
                else:
                    print(f"{name} at {column}: ours is not measured yet", file=sys.stderr)


@app.command
def run(
    folder: Path,
    shared: Path,
    /,
    *,
    cases: Annotated[str, cyclopts.Parameter(help="REGEX: only these cases.")] = "",
    rival: Annotated[str, cyclopts.Parameter(name="--rivals", help="REGEX: only these tools.")] = "",
    ratios: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True, help="Only these columns.")] = (),
    threads: Annotated[int, cyclopts.Parameter(help="Of torch, BLAS and scoring; 0 = their own.")] = 1,
    limit: Annotated[float, cyclopts.Parameter(help="Seconds for one measurement, its search included.")] = 7200,
    retry: Annotated[bool, cyclopts.Parameter(help="Also what failed before.")] = False,
) -> None:
    """Measure what is missing in FOLDER."""
    names = [name for name, case in CASES.items() if re.search(cases, name) and case.scored]
    about = ", ".join(f"{p} {installed(p)}" for p in ("onnxsim", "torch-pruning", "torch", "onnx2torch", "onnxruntime"))
    cache, journals = cache_of(folder), {name: Journal(folder, name, ".rivals") for name in names}
    for name, column, before, target in targets(folder, names):
        if ratios and column not in ratios:
            continue
        for tool in (tool for tool in RIVALS if re.search(rival, tool) and RIVALS[tool][0] in CASES[name].modes):
            known = journals[name].found.get(at := key(tool, RIVALS[tool][0], column))
            if known and not (retry and "error" in known):
                continue
            Job.of(Place(shared, cache), name, column, threads).calibration()
            command = [__file__, "one", shared, cache, name, tool, column, str(target)]
            facts = {"before": before, "threads": threads, "version": about}
            journals[name].keep(at, apart(command, threads, limit) | facts)


if __name__ == "__main__":
    app()
