"""The recipes of docs/exporting.md keep BatchNormalization: PyTorch's are run as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import onnx
import pytest

import onnxslim_merge

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch: make test-torch")
pytest.importorskip("onnxscript", reason="needs onnxscript: make test-torch")

PAGE = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NORMS = 5


class Residual(torch.nn.Module):
    """A small net with a residual stream; every kind of layer that exporters fold BatchNormalization into."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 16, 1),
            nn.BatchNorm2d(16),
        )
        self.neck = nn.Sequential(nn.Linear(16, 20), nn.BatchNorm1d(20), nn.ReLU())
        self.head = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.branch(x))
        return self.head(self.neck(x.mean((2, 3))))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Statistics, scales and offsets are those of no other layer."""
    torch.manual_seed(0)
    model = Residual()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 1.0
    model(torch.randn(32, 3, 16, 16))
    return model


def code(section: str, language: str = "python") -> str:
    return re.search(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("section", [name for name in SECTIONS if name.startswith("PyTorch")])
def test_recipe_keeps_batchnorm(
    section: str, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        exec(code(section), {"model": model, "images": images})

    check = shlex.split(code("How to check", ""))
    found = subprocess.run([sys.executable, *check[1:]], capture_output=True, text=True, check=True)
    assert int(found.stdout) == NORMS
    assert onnx.load("net.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    flows = onnxslim_merge.analyse("net.onnx").flows.values()
    assert sum(flow.moments is not None for flow in flows) == NORMS

    result = onnxslim_merge.slim("net.onnx", ratio=0.5, compensation="least-squares")

    assert result.report.parameters.after < 0.4 * result.report.parameters.before
    assert result.report.twin_max_error <= 1e-4
    assert not any(node.op_type == "BatchNormalization" for node in result.model.graph.node)


def test_both_recipes_are_found() -> None:
    assert sum(name.startswith("PyTorch") for name in SECTIONS) == 2


def test_raw_dynamo_file_is_as_good(model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = []
    for pattern in ("$^", r"^(fold_constants|remove_unused_nodes)\(.*\n"):
        recipe = re.sub(pattern, "", code("PyTorch, dynamo exporter"), flags=re.M)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(recipe, {"model": model, "images": torch.randn(2, 3, 16, 16)})
        sizes.append([(cell.size, cell.refusal is None) for cell in onnxslim_merge.analyse("net.onnx").cells])
    assert sizes[0] == sizes[1]
    assert any(free for _, free in sizes[0])


def test_every_python_block_is_python() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "exporting.md", "exec")


def test_note_is_quoted(model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "folded.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convolutions = torch.nn.Sequential(model.stem, model.branch).eval()
        torch.onnx.export(convolutions, (torch.randn(2, 3, 16, 16),), path, dynamo=False)
    notes = onnxslim_merge.slim(path, ratio=0.5).report.notes
    assert any(note in PAGE for note in notes)
