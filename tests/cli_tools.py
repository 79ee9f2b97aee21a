"""The command line as tests call it: in this process or in one of its own, with a look at every file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from textmodels import parse

from onnxslim_merge.cli import main

ROOT = Path(__file__).resolve().parent.parent
CPU = "CPUExecutionProvider"
MLP = """mlp (float[N, 6] x) => (float[N, 4] y)
<float[6, 16] w1, float[16] b1, float[16, 12] w2, float[12] b2, float[12, 4] w3, float[4] b3>
{ [fc1] a = Gemm (x, w1, b1)
  [act1] ar = Relu (a)
  [fc2] b = Gemm (ar, w2, b2)
  [act2] br = Relu (b)
  [fc3] y = Gemm (br, w3, b3) }"""
# 1.1 MB, and about 1 ms a run: large enough for a small disk to be full, slow enough to be interrupted.
WIDE = """wide (float[64, 256] x) => (float[64, 4] y)
<float[256, 512] w1, float[512, 256] w2, float[256, 4] w3>
{ [fc1] a = MatMul (x, w1)
  ar = Relu (a)
  [fc2] b = MatMul (ar, w2)
  br = Relu (b)
  [fc3] y = MatMul (br, w3) }"""
CNN = """cnn (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[8, 3, 3, 3] w1, float[8] g1, float[8] s1, float[8] m1, float[8] var1, float[12, 8, 3, 3] w2, float[12] b2,
 float[5, 12] w3>
{ [conv1] a = Conv <pads = [1,1,1,1]> (x, w1)
  [bn1] n = BatchNormalization (a, g1, s1, m1, var1)
  [act1] r = Relu (n)
  [conv2] c = Conv <pads = [1,1,1,1]> (r, w2, b2)
  [act2] q = Relu (c)
  [pool] p = GlobalAveragePool (q)
  [flat] f = Flatten (p)
  [head] y = Gemm <transB = 1> (f, w3) }"""
OPAQUE = """opaque (float[N, 6] x) => (float[N, 4] y)
<float[6, 4] w>
{ h = MatMul (x, w)
  [odd] y = my.domain.Foo (h) }"""


def saved(path: Path, text: str = MLP, **options: int) -> Path:
    """The model `text` as the file `path`."""
    onnx.save(parse(text, **options), path)
    return path


def outputs(path: str | Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=[CPU]).run(None, {"x": x})[0]


class Cli:
    """Runs `main` in a folder of its own, TMPDIR included."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.model = saved(folder / "in.onnx")
        self.old = folder / "old.onnx"
        self.old.write_bytes(b"an older output")
        self._capsys = capsys

    def files(self) -> dict[str, bytes]:
        """Name -> content of all files, hidden ones and those in TMPDIR too; folders end in `/`."""
        found = sorted(self.folder.rglob("*"))
        return {
            str(p.relative_to(self.folder)) + "/" * p.is_dir(): b"" if p.is_dir() else p.read_bytes() for p in found
        }

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = main([str(a) for a in arguments])
        out, err = self._capsys.readouterr()
        return code, out, err

    def ok(self, *arguments: str | Path) -> str:
        """The report of a run that must succeed without a word on stderr."""
        code, out, err = self.run(*arguments)
        assert (code, err) == (0, "")
        return out

    def refused(self, code: int, *arguments: str | Path) -> str:
        """The line on stderr of a run that must end with `code`, print nothing else, and change no file."""
        before = self.files()
        found, out, err = self.run(*arguments)
        assert (found, out) == (code, ""), err
        assert self.files() == before
        return one_line(err)


def one_line(err: str) -> str:
    """The only line of a stderr."""
    assert err.count("\n") == 1, err
    assert err.startswith("onnxslim-merge: "), err
    return err.removeprefix("onnxslim-merge: ").strip()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A folder with in.onnx and an older output; speed is measured in a moment."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("onnxslim_merge.verify.speed.MAX_PAIRS", 15)
    monkeypatch.setattr("onnxslim_merge.verify.speed.RESAMPLES", 50)
    monkeypatch.chdir(tmp_path)
    return Cli(tmp_path, capsys)


def process(folder: Path, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`python -m onnxslim_merge` in `folder`, TMPDIR = `folder`/tmp."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), "PYTHONHASHSEED": "random"}
    environment["ORT_DISABLE_TELEMETRY"] = "1"  # else ONNX Runtime 1.32 leaves a file `.ses` in TMPDIR
    environment.pop("PYTHONWARNINGS", None)
    command = [*prefix, sys.executable, "-m", "onnxslim_merge", *map(str, arguments)]
    # A shell may start its background jobs with SIGINT ignored, which children inherit.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGINT, handler)


def finished(run: subprocess.Popen[str], look: Callable[[], None] = lambda: None) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    look()
    out, err = run.communicate(timeout=120)
    return run.returncode, out, err
