"""One decorator, one table: operator name -> rule. Duplicates raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from onnxslim_merge.channels.scope import Scope

Rule = Callable[["Scope"], None]
R = TypeVar("R", bound=Rule)
_RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[R], R]:
    """Register a function as the rule of `op_types` in `domain`."""

    def register(function: R) -> R:
        for op_type in op_types:
            if (domain, op_type) in _RULES:
                raise ValueError(f"two rules for {domain}:{op_type}")
            _RULES[domain, op_type] = function
        return function

    return register


def find_rule(op_type: str, domain: str) -> Rule | None:
    """The rule of an operator, or None: then everything that it touches is frozen."""
    return _RULES.get(("" if domain == "ai.onnx" else domain, op_type))


def registered() -> dict[tuple[str, str], Rule]:
    """A copy of the table, for coverage lists and tests."""
    return dict(_RULES)
