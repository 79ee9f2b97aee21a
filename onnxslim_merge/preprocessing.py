"""How the pixels of an image become the numbers that a model reads: (pixel * scale - mean) / std."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.errors import UsageError

Layout = Literal["auto", "nchw", "nhwc"]
ChannelOrder = Literal["rgb", "bgr"]

NAMES = ("mean", "std", "scale", "layout", "channel_order")  # as options; they say nothing of data without pixels
PIXELS = np.arange(256.0)
UNIT = 1 / 255


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Options for pixels of 0..255. Raises UsageError on construction if a value is out of range.

    mean, std: nothing (0 and 1), one number, or one for each channel in the order of the model's channels.
    scale: None = 1/255 where the model reads floats, 1 where it reads integers.
    layout: where channels lie; "auto" = where the model's input has 1, 3 or 4 of them.
    channel_order: of the model's channels; of images with one channel it says nothing.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float | None = None
    layout: Layout = "auto"
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        """Check every number; how many there must be depends on the model."""
        given = {"mean": self.mean, "std": self.std, "scale": () if self.scale is None else (self.scale,)}
        for name, values in given.items():
            for value in values:
                if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                    raise UsageError(f"--{name} {value!r}: not a finite number")
                if name != "mean" and value == 0:
                    raise UsageError(f"--{name} {value!r}: must not be 0")

    def table(self, dtype: np.dtype, channels: int, *, floats: bool) -> NDArray[Any]:
        """(channels, 256) in `dtype`: what each pixel becomes, computed in float64 and rounded once.

        floats: whether `dtype` is a floating-point kind; an integer one takes whole numbers that it can hold. Raises
        UsageError for other numbers, for a wrong number of them, and where the scale was evidently forgotten.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                raise UsageError(f"--{name} {_text(values)}: give one number, or {channels}: one for each channel")
        if floats and self.scale is None and any(abs(value) > 1 for value in (*self.mean, *self.std)):
            raise UsageError(
                f"--mean {_text(self.mean or (0,))} and --std {_text(self.std or (1,))} do not fit pixels of 0..1: add"
                " --scale 1 if they are for 0..255, or --scale 1/255 if they are meant so"
            )
        scale = (UNIT if floats else 1.0) if self.scale is None else self.scale
        mean, std = (np.array(values or (one,), np.float64)[:, None] for values, one in ((self.mean, 0), (self.std, 1)))
        with np.errstate(all="ignore"):
            exact = np.broadcast_to((PIXELS * scale - mean) / std, (channels, 256))
            found = exact.astype(dtype)
            fits = np.isfinite(found) if floats else found == exact
        if not fits.all():
            channel, pixel = (int(n) for n in np.argwhere(~fits)[0])
            hint = "--mean 128 gives pixel - 128" if dtype == np.int8 else "leave --mean, --std and --scale out"
            raise UsageError(
                f"{self.formula(floats=floats)} is {exact[channel, pixel]:g} for a pixel of {pixel}, which the model's"
                f" {dtype.name} cannot hold: {hint}"
            )
        return found

    def formula(self, *, floats: bool) -> str:
        """What is done to a pixel, for people: `(pixel / 255 - 0.5) / 0.5`."""
        scale = (UNIT if floats else 1.0) if self.scale is None else self.scale
        text = "pixel" if scale == 1 else "pixel / 255" if scale == UNIT else f"pixel * {scale:g}"
        if any(self.mean):
            text += f" - {_text(self.mean)}"
        if any(value != 1 for value in self.std):
            text = f"({text}) / {_text(self.std)}"
        if floats and not self.mean and not self.std and self.scale is None:
            text += ", as no --mean, --std or --scale is given"
        return text


def parse_numbers(name: str, value: Any, *, one: bool = False) -> tuple[Any, ...]:
    """Numbers from a text (`0.5`, `1/255`, several by comma), a number or several; or exactly one.

    Raises UsageError for bad texts, and if there are several instead of one.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    items = value.split(",") if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if one and len(items) != 1:
        raise UsageError(f"--{name} {value!r}: give one number")
    return tuple(_parse(name, item) for item in items)


def _parse(name: str, item: Any) -> Any:
    if isinstance(item, np.number):
        return item.item()
    if not isinstance(item, str):
        return item  # what is no number is refused later
    top, fraction, bottom = item.partition("/")
    try:
        return float(top) / float(bottom) if fraction else float(top)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--{name} {item!r}: not a number; give one as in 0.5 or 1/255") from None


def _text(values: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
