"""Models in and out.

Reading and checking a file (`load`), ModelProto -> graph-surgeon graph (`to_graph`) and back (`build`, with
everything graph-surgeon loses carried over from the source), models that a runtime can load without a copy of the
weights in memory (`runnable`), and saves that either appear whole or leave no trace (`staged_output`). Nothing here
knows an operator, channels or plans.
"""

from onnxslim_merge.model_io.exporting import build, fill_shapes, full_check, runnable
from onnxslim_merge.model_io.importing import to_graph
from onnxslim_merge.model_io.precision import is_half_precision, to_float32
from onnxslim_merge.model_io.reading import Source, load
from onnxslim_merge.model_io.staging import Staging, staged_output

__all__ = [
    "Source", "Staging", "build", "fill_shapes", "full_check", "is_half_precision", "load", "runnable", "staged_output",
    "to_float32", "to_graph",
]  # fmt: skip
