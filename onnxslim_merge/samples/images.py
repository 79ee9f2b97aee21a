"""Samples from image files, by Pillow: turned upright, resized, cropped and scaled as deployed models are fed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.errors import InputError, MissingExtraError, UsageError
from onnxslim_merge.preprocessing import Preprocessing
from onnxslim_merge.samples.folders import Found
from onnxslim_merge.samples.specs import Batching, InputSpec, Samples, is_float

NUMBERS = 1 << 28  # of all samples together: 1 GiB as float32
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # no others, whatever a file's name says
AXES = {"nchw": 1, "nhwc": 3}
INSTALL_HINT = 'images need Pillow, which is not installed: run  pip install "onnxslim-merge[images]"'


def load_images(
    found: Found, specs: Sequence[InputSpec], *, sizes: Mapping[str, tuple[int, ...]], how: Preprocessing,
    batch: int = 64,
) -> Samples:  # fmt: skip
    """Decode images into batches of at most `batch`, or of exactly the model's fixed batch size.

    sizes: the concrete shape of each input, for sizes that the model leaves open. Images are turned as EXIF says,
    converted to grey, RGB or RGBA by the model's channels (transparency is dropped unless there are four), cut at both
    ends of the longer side to the model's aspect, and resized (bilinear, antialiased); of animations the first frame.
    More images than NUMBERS allows are drawn evenly from the sorted list, and so are those of a fixed batch size that
    does not divide their number; `source` says so, and which preprocessing there was. Those of subfolders, which are
    classes mostly, are then mixed.
    Raises InputError for a model that takes no images and for unreadable files, UsageError for options that do not fit
    the model, MissingExtraError without Pillow.
    """
    frame = _frame(found.path, specs, sizes, how)
    floats, batching = is_float(frame.spec.dtype), Batching.of(specs)
    table = how.table(frame.spec.dtype, frame.channels, floats=floats)
    files = _drawn(found, frame.numbers, batching.fixed)
    step = batching.fixed or batch
    feeds = []
    for start in range(0, len(files), step):
        some = files[start : start + step]
        array = np.empty((len(some), *frame.shape), frame.spec.dtype)
        for row, file in zip(array, some, strict=True):
            row[...] = frame.values(_pixels(file, frame), table, how)
        feeds.append({frame.spec.name: array})
    drawn = f"{len(files)} of {len(found.files)} images, drawn evenly, " if len(files) < len(found.files) else ""
    kind = "grey" if frame.channels == 1 else how.channel_order + "a" * (frame.channels == 4)
    said = f"{drawn}{kind} {frame.width}x{frame.height}, {how.formula(floats=floats)}"
    return Samples(feeds, len(files), f"{found.path} ({said})")


def load_pillow() -> tuple[Any, Any]:
    """The modules PIL.Image and PIL.ImageOps. Raises MissingExtraError if Pillow is not installed."""
    try:
        return importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageOps")
    except ImportError:
        raise MissingExtraError(INSTALL_HINT) from None


@dataclass(frozen=True, slots=True)
class _Frame:
    """What an image has to become: the input that it is for, and its sizes. axis: of the channels."""

    spec: InputSpec
    axis: int
    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample."""
        first = self.axis == 1
        return (self.channels, self.height, self.width) if first else (self.height, self.width, self.channels)

    @property
    def numbers(self) -> int:
        """In one sample."""
        return self.channels * self.height * self.width

    def values(self, pixels: NDArray[np.uint8], table: NDArray[Any], how: Preprocessing) -> NDArray[Any]:
        """One sample, of `pixels` (height, width, channels) in the order red, green, blue."""
        if how.channel_order == "bgr":
            pixels = pixels[..., [2, 1, 0, 3][: self.channels]]
        channel = np.arange(self.channels)
        if self.axis == 1:
            return np.asarray(table[channel[:, None, None], pixels.transpose(2, 0, 1)])
        return np.asarray(table[channel, pixels])


def _frame(path: Path, specs: Sequence[InputSpec], sizes: Mapping[str, tuple[int, ...]], how: Preprocessing) -> _Frame:
    """Read off the model's only input. Raises InputError if it takes no images, UsageError if the layout is open."""
    names = "; ".join(str(spec) for spec in specs)
    if len(specs) != 1:
        raise InputError(f"{path}: images fit models with one input; save an .npz with {names}")
    (spec,) = specs
    numeric = is_float(spec.dtype) or spec.dtype.kind in "iu"
    if len(spec.shape) != 4 or not numeric or not Batching.of(specs).names:
        raise InputError(f"{path}: images do not fit {names}, which is no batch of images; save an .npz instead")
    size = sizes[spec.name]
    axis = _axis(path, spec, size) if how.layout == "auto" else AXES[how.layout]
    channels = size[axis]
    if channels not in MODES:
        raise UsageError(f"--layout {how.layout}: {spec} has {channels} channels then; images have 1, 3 or 4")
    if channels == 1 and how.channel_order != "rgb":
        raise UsageError(f"--channel-order {how.channel_order}: {spec} has one channel; leave the option out")
    height, width = size[2:] if axis == 1 else size[1:3]
    return _Frame(spec, axis, channels, height, width)


def _axis(path: Path, spec: InputSpec, size: tuple[int, ...]) -> int:
    """The axis with as many channels as images have; of sizes that the model fixes, or else of those that are tried."""
    found = [axis for axis in AXES.values() if spec.shape[axis] in MODES]
    found = found or [axis for axis in AXES.values() if size[axis] in MODES]
    if len(found) > 1:
        raise UsageError(f"{spec}: channels may lie on axis 1 or 3; say where with --layout nchw or --layout nhwc")
    if not found:
        raise InputError(
            f"{path}: {spec} has neither on axis 1 nor on axis 3 the 1, 3 or 4 channels of an image (tried at"
            f" {list(size)}): save an .npz, or give --input-shapes if these axes are open"
        )
    return found[0]


def _drawn(found: Found, numbers: int, fixed: int | None) -> list[Path]:
    """The files that are read: all, or as many as fit and fill batches."""
    total = len(found.files)
    if total < (fixed or 1):
        raise InputError(
            f"{found.path}: {total} samples, but the model's batch size is fixed at {fixed}: give at least that many"
        )
    count = min(total, NUMBERS // numbers)
    count = max(count - count % (fixed or 1), fixed or 1)
    order = np.arange(count) * total // count
    if found.classes:
        order = np.random.default_rng(0).permutation(order)
    return [found.files[i] for i in order]


def _pixels(file: Path, frame: _Frame) -> NDArray[np.uint8]:
    """(height, width, channels) of one file. Raises InputError if it cannot be read."""
    image_module, operations = load_pillow()
    try:
        # warnings: of damaged metadata, very large images
        with warnings.catch_warnings(action="ignore"), image_module.open(file, formats=FORMATS) as opened:
            deep = opened.mode.startswith(("I", "F"))
            image = opened if deep else operations.exif_transpose(opened)
            if not deep:
                if image.mode in ("P", "PA") and "transparency" in image.info:
                    image = image.convert("RGBA")  # Pillow warns of the direct way
                image = image.convert(MODES[frame.channels])
                image = operations.fit(image, (frame.width, frame.height), image_module.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises a dozen classes for damaged files
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: not readable as an image ({what}): repair or remove it") from None
    if deep:
        raise InputError(
            f"{file}: more than 8 bits in a pixel (mode {opened.mode}): convert it to 8 bits, or remove it"
        )
    return np.asarray(image, np.uint8).reshape(frame.height, frame.width, frame.channels)
