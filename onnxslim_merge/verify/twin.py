"""The twin: the original at full size, compensated weights in, removed channels masked where consumers read them.

Its output must equal the small model's. That is exactness tested, not argued.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim_merge.plan import Mask, SlimPlan
from onnxslim_merge.rewrite import edited, position

TOLERANCE = 1e-4  # of max |output| in fp32: sums of a few thousand products, re-ordered, differ by some 1e-6


def build_twin(graph: gs.Graph, plan: SlimPlan) -> gs.Graph:
    """The full-size twin of what `rewrite(graph, plan)` makes. Reads the plan and the original alone."""
    twin = edited(graph, plan)
    nodes = {node.name: node for node in twin.nodes}
    for index, mask in enumerate(plan.masks):
        node = nodes[mask.node]
        source = node.inputs[mask.slot]
        line = np.zeros([mask.size if a == mask.axis else 1 for a in range(mask.rank)], np.dtype(source.dtype))
        line[tuple(list(mask.keep) if a == mask.axis else slice(None) for a in range(mask.rank))] = 1
        build = _Builder(twin, node, f"twin.{index}", np.dtype(source.dtype))
        if mask.kind in ("layernorm", "rmsnorm"):
            build.normalised(line, mask)
            continue
        if mask.fill is None:
            node.inputs[mask.slot] = build("Mul", source, line)
        else:
            node.inputs[mask.slot] = build("Where", line.astype(bool), source, mask.fill)
        if mask.kind == "mean":
            build.scaled_output(mask.size / len(mask.keep))
    return twin


class _Builder:
    """Nodes put in front of one node, or in its place."""

    def __init__(self, graph: gs.Graph, node: gs.Node, prefix: str, dtype: np.dtype[Any]) -> None:
        """Everything gets a name that starts with `prefix`."""
        self.graph, self.node, self.prefix, self.dtype = graph, node, prefix, dtype
        self._count = 0

    def __call__(self, op: str, *inputs: Any, output: gs.Variable | None = None) -> gs.Variable:
        """The output of a new node; arrays and numbers become constants."""
        tensors = [x if isinstance(x, gs.Tensor) else self._constant(x) for x in inputs]
        name = self._name()
        made = gs.Variable(name, dtype=self.dtype) if output is None else output
        node = gs.Node(op, name=name, inputs=tensors, outputs=[made])
        self.graph.nodes.insert(position(self.graph, self.node), node)
        return made

    def _name(self) -> str:
        self._count += 1
        return f"{self.prefix}.{self._count}"

    def _constant(self, value: Any) -> gs.Constant:
        array = value if isinstance(value, np.ndarray) else np.array(value, self.dtype)
        return gs.Constant(self._name(), array)

    def scaled_output(self, factor: float) -> None:
        """Output 0 of the node times `factor`."""
        output = self.node.outputs[0]
        inner = gs.Variable(self._name(), dtype=self.dtype)
        self.node.outputs[0] = inner
        scale = gs.Node("Mul", name=self._name(), inputs=[inner, self._constant(factor)], outputs=[output])
        self.graph.nodes.insert(position(self.graph, self.node) + 1, scale)

    def normalised(self, line: np.ndarray, mask: Mask) -> None:
        """LayerNormalization or RMSNormalization in single steps, with mean and variance over `line` alone."""
        axes, share = np.array([mask.axis], np.int64), 1 / len(mask.keep)
        x = self.node.inputs[0]
        if mask.kind == "layernorm":
            mean = self("Mul", self("ReduceSum", self("Mul", x, line), axes), share)
            x = self("Sub", x, mean)
        x = self("Mul", x, line)
        variance = self("Mul", self("ReduceSum", self("Mul", x, x), axes), share)
        spread = self("Sqrt", self("Add", variance, float(self.node.attrs.get("epsilon", 1e-5))))
        output, parameters = self.node.outputs[0], [t for t in self.node.inputs[1:3] if t.name]
        self.node.outputs.clear()
        x = self("Div", x, spread)
        for op, parameter in zip(("Mul", "Add"), parameters, strict=False):
            x = self(op, x, parameter)
        self("Identity", x, output=output)
        del self.graph.nodes[position(self.graph, self.node)]
