"""docs/coverage.md from the JSON files of tools/coverage.py, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

Facts = dict[str, Any]
Results = dict[tuple[str, str, str], Facts]  # by tool, model, exporter

TWIN = 1e-4
EXPORTERS = ("script", "dynamo")
DIFFERENCE = 0.02  # of parameters kept, between exporters
SLACK = 0.03
WHOLE = 0.65  # parameters kept of a file of SHARED; above it, something large stays whole
EVERYWHERE = ("graph output", "mixes this axis", "laid out otherwise")  # what every model refuses: no news
LISTED = {  # what Torch-Pruning keeps, as the issue that asked for this page has it
    "resnet18": 0.26, "resnet50": 0.27, "mobilenet_v2": 0.35, "mobilenet_v3_small": 0.36, "efficientnet_b0": 0.32,
    "squeezenet1_1": 0.36, "densenet121": 0.29, "resnext50_32x4d": 0.27, "regnet_y_400mf": 0.28, "googlenet": 0.29,
    "mnasnet0_5": 0.41,
}  # fmt: skip
LIMITS = {name: share + SLACK for name, share in LISTED.items()} | {"shufflenet_v2_x1_0": 0.40, "vit_b_16": 0.55}
INEXACT_LIMITS = {"convnext_tiny": 0.30}
QUOTED = (
    "convnext_tiny", "swin_t", "inception_v3", "vgg16_bn", "wide_resnet50_2", "maxvit_t", "deeplabv3_resnet50",
    "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
PAGE = """# Coverage

Every torchvision model through both of torch's exporters, slimmed at ratio {ratio} with `--compensation none`, beside
two other tools. Written by `python tools/coverage.py FOLDER --shared ../shared --write docs/coverage.md`; every number
below comes from that run's files.

{versions}

- **Models**: random weights, all biases random, BatchNormalization statistics those of a random batch with 20% noise.
  `script` is `torch.onnx.export(dynamo=False, opset_version=17)`, `dynamo` is `dynamo=True`; the batch is dynamic in
  both. Of a detector, backbone and heads are exported, without the choice of boxes.
- **Numbers** are the share of parameters kept. Ours counts weights before and after with BatchNormalization folded,
  onnxsim likewise (the same count, on the files before and after pruning, both simplified), Torch-Pruning the
  parameters of the module. A number alone means that all went well: the output loads, runs at batch 1 and 3 in ONNX
  Runtime (or in torch), is finite, has the shapes that it had, passes `onnx.checker` with `full_check`, and, ours,
  equals its full-size twin to {twin:.0e}. Whatever else happened stands beside it.
- **Torch-Pruning**: `MagnitudePruner(pruning_ratio={ratio})`, p=2, the layers that make the outputs ignored, attention
  heads given. **onnxsim**: `simplify`, as its pruning expects BatchNormalization fused, then
  `apply_structured_pruning(sparsity={ratio})`.
- **Blank** means not measured yet.
- **Seconds** are those of the tool's own work in a process of its own, {threads} thread(s) asked for, on a machine that
  did other work too. Ours includes verification and the measurement of speed; the others do neither.

{summary}

{tables}

## What was asked for

The limit is what Torch-Pruning was said to keep plus {slack}, except where another number was set; rows without a
limit are only quoted.

{targets}

{attention}## Files of ../shared/models at ratio {shared_ratio}

With the default `--compensation auto` and without data: all kept channels stand in for removed ones, and their
means are carried where BatchNormalization tells them. **Agreement** is that with the original on the report's
synthetic inputs: of the class, or the cosine of the first output. **Score** is accuracy in percent on the whole test
set, before and after, of those files that have one (`score.py` there); nothing is retrained.

{shared}

## What failed

