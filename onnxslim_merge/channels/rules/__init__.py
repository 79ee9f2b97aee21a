"""One file per operator family, one function per family: how labels travel, and what is claimed of a node.

To add an operator, add its name to a decorator here or write a function; nothing else in the package knows operators.
"""

from onnxslim_merge.channels.rules import conv, dense, elementwise, join, normalise, pool, reduce, shape

__all__ = ["conv", "dense", "elementwise", "join", "normalise", "pool", "reduce", "shape"]
