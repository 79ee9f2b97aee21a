"""What README.md promises is true: its commands run, its numbers are real, its tables are complete."""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from cli_tools import ROOT, Cli, cli

from onnxslim_merge import errors
from onnxslim_merge.cli import INTERNAL, INTERRUPTED
from onnxslim_merge.options import ImageOptions, RunOptions, SettingsOptions

__all__ = ["cli"]  # a fixture
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMAND = "python -m onnxslim_merge "
COMMANDS = [
    line.removeprefix(COMMAND)
    for _, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(COMMAND)
]
OUTPUT = next(block for _, block in BLOCKS if block.startswith("$ " + COMMAND))


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools" / "demo.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(cli: Cli, demo: ModuleType) -> Cli:
    """A folder that looks like a clone in which `make demo` was run."""
    Path("models").symlink_to(ROOT / "models")
    demo.OUT.mkdir(parents=True)
    demo.write_calibration(demo.OUT / "calibration.npz")
    return cli


def accuracy(demo: ModuleType, model: Path) -> float:
    data = demo.np.load(demo.SLICE)
    return demo.accuracy(model, data["x_test"], data["y_test"])


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", text)]


def line(text: str, start: str) -> str:
    return next(found for found in text.splitlines() if found.strip().startswith(start))


def test_commands_run(clone: Cli):
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        clone.ok(*shlex.split(command, comments=True))
    assert Path("small.onnx").read_bytes() == Path("again.onnx").read_bytes()
    assert Path("report.json").exists()


def test_shown_output_is_real(clone: Cli, demo: ModuleType):
    command = OUTPUT.splitlines()[0].removeprefix("$ " + COMMAND)
    assert shlex.split(command) in [shlex.split(c) for c in COMMANDS]
    out = clone.ok(*shlex.split(command))
    for start in ("parameters", "MACs", "file size", "/fc1", "/fc2", "/fc3", "note  fidelity"):
        assert line(OUTPUT, start).strip() == line(out, start).strip()
    assert numbers(line(OUTPUT, "logits")) == pytest.approx(numbers(line(out, "logits")), rel=0.05)
    shown = numbers(line(OUTPUT, "Accuracy"))
    assert shown == pytest.approx([accuracy(demo, m) for m in (demo.MODEL, demo.OUT / "lenet_slim.onnx")], abs=0.5)
    assert f"{shown[1]:.1f}%" in README.split("Give it real inputs")[1]


def test_what_it_says_of_synthetic_inputs_is_real(clone: Cli, demo: ModuleType):
    command = shlex.split(OUTPUT.splitlines()[0].removeprefix("$ " + COMMAND))
    at = command.index("--calibration-data")
    clone.ok(*command[:at], *command[at + 2 :])
    (claimed,) = re.findall(r"leaves ([\d.]+)% of the test\s+images", README)
    assert float(claimed) == pytest.approx(accuracy(demo, demo.OUT / "lenet_slim.onnx"), abs=1)


def test_python_example_runs(clone: Cli, capsys: pytest.CaptureFixture[str]):
    (code,) = [block for language, block in BLOCKS if language == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert "266610 ->" in capsys.readouterr().out


def test_tables_are_complete():
    options = {
        "--" + f.name.replace("_", "-") for group in (SettingsOptions, ImageOptions, RunOptions) for f in fields(group)
    }
    rows = [row.split("|")[1] for row in README.replace(r"\|", "/").splitlines() if row.startswith("| `--")]
    assert {word for row in rows for word in re.findall(r"--[a-z-]+", row)} == options | {"--version", "--help"}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SlimError)]
    codes = {kind.exit_code for kind in kinds} - {errors.SlimError.exit_code} | {0, INTERNAL, INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == codes
