"""Which consumers can be refitted, and what reads their outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim_merge.channels.claims import Consumer
from onnxslim_merge.channels.derived import Derived
from onnxslim_merge.compensation.solver import takes_mean
from onnxslim_merge.parsing import size_text
from onnxslim_merge.views import Views

MATRICES = 4  # of features x features in float64, at once: two sums, a covariance, its factor


@dataclass(frozen=True, slots=True)
class Cutoff:
    """`tensor` is read only by a function that is constant below `low` and above `high`, and is x itself between."""

    tensor: str
    low: float
    high: float


def hindrance(views: Views, consumer: Consumer, memory: int) -> str | None:
    """Why weights cannot be fitted: that takes a known window, a bias for what is left, weights that are numbers.

    memory: bytes that the sums of one consumer may take.
    """
    analysis, slot = views.analysis, consumer.bias
    if consumer.window is None or consumer.gain == 0:
        return "how its outputs come from its inputs is not known"
    if isinstance(analysis.constants[consumer.weight], Derived) or consumer.fill is not None:
        return "its weights are quantised"
    if slot is None or not takes_mean(views, consumer):
        return "no bias can be added to it"
    name = analysis.inputs.get((slot.node, slot.slot)) if slot.slot is not None else None
    shape = analysis.constants[name].shape if name else ()
    if slot.node == consumer.node and sum(size != 1 for size in shape) > 1:
        return "its bias differs by position"
    features = consumer.labels.size // consumer.groups * int(np.prod(consumer.window.kernel))
    if (needed := MATRICES * 8 * features**2) > memory:
        return f"{features} features take --memory-limit {size_text(needed)}"
    return None


def cutoff(views: Views, consumer: Consumer) -> Cutoff | None:
    """The Relu or Clip that a consumer ends in, behind its bias and BatchNormalization; None for others.

    None where a sum lies between, though the error behind the Relu would fall there, too: the network's rose, by 2 to
    4% on ResNets (decision 0013).
    """
    tensor, other = views.leads_to(consumer)
    if consumer.groups != 1 or other is not None:
        return None
    flow, _ = views.alone_reads(tensor)
    node = views.node(flow.node) if flow is not None and flow.elementwise else None
    if node is None or node.op not in ("Relu", "Clip"):
        return None
    if node.op == "Relu":
        return Cutoff(tensor, 0.0, np.inf)
    bounds = []
    for slot, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        given = node.inputs[slot] if len(node.inputs) > slot and node.inputs[slot].name else None
        if given is not None and not hasattr(given, "values"):
            return None
        bounds.append(float(node.attrs.get(name, default) if given is None else np.asarray(given.values).item()))
    return Cutoff(tensor, *bounds)
