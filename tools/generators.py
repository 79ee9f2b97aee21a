"""Which made-up images serve least squares best where neither data nor BatchNormalization are at hand.

    python tools/generators.py FOLDER SHARED [--cases REGEX] [--threads 1]

Every generator takes the place of the dead leaves that synthetic samples are made of; channels are chosen by
`consumer`, as without data. What was measured lies in FOLDER/generators.json, which tools/compensation.py writes into
its page; agreement is that of the highest class with the original's on unlabelled calibration images, and distance that
of all outputs, in units of their spread over images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
from sklearn.datasets import load_sample_images

from bench import Bench, analysed
from onnxslim_merge.files import write_atomically
from onnxslim_merge.samples import synthetic
from onnxslim_merge.samples.leaves import dead_leaves
from onnxslim_merge.settings import Settings

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


@dataclass(frozen=True, slots=True)
class Case:
    """A model without BatchNormalization; task: of score.py."""

    model: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "resnet20 folded inner 0.5": Case("resnet20_cifar10_folded_op17", "cifar10-a", {"scope": "inner", "ratio": 0.5}),
    "resnet8 0.3": Case("resnet8_cifar10_tf2onnx", "cifar10-raw", {"ratio": 0.3}),
    "vgglike 0.3, --pixels 0:255": Case("vgglike_cifar10_tf2onnx", "cifar10-raw", {"ratio": 0.3, "pixels": "0:255"}),
}


class GeneratorBench(Bench):
    """One case, with what the original gives."""

    def __init__(self, shared: Path, case: Case, threads: int) -> None:
        """Run the original."""
        super().__init__(shared, case.model, case.task, threads=threads)
        self.settings = Settings(**case.options, criterion="consumer", compensation="least-squares")
        self.work = analysed(self.path, self.settings)
        self.before = self._logits(self.path.read_bytes())

    def _logits(self, model: bytes) -> np.ndarray:
        return np.concatenate([found[0].reshape(len(found[0]), -1) for found in self.outputs(model, self.inputs)])

    def measure(self, generator: Generator) -> dict[str, float]:
        """Agreement in percent, and distance."""
        synthetic.dead_leaves = generator
        after = self._logits(self.model(self.plan(self.settings)))
        spread = np.linalg.norm(self.before - self.before.mean(0))
        return {
            "agreement": 100 * float((after.argmax(1) == self.before.argmax(1)).mean()),
            "distance": float(np.linalg.norm(after - self.before) / spread),
        }


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
        for title, generator in GENERATORS.items():
            if title in facts.setdefault(name, {}):
                continue
            synthetic.dead_leaves = dead_leaves  # by which pixels are told
            bench = bench or GeneratorBench(shared, CASES[name], threads)
            facts[name][title] = bench.measure(generator)
            write_atomically(path, (json.dumps(facts, indent=1) + "\n").encode())
            print(name, title, facts[name][title], flush=True)


if __name__ == "__main__":
    app()
