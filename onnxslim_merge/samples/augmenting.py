"""More samples out of few: images, their mirror images, and crops of both, which look as likely as they themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from onnxslim_merge.samples.specs import Batching, Feed, InputSpec, is_float
from onnxslim_merge.samples.synthetic import image_axis

CROPS = 2  # of each image
SHARE = 0.6  # of both sides, the least that a crop shows
LARGE = 64  # pixels: at 32, a crop enlarged is no likely image any more
MANY = 256  # samples, among which crops are not worth their time


def what_helps(augment: str, feeds: Sequence[Feed], specs: Sequence[InputSpec]) -> str:
    """What "auto" stands for, and what cannot be; else `augment` itself.

    "auto": crops for fewer than 256 samples whose images have 3 or 4 channels, and 64 pixels or more on each side
    (decision 0013), else mirror images. "none" where not all inputs that hold samples look like images; no crops where
    an image goes with all samples, as it would have to be cropped as each of them is.
    """
    axes, batching = _images(feeds, specs), Batching.of(specs)
    if not axes or not axes.keys() >= batching.names:
        return "none"  # a mask, say, would no longer fit its tokens
    if augment in ("auto", "crops") and batching.names and axes.keys() != batching.names:
        return "mirror"
    if augment != "auto":
        return augment
    shapes = {name: feeds[0][name].shape for name in axes}
    large = all(min(_sides(shapes[name], axis)) >= LARGE for name, axis in axes.items())
    coloured = all(shapes[name][axis] >= 3 for name, axis in axes.items())  # a spectrogram has one
    few = sum(batching.size_of(feed) for feed in feeds) < MANY
    return "crops" if few and large and coloured else "mirror"


def _images(feeds: Sequence[Feed], specs: Sequence[InputSpec]) -> dict[str, int]:
    """The inputs that look like images, and their axes of channels."""
    axes = {}
    for spec in specs:
        shape = feeds[0][spec.name].shape
        axis = image_axis(replace(spec, dtype=np.dtype(np.uint8)) if spec.dtype.kind in "iu" else spec, shape)
        if axis is not None and min(_sides(shape, axis)) > 1:
            axes[spec.name] = axis
    return axes


def augmented(
    feeds: Sequence[Feed], specs: Sequence[InputSpec], cycle: int, *, augment: str, seed: int = 0
) -> Sequence[Feed]:
    """Every batch and, by what helps, the same with left and right exchanged, and crops.

    augment: "mirror", that alone; "crops": two crops of each image besides, at random mirrored or not, of 60% to 100%
    of both sides, brought to the size of the whole; "none": the batches as they are; "auto": see `what_helps`. What is
    made of batch i stands at a place with the same remainder by `cycle`, so that who holds out every `cycle`-th batch
    never fits what comes of one it holds out; an incomplete last cycle stays as it is. Images are made anew whenever
    they are looked at, the same for the same seed.
    """
    augment = what_helps(augment, feeds, specs)
    if augment == "none":
        return list(feeds)
    views, copies = list[tuple[int, int]](), 2 + CROPS if augment == "crops" else 2
    for start in range(0, len(feeds), cycle):
        part = range(start, min(start + cycle, len(feeds)))
        views += [(i, view) for view in range(copies if len(part) == cycle else 1) for i in part]
    return _Views(feeds, _images(feeds, specs), views, seed)


@dataclass(frozen=True, slots=True)
class _Views(Sequence[Feed]):
    """axes: of the channels, by input. views: batch and how it is looked at: as it is, mirrored, or a crop, 2 on."""

    feeds: Sequence[Feed]
    axes: Mapping[str, int]
    views: Sequence[tuple[int, int]]
    seed: int

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: Any) -> Any:  # of one batch; nobody takes slices
        batch, view = self.views[index]
        feed = self.feeds[batch]
        if not view:
            return feed
        made = {}
        for name, axis in self.axes.items():
            rng = np.random.default_rng((self.seed, batch, view))  # the same part of all inputs
            made[name] = _mirrored(feed[name], axis) if view == 1 else _cropped(rng, feed[name], axis)
        return feed | made


def _sides(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """Height and width."""
    return (shape[2], shape[3]) if axis == 1 else (shape[1], shape[2])


def _mirrored(images: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.ascontiguousarray(np.flip(images, 2 if axis == 3 else 3))


def _cropped(rng: np.random.Generator, images: NDArray[Any], axis: int) -> NDArray[Any]:
    """A part of each image at the size of the whole, interpolated linearly; half of them mirrored."""
    height, width = _sides(images.shape, axis)
    wide = np.moveaxis(images, axis, 1)
    found = np.empty(wide.shape, np.float32)
    for image, made in zip(wide, found, strict=True):
        share, (top, left) = rng.uniform(SHARE, 1), rng.random(2)
        corner = [share / 2 - 0.5 + (1 - share) * at * side for at, side in ((top, height), (left, width))]
        for channel, out in zip(image.astype(np.float32), made, strict=True):
            affine_transform(channel, [share, share], corner, output=out, order=1, mode="nearest")
        if rng.random() < 0.5:
            made[:] = made[:, :, ::-1].copy()
    if not is_float(images.dtype):
        limits = np.iinfo(images.dtype)
        np.clip(np.rint(found, out=found), limits.min, limits.max, out=found)
    return np.ascontiguousarray(np.moveaxis(found, 1, axis).astype(images.dtype))
