"""ONNX Runtime, imported late: sessions, the providers that really ran, and what to install when it is missing."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import json
import os
import shutil
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxslim_merge.errors import MissingExtraError, UsageError, VerifyError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDER_WORDS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
INSTALL_HINT = (
    'ONNX Runtime is not installed: run  pip install "onnxslim-merge[cpu]"  or, with an NVIDIA GPU,'
    '  pip install "onnxslim-merge[gpu]"'
)


def load_onnxruntime() -> Any:
    """Return the onnxruntime module. Raises MissingExtraError if neither wheel is installed."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # 1.32 sends usage data, and leaves a file in TMPDIR
    try:
        ort = importlib.import_module("onnxruntime")
        ort.InferenceSession  # noqa: B018 - an uninstalled wheel can leave an empty namespace package behind
    except (ImportError, AttributeError):
        raise MissingExtraError(INSTALL_HINT) from None
    _warn_if_both()
    return ort


@functools.cache
def _warn_if_both() -> None:
    """Once in a process: reading package metadata is slow, and sessions are many."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        warnings.warn(
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other's files: uninstall one",
            stacklevel=3,
        )


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Runner:
    """One session. `model` is a ModelProto (below 2 GB) or a path; `run` maps input names to arrays and back.

    Raises VerifyError, naming the operator and domain where the runtime says so, if the model cannot be loaded or run,
    or if one of `providers` did not load (ONNX Runtime itself would fall back to the CPU without a word).
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        *,
        providers: Sequence[str] = (CPU,),
        optimize: bool = True,
        custom_ops: Iterable[Path] = (),
        lean: bool = False,
        arena: bool = True,
        label: str = "the model",
        tf32: bool = False,
        profile: bool = False,
    ) -> None:
        """Create the session.

        optimize: False runs the graph as written. lean: avoids copies of the weights. arena: keep the memory of
        intermediate tensors for the next run.
        tf32: allow CUDA its 10-bit mantissa, ONNX Runtime's own default; off here, because proofs need float32.
        profile: record which provider runs each node, for `nodes_per_provider`.
        """
        ort = load_onnxruntime()
        self.label = label
        _require_available(ort, providers, label)
        options = _session_options(ort, optimize=optimize, lean=lean, arena=arena)
        if profile:
            folder = tempfile.mkdtemp(prefix="onnxslim-merge-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
        self._profiling = profile
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        provider_options = [(p, {"use_tf32": str(int(tf32))}) if p == CUDA else p for p in providers]
        try:
            for library in custom_ops:
                options.register_custom_ops_library(str(library))
            self.session = ort.InferenceSession(source, options, providers=provider_options, enable_fallback=0)
        except Exception as error:  # ORT raises a dozen unrelated classes
            raise VerifyError(f"{label} does not load in ONNX Runtime: {one_line(error)}") from error
        lost = [p for p in providers if p not in self.session.get_providers()]
        if lost:
            raise VerifyError(_does_not_load(lost[0]))
        self.output_names = [o.name for o in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once; returns outputs by name."""
        names = list(outputs) if outputs is not None else self.output_names
        try:
            return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise VerifyError(f"{self.label} does not run in ONNX Runtime: {one_line(error)}") from error

    def nodes_per_provider(self) -> dict[str, int]:
        """End profiling (once) and count the kernels that ran so far on each provider, each node once.

        Needs `profile=True`. Nodes of the *optimised* graph: fused nodes count once, inserted copies count too.
        """
        if not self._profiling:
            raise RuntimeError("nodes_per_provider() needs Runner(profile=True), and may be called once")
        self._profiling = False
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        kernels = {
            (event["args"].get("provider", ""), event["name"], event["args"].get("node_index"))
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        }
        return dict(sorted(Counter(provider for provider, _, _ in kernels if provider).items()))


def _session_options(ort: Any, *, optimize: bool, lean: bool, arena: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if lean or not arena:
        options.enable_cpu_mem_arena = False
    # Threads that wait for the next run would slow down other sessions (measuring ResNet-20, 2 cores: 1.6x) and BLAS
    # (least squares of VGG-16: 1.25x).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def providers_that_ran(
    model: onnx.ModelProto | Path,
    feeds: Mapping[str, np.ndarray],
    providers: Sequence[str],
    *,
    custom_ops: Iterable[Path] = (),
) -> dict[str, int]:
    """How many nodes ran on each provider when `model` is run once on `feeds`, read from the session's profile."""
    runner = Runner(model, providers=with_cpu(providers), custom_ops=custom_ops, profile=True)
    runner.run(feeds)
    return runner.nodes_per_provider()


def with_cpu(providers: Sequence[str]) -> tuple[str, ...]:
    """`providers` with the CPU as the last resort, for nodes that no other one implements."""
    return tuple(dict.fromkeys((*providers, CPU)))


def resolve_providers(requested: Sequence[str]) -> tuple[str, ...]:
    """Full provider names for the words `cpu`, `cuda`, `tensorrt` (any case) or full names, in order, each once.

    Nothing requested: CUDA if it really runs a node on this machine, else the CPU. Raises UsageError for an unknown
    word, MissingExtraError if the installed wheel lacks the provider, VerifyError if it is there but runs nothing.
    """
    ort = load_onnxruntime()
    if not requested:
        return (CUDA,) if provider_runs(CUDA) else (CPU,)
    known = {name.lower(): name for name in ort.get_all_providers()} | PROVIDER_WORDS
    names: dict[str, None] = {}
    for word in requested:
        name = known.get(word.strip().lower())
        if name is None:
            raise UsageError(
                f"--providers {word!r}: unknown; choose from {', '.join(PROVIDER_WORDS)} or a full ONNX Runtime name"
            )
        names[name] = None
    for name in names:
        _require_available(ort, (name,), f"--providers {name}")
        if not provider_runs(name):
            raise VerifyError(_does_not_load(name))
    return tuple(names)


@functools.cache
def provider_runs(name: str) -> bool:
    """Whether `name` really runs a node here: a tiny Conv is loaded, must be assigned to it, and must run.

    The list of available providers only says what the wheel was built with.
    """
    ort = load_onnxruntime()
    if name not in ort.get_available_providers():
        return False
    probe = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "probe (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2}> { y = Conv (x, w) }"
    )
    ort.set_default_logger_severity(4)  # a failed load prints native errors; the caller says it in one line
    try:
        return providers_that_ran(probe, {"x": np.ones((1, 1, 4, 4), np.float32)}, (name,)).get(name, 0) > 0
    except VerifyError:
        return False
    finally:
        ort.set_default_logger_severity(2)


def _require_available(ort: Any, providers: Iterable[str], label: str) -> None:
    """Refuse a provider that the wheel lacks (ORT would only warn); find CUDA's libraries before the first use."""
    for name in providers:
        if name not in ort.get_available_providers():
            pip = ': pip install "onnxslim-merge[gpu]"' if name in (CUDA, TENSORRT) else ""
            raise MissingExtraError(f"{label}: the installed ONNX Runtime was built without {name}{pip or '; use cpu'}")
        if name in (CUDA, TENSORRT):
            _preload_cuda()


@functools.cache
def _preload_cuda() -> None:
    """Let ORT find the CUDA and cuDNN libraries of the nvidia wheels (or those that an imported torch has loaded)."""
    preload = getattr(load_onnxruntime(), "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find; the probe decides instead
            preload()


def _does_not_load(name: str) -> str:
    if name in (CUDA, TENSORRT):
        remedy = 'check nvidia-smi, then  pip install "onnxslim-merge[gpu]"  for its CUDA and cuDNN libraries, or use'
        return f"{name} runs nothing on this machine (driver or libraries missing): {remedy} --providers cpu"
    return f"{name} runs nothing on this machine: use --providers cpu"


def one_line(error: BaseException, limit: int = 400) -> str:
    """The message of `error` on one line, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]
