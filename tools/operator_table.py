"""The table of operators with a rule, from the docstrings of the rules, written into docs/architecture.md.

python tools/operator_table.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxslim_merge.channels import rules  # noqa: F401 - fills the registry
from onnxslim_merge.channels.registry import Rule, registered

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
BEGIN = "<!-- operators: written by tools/operator_table.py -->"
END = "<!-- operators: end -->"


def table() -> str:
    """One row for each rule: its operators, its file, what its docstring says."""
    operators: dict[Rule, list[str]] = {}
    for (domain, op_type), rule in registered().items():
        operators.setdefault(rule, []).append(f"{domain}:{op_type}" if domain else op_type)
    rows = sorted((rule.__module__.rpartition(".")[2], names, rule.__doc__ or "") for rule, names in operators.items())
    lines = ["| file | operators | how labels travel, and what freezes |", "|---|---|---|"]
    for file, names, text in rows:
        contract = " ".join(text.split()).replace("|", "\\|")
        lines.append(f"| `{file}` | {', '.join(names)} | {contract} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with a fresh table between the two marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


def main() -> int:
    """Write the page, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is out of date")
    arguments = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = with_table(old)
    if arguments.check and new != old:
        print(f"{PAGE} is out of date: run python tools/operator_table.py", file=sys.stderr)
        return 1
    if not arguments.check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
