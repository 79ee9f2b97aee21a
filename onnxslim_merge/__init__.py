"""Structurally smaller ONNX models: no training framework, no labels, with a proof of what was lost and won."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxslim_merge.api import analyse, apply, slim
    from onnxslim_merge.errors import SlimError
    from onnxslim_merge.pipeline import SlimResult
    from onnxslim_merge.plan import SlimPlan
    from onnxslim_merge.settings import Settings

__all__ = ["Settings", "SlimError", "SlimPlan", "SlimResult", "analyse", "apply", "slim"]
_HOMES = {"analyse": "api", "apply": "api", "slim": "api", "SlimError": "errors", "SlimResult": "pipeline"}
_HOMES |= {"SlimPlan": "plan", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    """Load what is asked for, only then: imports take seconds, in which the command line can be interrupted."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
