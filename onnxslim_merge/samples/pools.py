"""Made-up samples to choose from, many more than are held at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim_merge.samples.specs import Batching, Feed, InputSpec, Samples
from onnxslim_merge.samples.synthetic import Images, in_range, synthetic_samples


@dataclass(slots=True)
class Pool:
    """Samples that are made from their numbers, so that none has to be kept: images are varied dead leaves.

    sizes: as `synthetic_samples` has them; pixels: as `in_range` has them; count: how many are wanted; elements:
    numbers in one. chosen: the numbers of those that are wanted, once somebody has chosen.
    """

    specs: Sequence[InputSpec]
    sizes: Mapping[str, tuple[int, ...]]
    pixels: str
    seed: int
    count: int
    elements: int
    chosen: list[int] | None = None

    @property
    def step(self) -> int:
        """Samples with one number: as many as the model takes at a time, if it says so; else one."""
        return Batching.of(self.specs).fixed or 1

    def plain(self) -> Samples:
        """As many samples as are wanted, where nobody chooses: images are dead leaves, alike in contrast."""
        return self._made(self.seed, self.count, "dead leaves")

    def feeds(self, numbers: Sequence[int], batch: int) -> list[Feed]:
        """The samples with these numbers, in their order, in batches of `batch` numbers (1 where sizes are fixed).

        Inputs without a batch axis are the same in all batches, unless no input has one. As fp32 where the model takes
        fp16.
        """
        batching = Batching.of(self.specs)
        size = 1 if batching.fixed or not batching.names else batch
        shared = self._feed(-1) if 0 < len(batching.names) < len(self.specs) else {}
        return [self._joined(numbers[i : i + size], batching, shared) for i in range(0, len(numbers), size)]

    def _joined(self, numbers: Sequence[int], batching: Batching, shared: Feed) -> Feed:
        made = [self._feed(number) for number in numbers]
        return {
            name: np.concatenate([feed[name] for feed in made]) if name in batching.names else shared.get(name, array)
            for name, array in made[0].items()
        }

    def _feed(self, number: int) -> Feed:
        """From -1 on; (seed, 0) would draw what `seed` alone does, as the samples for checks do."""
        return self._made((self.seed, number + 2), 1, "varied dead leaves").feeds[0]

    def _made(self, seed: int | Sequence[int], count: int, images: Images) -> Samples:
        found = synthetic_samples(self.specs, sizes=self.sizes, count=count, seed=seed, batch=64, images=images)
        return in_range(found, self.specs, self.pixels).in_float32()
