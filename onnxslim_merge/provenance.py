"""Where an output came from: what goes into its metadata_props."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import numpy as np

from onnxslim_merge.model_io import Source
from onnxslim_merge.plan import SlimPlan


def version() -> str:
    """The installed version of this package; 0 when it runs from a bare checkout."""
    try:
        return installed("onnxslim-merge")
    except PackageNotFoundError:
        return "0"


def plan_sha256(plan: SlimPlan) -> str:
    """Of the JSON and of every array's name and bytes."""
    digest = hashlib.sha256(plan.to_json().encode())
    for name in sorted(plan.arrays):
        digest.update(name.encode() + np.ascontiguousarray(plan.arrays[name]).tobytes())
    return digest.hexdigest()


def metadata(source: Source, plan: SlimPlan) -> dict[str, str]:
    """The same input, options and seed give the same text: no paths, no times."""
    return {
        "onnxslim_merge.version": version(),
        "onnxslim_merge.source_sha256": source.sha256,
        "onnxslim_merge.plan_sha256": plan_sha256(plan),
        "onnxslim_merge.settings": json.dumps(dict(plan.settings), sort_keys=True),
    }
