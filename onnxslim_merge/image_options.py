"""The command line's options for images as calibration data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Group, Parameter

from onnxslim_merge.preprocessing import ChannelOrder, Layout

_IMAGES = Group("Images as calibration data: (pixel * scale - mean) / std", sort_key=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Options that become `Settings`; None means: not given, so that its default holds."""

    mean: Annotated[
        str | None,
        Parameter(
            group=_IMAGES, allow_leading_hyphen=True, help="One number, or one per channel, as in 0.485,0.456,0.406."
        ),
    ] = None
    std: Annotated[
        str | None, Parameter(group=_IMAGES, allow_leading_hyphen=True, help="As --mean; none may be 0.")
    ] = None
    scale: Annotated[
        str | None,
        Parameter(
            group=_IMAGES,
            allow_leading_hyphen=True,
            help="Factor on pixels of 0..255, first of all. (default 1/255 where the model reads floats, else 1)",
        ),
    ] = None
    layout: Annotated[
        Layout | None,
        Parameter(group=_IMAGES, help="Where channels lie. (default auto: where the model's input has 1, 3 or 4)"),
    ] = None
    channel_order: Annotated[
        ChannelOrder | None, Parameter(group=_IMAGES, help="bgr as OpenCV reads images. (default rgb)")
    ] = None

    def given(self) -> dict[str, Any]:
        """What was given, by the names of `Settings`."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}
