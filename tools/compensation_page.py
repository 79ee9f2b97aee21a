"""docs/compensation.md from what tools/compensation.py and tools/compensation_rivals.py measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compensation_cases import BLIND, GROWTH_RATIO, METHODS, MODES, SEEING, Case

Facts = Mapping[str, Any]
Found = Mapping[str, Facts]  # of one case, by "method | mode | column"
FEW = 1000  # test images, below which an interval is given
NEAR = 0.01  # how far a rival's parameters may be from ours without a word
LACKING = "no least squares"  # begins the note of a run that merged instead
HEAD = """# Compensation, with data and without

Written by `python tools/compensation.py write FOLDER docs/compensation.md`; every number comes from the files that
`tools/compensation.py run` and `tools/compensation_rivals.py run` left in FOLDER. Models and images are those of our
own `../shared`; no labels, no fine-tuning, every measurement in a process of its own.

- **Accuracy** is top-1 in percent on the whole labelled test set, in ONNX Runtime. **Agreement** is how often the
  highest class is the original's on calibration images that no method saw; defaults are chosen by it. **Changed** is
  the share of test images whose highest class is not the original's. Brackets: the 95% interval of accuracy (Wilson).
- **Data**: `images`, the first calibration images as `--calibration-data`, how many says the case; `no data`, inputs
  are made up, and BatchNormalization's statistics are used where the file has them.
- **Methods**: `greedy` is `--criterion greedy --compensation least-squares`; the others choose by `consumer`, which
  looks at no data. `merge, all`: `--donors all`; `auto`: the default. `none` and both `merge` look at no data, so that
  they are measured once.
- **Cost**: processor seconds of all threads / seconds by the wall / peak of memory in MiB, of the process as a whole
  {start}, from reading the file to the finished bytes; without verification. The machine did other
  work too, which the wall clock counts.
- **Bold**: the best with this kind of data. Blank: not measured. A column is the share of channels removed; `paper`:
  half of the channels of seven layers of VGG-16; `vgg16`: only the layers named `features` lose channels.
{rivals}
"""
RIVALS = """\
- **Rivals** have one ratio in all layers, searched so that as many parameters are left as in ours, to 1%; where that
  was not possible, the cell says how many there are for 1 of ours. *onnxsim*: `simplify`, then
  `apply_structured_pruning` (magnitude), or `apply_structured_wanda_pruning` and `apply_pruning_finetune` on the same
  images; it chooses its layers itself: of vgglike only the dense ones, which hold most parameters and hardly any work,
  so that it loses less there at equal parameters; `vgglike dense` compares both in these layers. *Torch-Pruning*:
  `BasePruner` on the module that onnx2torch makes, in layers that lose channels in ours; `GroupMagnitudeImportance`;
  `GroupTaylorImportance` and `GroupHessianImportance` with gradients on the same images, of cross-entropy with the
  network's own highest class, as there are no labels; `BatchNorm anew`: Taylor, then the statistics of
  BatchNormalization are estimated again on these images. Their memory includes torch or onnxsim itself; the search
  is not in their time.
  Versions: {versions}."""
STARRED = "\\* least squares were not possible there, so that channels were merged instead."


def page(facts: Mapping[str, Found], cases: Mapping[str, Case], generators: Mapping[str, Found] | None = None) -> str:
    """The page for {case: what was measured}, in the order of `cases`.

    generators: by model and generator of images, as of tools/generators.py.
    """
    every = [found for case in facts.values() for found in case.values()]
    start = sorted({found["start_mib"] for found in every if "start_mib" in found and found.get("stages")})
    versions = sorted({found["version"] for found in every if "target" in found})
    rivals = RIVALS.format(versions="; ".join(versions)) if versions else ""
    lines = [HEAD.format(start=_started(start), rivals=rivals).rstrip()]
    commits = sorted({found.get("version", "") for found in every if found.get("stages")} - {""})
    if commits:
        lines += ["", f"The package was at commit {', '.join(commits)} (`+`: with changes that are not in it)."]
    lines += _summary({name: found for name, found in facts.items() if cases[name].scored})
    normed, others = dict[str, Found](), dict[str, Found]()
    for name, rows in (generators or {}).items():
        (normed if any("varied" in kind for kind in rows) else others)[name] = rows
    lines += [*_generators(normed, NORMED), *_generators(others, GENERATORS)]
    for name, found in facts.items():
        lines += _case(name, cases[name], found) if cases[name].scored else _growth(name, cases[name], found)
    return "\n".join(lines) + "\n"


def _started(found: list[int]) -> str:
    """In words, of ascending numbers."""
    if not found:
        return "when it ends"
    return f"({found[0]}{f' to {found[-1]}' if found[-1] > found[0] else ''} before it starts)"


# -- images that are made up -------------------------------------------------------------------------------------------

NORMED = """
## Without data: which images to make up, where BatchNormalization chooses

