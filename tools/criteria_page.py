"""docs/criteria.md from what tools/criteria.py measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

CRITERIA = ("l1", "l2", "l2-gm", "consumer", "impact", "reprune", "reprune-kernel")
MEASURED = [(v, c) for v in CRITERIA for c in ("none", "mean", "merge", "mean+merge")]  # of a ratio that is complete
USEFUL = 75.0  # percent of agreement that the best has to keep at a ratio which says what is best
BEST = f"""Where even the best agrees with the original on less than {USEFUL:g}% of images, nobody would use what comes
out, and its place in the order says nothing: such ratios are left out here. By agreement on unlabelled images, not by
test labels."""
WITHOUT_BATCHNORM = ("lenet", "resnet20 folded inner", "resnet20 folded all")
HEAD = """# Criteria and compensations, measured

Written by `python tools/criteria.py FOLDER SHARED --write docs/criteria.md`; every number comes from that run's files.
Models are those of our own `../shared`; without data (means of synthetic inputs, where BatchNormalization does not tell
them), without labels, without fine-tuning.

- **Accuracy** is top-1 in percent on the whole labelled test set (10,000 images; of `efficientnet` 300 photographs).
  **Agreement** is how often the highest class is the original's, on 1,024 unlabelled training images (128
  photographs); defaults are chosen by it alone.
  Blank, or a case of `tools/criteria.py` that is not below: not measured yet.
  `-`: accuracy was not measured; agreement, which stands below, was.
- **Criteria**: `l1`, `l2`, `l2-gm`, `consumer`, `impact`; `reprune` (euclidean, and `--geometry cosine`);
  `reprune-kernel` (as many clusters in each input channel, and `--kernel-cut layer`, the paper's height).
- **Compensation**: `none`, `mean`, `merge`, `mean+merge`; of `reprune` the donor is the representative of the cluster,
  `one`: the best by cosine of all. `all`: `--donors all`, the closed-form fit by all kept channels.
- Ratios are shares of channels removed from every cell; `inner`: `--scope inner`; `vgg16 paper`: half of the channels
  of seven of its layers, 64% of the parameters.
"""


def page(facts: Mapping[str, Any]) -> str:
    """The page for {case: what was measured}."""
    lines = [HEAD, *_summary(facts), *_shifts(facts)]
    for name, case in facts.items():
        lines += ["", f"## {name}: accuracy, from {case['base']:.2f}", "", *_table(case["found"], "accuracy")]
    for name, case in facts.items():
        lines += ["", f"## {name}: agreement", "", *_table(case["found"], "agreement")]
    return "\n".join(lines) + "\n"


def _split(found: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Variants, compensations and ratios, each in order."""
    parts = [key.split(" | ") for key in found]
    variants, compensations, ratios = (list(dict.fromkeys(part)) for part in zip(*parts, strict=True))
    return variants, compensations, sorted(ratios)


def _table(found: Mapping[str, Mapping[str, float]], what: str) -> list[str]:
    variants, compensations, ratios = _split(found)
    lines = ["| criterion | compensation | " + " | ".join(ratio or "all" for ratio in ratios) + " |"]
    lines.append("|---|---|" + "---:|" * len(ratios))
    for variant in variants:
        for compensation in compensations:
            row = [found.get(f"{variant} | {compensation} | {ratio}") for ratio in ratios]
            if any(row):
                cells = ["" if cell is None else f"{cell[what]:.2f}" if what in cell else "-" for cell in row]
                lines.append(f"| {variant} | {compensation} | " + " | ".join(cells) + " |")
    return lines


def _summary(facts: Mapping[str, Any]) -> list[str]:
    """Mean agreement over cases and ratios, with BatchNormalization and without."""
    lines = ["## What is best", "", BEST, ""]
    complete = {name: ratios for name, case in facts.items() if (ratios := _complete(case["found"]))}
    for title, cases in (
        ("with BatchNormalization", [c for c in complete if c not in WITHOUT_BATCHNORM]),
        ("without BatchNormalization", [c for c in complete if c in WITHOUT_BATCHNORM]),
    ):
        if not cases:
            continue
        variants, compensations, _ = _split(key for c in cases for key in facts[c]["found"])
        scores = {
            (v, c): [_mean(facts[case]["found"], v, c, complete[case]) for case in cases]
            for v in variants
            for c in compensations
        }
        means = {place: float(np.mean(found)) for place, found in scores.items() if not np.isnan(found).any()}
        best = max(means, key=lambda place: means[place])
        variants = [v for v in variants if any(v == place[0] for place in means)]
        compensations = [c for c in compensations if any(c == place[1] for place in means)]
        where = "; ".join(f"{case} at {', '.join(r or 'its ratio' for r in complete[case])}" for case in cases)
        lines += [
            f"Mean agreement in percent over what is measured in full {title}, and of use: {where}. The best:",
            f"**{best[0]}** with **{best[1]}**.",
            "",
            "| criterion | " + " | ".join(compensations) + " |",
            "|---|" + "---:|" * len(compensations),
        ]
        for v in variants:
            cells = [f"{means[v, c]:.1f}" if (v, c) in means else "" for c in compensations]
            cells = [f"**{cell}**" if (v, c) == best else cell for c, cell in zip(compensations, cells, strict=True)]
            lines.append(f"| {v} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _complete(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The ratios at which all is measured and the best is of use, ascending."""
    ratios = sorted({key.split(" | ")[2] for key in found})
    return [
        ratio
        for ratio in ratios
        if all(f"{v} | {c} | {ratio}" in found for v, c in MEASURED)
        and max(found[f"{v} | {c} | {ratio}"]["agreement"] for v, c in MEASURED) >= USEFUL
    ]


def _mean(found: Mapping[str, Mapping[str, float]], variant: str, compensation: str, ratios: list[str]) -> float:
    scores = [found.get(f"{variant} | {compensation} | {ratio}", {}).get("agreement", np.nan) for ratio in ratios]
    return float(np.mean(scores))


def _shifts(facts: Mapping[str, Any]) -> list[str]:
    """Mean relative L2 distance of the layers."""
    lines = [
        "## Shifts of single layers",
        "",
        "REPrune claims smaller shifts than choice by norm. Each layer in turn loses half of its input channels, all",
        "else stays; the relative L2 distance of its output from the original's, mean of layers, 64 training images.",
        "",
    ]
    for name, case in facts.items():
        if not case["shifts"]:
            continue
        variants, compensations, _ = _split(case["shifts"])
        count = len(next(iter(case["shifts"].values())))
        lines += [
            f"| {name}, {count} layers | " + " | ".join(compensations) + " |",
            "|---|" + "---:|" * len(compensations),
        ]
        for v in variants:
            layers = [case["shifts"].get(f"{v} | {c} | ") for c in compensations]
            lines.append(
                f"| {v} | " + " | ".join(f"{np.mean(list(f.values())):.3f}" if f else "" for f in layers) + " |"
            )
        lines.append("")
    return lines
