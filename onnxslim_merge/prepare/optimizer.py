"""ONNX Runtime's basic optimizer as a folding tool, held to what is exact and keeps names.

Only what it has to read goes in with values: weights that no folding could reach travel as graph inputs and come back
as the arrays that they were, so that models of any size pass and no weight is copied.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim_merge.model_io import Source, to_graph
from onnxslim_merge.model_io.exporting import assemble
from onnxslim_merge.model_io.importing import constants_of
from onnxslim_merge.model_io.protos import STUB_BYTES, graphs_of
from onnxslim_merge.model_io.stores import InlineStore
from onnxslim_merge.prepare.fold import QUANTIZERS, foldable
from onnxslim_merge.runtime import CPU, load_onnxruntime

# Level-1 optimizers that stay off. On: Identity-, Dropout-, Slice-, Expand-, Cast-, Noop- and PreShapeNodeElimination,
# FuseReluClip, NotWhereFusion, Pad_Fusion, ReshapeFusion, ConstantFolding: each only removes nodes, exactly.
DISABLED = [
    # fold or rename weights, so that rows, names and BatchNormalization are lost for analysis
    "ConvBNFusion",
    "ConvMulFusion",
    "ConvAddFusion",
    "GemmBNFusion",
    "MatMul_BatchNormalization_Fusion",
    "UnsqueezeElimination",  # ConstantFolding does the same and keeps the tensor's name
    # replace operators by others under new names; MatMulAddFusion also reshapes where the rank is above 2
    "MatMulAddFusion",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "GatherToSliceFusion",
    "GatherSliceToSplitFusion",
    "SliceConcatToSpaceToDepthFusion",
    "LabelEncoderFusion",
    # merge what belongs to different layers
    "ConstantSharing",
    "CommonSubexpressionElimination",
    # move Transposes, with new weights and names
    "TransposeOptimizer",
    # equal only up to rounding
    "DivMulFusion",
    "GeluFusionL1",
    "LayerNormFusionL1",
    "SimplifiedLayerNormFusion",
    "CastChainElimination",
    "FuseFp16InitializerToFp32NodeTransformer",
    # rearrange, drop or add quantisers
    "QDQPropagationTransformer",
    "EnsureUniqueDQForNodeUnit",
    "WeightBiasQuantization",
    "DoubleQDQPairsRemover",
    "ConstantFoldingDQ",
    "ClipQuantRewrite",
    "ReluQuantRewrite",
]
# Folding Expand, Tile or ConstantOfShape can blow a file up, and so can weights that two branches of an If share: above
# this growth, in bytes and as a share, the result is refused.
_MAX_GROWTH = (16 << 10, 0.02)
# What is folded is handed over inline; above this sum nothing big is.
_MAX_INLINE = 512 << 20


def optimized(graph: gs.Graph, source: Source, custom_ops: Sequence[Path] = ()) -> gs.Graph | None:
    """The graph after the optimizer, or None where that is not possible or not a pure removal of nodes.

    Reasons for None: an IR, opset, type or operator that ONNX Runtime cannot load; nodes added, as the Casts around
    half-precision operators or the body of an operator without kernel; constants grown. `graph` is not edited.
    """
    detached = _detachable(graph)
    model = assemble(graph, source, _OnlyAttached(detached), list_initializers=False)
    _to_inputs(model, detached)
    result = _run(model, custom_ops)
    if result is None or _operators(result.graph) - _operators(model.graph):
        return None
    if [value.name for value in result.graph.output] != [tensor.name for tensor in graph.outputs]:
        return None
    after = to_graph(result)
    for tensor in after.inputs:
        if tensor.name in detached:
            tensor.to_constant(detached[tensor.name])
    inputs = {tensor.name: tensor for tensor in after.inputs}
    after.inputs = [inputs[tensor.name] for tensor in graph.inputs]
    for tensor, before in zip([*after.inputs, *after.outputs], [*graph.inputs, *graph.outputs], strict=True):
        if isinstance(tensor, gs.Variable) and isinstance(before, gs.Variable):
            tensor.dtype, tensor.shape = before.dtype, before.shape
    allowed = max(_MAX_GROWTH[0], _MAX_GROWTH[1] * _bytes(graph))
    return after if _bytes(after) - _bytes(graph) <= allowed else None


class _OnlyAttached(InlineStore):
    """Leaves the tensors that become graph inputs without data."""

    def __init__(self, detached: Mapping[str, np.ndarray]) -> None:
        self.detached = detached

    def put(self, proto: onnx.TensorProto, array: np.ndarray) -> None:
        if proto.name not in self.detached:
            super().put(proto, array)


def _detachable(graph: gs.Graph) -> dict[str, np.ndarray]:
    """Constants that need not be read: those of quantisers, which stay apart, and big ones that no folding reaches."""
    main = {id(node) for node in graph.nodes}
    folded = foldable(graph)
    outputs = {id(tensor) for tensor in graph.outputs}
    detached: dict[str, np.ndarray] = {}
    attached: dict[str, np.ndarray] = {}
    for tensor in constants_of(graph):
        if id(tensor) in outputs or any(id(node) not in main for node in tensor.outputs):
            continue
        big = tensor.values.nbytes >= STUB_BYTES
        if any(node.op in QUANTIZERS for node in tensor.outputs):
            detached[tensor.name] = tensor.values
        elif big:
            used = any(id(node) in folded for node in tensor.outputs)
            (attached if used else detached)[tensor.name] = tensor.values
    if sum(array.nbytes for array in attached.values()) > _MAX_INLINE:
        detached.update(attached)
    return detached


def _to_inputs(model: onnx.ModelProto, detached: Mapping[str, np.ndarray]) -> None:
    """Replace initializers by graph inputs of the same type and shape."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in detached]
    for tensor in model.graph.initializer:
        if tensor.name in detached:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(value)
    shrunk = onnx.GraphProto()
    shrunk.initializer.extend(kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(shrunk.initializer)
    model.ir_version = max(model.ir_version, 4)  # below, every initializer would have to be an input


def _run(model: onnx.ModelProto, custom_ops: Sequence[Path]) -> onnx.ModelProto | None:
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    # Quantisers are left alone; no weight of theirs can be folded, because all their constants are graph inputs.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory(prefix="onnxslim_merge.") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            for library in custom_ops:
                options.register_custom_ops_library(str(library))
            ort.InferenceSession(
                model.SerializeToString(), options, providers=[CPU], disabled_optimizers=DISABLED, enable_fallback=0
            )
            return onnx.load(path)
        except Exception:  # ONNX Runtime raises a dozen unrelated classes; each means that it cannot help here
            return None


def _operators(graph: onnx.GraphProto) -> Counter[tuple[str, str]]:
    nodes = (node for body in graphs_of(graph) for node in body.node)
    return Counter((node.domain, node.op_type) for node in nodes)


def _bytes(graph: gs.Graph) -> int:
    return sum(int(tensor.values.nbytes) for tensor in constants_of(graph))
