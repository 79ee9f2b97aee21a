"""Neuron Merging (Kim, Kim, Kim, Kim, NeurIPS 2020, section 3): which kept channel stands in for a removed one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.values import Value
from onnxslim_merge.views import Floats

THRESHOLD_DENSE = 0.45
THRESHOLD_CONV = 0.1


@dataclass(frozen=True, slots=True)
class Donors:
    """For each of r removed channels: index of the donor in the cell, or -1, and value_i ~ scale value_j + offset."""

    donor: NDArray[np.int64]
    scale: Floats
    offset: Floats


def find_donors(
    value: Value, kept: NDArray[np.int64], removed: NDArray[np.int64], threshold: float | None, lam: float
) -> Donors:
    """Donors by cosine, on original folded weights; of convolutions by the score that weighs the bias too.

    Behind a function that is not positively homogeneous only a channel that is nearly equal, not nearly parallel, can
    stand in: scale 1, and the distance takes the place of the angle (equal for rows of equal norm).
    """
    none = Donors(np.full(removed.size, -1), np.zeros(removed.size), np.zeros(removed.size))
    if value.private is not None or not kept.size or not removed.size:
        return none
    limit = threshold if threshold is not None else THRESHOLD_CONV if value.is_conv else THRESHOLD_DENSE
    weight, bias = value.matrix, value.bias
    rows = weight if value.is_conv else np.concatenate([weight, bias[:, None]], axis=1)
    if value.degree == Degree.OTHER:
        likeness, cost, scale = _by_distance(np.concatenate([weight, bias[:, None]], axis=1), kept, removed)
    else:
        likeness, scale = _cosines(rows, kept, removed)
        cost = -likeness
        if value.is_conv:
            cost = lam * (1 - likeness) + (1 - lam) * _bias_term(bias, scale, kept, removed, np.isfinite(likeness))
    return _accept(value, kept, removed, likeness, cost, scale, limit)


def _cosines(rows: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Cos (r, k), -inf for zero rows, and the ratio of norms (r, k)."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    divisor = np.where(norms > 0, norms, 1.0)
    cosine = (rows[removed] @ rows[kept].T) / divisor[removed][:, None] / divisor[kept]
    cosine[:, norms[kept] == 0] = -np.inf
    cosine[norms[removed] == 0] = -np.inf
    scale = norms[removed][:, None] / np.where(norms[kept] > 0, norms[kept], 1.0)
    return cosine, scale


def _by_distance(rows: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """1 - |r_i - r_j|^2 / (2 |r_i|^2), which is the cosine where norms are equal."""
    squares = np.einsum("ij,ij->i", rows, rows)
    distance = squares[removed][:, None] + squares[kept] - 2 * rows[removed] @ rows[kept].T
    own = np.where(squares[removed] > 0, squares[removed], 1.0)[:, None]
    likeness = 1 - distance / (2 * own)
    likeness[squares[removed] == 0] = -np.inf
    return likeness, -likeness, np.ones_like(likeness)


def _bias_term(
    bias: Floats, scale: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64], candidate: NDArray[np.bool_]
) -> Floats:
    """|b_i - s_ij b_j| / s_ij, min-max normalised over the candidates j; 0 where all are equal, (r, k)."""
    gap = np.abs(bias[removed][:, None] - scale * bias[kept]) / np.where(scale > 0, scale, 1.0)
    low = np.where(candidate, gap, np.inf).min(1, keepdims=True)
    span = np.where(candidate, gap, -np.inf).max(1, keepdims=True) - low
    usable = np.isfinite(span) & (span > 0)
    term: Floats = np.where(usable, gap - np.where(usable, low, 0.0), 0.0) / np.where(usable, span, 1.0)
    return term


def _accept(
    value: Value, kept: NDArray[np.int64], removed: NDArray[np.int64], likeness: Floats, cost: Floats, scale: Floats,
    limit: float,
) -> Donors:  # fmt: skip
    """The cheapest candidate if its likeness reaches the threshold, with the affine tail of both applied."""
    if value.barred is not None:
        cost = np.where(value.barred[kept] | value.barred[removed][:, None], np.inf, cost)
    if value.family is not None:
        cost = np.where(value.family[kept] == value.family[removed][:, None], cost, np.inf)
    if value.scale is not None:  # a donor whose tail is 0 cannot be scaled back
        cost = np.where(value.scale[kept] == 0, np.inf, cost)
    best = np.where(np.isfinite(likeness), cost, np.inf).argmin(1)
    each = np.arange(removed.size)
    ok = (likeness[each, best] >= limit) & np.isfinite(cost[each, best])
    donor = kept[best]
    factor, offset = scale[each, best], np.zeros(removed.size)
    if value.scale is not None and value.offset is not None:
        tail = np.where(value.scale[donor] == 0, 1.0, value.scale[donor])
        factor = factor * value.scale[removed] / tail
        offset = value.offset[removed] - factor * value.offset[donor]
    return Donors(np.where(ok, donor, -1), factor * ok, offset * ok)
