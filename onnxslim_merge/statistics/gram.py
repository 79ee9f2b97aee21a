"""Second moments of what consumers read and of what they should give, summed batch by batch in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.numerics import CPU, Device

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Gram:
    """Sums over rows of features less `at` (n,) and targets less `to` (o,), which are the means of the first rows.

    count, f (n,), f f' (n, n), y (o,), f y' (n, o), y^2 (o,). So means far above the spread cost no digits, not even
    where products are float32. All of these stay on `device`.
    """

    count: int
    f: Any
    ff: Any
    y: Any
    fy: Any
    yy: Any
    at: Any
    to: Any
    device: Device = CPU

    @classmethod
    def zeros(cls, features: int, outputs: int, device: Device = CPU) -> Gram:
        """No rows yet."""
        n, o, zeros = features, outputs, device.zeros
        return cls(0, zeros(n), zeros(n, n), zeros(o), zeros(n, o), zeros(o), zeros(n), zeros(o), device)

    def add(self, features: NDArray[Any], targets: NDArray[Any]) -> None:
        """Rows (r, n) of features and (r, o) of targets; products within these are of their type, sums float64."""
        xp, f, y = self.device.xp, self.device.put(features), self.device.put(targets)
        with np.errstate(invalid="ignore"):  # of numbers that are not finite, `finite` tells
            if not self.count and len(features):
                self.at, self.to = (xp.astype(xp.mean(rows, axis=0), xp.float64) for rows in (f, y))
            f = f - xp.astype(self.at, f.dtype, copy=False)
            y = y - xp.astype(self.to, y.dtype, copy=False)
        self.count += len(features)
        self.f += xp.sum(f, axis=0, dtype=xp.float64)
        self.ff += f.T @ f
        self.y += xp.sum(y, axis=0, dtype=xp.float64)
        self.fy += f.T @ y
        wide = xp.astype(y, xp.float64, copy=False)
        self.yy += xp.einsum("ro,ro->o", wide, wide)

    def add_zeros(self, count: int) -> None:
        """So many rows of zeros, features and targets alike."""
        at, to = self.at, self.to
        self.count += count
        self.f -= count * at
        self.ff += count * at[:, None] * at[None, :]
        self.y -= count * to
        self.fy += count * at[:, None] * to[None, :]
        self.yy += count * to**2

    def of(self, features: NDArray[np.int64]) -> Gram:
        """The same rows with some of the features."""
        some = self.device.put(features)
        f, ff, fy = self.f[some], self.ff[some[:, None], some[None, :]], self.fy[some]
        return Gram(self.count, f, ff, self.y, fy, self.yy, self.at[some], self.to, self.device)

    def giving(self, targets: NDArray[np.int64]) -> Gram:
        """The same rows with some of the targets."""
        some = self.device.put(targets)
        y, fy, yy = self.y[some], self.fy[:, some], self.yy[some]
        return Gram(self.count, self.f, self.ff, y, fy, yy, self.at, self.to[some], self.device)

    @property
    def finite(self) -> bool:
        """Whether no row held NaN or infinity."""
        parts = (self.device.get(part) for part in (self.f, self.y, self.yy, self.device.xp.linalg.diagonal(self.ff)))
        return all(bool(np.isfinite(part).all()) for part in parts)

    @property
    def means(self) -> tuple[Any, Any]:
        """Of features and targets, on the device."""
        f, y = self._shifts
        return self.at + f, self.to + y

    @property
    def _shifts(self) -> tuple[Any, Any]:
        """Of the means from those of the first rows."""
        return self.f / max(self.count, 1), self.y / max(self.count, 1)

    @property
    def variance(self) -> Floats:
        """Of the targets, (o,)."""
        return self.device.get((self.yy / max(self.count, 1) - self._shifts[1] ** 2).clip(min=0.0))

    @property
    def covariances(self) -> tuple[Any, Any]:
        """Of features (n, n), and of features and targets (n, o), on the device."""
        count, (f, y) = max(self.count, 1), self._shifts
        return self.ff / count - f[:, None] * f[None, :], self.fy / count - f[:, None] * y[None, :]

    def errors(self, weights: Any, intercept: Any) -> Floats:
        """Mean square of y - weights' f - intercept, by output (o,). weights (n, o) and intercept on the device."""
        count, (f, y), einsum = max(self.count, 1), self._shifts, self.device.xp.einsum
        cross = einsum("no,no->o", weights, self.fy / count)
        square = einsum("no,no->o", weights, (self.ff / count) @ weights)
        off = intercept + self.at @ weights - self.to  # as these sums see it
        constant = off * (off + 2 * (f @ weights) - 2 * y)
        return self.device.get((self.yy / count - 2 * cross + square + constant).clip(min=0.0))