{failures}
"""


def result_path(folder: Path, tool: str, name: str, exporter: str) -> Path:
    """Where the result of one tool on one model lies."""
    return folder / "results" / tool / f"{name.replace('/', '__')}.{exporter}.json"


def read(path: Path) -> Facts:
    """What was noted there; empty if the tool has not come to an end."""
    facts: Facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return facts if facts.get("error") or facts.get("step") == "done" else {}


def page(folder: Path, kinds: dict[str, list[str]]) -> str:
    """The whole page. kinds: which models there are, by kind."""
    found = [facts for path in sorted(folder.glob("results/*/*.json")) if (facts := read(path))]
    results: Results = {(facts["tool"], facts["model"], facts["exporter"]): facts for facts in found}
    info = json.loads((folder / "results" / "about.json").read_text(encoding="utf-8"))
    ratios = {exporter == "file": facts["ratio"] for (_, _, exporter), facts in results.items()}
    threads = sorted({facts["threads"] for facts in found if "threads" in facts})
    return PAGE.format(
        ratio=ratios.get(False), shared_ratio=ratios.get(True), twin=TWIN, slack=SLACK,
        versions=wrapped(", ".join(f"{name} {version}" for name, version in info.items()) + "."),
        threads="/".join(map(str, threads)), summary=summary(results, [n for names in kinds.values() for n in names]),
        tables="\n\n".join(f"## {kind.capitalize()}\n\n{big_table(results, names)}" for kind, names in kinds.items()),
        targets=target_table(results), attention=attention_table(results), shared=shared_table(results),
        failures=failures(results),
    )  # fmt: skip


def kept(facts: Facts | None) -> float | None:
    """Share of parameters kept, where there is an output."""
    return facts["after"] / facts["before"] if facts and facts.get("after") is not None else None


def problems(facts: Facts) -> list[str]:
    """What an output does not do; empty if all is well."""
    if facts.get("after") is None:
        return [f"{'no export' if facts['step'] == 'export' else 'no output'}"]
    if facts["step"] == "original":
        return ["the original does not run"]
    if not facts.get("runs"):
        return ["does not run"]
    on_file, mine = facts["exporter"] != "torch", facts["tool"] in ("ours", "inexact")
    checks = (
        ("not finite", not facts["finite"] and facts.get("original_finite", True)),
        ("other shapes", not facts["same_shapes"]),
        ("fails the checker", on_file and not facts.get("checked")),
        ("differs from its twin", mine and (facts["twin"] or 0.0) > TWIN),
        ("no twin", mine and facts["twin"] is None and facts["after"] < facts["before"]),
    )
    return [text for text, true in checks if true]


def cell(facts: Facts | None) -> str:
    """Share kept and problems."""
    if facts is None:
        return ""
    share = kept(facts)
    said = problems(facts)
    return " ".join([*([] if share is None else [f"{share:.3f}"]), ", ".join(said)]).strip()


def seconds(*found: Facts | None) -> str:
    """Seconds of each, with a slash between."""
    return " / ".join(f"{facts['seconds']:.1f}" if facts and "seconds" in facts else "-" for facts in found)


def wrapped(text: str) -> str:
    """Text or list item in lines of 120."""
    indent = "  " if text.startswith("- ") else ""
    return fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def table(head: Iterable[str], rows: Iterable[Iterable[str]], text: Iterable[str] = ()) -> str:
    """A markdown table; the first column is text, and so are those of `text`."""
    titles = list(head)
    rule = "|---|" + "".join("---|" if title in text else "---:|" for title in titles[1:])
    return "\n".join([f"| {' | '.join(titles)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def big_table(results: Results, names: list[str]) -> str:
    """One row for each model."""
    head = ["model", "ours, script", "ours, dynamo", "Torch-Pruning", "onnxsim, script", "onnxsim, dynamo",
            "seconds: ours", "Torch-Pruning", "onnxsim"]  # fmt: skip
    rows = []
    for name in names:
        mine = [results.get(("ours", name, exporter)) for exporter in EXPORTERS]
        simplified = [results.get(("onnxsim", name, exporter)) for exporter in EXPORTERS]
        torch = results.get(("torch-pruning", name, "torch"))
        if any([*mine, *simplified, torch]):
            times = (seconds(*mine), seconds(torch), seconds(*simplified))
            rows.append([name, *map(cell, mine), cell(torch), *map(cell, simplified), *times])
    return table(head, rows)


def target_table(results: Results) -> str:
    """Models with a limit, and those to be quoted."""
    rows = []
    wanted = [("ours", name, LIMITS.get(name)) for name in (*LIMITS, *QUOTED)]
    wanted += [("inexact", name, limit) for name, limit in INEXACT_LIMITS.items()]
    for tool, name, limit in wanted:
        mine = [results.get((tool, name, exporter)) for exporter in EXPORTERS]
        shares = [kept(facts) for facts in mine]
        met = all(share is not None and share <= (limit or 1) for share in shares)
        said = "" if limit is None else "yes" if met else "**no**" if all(mine) else "not run"
        title = name if tool == "ours" else f"{name}, `--allow-inexact layernorm`"
        listed = f"{LISTED[name]:.2f}" if name in LISTED else ""
        torch = cell(results.get(("torch-pruning", name, "torch")))
        rows.append([title, *map(cell, mine), "" if limit is None else f"{limit:.2f}", said, torch, listed])
    head = ["model", "ours, script", "ours, dynamo", "limit", "met", "Torch-Pruning here", "as listed"]
    return table(head, rows)


def attention_table(results: Results) -> str:
    """Torch-Pruning with and without heads, and ours with an approximation allowed, where there is either."""
    names = sorted({name for tool, name, _ in results if tool in ("plain", "inexact")})
    if not names:
        return ""
    rows = []
    for name in names:
        inexact = [cell(results.get(("inexact", name, exporter))) for exporter in EXPORTERS]
        torch = [cell(results.get((tool, name, "torch"))) for tool in ("torch-pruning", "plain")]
        rows.append([name, *inexact, *torch])
    head = ["model", "ours, inexact, script", "ours, inexact, dynamo", "Torch-Pruning, heads given", "heads not given"]
    patched = [name for (_, name, _), facts in sorted(results.items()) if facts.get("patched")]
    return (
        "## Attention and LayerNormalization\n\nTorch-Pruning with and without being told of attention heads, and ours"
        " with `--allow-inexact layernorm`.\nA removed channel changes the mean that a LayerNormalization takes: what"
        " Torch-Pruning then gives is another function.\n"
        + (f"After it, `hidden_dim` was set by hand in {', '.join(dict.fromkeys(patched))}.\n" if patched else "")
        + f"\n{table(head, rows)}\n\n"
    )


def shared_table(results: Results) -> str:
    """One row for each file of SHARED."""
    rows: list[list[str]] = []
    for name, facts in ((name, facts) for (_, name, exporter), facts in results.items() if exporter == "file"):
        share = kept(facts)
        reasons = [f"{facts['step']}: {facts['error']}"] if facts["error"] else problems(facts)
        if not facts["error"] and (share is None or share > WHOLE):
            why = [why for why, _ in [*facts["kept"], *facts["reasons"]] if not why.endswith(EVERYWHERE)]
            reasons += [f"stays: {reason}" for reason in why[:1]]
        macs = f"{facts['macs_after'] / facts['macs_before']:.3f}" if facts.get("macs_before") else ""
        twin = "" if facts.get("twin") is None else f"{facts['twin']:.0e}"
        scores = [facts.get(f"score_{when}") for when in ("before", "after")]
        score = f"{scores[0]:.2f} → {scores[1]:.2f}" if None not in scores else ""
        said = "; ".join(reasons).replace("|", "\\|")
        rows.append([name, "" if share is None else f"{share:.3f}", macs, facts.get("compensation", ""),
                     agreement(facts), score, twin, seconds(facts), said])  # fmt: skip
    rows.sort(key=lambda row: ("/" in row[0], row[0]))
    head = ["file", "parameters kept", "MACs kept", "`auto` is", "agreement", "score", "twin error", "seconds",
            "what else"]  # fmt: skip
    return table(head, rows, ("`auto` is", "agreement", "what else"))


def agreement(facts: Facts) -> str:
    """With the original: top-1 agreement where the output is class scores, else the first output's cosine."""
    names = (("top1", "top-1"), ("cosine", "cosine"), ("equal_share", "equal"))
    return next((f"{facts[key]:.3f} {name}" for key, name in names if facts.get(key) is not None), "")


