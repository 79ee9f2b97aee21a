"""Sessions and the providers that really run."""

from __future__ import annotations

import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxslim_merge import runtime
from onnxslim_merge.errors import MissingExtraError, UsageError, VerifyError
from onnxslim_merge.runtime import CPU, CUDA, TENSORRT, Runner, providers_that_ran, resolve_providers

MODEL = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
    { a = Sin (x)  b = MatMul (a, w)  y = Cos (b) }"""
)
FEED = {"x": np.ones((3, 4), np.float32)}


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the wheel was built with some providers, and that some of them run."""

    def pretend(available, running):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(available))
        monkeypatch.setattr(runtime, "provider_runs", lambda name: name in running)
        monkeypatch.setattr(runtime, "_preload_cuda", lambda: None)

    return pretend


def test_profile_counts_the_nodes_that_ran():
    assert providers_that_ran(MODEL, FEED, (CPU,)) == {CPU: 3}


def test_profile_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    providers_that_ran(MODEL, FEED, (CPU,))
    assert list(tmp_path.iterdir()) == []


def test_threads_of_one_session_do_not_wait_busily_for_its_next_run():
    options = Runner(MODEL).session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_nodes_per_provider_needs_a_profile_and_runs_on_afterwards():
    with pytest.raises(RuntimeError, match="profile=True"):
        Runner(MODEL).nodes_per_provider()
    runner = Runner(MODEL, profile=True)
    runner.run(FEED)
    runner.run(FEED)
    assert runner.nodes_per_provider() == {CPU: 3}  # each node once, not once a run
    assert runner.run(FEED)["y"].shape == (3, 2)


def test_the_real_probe_tells_the_cpu_from_the_absent():
    assert runtime.provider_runs(CPU)
    assert not runtime.provider_runs("NoSuchExecutionProvider")


def test_the_probe_does_not_believe_the_list_of_available_providers(monkeypatch):
    """A GPU wheel without a driver lists CUDA, creates the session without a word, and runs on the CPU."""
    real = onnxruntime.InferenceSession

    def session(*args, providers, **keywords):
        return real(*args, providers=[CPU], **keywords)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runtime.provider_runs.cache_clear()
    try:
        assert resolve_providers(()) == (CPU,)
        with pytest.raises(VerifyError, match=r"CUDAExecutionProvider runs nothing on this machine.*nvidia-smi"):
            resolve_providers(("cuda",))
        with pytest.raises(VerifyError, match="CUDAExecutionProvider runs nothing"):
            Runner(MODEL, providers=(CUDA, CPU))
    finally:
        runtime.provider_runs.cache_clear()


def test_a_session_that_lists_cuda_but_runs_on_the_cpu_does_not_count(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(runtime, "providers_that_ran", lambda *args, **keywords: {CPU: 1})
    runtime.provider_runs.cache_clear()
    try:
        assert resolve_providers(()) == (CPU,)
    finally:
        runtime.provider_runs.cache_clear()


@pytest.mark.parametrize(("running", "expected"), [((CUDA, CPU), (CUDA,)), ((CPU,), (CPU,))])
def test_default_is_cuda_if_it_runs_else_the_cpu(machine, running, expected):
    machine((TENSORRT, CUDA, CPU), running)
    assert resolve_providers(()) == expected


def test_words_and_full_names_in_order_each_once(machine):
    machine((TENSORRT, CUDA, CPU), (TENSORRT, CUDA, CPU))
    assert resolve_providers(("CUDA", "cpu", CUDA, "tensorrt")) == (CUDA, CPU, TENSORRT)


def test_requested_providers_that_cannot_run_are_errors(machine):
    machine((CUDA, CPU), (CPU,))
    with pytest.raises(UsageError, match="'gpu': unknown; choose from cpu, cuda, tensorrt"):
        resolve_providers(("gpu",))
    with pytest.raises(MissingExtraError, match=r"without TensorrtExecutionProvider: pip install"):
        resolve_providers(("tensorrt",))
    with pytest.raises(VerifyError, match="runs nothing"):
        resolve_providers(("cpu", "cuda"))


def test_runner_refuses_a_provider_that_the_wheel_lacks():
    with pytest.raises(MissingExtraError, match="built without DmlExecutionProvider"):
        Runner(MODEL, providers=("DmlExecutionProvider",))


def test_cuda_libraries_are_preloaded_quietly_and_torch_is_not_imported(monkeypatch, capfd):
    calls = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: calls.append(print("Failed to load libcudnn")))
    before = "torch" in sys.modules
    runtime._preload_cuda.cache_clear()
    try:
        runtime._require_available(onnxruntime, (CPU,), "")
        assert calls == []
        runtime._require_available(onnxruntime, (CUDA,), "")
        runtime._require_available(onnxruntime, (CUDA,), "")
    finally:
        runtime._preload_cuda.cache_clear()
    assert len(calls) == 1
    assert capfd.readouterr().out == ""
    assert ("torch" in sys.modules) == before


def test_missing_runtime_names_both_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))  # what an uninstall can leave
    with pytest.raises(MissingExtraError, match=r"\[cpu\].*\[gpu\]"):
        runtime.load_onnxruntime()


def test_errors_name_the_operator(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "my.dom" : 1]> g (float[N] x) => (float[N] y) { y = my.dom.Foo (x) }'
    )
    with pytest.raises(VerifyError, match=r"my\.dom:Foo"):
        Runner(model)
    with pytest.raises(VerifyError, match="does not run"):
        Runner(MODEL).run({"x": np.ones((3, 5), np.float32)})
    with pytest.raises(VerifyError, match="does not load"):
        Runner(MODEL, custom_ops=(tmp_path / "none.so",))


def test_both_wheels_are_warned_of(monkeypatch):
    monkeypatch.setattr(runtime, "_installed", lambda name: True)
    runtime._warn_if_both.cache_clear()
    with pytest.warns(UserWarning, match="overwrite each other"):
        runtime.load_onnxruntime()
    runtime._warn_if_both.cache_clear()
