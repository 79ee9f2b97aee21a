"""Dead leaves: opaque shapes of all sizes that hide each other, the simplest images with the edges of photographs.

After Lee, Mumford, Huang, "Occlusion models for natural images" (2001); networks that were trained on such images alone
learn useful filters (Baradad et al., "Learning to see by looking at noise", 2021).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

LEAVES = 400  # of one image; what they leave open is background
FINEST, COARSEST = 0.02, 0.5  # radius in units of the shorter side; as many in each octave squared, as in photographs
OVERSAMPLED = 2  # so that edges are not jagged
LARGE = 512  # pixels of the shorter side, from which on jagged edges are left, for a fourth of the time
GRAIN = 0.05  # deviation of the noise on top
# Of images that differ in style: bounds of the finest radius, of the share of colour, of the deviation of blur (the
# lower in pixels, the upper in units of the shorter side; half of the images have none), and of contrast.
FINENESS, COLOUR, BLUR, CONTRAST = (0.02, 0.2), (0.05, 0.5), (0.3, 0.05), (0.4, 1.5)
BRIGHTNESS = 0.4  # deviation of their means


def dead_leaves(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, colour_share: float
) -> NDArray[np.float32]:
    """Images of `shape` (batch and `axis` = channels); values of mean 0 and variance 1, channels mostly alike."""
    batch, channels = shape[0], shape[axis]
    height, width = (n for i, n in enumerate(shape) if i not in (0, axis))
    images = np.stack([_image(rng, channels, height, width, colour_share, FINEST) for _ in range(batch)])
    images += GRAIN * rng.standard_normal(images.shape, dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(images, 1, axis))


def varied_leaves(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> NDArray[np.float32]:
    """Images of `shape` as those of `dead_leaves`, each of a fineness, colourfulness, blur and contrast of its own."""
    batch, channels = shape[0], shape[axis]
    height, width = (n for i, n in enumerate(shape) if i not in (0, axis))
    images, strongest = [], max(BLUR[1] * min(height, width), BLUR[0])
    for _ in range(batch):
        finest = FINENESS[0] * (FINENESS[1] / FINENESS[0]) ** rng.random()
        image = _image(rng, channels, height, width, rng.uniform(*COLOUR), finest)
        image = image + GRAIN * rng.standard_normal(image.shape, dtype=np.float32)
        if rng.random() < 0.5:
            image = gaussian_filter(image, BLUR[0] * (strongest / BLUR[0]) ** rng.random(), axes=(1, 2))
        images.append(rng.uniform(*CONTRAST) * image + BRIGHTNESS * rng.standard_normal())
    return np.ascontiguousarray(np.moveaxis(np.asarray(images, np.float32), 1, axis))


def _image(
    rng: np.random.Generator, channels: int, height: int, width: int, colour_share: float, finest: float
) -> NDArray[np.float32]:
    """(channels, height, width), from the front to the back, so that every pixel is painted once."""
    times = OVERSAMPLED if min(height, width) < LARGE else 1
    rows, columns = times * height, times * width
    side = min(rows, columns)
    low, high = max(finest * side, 1.0), max(COARSEST * side, 1.5)
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
    painted = colours[owner].reshape(height, times, width, times, channels).mean((1, 3))
    return np.asarray(np.moveaxis(painted, -1, 0), np.float32)