Measured by `tools/generators.py`: `greedy` on images of several kinds. Of 2 to 16 times as many as are used, those stay
on which BatchNormalizations together see nearly what they saw in training
([decision 0015](decisions/0015-chosen-images.md)); the default is varied dead leaves, of 8 times as many. Agreement and
relative L2 of the outputs on real calibration images, ResNet-20 as means of three seeds.
"""
GENERATORS = """
## Without data and without BatchNormalization: which images to make up

Measured by `tools/generators.py`: least squares on these images instead of the dead leaves that are the default,
channels by `consumer`; agreement and relative L2 of the outputs on real calibration images. What else was tried for
such files stands in the tables below: several donors in closed form (`merge, all`), means (`mean`), a greedy choice on
such images (`greedy`); and which pixels images hold, in [decision 0014](decisions/0014-pixels.md).
"""


def _generators(found: Mapping[str, Found], text: str) -> list[str]:
    """Agreement / distance by generator and model, the best agreement in bold."""
    if not found:
        return []
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    lines = [text.rstrip(), "", f"| images | {' | '.join(found)} |", "|---|" + "---:|" * len(found)]
    best = [max(facts["agreement"] for facts in rows.values()) for rows in found.values()]
    for name in names:
        cells = []
        for rows, most in zip(found.values(), best, strict=True):
            facts = rows.get(name, {})
            text = f"{facts['agreement']:.2f}" if facts else ""
            text = f"**{text}**" if facts and facts["agreement"] == most else text
            cells.append(f"{text} / {facts['distance']:.3f}" if facts else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


# -- summary -----------------------------------------------------------------------------------------------------------


def _summary(facts: Mapping[str, Found]) -> list[str]:
    """Mean accuracy and agreement where all of our methods were measured."""
    lines = ["", "## What is best"]
    for mode in MODES:
        places = [
            (name, column) for name in facts for column in _columns(facts[name]) if _whole(facts[name], mode, column)
        ]
        if not places:
            continue
        where = "; ".join(
            f"{name} {', '.join(c for n, c in places if n == name)}" for name in dict.fromkeys(dict(places))
        )
        lines += ["", f"With {mode}: the mean over what is measured in full, {where}.", ""]
        lines += ["| method | accuracy | agreement |", "|---|---:|---:|"]
        for method in METHODS:
            found = [_at(facts[name], method, mode, column) for name, column in places]
            lines.append(f"| {method} | {_mean(found, 'accuracy')} | {_mean(found, 'agreement')} |")
    return lines if len(lines) > 2 else []


def _at(found: Found, method: str, mode: str, column: str) -> Facts:
    """What a method gives in a mode, which may be what it gives in the other."""
    known = mode if mode in METHODS[method].modes else BLIND
    return found.get(f"{method} | {known} | {column}", {})


def _whole(found: Found, mode: str, column: str) -> bool:
    return all("accuracy" in _at(found, method, mode, column) for method in METHODS)


def _mean(found: list[Facts], what: str) -> str:
    known = [facts[what] for facts in found if what in facts]
    return f"{np.mean(known):.2f}" if known else ""


# -- one model ---------------------------------------------------------------------------------------------------------


def _case(name: str, case: Case, found: Found) -> list[str]:
    """Accuracy, agreement or changed decisions, and cost."""
    some = next((facts for facts in found.values() if "base" in facts), None)
    lines = ["", f"## {name}", ""]
    if some is None:
        return [*lines, "Nothing has succeeded yet.", *_failures(found)]
    lines += [
        f"`{case.model}`: accuracy {some['base']:.2f} on {some['tested']} images; {case.images} images as data; "
        f"agreement on {some.get('unseen', 'no')} others.",
    ]
    lines += _table(found, "accuracy", _accuracy, best=max)
    if "agreement" in some:
        lines += _table(found, "agreement", lambda f: _number(f, "agreement"), best=max)
    else:
        lines += _table(found, "changed", lambda f: _number(f, "changed"), best=min)
    lines += _table(found, "cost", _cost)
    if any(_starred(facts) for facts in found.values()):
        lines += ["", STARRED]
    return lines + _failures(found)


def _columns(found: Found) -> list[str]:
    """By size where they are numbers."""
    columns = {key.rsplit(" | ", 1)[1] for key in found}
    return sorted(columns, key=lambda column: (float(column) if column[0].isdigit() else 0, column))


def _rows(found: Found) -> list[tuple[str, str]]:
    """(method, mode), ours first and in order."""
    rows = list(dict.fromkeys(tuple(key.split(" | ")[:2]) for key in found))
    order = list(METHODS)
    rows.sort(key=lambda row: (row[0] not in order, row[1] == SEEING, order.index(row[0]) if row[0] in order else 0))
    return [(method, mode) for method, mode in rows]


def _table(
    found: Found, title: str, show: Callable[[Facts], str], best: Callable[[list[float]], float] | None = None
) -> list[str]:
    """Rows are methods, columns amounts; of each mode the best is bold."""
    columns = _columns(found)
    lines = ["", f"| {title} | data | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    if title == "accuracy":
        lines.append("| *parameters kept* | | " + " | ".join(_kept(found, column) for column in columns) + " |")
    for method, mode in _rows(found):
        row = [found.get(f"{method} | {mode} | {column}", {}) for column in columns]
        if not any(title == "cost" or title in facts for facts in row):
            continue
        cells = [show(facts) for facts in row]
        for i, column in enumerate(columns):
            if best and title in row[i] and row[i][title] == _best(found, mode, column, title, best):
                cells[i] = f"**{cells[i]}**"
        if any(cells):
            lines.append(f"| {method} | {mode} | " + " | ".join(cells) + " |")
    return lines


def _best(found: Found, mode: str, column: str, title: str, best: Callable[[list[float]], float]) -> float:
    """The best number of one mode at one amount."""
    return best([f[title] for key, f in found.items() if key.endswith(f" | {mode} | {column}") and title in f])


def _kept(found: Found, column: str) -> str:
    mine = (f for key, f in found.items() if key.endswith(f" | {column}") and "after" in f and "target" not in f)
    facts = next(mine, None)
    return f"{100 * facts['after'] / facts['before']:.1f}%" if facts else ""


def _number(facts: Facts, what: str) -> str:
    return f"{facts[what]:.2f}" + "\\*" * _starred(facts) if what in facts else ""


def _starred(facts: Facts) -> bool:
    return any(note.startswith(LACKING) for note in facts.get("notes", ()))


def _accuracy(facts: Facts) -> str:
    text = _number(facts, "accuracy")
    if text and facts["tested"] < FEW:
        low, high = wilson(round(facts["accuracy"] / 100 * facts["tested"]), facts["tested"])
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    if "target" in facts and "after" in facts and abs(share := facts["after"] / facts["target"] - 1) > NEAR:
        text += f" ({1 + share:.2f})"
    return text


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share in which 95% of such intervals hold the truth."""
    share, extra = hits / total, z**2 / total
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * (share * (1 - share) / total + extra / (4 * total)) ** 0.5
    return middle - half, middle + half


