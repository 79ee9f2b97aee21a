"""More samples out of few: images and their mirror images, which look as likely as they themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.samples.specs import Batching, Feed, InputSpec
from onnxslim_merge.samples.synthetic import image_axis


def with_mirror_images(feeds: Sequence[Feed], specs: Sequence[InputSpec], cycle: int) -> list[Feed]:
    """Every batch and, where all inputs that hold samples look like images, the same with left and right exchanged.

    The mirror images of batch i stand at a place with the same remainder by `cycle`, so that who holds out every
    `cycle`-th batch never fits a mirror image of what it holds out; those of an incomplete last cycle are left out.
    """
    axes = {}
    for spec in specs:
        axis, shape = image_axis(spec, feeds[0][spec.name].shape), feeds[0][spec.name].shape
        if axis is not None and min(shape[2:] if axis == 1 else shape[1:3]) > 1:
            axes[spec.name] = axis
    if not axes or not axes.keys() >= Batching.of(specs).names:  # a mask, say, would no longer fit its tokens
        return list(feeds)
    found: list[Feed] = []
    for start in range(0, len(feeds), cycle):
        part = feeds[start : start + cycle]
        found += part
        if len(part) == cycle:
            found += [_mirrored(feed, axes) for feed in part]
    return found


def _mirrored(feed: Mapping[str, NDArray[Any]], axes: Mapping[str, int]) -> Feed:
    """axes: of the channels, by input; the width is the last axis of the others."""
    turned = {name: np.flip(feed[name], 2 if axis == 3 else 3) for name, axis in axes.items()}
    return {name: np.ascontiguousarray(turned.get(name, array)) for name, array in feed.items()}
