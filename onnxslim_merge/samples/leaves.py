"""Dead leaves: opaque shapes of all sizes that hide each other, the simplest images with the edges of photographs.

After Lee, Mumford, Huang, "Occlusion models for natural images" (2001); networks that were trained on such images alone
learn useful filters (Baradad et al., "Learning to see by looking at noise", 2021).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAVES = 400  # of one image; what they leave open is background
FINEST, COARSEST = 0.02, 0.5  # radius in units of the shorter side; as many in each octave squared, as in photographs
OVERSAMPLED = 2  # so that edges are not jagged
GRAIN = 0.05  # deviation of the noise on top


def dead_leaves(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, colour_share: float
) -> NDArray[np.float32]:
    """Images of `shape` (batch and `axis` = channels); values of mean 0 and variance 1, channels mostly alike."""
    batch, channels = shape[0], shape[axis]
    height, width = (n for i, n in enumerate(shape) if i not in (0, axis))
    images = np.stack([_image(rng, channels, height, width, colour_share) for _ in range(batch)])
    images += GRAIN * rng.standard_normal(images.shape, dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(images, 1, axis))


def _image(
    rng: np.random.Generator, channels: int, height: int, width: int, colour_share: float
) -> NDArray[np.float32]:
    """(channels, height, width), from the front to the back, so that every pixel is painted once."""
    rows, columns = OVERSAMPLED * height, OVERSAMPLED * width
    side = min(rows, columns)
    low, high = max(FINEST * side, 1.0), max(COARSEST * side, 1.5)
    radius = low * (high / low) ** rng.random(LEAVES)
    radius = np.where(rng.random(LEAVES) < 0.5, radius, 1 / (1 / low - rng.random(LEAVES) * (1 / low - 1 / high)))
    centre = rng.random((LEAVES, 2)) * (rows, columns)
    turn, round_ = rng.random(LEAVES) * np.pi, rng.random(LEAVES) < 0.5
    colours = np.sqrt(colour_share) * rng.standard_normal((LEAVES + 1, channels))
    colours += np.sqrt(1 - colour_share) * rng.standard_normal((LEAVES + 1, 1))
    owner = np.full((rows, columns), LEAVES)
    for leaf in range(LEAVES):
        if leaf % 50 == 0 and not (owner == LEAVES).any():
            break
        (y, x), r = centre[leaf], radius[leaf]
        top, left = max(int(y - r), 0), max(int(x - r), 0)
        part = owner[top : int(y + r) + 1, left : int(x + r) + 1]
        dy = np.arange(top, top + part.shape[0])[:, None] + 0.5 - y
        dx = np.arange(left, left + part.shape[1])[None] + 0.5 - x
        if round_[leaf]:
            inside = dy * dy + dx * dx <= r * r
        else:
            along, across = (
                np.cos(turn[leaf]) * dx + np.sin(turn[leaf]) * dy,
                np.cos(turn[leaf]) * dy - np.sin(turn[leaf]) * dx,
            )
            inside = np.maximum(np.abs(along), np.abs(across)) <= 0.7 * r
        part[inside & (part == LEAVES)] = leaf
    painted = colours[owner].reshape(height, OVERSAMPLED, width, OVERSAMPLED, channels).mean((1, 3))
    return np.asarray(np.moveaxis(painted, -1, 0), np.float32)
