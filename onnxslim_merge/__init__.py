"""Structurally smaller ONNX models: no training framework, no labels, with a proof of what was lost and won."""

from onnxslim_merge.api import analyse, apply, slim
from onnxslim_merge.errors import SlimError
from onnxslim_merge.pipeline import SlimResult
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.settings import Settings

__all__ = ["Settings", "SlimError", "SlimPlan", "SlimResult", "analyse", "apply", "slim"]
