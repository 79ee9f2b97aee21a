"""Which made-up images serve least squares best where no data are at hand, with BatchNormalization and without.

    python tools/generators.py FOLDER SHARED [--cases REGEX] [--threads 1]

Every generator takes the place of the dead leaves that synthetic samples are made of, or of the varied ones of which
BatchNormalization chooses; without it channels are chosen by `consumer`, so that images alone differ, else by `greedy`.
What was measured lies in FOLDER/generators.json, which tools/compensation.py writes into its page; agreement is that of
the highest class with the original's on unlabelled calibration images, and distance that of all outputs, in units of
their spread over images, both as means over seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
from sklearn.datasets import load_sample_images

from bench import Bench, analysed
from onnxslim_merge.files import write_atomically
from onnxslim_merge.samples import synthetic
from onnxslim_merge.samples.leaves import dead_leaves, varied_leaves
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics import nearest

Generator = Callable[[np.random.Generator, tuple[int, ...], int, float], np.ndarray]
CONTRASTS = (0.4, 1.4)


def noise(rng: np.random.Generator, shape: tuple[int, ...], axis: int, share: float) -> np.ndarray:
    """Smoothed noise, as is made for checks."""
    return synthetic._smoothed_noise(rng, shape, axis)


def contrasts(rng: np.random.Generator, shape: tuple[int, ...], axis: int, share: float) -> np.ndarray:
    """Dead leaves, every image of a contrast of its own."""
    images = dead_leaves(rng, shape, axis, share)
    mean = images.mean((1, 2, 3), keepdims=True)
    return mean + (images - mean) * rng.uniform(*CONTRASTS, (len(images), 1, 1, 1)).astype(np.float32)


def blurred(rng: np.random.Generator, shape: tuple[int, ...], axis: int, share: float) -> np.ndarray:
    """Dead leaves, each pixel the mean of four, of the same variance."""
    images = np.moveaxis(dead_leaves(rng, shape, axis, share), axis, 1)
    wide = sum(np.roll(images, (y, x), (2, 3)) for y in (0, 1) for x in (0, 1))
    return np.ascontiguousarray(np.moveaxis(wide / wide.std() * images.std(), 1, axis))


def crops(rng: np.random.Generator, shape: tuple[int, ...], axis: int, share: float) -> np.ndarray:
    """Parts of scikit-learn's two photographs, of all sizes, mirrored or not, of mean 0 and variance 1 by channel."""
    photographs = [image.astype(np.float32) for image in load_sample_images().images]
    height, width = (n for i, n in enumerate(shape) if i not in (0, axis))
    found = []
    for _ in range(shape[0]):
        image = photographs[rng.integers(len(photographs))]
        zoom = 2 ** rng.uniform(0, np.log2(min(image.shape[0] / height, image.shape[1] / width)))
        rows, columns = ((np.arange(n + 1) * zoom).astype(int) for n in (height, width))
        top, left = rng.integers(image.shape[0] - rows[-1] + 1), rng.integers(image.shape[1] - columns[-1] + 1)
        part = image[top : top + rows[-1], left : left + columns[-1], : shape[axis]]
        part = np.add.reduceat(np.add.reduceat(part, rows[:-1], 0), columns[:-1], 1)
        part = part / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])
        found.append(part[:, :: rng.choice([-1, 1])])
    images = np.stack(found)
    images = (images - images.mean((0, 1, 2))) / images.std((0, 1, 2))
    return np.ascontiguousarray(np.moveaxis(images, -1, axis))


def varied(rng: np.random.Generator, shape: tuple[int, ...], axis: int, share: float) -> np.ndarray:
    """Dead leaves of many finenesses, colours, contrasts and brightnesses, sharp and blurred."""
    return varied_leaves(rng, shape, axis)


