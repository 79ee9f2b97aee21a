"""Every option of a run, validated once when it is built."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from onnxslim_merge.errors import InputError, UsageError
from onnxslim_merge.parsing import parse_range, parse_size
from onnxslim_merge.preprocessing import NAMES, ChannelOrder, Layout, Preprocessing

Criterion = Literal["auto", "l1", "l2", "l2-gm", "consumer", "impact", "reprune", "reprune-kernel", "greedy"]
Geometry = Literal["euclidean", "cosine"]
KernelCut = Literal["channel", "layer"]
Compensation = Literal["auto", "none", "mean", "merge", "mean+merge", "least-squares"]
Scope = Literal["inner", "all"]
Augment = Literal["auto", "mirror", "crops", "none"]
Inexact = Literal["layernorm"]

CHOICES = {
    "criterion": Criterion, "geometry": Geometry, "kernel_cut": KernelCut, "compensation": Compensation, "scope": Scope,
    "augment": Augment,
    "layout": Layout, "channel_order": ChannelOrder,
}  # fmt: skip
DONORS = ("auto", "representative", "all")
DEVICES = re.compile(r"cpu|torch|cuda(:\d+)?")

# The settings that decide the plan; the others only say where things are and what is measured.
RECORDED = (
    "criterion", "geometry", "kernel_cut", "compensation", "ratio", "ratio_for", "scope", "min_channels",
    "channel_multiple", "exclude", "threshold", "lam", "donors", "allow_inexact", "input_shapes", "keep_batchnorm",
    "augment", "pixels", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RatioRule:
    """One `--ratio-for REGEX=R`: cells with a producer that REGEX finds lose the share R."""

    pattern: str
    ratio: float

    @classmethod
    def parse(cls, text: str) -> RatioRule:
        """Split `REGEX=R` at the last `=`. Raises UsageError for a bad regex or ratio."""
        pattern, sep, number = text.rpartition("=")
        if not sep or not pattern:
            raise UsageError(f"--ratio-for {text!r}: expected REGEX=R, for example 'conv1=0.3'")
        try:
            ratio = float(number)
        except ValueError:
            raise UsageError(f"--ratio-for {text!r}: {number!r} is not a number") from None
        return cls(pattern, ratio)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for. Raises UsageError on construction if a value is out of range.

    criterion: "auto" = "greedy" where consumers are refitted by least squares, else "consumer".
    compensation: "auto" = "least-squares" with calibration data; without, merging by all donors: "mean+merge" for files
        that keep BatchNormalization, else "merge", as means of synthetic inputs alone do more harm than good.
    ratio: share of channels removed from every cell, 0 <= ratio < 1.
    threshold: least cosine for a donor; None = 0.45 where every producer is fully connected, 0.1 where one is a Conv.
        Of several donors, the least correlation of the fit; None = 0.
    geometry: of `reprune` and `reprune-kernel`: rows as they are, or divided by their norms.
    kernel_cut: of `reprune-kernel`: as many clusters in each input channel, or one height for a layer, as in the paper.
    lam: weight of the cosine in the convolutional merge score (Neuron Merging, section 3.3).
    donors: how many kept channels stand in for a removed one when merging, several by least squares; "all"; or the
        "representative" of its cluster. "auto" = all where compensation is "auto" too, else the representative with the
        criterion `reprune`, else 1.
    allow_inexact: "layernorm" = channels that LayerNormalization or RMSNormalization averages over may leave; its
        statistics are then those of the others.
    channel_multiple: kept channels go to the nearest multiple; "auto" = 8 for fp32, 16 for fp16 and int8.
    device: where dense arithmetic is done, which is that of least squares, of the criteria `greedy`, `reprune` and
        `reprune-kernel`, and of merges: "cpu" (numpy), "cuda", "cuda:1" (torch), or "torch" (on the CPU). The network
        itself runs on the CPU.
    augment: what least squares make of calibration data that look like images: "mirror" adds each one mirrored, "crops"
        two crops of each besides; "auto" = crops for fewer than 256 coloured images of 64 x 64 or more, else mirror.
    memory_limit: bytes, or "500MB", "2GiB": of activations in memory and of sums at once, for least squares. What is
        more goes to a temporary folder; layers too wide for their sums are refitted channel by channel, or merged.
    pixels: of images that are made up, where there are no calibration data: "normal" (mean 0, deviation 1), a range as
        "0:255", or "auto": a range if the layers of the model clearly expect it, else normal.
    input_shapes: fixes the shape of an input where symbolic dimensions cannot be guessed.
    mean, std, scale, layout, channel_order: of images as calibration data; see `Preprocessing`.
    """

    criterion: Criterion = "auto"
    geometry: Geometry = "euclidean"
    kernel_cut: KernelCut = "channel"
    compensation: Compensation = "auto"
    ratio: float = 0.5
    ratio_for: tuple[RatioRule, ...] = ()
    scope: Scope = "all"
    min_channels: int = 1
    channel_multiple: int | Literal["auto"] = 1
    exclude: tuple[str, ...] = ()
    threshold: float | None = None
    lam: float = 0.85
    donors: int | Literal["auto", "representative", "all"] = "auto"
    allow_inexact: tuple[Inexact, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keep_batchnorm: bool = False
    augment: Augment = "auto"
    pixels: str = "auto"
    memory_limit: int | str = "2GiB"
    seed: int = 0
    device: str = "cpu"
    calibration_data: Path | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float | None = None
    layout: Layout = "auto"
    channel_order: ChannelOrder = "rgb"
    providers: tuple[str, ...] = ()
    score_output: str | None = None
    external_data: bool = False
    custom_ops: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Check every value once, so that no later stage has to."""
        self._check_numbers()
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                chosen = f"{option_name(name)} {getattr(self, name)!r}"
                raise UsageError(f"{chosen}: choose one of {', '.join(get_args(kind))}")
        if not DEVICES.fullmatch(self.device):
            raise UsageError(f"--device {self.device!r}: choose cpu, cuda, cuda:N or torch")
        if self.pixels not in ("auto", "normal"):
            parse_range(str(self.pixels))
        for name in self.allow_inexact:
            if name not in get_args(Inexact):
                raise UsageError(f"--allow-inexact {name!r}: choose {' or '.join(get_args(Inexact))}")
        _ratio("--ratio", self.ratio)
        for rule in self.ratio_for:
            _ratio(f"--ratio-for {rule.pattern}", rule.ratio)
            _regex("--ratio-for", rule.pattern)
        for pattern in self.exclude:
            _regex("--exclude", pattern)
        _ = self.preprocessing
        for name, shape in self.input_shapes.items():
            if any(not isinstance(size, int) or size < 1 for size in shape):
                raise UsageError(f"--input-shapes {name}: sizes must be at least 1, not {list(shape)}")

    def _check_numbers(self) -> None:
        for name in ("ratio", "lam", *(["threshold"] if self.threshold is not None else [])):
            _number(name, getattr(self, name), int | float)
        multiple = [] if self.channel_multiple == "auto" else ["channel_multiple"]
        several = ["donors"] if not isinstance(self.donors, str) else []
        for name in ("min_channels", "seed", *multiple, *several):
            _number(name, getattr(self, name), int)
        if self.min_channels < 1:
            raise UsageError(f"--min-channels {self.min_channels}: must be at least 1")
        if isinstance(self.donors, int) and self.donors < 1:
            raise UsageError(f"--donors {self.donors}: must be at least 1")
        if isinstance(self.donors, str) and self.donors not in DONORS:
            raise UsageError(f"--donors {self.donors!r}: choose a number or {', '.join(DONORS)}")
        if self.donors == "representative" and self.criterion != "reprune":
            raise UsageError("--donors representative: only --criterion reprune has one for each channel")
        if self.channel_multiple != "auto" and self.channel_multiple < 1:
            raise UsageError(f"--channel-multiple {self.channel_multiple}: must be at least 1, or 'auto'")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold}: a cosine lies between -1 and 1")
        if not 0 <= self.lam <= 1:
            raise UsageError(f"--lam {self.lam}: must lie between 0 and 1")
        parse_size(self.memory_limit)
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: must be at least 0")

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to the pixels of images."""
        return Preprocessing(**{name: getattr(self, name) for name in NAMES})

    @property
    def merges(self) -> bool:
        """Whether kept channels stand in for removed ones."""
        return "merge" in self.compensation or self.compensation == "auto" or self.refits

    @property
    def refits(self) -> bool:
        """Whether consumers are refitted by least squares, layer by layer."""
        by_itself = self.compensation == "auto" and self.calibration_data is not None
        return self.compensation == "least-squares" or by_itself

    @property
    def uses_clusters(self) -> bool:
        """Whether the representative of a cluster is the donor of its members."""
        return self.merges and self.criterion == "reprune" and self.donors in ("auto", "representative")

    @property
    def donor_count(self) -> int | None:
        """How many donors a channel may have, None = all; of "auto" once compensation is decided."""
        if isinstance(self.donors, str):
            return None if self.donors == "all" else 1
        return self.donors

    @property
    def carries_mean(self) -> bool:
        """Whether consumers' biases get the means of removed channels."""
        return "mean" in self.compensation or self.refits

    def resolved(self, *, has_batchnorm: bool, pixels: str) -> Settings:
        """These settings with "auto" decided for one model."""
        compensation = self.compensation
        if compensation == "auto" and self.calibration_data is not None:
            compensation = "least-squares"
        elif compensation == "auto":
            compensation = "mean+merge" if has_batchnorm else "merge"
        fits = compensation == "least-squares"
        donors = "all" if self.donors == "auto" and (self.compensation == "auto" or fits) else self.donors
        criterion = self.criterion
        if criterion == "auto":
            criterion = "greedy" if fits else "consumer"
        return replace(self, criterion=criterion, compensation=compensation, donors=donors, pixels=pixels)

    def record(self) -> dict[str, Any]:
        """What decides the plan, as JSON values: no paths."""
        data = {name: getattr(self, name) for name in RECORDED}
        data["ratio_for"] = [[rule.pattern, rule.ratio] for rule in self.ratio_for]
        data["exclude"] = list(self.exclude)
        data["allow_inexact"] = sorted(set(self.allow_inexact))
        data["input_shapes"] = {name: list(shape) for name, shape in sorted(self.input_shapes.items())}
        return data

    def with_record(self, record: Mapping[str, Any]) -> Settings:
        """These settings with what `record` once gave; `input_shapes` given here win, since names may have changed.

        Raises InputError if the record does not fit this version.
        """
        try:
            known = {name: record[name] for name in RECORDED if name in record}
            if "ratio_for" in known:
                known["ratio_for"] = tuple(RatioRule(pattern, ratio) for pattern, ratio in known["ratio_for"])
            for name in {"exclude", "allow_inexact"} & known.keys():
                known[name] = tuple(known[name])
            if "input_shapes" in known:
                known["input_shapes"] = {name: tuple(shape) for name, shape in known["input_shapes"].items()}
            if self.input_shapes:
                known["input_shapes"] = self.input_shapes
            return replace(self, **known)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"the plan's settings do not fit this version ({error})") from error

    def without_effect(self, given: Collection[str], *, measures: bool, writes: bool, images: bool) -> list[str]:
        """One text for each of the options `given` that changes nothing beside the others.

        measures, writes: whether the slimmed model is run, and whether it becomes a file. images: whether the
        calibration data are images.
        """
        idle: dict[str, list[str]] = {}
        if not self.merges:
            idle[f"with --compensation {self.compensation}"] = ["threshold", "lam", "donors"]
        elif self.donors == "all" or (self.donors == "auto" and (self.refits or self.compensation == "auto")):
            idle["with least squares" if self.refits and self.donors == "auto" else "with all donors"] = ["lam"]
        elif self.uses_clusters:
            idle["where the representative is the donor"] = ["lam"]
        if not self.merges and self.criterion != "greedy" and not self.criterion.startswith("reprune"):
            idle["with neither least squares, merging nor clustering"] = ["device"]
        if not self.criterion.startswith("reprune"):
            idle[f"with --criterion {self.criterion}"] = ["geometry", "kernel_cut"]
        elif self.criterion == "reprune":
            idle["with --criterion reprune"] = ["kernel_cut"]
        if self.calibration_data is not None:
            draws = self.refits or self.criterion == "greedy"  # rows
            idle["with --calibration-data"] = ["pixels"] if draws else ["pixels", "seed"]
        if not self.refits:
            idle.setdefault("without least squares", []).extend(["augment", "memory_limit"])
        elif self.calibration_data is None:
            idle["without --calibration-data"] = ["augment"]
        if not images:
            idle["where no images are given as --calibration-data"] = list(NAMES)
        if not measures:
            idle["in a dry run"] = ["providers", "score_output"]
        if not writes:
            idle["where no model is written"] = ["external_data"]
        found = {why: [option_name(name) for name in names if name in given] for why, names in idle.items()}
        return [f"{' and '.join(names)} without effect {why}" for why, names in found.items() if names]


def _number(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{option_name(name)} {value!r}: not {'a whole' if kind is int else 'a'} number")


def option_name(name: str) -> str:
    """The command line's word for a field of `Settings`."""
    return "--" + name.replace("_", "-")


def _ratio(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{option} {value}: the share of channels to remove must be at least 0 and below 1")


def _regex(option: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} {pattern!r}: not a regular expression ({error})") from None
