"""The command line's options: names, values and help texts; what they mean stands at `Settings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from onnxslim_merge.preprocessing import ChannelOrder, Layout
from onnxslim_merge.settings import Augment, Compensation, Criterion, Geometry, Inexact, KernelCut, Scope, Settings

_DEFAULT = Settings()
_AMOUNT = Group("How much", sort_key=1)
_METHOD = Group("How", sort_key=2)
_MODEL = Group("The model and its inputs", sort_key=3)
_IMAGES = Group("Images as calibration data: (pixel * scale - mean) / std", sort_key=4)
_PLAN = Group("Plan and report", sort_key=5)
_RUN = Group("Messages", sort_key=6)


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    """Strictly: cyclopts itself rounds 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


def _whole_or_word(type_: Any, tokens: Sequence[Token]) -> int | str:
    return tokens[0].value if tokens[0].value.isalpha() else _whole(type_, tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsOptions:
    """The options that become `Settings`; None, () and False mean: not given, so that its default holds."""

    ratio: Annotated[
        float | None,
        Parameter(group=_AMOUNT, help=f"Share of channels removed from every cell. (default {_DEFAULT.ratio})"),
    ] = None
    scope: Annotated[
        Scope | None,
        Parameter(
            group=_AMOUNT,
            help="inner: only channels of one layer that meet no other's, as streams, gates and heads do."
            f" (default {_DEFAULT.scope})",
        ),
    ] = None
    ratio_for: Annotated[
        tuple[str, ...],
        Parameter(group=_AMOUNT, help="REGEX=R: the share for cells with a matching producer; the last one wins."),
    ] = ()
    exclude: Annotated[
        tuple[str, ...], Parameter(group=_AMOUNT, help="REGEX: cells with a matching producer stay whole.")
    ] = ()
    min_channels: Annotated[
        int | None,
        Parameter(group=_AMOUNT, converter=_whole, help=f"Least channels of a cell. (default {_DEFAULT.min_channels})"),
    ] = None
    channel_multiple: Annotated[
        int | Literal["auto"] | None,
        Parameter(
            group=_AMOUNT,
            converter=_whole_or_word,
            help="N: keep the nearest multiple of N channels; auto: 8 for fp32, 16 for fp16 and int8, 1 below 32"
            f" channels. (default {_DEFAULT.channel_multiple})",
        ),
    ] = None
    criterion: Annotated[
        Criterion | None,
        Parameter(
            group=_METHOD,
            help="Which channels stay. auto: greedy with least-squares, where accuracy counts more than minutes; else"
            " consumer, the best without data (docs/criteria.md). l2-gm where"
            " all is fully connected; reprune where filters repeat each other, with --geometry cosine at any scale."
            f" (default {_DEFAULT.criterion})",
        ),
    ] = None
    geometry: Annotated[
        Geometry | None,
        Parameter(
            group=_METHOD,
            help="Of reprune and reprune-kernel: filters as they are, or divided by their norms."
            f" (default {_DEFAULT.geometry})",
        ),
    ] = None
    kernel_cut: Annotated[
        KernelCut | None,
        Parameter(
            group=_METHOD,
            help="Of reprune-kernel: as many clusters in each input channel, or one height for a layer."
            f" (default {_DEFAULT.kernel_cut})",
        ),
    ] = None
    compensation: Annotated[
        Compensation | None,
        Parameter(
            group=_METHOD,
            help="What the next layers get for those that go; least-squares: refitted on samples, the best and"
            " the slowest; auto: least-squares with --calibration-data, else merge by all donors, and the mean if"
            f" BatchNormalization tells it. (default {_DEFAULT.compensation})",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        Parameter(
            group=_METHOD,
            help="Least cosine for merging, or correlation of the fit by several donors. (default 0.45 fully connected,"
            " 0.1 with a convolution; several: 0)",
        ),
    ] = None
    lam: Annotated[
        float | None,
        Parameter(group=_METHOD, help=f"Weight of the cosine when convolutions are merged. (default {_DEFAULT.lam})"),
    ] = None
    donors: Annotated[
        int | Literal["auto", "representative", "all"] | None,
        Parameter(
            group=_METHOD,
            converter=_whole_or_word,
            help="How many channels stand in for one in merging: N or all, several by least squares; representative of"
            f" its cluster, with reprune. (default {_DEFAULT.donors}: all with --compensation auto; else 1, or with"
            " reprune representative)",
        ),
    ] = None
    allow_inexact: Annotated[
        tuple[Inexact, ...],
        Parameter(group=_METHOD, help="Cut channels that LayerNormalization averages over, though that is not exact."),
    ] = ()
    keep_batchnorm: Annotated[
        bool, Parameter(group=_METHOD, help="Do not fold BatchNormalization into the weights.")
    ] = False
    seed: Annotated[
        int | None,
        Parameter(
            group=_METHOD,
            converter=_whole,
            help=f"Of all that is drawn: synthetic inputs, crops, rows. (default {_DEFAULT.seed})",
        ),
    ] = None
    input_shapes: Annotated[
        tuple[str, ...], Parameter(group=_MODEL, help="NAME:1,3,224,224: the sizes at which an input is tried.")
    ] = ()
    calibration_data: Annotated[
        Path | None,
        Parameter(
            group=_MODEL,
            help="Real inputs: .npz keyed by input name, .npy, an image, or a folder of them. (default synthetic ones)",
        ),
    ] = None
    augment: Annotated[
        Augment | None,
        Parameter(
            group=_MODEL,
            help="mirror: least squares also see calibration images mirrored; crops: two crops of each, too, which"
            " serve few photographs, for twice the time; none: neither, where left and right matter; auto: crops for"
            f" fewer than 256 coloured images of 64 x 64 pixels or more, else mirror. (default {_DEFAULT.augment})",
        ),
    ] = None
    pixels: Annotated[
        str | None,
        Parameter(
            group=_MODEL,
            allow_leading_hyphen=True,
            help="Of made-up images: normal (mean 0, deviation 1), or LOW:HIGH as 0:255; auto: a range if the layers"
            f" clearly expect it. (default {_DEFAULT.pixels})",
        ),
    ] = None
    memory_limit: Annotated[
        str | None,
        Parameter(
            group=_MODEL,
            help="As 500MB or 2GiB: of what least squares hold at once; the rest waits in a temporary folder."
            f" (default {_DEFAULT.memory_limit})",
        ),
    ] = None
    providers: Annotated[
        tuple[str, ...],
        Parameter(group=_MODEL, help="Where speed is measured, as in cpu,cuda. (default cuda if it runs)"),
    ] = ()
    score_output: Annotated[
        str | None, Parameter(group=_MODEL, help="The output with class scores, where there are several outputs.")
    ] = None
    device: Annotated[
        str | None,
        Parameter(
            group=_MODEL,
            help="Where least squares, greedy, reprune and merges compute: cpu; cuda or cuda:N: torch; torch on CPU."
            f" (default {_DEFAULT.device})",
        ),
    ] = None
    custom_ops: Annotated[
        tuple[Path, ...], Parameter(group=_MODEL, help="LIB: a library of custom operators for ONNX Runtime.")
    ] = ()
    external_data: Annotated[
        bool, Parameter(group=_MODEL, help="Write the weights to OUT.data, as is done above 2 GB.")
    ] = False

    def given(self) -> dict[str, Any]:
        """What was given, by the names of `Settings`."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["providers"] = tuple(word for text in self.providers for word in text.split(","))
        return {name: v for name, v in found.items() if v is not None and v is not False and v != ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options that say what to do with plan and report."""

    dry_run: Annotated[
        bool, Parameter(group=_PLAN, help="Show what would be done; no model is written. As without OUT.")
    ] = False
    save_plan: Annotated[Path | None, Parameter(group=_PLAN, help="Write the plan, and its arrays as .npz.")] = None
    plan: Annotated[
        Path | None, Parameter(group=_PLAN, help="Replay a saved plan on the same model, or on a re-export of it.")
    ] = None
    report: Annotated[Path | None, Parameter(group=_PLAN, help="Write the report as JSON.")] = None
    verbose: Annotated[bool, Parameter(group=_RUN, help="Report all groups, refusals and the time of each stage.")] = (
        False
    )
    debug: Annotated[bool, Parameter(group=_RUN, help="Show the traceback of an error.")] = False


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
