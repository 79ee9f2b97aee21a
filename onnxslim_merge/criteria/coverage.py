"""REPrune, kernel form (Park et al., AAAI 2024): keep the filters whose kernels represent most kernels.

For each input channel the kernels that read it are clustered; a filter holds one kernel of each input channel, and so
covers as many clusters. Filters are chosen greedily, each time the one that covers most clusters that no other covers
yet, which covers at least 1 - 1/e of what the best choice would (Nemhauser, Wolsey, Fisher, 1978).

What the paper leaves open is decided here: ties go to the larger norm, then to the lower index; when all clusters are
covered, counting starts anew. A fully connected layer's kernel is a single weight, a bias counts as one more input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.channels.cells import Cell
from onnxslim_merge.clustering import EXACT_ROWS, cut_numbers, cut_numbers_at, finite, ward, ward_of_numbers
from onnxslim_merge.criteria.choice import Choice, parts
from onnxslim_merge.criteria.norms import unit, weighed_rows
from onnxslim_merge.criteria.representatives import in_geometry
from onnxslim_merge.numerics import Device
from onnxslim_merge.settings import KernelCut, Settings
from onnxslim_merge.views import Floats, Views

EXACT_WORK = 1 << 32  # input channels times filters^2 of one clustering: about two minutes


def reprune_kernel(views: Views, cell: Cell, keep: int, settings: Settings, device: Device) -> Choice:
    """Clusters for each input channel of each producer, then the greedy cover.

    A cell's parts choose for themselves. Where exact clustering would take more than 2^32 (input channels x filters^2)
    only the input channels with the largest weights are clustered. No donors follow: a filter has many clusters.
    """
    banks, skipped = _banks(views, cell, settings)
    norms = np.sqrt(sum(np.einsum("cnd,cnd->n", bank, bank) for bank in banks))
    kept, scores = [], np.zeros(cell.size)
    share = max(keep // len(parts(cell)), 1)
    for part in parts(cell):
        labels = [_clusters(bank[:, part], share, settings.kernel_cut, device) for bank in banks]
        chosen, gains = cover(np.concatenate(labels), norms[part], share)
        kept.append(part[chosen])
        scores[part] = gains + 0.5 * norms[part] / (norms.max(initial=0.0) or 1.0)
    note = None
    if skipped:
        note = f"{cell.name}: {skipped} input channels with small weights were not clustered, to save time"
    elif parts(cell).shape[1] > EXACT_ROWS and share > 1 and any(bank.shape[2] > 1 for bank in banks):
        note = f"{cell.name}: {parts(cell).shape[1]} kernels are too many for one clustering: split by 2-means first"
    return Choice(np.sort(np.concatenate(kept)), scores, note=note)


def _banks(views: Views, cell: Cell, settings: Settings) -> tuple[list[Floats], int]:
    """Kernels (input channels, n, d) of each producer, in the chosen geometry, and how many channels were left out."""
    banks: list[Floats] = []
    for index, rows in zip(cell.producers, views.rows(cell), strict=True):
        kernels, weighed = finite(views.kernels(cell, index)), finite(weighed_rows(rows))
        if not rows.batchnorm:
            kernels = kernels * rows.scale[:, None]
        scale = unit(rows, len(cell.producers))
        banks.append(kernels / scale)
        biases = weighed[None, :, kernels.shape[0] * kernels.shape[2] :]  # of heads, one for each of their rows
        if not rows.batchnorm and biases.any():
            banks.append(biases / scale)
    if settings.geometry == "cosine":
        length = [bank.shape[0] * bank.shape[2] for bank in banks]
        flat = np.concatenate([bank.swapaxes(0, 1).reshape(cell.size, -1) for bank in banks], axis=1)
        split = np.split(in_geometry(flat, "cosine"), np.cumsum(length)[:-1], axis=1)
        shapes = [(cell.size, bank.shape[0], bank.shape[2]) for bank in banks]
        banks = [unit.reshape(shape).swapaxes(0, 1) for unit, shape in zip(split, shapes, strict=True)]
    skipped, limited = 0, []
    for bank in banks:
        most = bank.shape[0] if bank.shape[2] == 1 else max(EXACT_WORK // cell.size**2, 1)
        energy = np.einsum("cnd,cnd->c", bank, bank)
        limited.append(bank[np.sort(np.argsort(-energy, kind="stable")[:most])])
        skipped += bank.shape[0] - limited[-1].shape[0]
    return limited, skipped


def _clusters(kernels: Floats, clusters: int, cut: KernelCut, device: Device) -> NDArray[np.int64]:
    """Labels (c, n) of kernels (c, n, d), for each input channel c alone.

    cut: `channel` makes as many clusters everywhere; `layer` cuts all trees at the height that the paper takes, the
    largest at which any of them has so many, so that input channels of small weights get fewer.
    """
    if kernels.shape[2] == 1:
        order, heights = ward_of_numbers(kernels[..., 0])
        if cut == "channel" or not heights.size:
            return cut_numbers(order, heights, clusters)
        at = np.sort(heights, axis=1)[:, heights.shape[1] - clusters].max() if clusters <= heights.shape[1] else 0.0
        return cut_numbers_at(order, heights, at)
    trees = [ward(kernel, device, clusters) for kernel in kernels]
    if cut == "channel":
        return np.stack([tree.labels(clusters) for tree in trees])
    height = max(tree.height_of(clusters) for tree in trees)
    return np.stack([tree.labels_at(height) for tree in trees])


def cover(labels: NDArray[np.int64], norms: Floats, keep: int) -> tuple[NDArray[np.int64], Floats]:
    """(indices of the `keep` filters chosen greedily, in order of choice, and what each filter would still cover).

    labels (c, n): the cluster of filter j in input channel i; norms (n,) decide ties.
    """
    channels, n = labels.shape
    by_norm = np.lexsort((np.arange(n), -norms))
    labels = labels[:, by_norm]
    width = int(labels.max(initial=0)) + 1
    flat = labels + width * np.arange(channels)[:, None]  # every cluster of every input channel has a number
    members = np.argsort(flat, axis=None, kind="stable") % n
    starts = np.concatenate([[0], np.cumsum(np.bincount(flat.ravel(), minlength=channels * width))])
    gain, free, chosen = np.full(n, channels), np.ones(n, bool), []
    covered = np.zeros(channels * width, bool)
    for _ in range(keep):
        if not gain[free].any():
            gain[:], covered[:] = channels, False
        pick = int(np.argmax(np.where(free, gain, -1)))
        chosen.append(pick)
        free[pick] = False
        new = flat[:, pick][~covered[flat[:, pick]]]
        covered[new] = True
        sizes = starts[new + 1] - starts[new]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        gain -= np.bincount(members[np.repeat(starts[new], sizes) + within], minlength=n)
    left = np.empty(n)
    left[by_norm] = gain
    return by_norm[chosen], left
