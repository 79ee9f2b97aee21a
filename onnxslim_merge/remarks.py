"""What a careful colleague would add to the numbers: the notes of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnxslim_merge.channels.analysis import Analysis
from onnxslim_merge.model_io import Source
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.samples import Samples
from onnxslim_merge.select import Amount, producer_names
from onnxslim_merge.settings import Settings
from onnxslim_merge.verify.fidelity import Fidelity
from onnxslim_merge.verify.gates import Twin
from onnxslim_merge.verify.speed import Speed

LITTLE = 0.5  # a cosine; that of unrelated outputs is about 0
FEW_SAMPLES = 32  # a mean of fewer is an anecdote
GROWTH, OWN = 1.02, 1 << 13  # of the file, and bytes; below it is value_info and metadata


def removes(plan: SlimPlan) -> bool:
    """Whether any channel goes."""
    return any(len(cell.keep) < cell.size for cell in plan.cells)


def on_pixels(asked: Settings, samples: Samples) -> list[str]:
    """Of `--pixels` where it says nothing."""
    idle = asked.pixels != "auto" and not samples.pixels
    return ["--pixels has no effect: no input is an image of floats"] if idle else []


def on_rules(analysis: Analysis, settings: Settings, amounts: Mapping[str, Amount]) -> list[str]:
    """Of `--allow-inexact` without need, and `--ratio-for` that matches only groups which stay for another reason."""
    notes = []
    if settings.allow_inexact and all(contraction.kind == "sum" for contraction in analysis.contractions):
        notes.append(
            "--allow-inexact has no effect: it cuts a LayerNormalization or RMSNormalization over the last axis, with"
            " one scale for each channel, and there is none"
        )
    names = {cell.name: producer_names(analysis, cell) for cell in analysis.cells}
    for rule in settings.ratio_for:
        cells = [cell for cell, found in names.items() if any(re.search(rule.pattern, name) for name in found)]
        if cells and all(amounts[cell].status in ("frozen", "excluded") for cell in cells) and rule.ratio:
            rest = f", and {len(cells) - 1} more" if len(cells) > 1 else ""
            why = amounts[cells[0]].reason
            notes.append(
                f"--ratio-for {rule.pattern}={rule.ratio:g} without effect: {cells[0]} stays whole ({why}){rest}"
            )
    return notes


def on_choice(plan: SlimPlan, source: Source, settings: Settings, automatic: bool, guessed: str) -> list[str]:
    """Of what was chosen: nothing at all, no compensation, another file's plan, inputs whose shapes change.

    automatic: compensation was "auto". guessed: pixels of images that nothing else tells of, if layers were refitted.
    """
    if not removes(plan):
        frozen = sum(cell.status == "frozen" for cell in plan.cells)
        if not plan.cells:
            return ["nothing was removed: no operator with a rule makes channels here (--verbose lists the refusals)"]
        rest = ", the others kept as asked" if frozen < len(plan.cells) else ""
        return [f"nothing was removed: {frozen} of {len(plan.cells)} groups are frozen{rest}"]
    notes = []
    if automatic and not settings.carries_mean:
        notes.append(
            "the means of removed channels are lost, as no BatchNormalization tells them: give --calibration-data, or"
            " export the model with BatchNormalization kept"
        )
    elif automatic and not settings.refits and settings.calibration_data is None:
        notes.append(
            "--compensation least-squares would refit the layers with what BatchNormalization knows of the data, and"
            " lose less, in more time; --calibration-data, better still"
        )
    if guessed:
        what = "mean 0 and deviation 1" if guessed == "normal" else f"{guessed}, as its layers expect"
        notes.append(
            f"refitted on made-up images with pixels of {what}: if the model reads others, give --pixels; fidelity is"
            " judged on such images, so it does not tell which are right"
        )
    inexact = sum(mask.kind != "sum" for mask in plan.masks)
    if inexact:
        notes.append(
            f"inexact, as allowed: {inexact} means of LayerNormalization or RMSNormalization are over fewer channels,"
            " in the twin too"
        )
    listed = {value.name for value in source.proto.graph.input}
    shrunk = sorted({gather.tensor for gather in plan.gathers} & listed)
    if shrunk:
        names = ", ".join(shrunk[:3]) + (" ..." if len(shrunk) > 3 else "")
        notes.append(f"{len(shrunk)} initializers that callers may override have smaller shapes now: {names}")
    return notes


def on_plan(plan: SlimPlan, replayed: bool) -> list[str]:
    """What was said when the plan was made, of the samples that it was made with."""
    return [f"of the plan, when it was made: {note}" if replayed else note for note in plan.notes]


def on_samples(
    plan: SlimPlan, samples: Samples, settings: Settings, fidelity: Fidelity, replayed: bool = False
) -> list[str]:
    """Of what was judged on: whether it says much, and outputs that have little in common with the original's.

    replayed: the plan is as it was, so that nothing was fitted to these samples.
    """
    notes = []
    if settings.calibration_data is not None and removes(plan) and _alike(samples):
        notes.append("all samples given are the same: nothing can be learnt from them, and fidelity says nothing")
    fitted = [] if replayed else _fitted(plan, samples, settings)
    return notes + fitted + _unlike(plan, samples, fidelity, replayed)


def _alike(samples: Samples) -> bool:
    """Whether there are several samples, and all of them are the same."""
    first = samples.feeds[0]
    return samples.count > 1 and all(
        array.shape[1:] == first[name].shape[1:]
        and bool((array == (first[name][:1] if array.ndim else first[name])).all())
        for feed in samples.feeds
        for name, array in feed.items()
    )


def _fitted(plan: SlimPlan, samples: Samples, settings: Settings) -> list[str]:
    """Of calibration data: it is fitted to and judged on, which flatters a small set, and least squares any."""
    fitted = settings.calibration_data is not None and (settings.carries_mean or settings.criterion == "impact")
    if not removes(plan) or not fitted:
        return []
    if samples.count >= FEW_SAMPLES:
        seen = "fidelity is that on the samples that layers were fitted to: on others it is lower, measure your metric"
        return [seen] if settings.refits else []
    return [f"only {samples.count} calibration samples, both fitted to and judged on: fidelity looks better than it is"]


def _unlike(plan: SlimPlan, samples: Samples, fidelity: Fidelity, replayed: bool) -> list[str]:
    """Of outputs that have little in common with the original's, and of inputs that cannot tell whether they do."""
    made_up = samples.source.startswith("synthetic")
    if not removes(plan):
        return []
    if fidelity.cosine is None or fidelity.cosine >= LITTLE:
        blind = "fidelity is that on made-up inputs, on real ones it can be far lower: judge by --calibration-data"
        return [blind] if made_up else []
    if made_up:
        advice = "; these inputs are made up, so judge by --calibration-data"
    elif replayed:
        advice = ": make the plan anew, with these samples or a smaller --ratio"
    elif samples.count < FEW_SAMPLES:
        advice = ": give more samples, a few hundred, or try a smaller --ratio"
    else:
        advice = ": try a smaller --ratio"
    return [f"the outputs have little in common with the original's (cosine {fidelity.cosine:.2f}){advice}"]


