"""Neuron Merging (Kim, Kim, Kim, Kim, NeurIPS 2020, section 3): which kept channels stand in for a removed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxslim_merge.channels.claims import Degree
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.values import Value
from onnxslim_merge.views import Floats

THRESHOLD_DENSE = 0.45
THRESHOLD_CONV = 0.1
GATHERED = 1 << 22  # numbers of gathered covariances at once
RIDGE = 1e-6  # of a donor's own square: donors that are parallel share their part


@dataclass(frozen=True, slots=True)
class Donors:
    """For each of r removed channels: value_i ~ sum of scale value_j over its donors j, plus offset.

    donor (r, d): indices in the cell, -1 where there is none; scale (r, d); offset (r,).
    """

    donor: NDArray[np.int64]
    scale: Floats
    offset: Floats

    @classmethod
    def none(cls, removed: int) -> Donors:
        """Nobody stands in."""
        return cls(np.full((removed, 1), -1), np.zeros((removed, 1)), np.zeros(removed))

    def share(self, channels: int) -> csr_array:
        """The scales as a sparse matrix (r, channels)."""
        row, which = np.nonzero(self.donor >= 0)
        places = row, self.donor[row, which]
        return csr_array((self.scale[row, which], places), shape=(self.donor.shape[0], channels))

    @property
    def found(self) -> NDArray[np.bool_]:
        """Who has a donor, (r,)."""
        return np.asarray(self.donor.max(1) >= 0)


@dataclass(frozen=True, slots=True)
class Search:
    """What donors have to be like.

    threshold: least cosine, None = by the kind of layer; lam: its weight against the bias term of convolutions.
    count: how many donors a channel may have, None = all. centred: means are carried apart, so that only deviations
    are fitted.
    """

    threshold: float | None = None
    lam: float = 0.85
    count: int | None = 1
    centred: bool = False


def find_donors(
    value: Value, kept: NDArray[np.int64], removed: NDArray[np.int64], search: Search, device: Device = CPU
) -> Donors:
    """Donors by cosine, on original folded weights; of convolutions by the score that weighs the bias too.

    One donor is scaled by the ratio of norms, as in the paper; several by least squares, as if inputs were normal.
    Behind a function that is not positively homogeneous only a channel that is nearly equal, not nearly parallel, can
    stand in: scale 1, and the distance takes the place of the angle (equal for rows of equal norm).
    """
    if value.private is not None or not kept.size or not removed.size:
        return Donors.none(removed.size)
    xp, weight, bias = device.xp, value.matrix, value.bias
    both = np.concatenate([weight, bias[:, None]], axis=1)
    if search.centred and search.count != 1 and not value.nonlinear:
        both = weight  # the mean carries what the bias says
    if search.count is None and value.degree != Degree.OTHER:
        return _everybody(device, value, both, kept, removed, search)
    if value.degree == Degree.OTHER:
        likeness, cost, scale = _by_distance(device, both, kept, removed)
    else:
        likeness, scale = _cosines(device, weight if value.is_conv else both, kept, removed)
        cost = -likeness
        if value.is_conv:
            term = _bias_term(device, bias, scale, kept, removed, xp.isfinite(likeness))
            cost = search.lam * (1 - likeness) + (1 - search.lam) * term
    cost = xp.where(xp.isfinite(likeness), cost, xp.inf) + device.put(_barred(value, kept, removed))
    if search.count != 1 and value.degree != Degree.OTHER:
        return _nearest(device, value, both, kept, removed, cost, search)
    best = device.get(xp.argmin(cost, axis=1))
    likeness, cost, scale = (device.get(array)[np.arange(removed.size), best] for array in (likeness, cost, scale))
    ok = (likeness >= _limit(value, search)) & np.isfinite(cost)
    return _with_tail(value, removed, np.where(ok, kept[best], -1)[:, None], scale[:, None])


def _limit(value: Value, search: Search) -> float:
    if search.threshold is not None:
        return search.threshold
    return THRESHOLD_CONV if value.is_conv else THRESHOLD_DENSE


def _cosines(device: Device, rows: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64]) -> tuple[Any, Any]:
    """Cos (r, k), -inf for zero rows, and the ratio of norms (r, k)."""
    xp, gone, stay = device.xp, device.put(rows[removed]), device.put(rows[kept])
    norms = [xp.sqrt(xp.sum(part * part, axis=1)) for part in (gone, stay)]
    safe = [xp.where(norm > 0, norm, 1.0) for norm in norms]
    cosine = (gone @ xp.matrix_transpose(stay)) / safe[0][:, None] / safe[1][None, :]
    usable = (norms[0] > 0)[:, None] & (norms[1] > 0)[None, :]
    return xp.where(usable, cosine, -xp.inf), norms[0][:, None] / safe[1][None, :]


def _by_distance(
    device: Device, rows: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64]
) -> tuple[Any, Any, Any]:
    """1 - |r_i - r_j|^2 / (2 |r_i|^2), which is the cosine where norms are equal; the cost; scales of 1."""
    xp, gone, stay = device.xp, device.put(rows[removed]), device.put(rows[kept])
    squares = [xp.sum(part * part, axis=1) for part in (gone, stay)]
    distance = squares[0][:, None] + squares[1][None, :] - 2 * (gone @ xp.matrix_transpose(stay))
    own = xp.where(squares[0] > 0, squares[0], 1.0)[:, None]
    likeness = xp.where((squares[0] > 0)[:, None], 1 - distance / (2 * own), -xp.inf)
    return likeness, -likeness, xp.ones_like(likeness)


def _bias_term(
    device: Device, bias: Floats, scale: Any, kept: NDArray[np.int64], removed: NDArray[np.int64], candidate: Any
) -> Any:
    """|b_i - s_ij b_j| / s_ij, min-max normalised over the candidates j; 0 where all are equal, (r, k)."""
    xp, own, theirs = device.xp, device.put(bias[removed])[:, None], device.put(bias[kept])[None, :]
    gap = xp.abs(own - scale * theirs) / xp.where(scale > 0, scale, 1.0)
    low = xp.min(xp.where(candidate, gap, xp.inf), axis=1, keepdims=True)
    span = xp.max(xp.where(candidate, gap, -xp.inf), axis=1, keepdims=True) - low
    usable = xp.isfinite(span) & (span > 0)
    return xp.where(usable, gap - xp.where(usable, low, 0.0), 0.0) / xp.where(usable, span, 1.0)


def _barred(value: Value, kept: NDArray[np.int64], removed: NDArray[np.int64]) -> Floats:
    """Infinite where a kept channel cannot stand in for a removed one, (r, k); else 0."""
    barred = np.zeros((removed.size, kept.size), bool)
    if value.barred is not None:
        barred |= value.barred[kept] | value.barred[removed][:, None]
    if value.family is not None:
        barred |= value.family[kept] != value.family[removed][:, None]
    if value.scale is not None:  # a donor whose tail is 0 cannot be scaled back
        barred |= value.scale[kept] == 0
    return np.where(barred, np.inf, 0.0)


def _nearest(
    device: Device, value: Value, rows: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64], cost: Any,
    search: Search,
) -> Donors:  # fmt: skip
    """The `count` cheapest candidates of each, by a least-squares fit of its own; some rows at once, to save memory."""
    xp, count = device.xp, min(search.count or 1, kept.size)
    stay = device.put(rows[kept])
    among = _covariance(device, value, stay, stay, search.centred)
    step = max(GATHERED // (count * kept.size), 1)
    donor, scale = np.full((removed.size, count), -1), np.zeros((removed.size, count))
    for top in range(0, removed.size, step):
        part = slice(top, top + step)
        gone, near = device.put(rows[removed[part]]), cost[part, :]
        chosen = xp.argsort(near, axis=1)[:, :count]
        ok = xp.isfinite(xp.take_along_axis(near, chosen, axis=1))
        across = xp.take_along_axis(_covariance(device, value, gone, stay, search.centred), chosen, axis=1)
        gram = xp.reshape(xp.take(among, xp.reshape(chosen, (-1,)), axis=0), (*chosen.shape, kept.size))
        gram = xp.take_along_axis(gram, xp.broadcast_to(chosen[:, None, :], (*chosen.shape, count)), axis=2)
        eye = device.put(np.eye(count))
        gram = xp.where(ok[:, :, None] & ok[:, None, :], gram, eye) * (1 + RIDGE * eye)
        across = xp.where(ok, across, 0.0)
        found = xp.linalg.solve(gram, across[:, :, None])[:, :, 0]
        fits = device.get(_reaches(device, value, gone, found, across, search))
        donor[part] = np.where(device.get(ok) & fits[:, None], kept[device.get(chosen)], -1)
        scale[part] = device.get(found)
    return _with_tail(value, removed, donor, scale)


def _everybody(
    device: Device, value: Value, rows: Floats, kept: NDArray[np.int64], removed: NDArray[np.int64], search: Search
) -> Donors:
    """All kept channels that may stand in, by one least-squares fit for each family."""
    xp = device.xp
    donor, scale = np.full((removed.size, kept.size), -1), np.zeros((removed.size, kept.size))
    allowed = ~np.isinf(_barred(value, kept, removed))
    for pattern in np.unique(allowed, axis=0):
        who, mine = np.flatnonzero((allowed == pattern).all(1)), np.flatnonzero(pattern)
        if not mine.size:
            continue
        gone, stay = device.put(rows[removed[who]]), device.put(rows[kept[mine]])
        gram = _covariance(device, value, stay, stay, search.centred) * (1 + RIDGE * device.put(np.eye(mine.size)))
        across = _covariance(device, value, gone, stay, search.centred)
        empty = xp.linalg.diagonal(gram) <= 0  # rows of zeros
        gram = xp.where(empty[:, None] | empty[None, :], device.put(np.eye(mine.size)), gram)
        found = xp.matrix_transpose(xp.linalg.solve(gram, xp.matrix_transpose(across)))
        fits = device.get(_reaches(device, value, gone, found, across, search))
        donor[np.ix_(who, mine)] = np.where(fits[:, None], kept[mine], -1)
        scale[np.ix_(who, mine)] = device.get(found)
    return _with_tail(value, removed, donor, scale)


def _reaches(device: Device, value: Value, gone: Any, scale: Any, across: Any, search: Search) -> Any:
    """Whether the fit correlates with what it stands in for as asked; always if nothing was asked."""
    xp = device.xp
    own = xp.sum(gone * gone, axis=1) * _at_one(value, search.centred)
    explained = xp.sum(scale * across, axis=1) / xp.where(own > 0, own, 1.0)
    return xp.sqrt(xp.clip(explained, min=0.0)) >= (search.threshold or 0.0)


def _covariance(device: Device, value: Value, one: Any, other: Any, centred: bool) -> Any:
    """What the values of rows (r, d) and (k, d) have in common where inputs are standard normal, (r, k).

    Linear: the product of rows. Else as behind Relu, the arc-cosine kernel of order 1 (Cho, Saul, 2009), in which a
    bias counts as one more input, though it is constant: an approximation.
    """
    xp = device.xp
    product = one @ xp.matrix_transpose(other)
    if not value.nonlinear:
        return product
    norms = [xp.sqrt(xp.sum(part * part, axis=1)) for part in (one, other)]
    scale = norms[0][:, None] * norms[1][None, :]
    cosine = xp.clip(product / xp.where(scale > 0, scale, 1.0), min=-1.0, max=1.0)
    angle = xp.acos(cosine)
    kernel = (xp.sin(angle) + (xp.pi - angle) * cosine) / (2 * xp.pi)
    return scale * (kernel - (1 / (2 * xp.pi) if centred else 0.0))


def _at_one(value: Value, centred: bool) -> float:
    """`_covariance` of a row of length 1 with itself."""
    if not value.nonlinear:
        return 1.0
    return 0.5 - (1 / (2 * np.pi) if centred else 0.0)


def _with_tail(value: Value, removed: NDArray[np.int64], donor: NDArray[np.int64], scale: Floats) -> Donors:
    """Donors (r, d) with the affine tail of both sides applied."""
    ok = donor >= 0
    factor, offset = scale * ok, np.zeros(removed.size)
    if value.scale is not None and value.offset is not None:
        tail = np.where(ok, value.scale[donor], 1.0)
        factor = factor * value.scale[removed][:, None] / np.where(tail == 0, 1.0, tail)
        offset = value.offset[removed] - (factor * value.offset[donor]).sum(1)
        offset = offset * ok.any(1)
    return Donors(donor, factor, offset)
