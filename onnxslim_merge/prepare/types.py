"""Element types that onnx cannot infer, because it has no schema for an operator: ONNX Runtime knows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxslim_merge.errors import VerifyError
from onnxslim_merge.model_io import Source, runnable
from onnxslim_merge.runtime import Runner

_NAMES = {"float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_} | {
    name: np.dtype(name).type for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}


def fill_types(graph: gs.Graph, source: Source, custom_ops: Sequence[Path] = ()) -> None:
    """Write the type of every tensor of the main graph that has none; leave it open where the runtime fails too."""
    untyped = {t.name: t for node in graph.nodes for t in node.outputs if t.name and t.dtype is None}
    if not untyped:
        return
    try:
        found = _types(graph, source, custom_ops, list(untyped))
    except VerifyError:  # the probe will say why the model does not load
        return
    for name, tensor in untyped.items():
        kind = found.get(name, "").removeprefix("tensor(").removesuffix(")")
        if kind in _NAMES:
            tensor.dtype = np.dtype(_NAMES[kind])


def _types(graph: gs.Graph, source: Source, custom_ops: Sequence[Path], names: list[str]) -> dict[str, str]:
    with runnable(graph, source) as model:
        target: onnx.ModelProto | Path = model
        proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
        have = {output.name for output in proto.graph.output}
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in have)
        if isinstance(model, Path):
            target = model.with_name("typed.onnx")
            target.write_bytes(proto.SerializeToString())
        runner = Runner(target, optimize=False, lean=True, custom_ops=custom_ops, label="the prepared model")
        return {output.name: output.type for output in runner.session.get_outputs()}