def on_exactness(plan: SlimPlan, twin: Twin, fidelity: Fidelity) -> list[str]:
    """Of the checks: what rounding excuses, and inputs at which they say nothing."""
    notes = [
        f"output {name} differs from the twin by {twin.errors[name]:.0e} of its largest value, which is rounding: it is"
        " almost zero on these inputs"
        for name in sorted(twin.excused - twin.folded)
    ]
    if twin.folded:
        worst = max(twin.errors[name] for name in twin.folded)
        notes.append(
            "folding BatchNormalization into weights of fp16 or bf16 rounds them once more: outputs differ by"
            f" {worst:.0e} of their largest value, before it they do not; --keep-batchnorm avoids that"
        )
    if removes(plan) and fidelity.max_abs == 0 and fidelity.equal_share in (None, 1.0):
        notes.append(
            "no output changed at all: on these inputs nothing depends on what was removed, so the checks say nothing;"
            " give --calibration-data or --input-shapes"
        )
    return notes


def on_cost(plan: SlimPlan, speeds: Sequence[Speed], source: Source, size: int, settings: Settings) -> list[str]:
    """Of speed and size that went the wrong way."""
    notes = []
    if removes(plan) and any(s.speedup_high < 1 for s in speeds) and settings.channel_multiple == 1:
        notes.append("slower: kernels prefer multiples of 8 or 16 channels, try --channel-multiple auto")
    if size > GROWTH * source.size_bytes + OWN:
        notes.append("the file grew: constants that were computed or shared in it are written out now")
    return notes
