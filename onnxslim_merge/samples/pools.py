"""Made-up samples to choose from, many more than are held at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim_merge.samples.specs import Batching, InputSpec
from onnxslim_merge.samples.synthetic import in_range, synthetic_samples

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Pool:
    """Samples that are made from their numbers, so that none has to be kept: images are varied dead leaves.

    sizes: as `synthetic_samples` has them; pixels: as `in_range` has them; count: how many are wanted; elements:
    numbers in one.
    """

    specs: Sequence[InputSpec]
    sizes: Mapping[str, tuple[int, ...]]
    pixels: str
    seed: int
    count: int
    elements: int

    @property
    def step(self) -> int:
        """Samples with one number: as many as the model takes at a time, if it says so; else one."""
        return Batching.of(self.specs).fixed or 1

    def feeds(self, numbers: Sequence[int], batch: int) -> list[Feed]:
        """The samples with these numbers, in their order, in batches of `batch` numbers (1 where sizes are fixed).

        Inputs without a batch axis are those of the first sample of a batch. As fp32 where the model takes fp16.
        """
        batching = Batching.of(self.specs)
        size = 1 if batching.fixed or not batching.names else batch
        return [self._joined(numbers[i : i + size], batching) for i in range(0, len(numbers), size)]

    def _joined(self, numbers: Sequence[int], batching: Batching) -> Feed:
        made = [self._feed(number) for number in numbers]
        return {
            name: np.concatenate([feed[name] for feed in made]) if name in batching.names else array
            for name, array in made[0].items()
        }

    def _feed(self, number: int) -> Feed:
        seed = (self.seed, number)
        found = synthetic_samples(self.specs, sizes=self.sizes, count=1, seed=seed, images="varied dead leaves")
        return in_range(found, self.specs, self.pixels).in_float32().feeds[0]
