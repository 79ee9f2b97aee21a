"""The canonical form that the channel rules rely on.

No Constant, Identity or inference Dropout nodes and no local functions are left. Constants and static shape chains
are folded, attributes have their defaults written out, every node and tensor has a name of its own, and each use of a
small constant has its own copy. BatchNormalization, scales and biases stay separate nodes. The result computes what
the source computes, with the same inputs, outputs, opsets and names. `prepare` is the only entry.
"""

from onnxslim_merge.prepare.canonical import prepare

__all__ = ["prepare"]