def summary(results: Results, names: list[str]) -> str:
    """What the numbers say, as a list."""
    lines = [*_outputs(results, names), *_exporters(results, names), *_comparison(results, names), *_times(results)]
    return "\n".join(map(wrapped, lines))


def _outputs(results: Results, names: list[str]) -> list[str]:
    titles = {"ours": "Ours", "torch-pruning": "Torch-Pruning", "onnxsim": "onnxsim"}
    lines = []
    for tool, title in titles.items():
        lines.append(_counts(title, [f for (t, name, _), f in results.items() if t == tool and name in names]))
    lines.append(
        _counts("Ours, files of ../shared/models", [f for (*_, where), f in results.items() if where == "file"])
    )
    mine = [f for (tool, name, _), f in results.items() if tool == "ours" and name in names]
    whole = [f"{f['model']}.{f['exporter']}" for f in mine if (kept(f) or 1.0) == 1.0]
    return [*lines, f"- **Models that ours leaves whole or refuses**: {', '.join(whole) or 'none'}."]


def _counts(title: str, found: list[Facts]) -> str:
    outputs = [facts for facts in found if facts.get("after") is not None]
    runs = [facts for facts in outputs if not {"does not run", "not finite"} & set(problems(facts))]
    parts = [f"{len(found)} tried", f"{len(outputs)} outputs", f"{len(runs)} of them run with finite numbers"]
    if any(facts["exporter"] != "torch" for facts in found):
        parts.append(f"{sum(bool(facts.get('checked')) for facts in outputs)} pass the full checker")
    twins = [facts["twin"] for facts in outputs if facts.get("twin") is not None]
    if twins:
        parts.append(f"{sum(twin <= TWIN for twin in twins)} equal their twin (largest error {max(twins):.0e})")
    return f"- **{title}**: {', '.join(parts)}; all is well with {sum(not problems(f) for f in outputs)}."


