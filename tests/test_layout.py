"""The house: sizes of files and functions, imports that go one way, names that do not collide, a current table."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import onnxslim_merge

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "onnxslim_merge"
FILES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES, PUBLIC_NAMES = 330, 50, 10

# A module imports only from those above it.
ORDER = (
    "errors", "files", "parsing", "preprocessing", "settings", "numerics", "clustering", "plan", "runtime",
    "model_io", "prepare", "samples", "probe", "pixels",
    "sampling", "costs", "channels", "views", "values",
    "statistics", "criteria", "select", "compensation", "planning", "replay", "rewrite", "verify", "provenance",
    "report", "preflight", "doubts", "remarks", "refitting", "pipeline", "api", "options", "cli",
    "__init__", "__main__",
)  # fmt: skip


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part(path: Path) -> str:
    """The file or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, `a.b` for `from onnxslim_merge.a import b` too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    prefix = "onnxslim_merge."
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def test_files_and_functions_stay_short():
    long = [relative(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES]
    assert long == []
    long = [f"{relative(path)}: {name}" for path in FILES for name, lines in functions(path) if lines > FUNCTION_LINES]
    assert long == []


def test_every_part_has_its_place_in_the_order():
    assert {part(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path):
    allowed = {*ORDER[: ORDER.index(part(path))], part(path)}
    assert {name.split(".")[0] for name in imports(path)} - allowed == set()


def test_the_rewriter_and_the_twin_know_no_rules():
    """They read a plan and a graph. Were they to look at labels, the twin would prove nothing."""
    for name in ("rewrite.py", "verify/twin.py", "plan.py"):
        assert {i.split(".")[0] for i in imports(PACKAGE / name)} <= {"errors", "files", "plan", "model_io", "rewrite"}


def test_labels_know_no_onnx_and_rules_know_channels_only():
    assert imports(PACKAGE / "channels" / "labels.py") == set()
    assert "onnx" not in (PACKAGE / "channels" / "labels.py").read_text(encoding="utf-8").split('"""', 2)[2]
    parts = ("claims", "derived", "labels", "patterns", "registry", "scope")
    allowed = tuple(f"channels.{part}" for part in parts)
    for path in (PACKAGE / "channels" / "rules").glob("[a-z]*.py"):
        assert all(name.startswith(allowed) for name in imports(path)), relative(path)


def test_every_rule_file_is_imported():
    rules = importlib.import_module("onnxslim_merge.channels.rules")
    files = {path.stem for path in (PACKAGE / "channels" / "rules").glob("*.py")} - {"__init__"}
    assert set(rules.__all__) == files
    assert {name.rpartition(".")[0] for name in imports(PACKAGE / "channels" / "rules" / "__init__.py")} == {
        "channels.rules"
    }
    for name in files:
        assert hasattr(rules, name)


def test_public_names_are_few_and_hide_no_module():
    names = onnxslim_merge.__all__
    assert len(names) <= PUBLIC_NAMES
    assert all(hasattr(onnxslim_merge, name) for name in names)
    for path in FILES:
        if path.name == "__init__.py":
            module = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
            inside = {p.stem for p in path.parent.glob("*.py")} | {p.name for p in path.parent.iterdir() if p.is_dir()}
            public = {n for n in getattr(module, "__all__", ()) if not isinstance(getattr(module, n), type(ast))}
            assert public & inside == set(), relative(path)


def test_importing_the_package_loads_no_optional_package():
    code = "import sys, onnxslim_merge; sys.exit(bool({'torch', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_table_of_operators_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "operator_table.py", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
