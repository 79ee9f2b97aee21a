"""Moments without data: BatchNormalization tells mean (beta) and spread (|gamma|) of its output on the training set.

A normal distribution is carried through the element-wise functions that follow on a fine grid.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.channels.claims import Flow
from onnxslim_merge.runtime import Runner
from onnxslim_merge.values import channel_entries
from onnxslim_merge.views import Floats, Views

# The trapezoid rule on a grid is exact to 1e-4 also for functions with kinks, where Gauss-Hermite is good to 1e-2.
GRID = np.linspace(-6.0, 6.0, 513)
DENSITY = np.exp(-0.5 * GRID**2) / np.exp(-0.5 * GRID**2).sum()


def closed_moments(views: Views, cell: Cell, tensor: str) -> tuple[Floats, Floats | None] | None:
    """(mean (n,), mean square (n,) or None behind an average pool) of a cell at `tensor`; None if unknown.

    Known where only element-wise functions, affine maps, moves and average pools lie between a BatchNormalization and
    the tensor. MaxPool, sums of branches and everything else: None.
    """
    chain = _chain(views, cell, tensor)
    if chain is None:
        return None
    (first, base), *rest = chain[::-1]
    beta, gamma = (_entries(views, cell, first, a) for a in base.moments or ())
    if beta is None or gamma is None:
        return None
    grid, averaged = beta[:, None] + gamma[:, None] * GRID, False
    for name, flow in rest:
        if flow.keeps_mean:
            averaged = True
        elif flow.kind == "affine":
            scale, offset = (_entries(views, cell, name, a) for a in (flow.scale, flow.offset))
            if scale is None or offset is None:
                return None
            grid = scale[:, None] * grid + offset[:, None]
        elif flow.elementwise and averaged:
            return None  # the spread of an average is not known
        elif flow.elementwise:
            grid = _run_alone(views, flow, grid)
    return grid @ DENSITY, None if averaged else grid**2 @ DENSITY


def _chain(views: Views, cell: Cell, tensor: str) -> list[tuple[str, Flow]] | None:
    """(tensor, flow) from `tensor` back to a BatchNormalization, which comes last."""
    chain: list[tuple[str, Flow]] = []
    flows = views.analysis.flows
    while (flow := flows.get(tensor)) is not None:
        chain.append((tensor, flow))
        if flow.moments is not None:
            return chain
        if not (flow.kind in ("affine", "move") or flow.elementwise or flow.keeps_mean):
            return None
        holding = [name for name in dict.fromkeys(flow.inputs) if views.holds(name, cell)]
        if len(holding) != 1:
            return None
        tensor = holding[0]
    return None


def _entries(views: Views, cell: Cell, tensor: str, array: Floats | None) -> Floats | None:
    place = views.locate(tensor, cell)
    return None if place is None or array is None else channel_entries(array, *place)


def _run_alone(views: Views, flow: Flow, grid: Floats) -> Floats:
    """The node of an element-wise flow, run by ONNX Runtime on the grid as its only variable input."""
    node = views.node(flow.node)
    if node.op == "Cast":
        return grid
    alone = _alone(views, node, flow.inputs[0])
    key = alone.SerializeToString(deterministic=True)  # all Relus of a model share one session
    runner = views.sessions.get(key)
    if runner is None:
        runner = views.sessions[key] = Runner(alone, label=flow.node)
    result: Floats = runner.run({"x": grid.astype(np.float32)})["y"].astype(np.float64)
    return result


def _alone(views: Views, node: gs.Node, variable: str) -> onnx.ModelProto:
    """A model of one node in fp32, x (a, b) -> y (a, b)."""
    names, constants = [], []
    for slot, tensor in enumerate(node.inputs):
        names.append("x" if tensor.name == variable else f"c{slot}" if tensor.name else "")
        if tensor.name and tensor.name != variable:
            constants.append(numpy_helper.from_array(np.asarray(tensor.values, np.float32), f"c{slot}"))
    made = helper.make_node(node.op, names, ["y"], domain=node.domain or "", **node.attrs)
    types = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["a", "b"]) for n in ("x", "y")]
    graph = helper.make_graph([made], "alone", types[:1], types[1:], constants)
    imports = [helper.make_opsetid(d.domain, d.version) for d in views.analysis.graph.import_domains]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