def mixed(*parts: Generator) -> Generator:
    """Equally many images of each, in a random order."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], axis: int, share: float) -> np.ndarray:
        counts = np.bincount(np.arange(shape[0]) % len(parts), minlength=len(parts))
        found = [part(rng, (n, *shape[1:]), axis, share) for part, n in zip(parts, counts, strict=True) if n]
        return rng.permutation(np.concatenate(found))

    return draw


GENERATORS: dict[str, Generator] = {
    "dead leaves": dead_leaves,
    "dead leaves of many contrasts": contrasts,
    "dead leaves, blurred": blurred,
    "smoothed noise": noise,
    "crops of two photographs": crops,
    "dead leaves and smoothed noise": mixed(dead_leaves, noise),
    "dead leaves and crops": mixed(dead_leaves, crops),
}
CHOSEN: dict[str, tuple[Generator, int]] = {  # with how many times as many BatchNormalization chooses of, 0 = not
    "dead leaves": (dead_leaves, 0),
    "varied dead leaves": (varied, 0),
    "dead leaves, of 8 times as many": (dead_leaves, 8),
    "varied dead leaves, of 2 times as many": (varied, 2),
    "varied dead leaves, of 4 times as many": (varied, 4),
    "varied dead leaves, of 8 times as many": (varied, 8),
    "varied dead leaves, of 16 times as many": (varied, 16),
    "smoothed noise, of 8 times as many": (noise, 8),
    "varied dead leaves and crops, of 8 times as many": (mixed(varied, crops), 8),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model at one amount; task: of score.py. normed: it has BatchNormalization, which chooses images."""

    model: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    normed: bool = False
    seeds: tuple[int, ...] = (0,)

    @property
    def kinds(self) -> Mapping[str, tuple[Generator, int]]:
        """What is compared."""
        return CHOSEN if self.normed else {title: (generator, 0) for title, generator in GENERATORS.items()}


CASES = {
    "resnet20 folded inner 0.5": Case("resnet20_cifar10_folded_op17", "cifar10-a", {"scope": "inner", "ratio": 0.5}),
    "resnet8 0.3": Case("resnet8_cifar10_tf2onnx", "cifar10-raw", {"ratio": 0.3}),
    "vgglike 0.3, --pixels 0:255": Case("vgglike_cifar10_tf2onnx", "cifar10-raw", {"ratio": 0.3, "pixels": "0:255"}),
    "resnet20 bn inner 0.5": Case(
        "resnet20_cifar10_bn_op13", "cifar10-a", {"scope": "inner", "ratio": 0.5}, normed=True, seeds=(0, 1, 2)
    ),
    "densenet inner 0.5": Case("densenet_jw_cifar10_bn", "cifar10-b", {"scope": "inner", "ratio": 0.5}, normed=True),
    "efficientnet inner 0.1": Case(
        "efficientnet_lite0_imagenet_bn", "imagenet", {"scope": "inner", "ratio": 0.1}, normed=True
    ),
}


class GeneratorBench(Bench):
    """One case, with what the original gives."""

    def __init__(self, shared: Path, case: Case, threads: int) -> None:
        """Run the original."""
        super().__init__(shared, case.model, case.task, threads=threads)
        self.case = case
        self.work = analysed(self.path, self._settings(case.seeds[0]))
        self.before = self._logits(self.path.read_bytes())

    def _settings(self, seed: int) -> Settings:
        criterion = "greedy" if self.case.normed else "consumer"
        return Settings(**self.case.options, criterion=criterion, compensation="least-squares", seed=seed)

    def _logits(self, model: bytes) -> np.ndarray:
        return np.concatenate([found[0].reshape(len(found[0]), -1) for found in self.outputs(model, self.inputs)])

    def measure(self, generator: Generator, times: int) -> dict[str, float]:
        """Agreement in percent, and distance. times: as in CHOSEN."""
        nearest.POOL, synthetic.dead_leaves = times, generator
        synthetic.varied_leaves = lambda rng, shape, axis: generator(rng, shape, axis, synthetic.COLOUR_SHARE)
        found = []
        for seed in self.case.seeds:
            after = self._logits(self.model(self.plan(self._settings(seed))))
            spread = np.linalg.norm(self.before - self.before.mean(0))
            same = 100 * (after.argmax(1) == self.before.argmax(1)).mean()
            found.append((same, np.linalg.norm(after - self.before) / spread))
        return dict(zip(("agreement", "distance"), np.mean(found, 0).tolist(), strict=True))


app = cyclopts.App(help=__doc__, help_format="plaintext")


@app.default
def main(
    folder: Path,
    shared: Path,
    /,
    *,
    cases: Annotated[str, cyclopts.Parameter(help="REGEX: only these cases.")] = "",
    threads: int = 1,
) -> None:
    """Measure what is missing in FOLDER."""
    path = folder / "generators.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    for name in (name for name in CASES if re.search(cases, name)):
        bench = None
        for title, kind in CASES[name].kinds.items():
            if title in facts.setdefault(name, {}):
                continue
            synthetic.dead_leaves = dead_leaves  # by which pixels are told
            bench = bench or GeneratorBench(shared, CASES[name], threads)
            facts[name][title] = bench.measure(*kind)
            write_atomically(path, (json.dumps(facts, indent=1) + "\n").encode())
            print(name, title, facts[name][title], flush=True)


if __name__ == "__main__":
    app()