def _exporters(results: Results, names: list[str]) -> list[str]:
    gaps = {}
    for name in names:
        shares = [kept(results.get(("ours", name, exporter))) for exporter in EXPORTERS]
        if shares[0] is not None and shares[1] is not None:
            gaps[name] = abs(shares[0] - shares[1])
    if not gaps:
        return []
    worst = max(gaps, key=lambda name: gaps[name])
    over = [f"{name} ({gap:.3f})" for name, gap in gaps.items() if gap > DIFFERENCE]
    text = f"- **Exporters**: over {len(gaps)} models, ours differs by {gaps[worst]:.4f} at most ({worst})"
    return [f"{text}; above {DIFFERENCE}: {', '.join(over) or 'none'}."]


def _comparison(results: Results, names: list[str]) -> list[str]:
    lines = []
    for tool, title in (("torch-pruning", "Torch-Pruning"), ("onnxsim", "onnxsim")):
        gaps = []
        for name in names:
            for exporter in EXPORTERS:
                mine = results.get(("ours", name, exporter))
                other = results.get((tool, name, "torch" if tool == "torch-pruning" else exporter))
                pair = kept(mine), kept(other)
                if None not in pair and other and not problems(other):
                    gaps.append(pair[0] - pair[1])  # type: ignore[operator]
        if gaps:
            less, more = (sum(sign * gap > SLACK for gap in gaps) for sign in (-1, 1))
            lines.append(
                f"- **Against {title}**, where its output is in order ({len(gaps)} files): ours keeps over {SLACK} less"
                f" in {less}, over {SLACK} more in {more}, and as much in {len(gaps) - less - more}."
            )
    return lines


def _times(results: Results) -> list[str]:
    parts = []
    for tool, title in (("ours", "ours"), ("torch-pruning", "Torch-Pruning"), ("onnxsim", "onnxsim")):
        times = [
            f["seconds"]
            for (t, _, exporter), f in results.items()
            if t == tool and exporter != "file" and "seconds" in f
        ]
        if times:
            parts.append(f"{title} {median(times):.1f} (longest {max(times):.0f})")
    return [f"- **Seconds**, median: {', '.join(parts)}."] if parts else []


def failures(results: Results) -> str:
    """Every failure with its message; equal ones on one line."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for (tool, name, exporter), facts in sorted(results.items()):
        said = [f"{facts['step']}: {facts['error']}"] if facts["error"] else problems(facts)
        if said:
            where = name if exporter in ("torch", "file") else f"{name}.{exporter}"
            grouped.setdefault((tool, "; ".join(said)), []).append(where)
    lines = [wrapped(f"- {tool}: `{text}`: {', '.join(where)}") for (tool, text), where in grouped.items()]
    return "\n".join(lines) or "Nothing."
