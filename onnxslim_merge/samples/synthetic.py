"""Synthetic samples for models that come without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from onnxslim_merge.errors import InputError, UsageError
from onnxslim_merge.parsing import parse_range
from onnxslim_merge.samples.leaves import dead_leaves, varied_leaves
from onnxslim_merge.samples.specs import Batching, InputSpec, Samples, is_float

Images = Literal["smoothed noise", "dead leaves", "varied dead leaves"]
CHANNELS = (1, 3, 4)
BRIGHTNESS, CONTRAST = 0.45, 0.25  # mean and deviation of photographs, in shares of the range of pixels
COLOUR_SHARE = 0.2  # of the variance; photographs differ more in brightness than in hue


def synthetic_samples(
    specs: Sequence[InputSpec],
    *,
    sizes: Mapping[str, tuple[int, ...]],
    count: int,
    seed: int | Sequence[int],
    int_ranges: Mapping[str, tuple[int, int]] | None = None,
    batch: int = 32,
    images: Images = "smoothed noise",
) -> Samples:
    """At least `count` samples, the same for the same arguments, in batches of `batch` or of the model's fixed size.

    sizes: the concrete shape of each input, with or without its batch axis (whose size is ignored).
    int_ranges: low (inclusive) and high (exclusive) of integer inputs; default 0, 2: small enough for token ids, but
    for int8 its whole range, as it stands for quantised real numbers.

    Rank 4 with 1, 3 or 4 channels on axis 1 or on the last, float, uint8 or int8, is taken for an image: smoothed noise
    at all octaves from one pixel to the whole image, equal variance in each, as in natural images; mean 0 and variance
    1 at every pixel over many images (uint8: mean 128, int8: mean 0, deviation 64, unless `int_ranges` names it). Dead
    leaves are opaque shapes that hide each other, which have edges as photographs have, of the same mean and variance;
    the varied ones differ in fineness, colours, sharpness, brightness and contrast besides.
    Other floats are normal noise, integers and bools uniform. Raises InputError for string inputs, UsageError for sizes
    that do not fit.
    """
    batching = Batching.of(specs)
    step = batching.fixed or (min(batch, count) if batching.names else 1)
    ranges = dict(int_ranges or {})
    rng = np.random.default_rng(seed)
    feeds = []
    total = 0
    drawn = floats = False
    for start in range(0, count, step):
        rows = step if batching.fixed else min(step, count - start)
        feed = {}
        for spec in specs:
            shape = _shape(spec, sizes, rows if spec.name in batching.names else None)
            image = image_axis(spec, shape) is not None
            drawn, floats = drawn or image, floats or (image and is_float(spec.dtype))
            feed[spec.name] = _draw(rng, spec, shape, ranges.get(spec.name), images)
        feeds.append(feed)
        total += batching.size_of(feed)
    kind = images if drawn else "random values"
    return Samples(feeds, total, f"synthetic ({kind}, seed {seed})", "normal" if floats else "")


def in_range(samples: Samples, specs: Sequence[InputSpec], pixels: str) -> Samples:
    """Synthetic `samples`, whose images of floats have mean 0 and deviation 1, with `pixels` "normal" or "LOW:HIGH".

    In a range, their mean is a little below its middle, their deviation a quarter of it, and what is beyond is cut off.
    """
    if pixels == "normal" or not samples.pixels:
        return samples
    low, high = parse_range(pixels)

    def scaled(spec: InputSpec, image: np.ndarray) -> np.ndarray:
        if image_axis(spec, image.shape) is None or not is_float(spec.dtype):
            return image
        wide = low + (high - low) * (BRIGHTNESS + CONTRAST * image.astype(np.float32))
        found: np.ndarray = np.clip(wide, low, high).astype(image.dtype)
        return found

    feeds = [{spec.name: scaled(spec, feed[spec.name]) for spec in specs} for feed in samples.feeds]
    source = samples.source.replace(", seed", f", pixels {pixels}, seed")
    return replace(samples, feeds=feeds, source=source, pixels=pixels)


def _shape(spec: InputSpec, sizes: Mapping[str, tuple[int, ...]], rows: int | None) -> tuple[int, ...]:
    """The full shape of one feed; `rows` replaces or adds the batch axis."""
    size = tuple(sizes.get(spec.name, ()))
    rank = len(spec.shape)
    if rows is not None and len(size) in (rank, rank - 1):
        size = (rows, *size[len(size) - (rank - 1) :])
    fits = len(size) == rank and all(
        not isinstance(dim, int) or dim == n for dim, n in zip(spec.shape, size, strict=True)
    )
    if not fits:
        raise UsageError(f"--input-shapes {spec.name}: {list(sizes.get(spec.name, ()))} does not fit {spec}")
    return size


def image_axis(spec: InputSpec, shape: tuple[int, ...]) -> int | None:
    """The axis of channels of an input that looks like an image, as `synthetic_samples` has it; else None."""
    if len(shape) != 4 or not (is_float(spec.dtype) or spec.dtype in (np.uint8, np.int8)):
        return None
    return next((axis for axis in (1, 3) if shape[axis] in CHANNELS), None)


def _draw(
    rng: np.random.Generator,
    spec: InputSpec,
    shape: tuple[int, ...],
    int_range: tuple[int, int] | None,
    images: Images,
) -> np.ndarray:
    axis = image_axis(spec, shape)
    if axis is not None and int_range is None:
        if images == "varied dead leaves":
            image = varied_leaves(rng, shape, axis)
        elif images == "dead leaves":
            image = dead_leaves(rng, shape, axis, COLOUR_SHARE)
        else:
            image = _smoothed_noise(rng, shape, axis)
        if spec.dtype in (np.uint8, np.int8):
            limits = np.iinfo(spec.dtype)
            image = np.clip(np.rint((128 if limits.min == 0 else 0) + 64 * image), limits.min, limits.max)
        return image.astype(spec.dtype)
    if is_float(spec.dtype):
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)  # a scalar would come as no array
    if spec.dtype.kind in "iu":
        low, high = int_range or ((-128, 128) if spec.dtype == np.int8 else (0, 2))
        return rng.integers(low, high, size=shape).astype(spec.dtype)
    raise InputError(f"input {spec}: no synthetic values exist for it, give --calibration-data")


def _smoothed_noise(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Images of `shape` (batch and `axis` = channels), float32; every pixel has mean 0 and variance 1 over images.

    Each octave is a coarse grid of normal noise, interpolated linearly; the channels share most of it.
    """
    batch, channels = shape[0], shape[axis]
    height, width = (n for i, n in enumerate(shape) if i not in (0, axis))
    octaves = int(np.ceil(np.log2(max(height, width, 2)))) + 1
    planes = np.empty((batch, channels + 1, height, width), np.float32)  # the last plane is the shared brightness
    rng.standard_normal(dtype=np.float32, out=planes)  # octave 0: nothing to interpolate
    for octave in range(1, octaves):
        rows, columns = _interpolation(height, 2**octave), _interpolation(width, 2**octave)
        grid = rng.standard_normal((batch, channels + 1, rows.shape[1], columns.shape[1]), dtype=np.float32)
        planes += rows @ grid @ columns.T
    planes /= np.sqrt(octaves)
    colour, brightness = planes[:, :-1], planes[:, -1:]
    image = np.sqrt(COLOUR_SHARE) * colour + np.sqrt(1 - COLOUR_SHARE) * brightness
    return np.ascontiguousarray(np.moveaxis(image, 1, axis)).astype(np.float32, copy=False)


def _interpolation(size: int, spacing: int) -> np.ndarray:
    """(size, grid points) weights of linear interpolation, rows of norm 1 so that the variance of noise stays 1."""
    points = max(1, -(-(size - 1) // spacing) + 1) if spacing < size else 1
    position = np.arange(size) / spacing if points > 1 else np.zeros(size)
    left = np.minimum(position.astype(int), max(points - 2, 0))
    weights = np.zeros((size, points), np.float32)
    weights[np.arange(size), left] = 1 - (position - left)
    if points > 1:
        weights[np.arange(size), left + 1] = position - left
    normalised: np.ndarray = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return normalised
