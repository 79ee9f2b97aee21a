"""One file per operator family, one function per family: how labels travel, and what is claimed of a node.

To add an operator, add its name to a decorator here or write a function; nothing else in the package knows operators.
"""

from onnxslim_merge.channels.rules import (
    attention,
    conv,
    dense,
    einsum,
    elementwise,
    fused,
    groupnorm,
    join,
    layernorm,
    normalise,
    pick,
    pool,
    qlinear,
    quantise,
    recurrent,
    reduce,
    resample,
    shape,
)

__all__ = [
    "attention",
    "conv",
    "dense",
    "einsum",
    "elementwise",
    "fused",
    "groupnorm",
    "join",
    "layernorm",
    "normalise",
    "pick",
    "pool",
    "qlinear",
    "quantise",
    "recurrent",
    "reduce",
    "resample",
    "shape",
]