def _cost(facts: Facts) -> str:
    if "wall" not in facts:
        return ""
    return f"{_seconds(facts['processor'])} / {_seconds(facts['wall'])} / {facts['peak_mib']}"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _failures(found: Found) -> list[str]:
    """Why there is no number."""
    failed: dict[str, list[str]] = {}
    for key, facts in found.items():
        if "error" in facts:
            method, mode, column = key.split(" | ")
            failed.setdefault(f"{method}, {mode}: fails: {facts['error']}", []).append(column)
    return ["", *(f"- {why} ({', '.join(columns)})" for why, columns in failed.items())] if failed else []


# -- growth ------------------------------------------------------------------------------------------------------------


def _growth(name: str, case: Case, found: Found) -> list[str]:
    """Cost against the number of images or layers, and the power with which it grows."""
    what = name.rpartition(" ")[2]
    columns = _columns(found)
    if what == "images":
        limits = {column.options.get("memory_limit") for column in case.columns.values()} - {None}
        more = "".join(f" --memory-limit {limit}" for limit in limits)
        about = f"`{case.model}`, `--scope inner --ratio {GROWTH_RATIO:g}{more}`."
        if not more:
            about += " Activations wait in memory up to half of `--memory-limit`, 2 GiB here, and above it in files."
        about += " Batches are a sixteenth of the images, 64 at most."
    else:
        about = (
            f"Residual networks for CIFAR-10 with random weights, without BatchNormalization; `--scope inner --ratio "
            f"{GROWTH_RATIO:g}`, {case.images} images."
        )
    power = f"p: processor seconds grow with {what}^p, by least squares of logarithms."
    title = f"{name[0].upper()}{name[1:].partition(',')[0]} with the number of {what}"
    lines = ["", f"## {title}", "", f"{about} {power}", ""]
    lines += [f"| cost | {' | '.join(columns)} | p |", "|---|" + "---:|" * (len(columns) + 1)]
    for method, mode in _rows(found):
        row = [found.get(f"{method} | {mode} | {column}", {}) for column in columns]
        lines.append(f"| {method} | {' | '.join(map(_cost, row))} | {_power(columns, row)} |")
    return lines + _failures(found)


def _power(columns: list[str], row: list[Facts]) -> str:
    known = [
        (float(column), facts["processor"]) for column, facts in zip(columns, row, strict=True) if "processor" in facts
    ]
    if len(known) < 3:
        return ""
    x, y = np.log(np.array(known)).T
    return f"{np.polyfit(x, y, 1)[0]:.2f}"
