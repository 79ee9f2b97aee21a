"""Dense arithmetic on weights, by numpy or by torch on a GPU: one code for both, in the words of the array API."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as numpy_words
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_array

from onnxslim_merge.errors import UsageError

Floats = NDArray[np.float64]
DENSE = 0.1  # share of entries above which a sparse product is slower
STRIP = 256  # rows at once


class Device:
    """Where arrays live: `cpu` is numpy, `cuda` or `cuda:1` torch on that GPU, `torch` the same code on the CPU.

    xp: the namespace of its arrays (Python array API standard 2023.12). linalg: its factors and solves.
    Raises UsageError if torch, or the GPU, is not there.
    """

    def __init__(self, name: str = "cpu") -> None:
        """Torch is imported only if it is asked for."""
        self.name = name
        self._torch: Any = None
        self.xp: Any = numpy_words
        self.linalg: _Lapack | _Torch = _Lapack()
        if name == "cpu":
            return
        try:
            import torch
            from array_api_compat import torch as words
        except ImportError as error:
            raise UsageError(f'--device {name} needs torch: pip install "onnxslim-merge[torch]"') from error
        self._torch, self.xp, self.linalg = torch, words, _Torch(torch)
        self._place = "cpu" if name == "torch" else name
        there = torch.cuda.device_count()
        if name != "torch" and int(name.partition(":")[2] or 0) >= there:
            raise UsageError(f"--device {name}: torch {torch.__version__} sees {there} GPUs; --device cpu always works")

    def put(self, array: NDArray[Any]) -> Any:
        """A numpy array as one of this device, of the same type."""
        if self._torch is None:
            return array
        return self._torch.from_numpy(np.require(array, None, ["C", "W"])).to(self._place)

    def get(self, array: Any) -> NDArray[Any]:
        """An array of this device as a numpy array."""
        found: NDArray[Any] = array if self._torch is None else array.cpu().numpy()
        return found

    def zeros(self, *shape: int) -> Any:
        """In float64."""
        if self._torch is None:
            return np.zeros(shape)
        return self._torch.zeros(shape, dtype=self._torch.float64, device=self._place)

    def add_to_diagonal(self, matrix: Any, values: Any) -> None:
        """In place: values (n,) to a matrix (n, n)."""
        places = self.put(np.arange(len(matrix)))
        matrix[places, places] += values

    def spread(self, share: csr_array, values: Floats) -> Floats:
        """Sparse `share` (k, r) times dense `values` (r, f): (k, f). By a dense product on a GPU, or if it pays."""
        if self._torch is not None:
            return self.get(self.put(share.toarray()) @ self.put(values))
        dense = share.nnz > DENSE * share.shape[0] * share.shape[1]
        product: Floats = (share.toarray() if dense else share) @ values
        return product


class _Lapack:
    """Of numpy and scipy. What is singular, or should be positive definite and is not, raises LinAlgError."""

    def solve(self, matrices: Any, right: Any) -> Any:
        """Of stacks of any matrices (..., n, n), for right sides (..., n, k)."""
        return np.linalg.solve(matrices, right)

    def cholesky(self, matrix: Any) -> Any:
        """The lower factor."""
        return np.linalg.cholesky(matrix)

    def solve_lower(self, root: Any, right: Any) -> Any:
        """With a lower factor alone."""
        return solve_triangular(root, right, lower=True)

    def factor(self, matrix: Any) -> Any:
        """For `solve_factored`; the matrix is lost."""
        try:
            return cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        except ValueError as error:
            raise LinAlgError(str(error)) from error

    def solve_factored(self, factor: Any, right: Any) -> Any:
        """For right sides (n, k)."""
        return cho_solve(factor, right, check_finite=False)

    def inverse(self, matrix: Any) -> Any:
        """Of a symmetric matrix, row by row in memory."""
        root, info = dpotrf(matrix, lower=True)
        if info == 0:
            lower, info = dpotri(root, lower=True)
        if info != 0 or not np.isfinite(np.diagonal(lower)).all():
            raise LinAlgError("not positive definite")
        for start in range(0, len(lower), STRIP):  # the other half; a whole transpose takes memory and time
            stop = start + STRIP
            lower[start:stop, stop:] = lower[stop:, start:stop].T
            square = lower[start:stop, start:stop]
            square += np.tril(square, -1).T - np.triu(square, 1)
        return lower.T


class _Torch:
    """The same of torch."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def solve(self, matrices: Any, right: Any) -> Any:
        return self._checked(*self._torch.linalg.solve_ex(matrices, right))

    def cholesky(self, matrix: Any) -> Any:
        return self._checked(*self._torch.linalg.cholesky_ex(matrix))

    def solve_lower(self, root: Any, right: Any) -> Any:
        return self._torch.linalg.solve_triangular(root, right, upper=False)

    def factor(self, matrix: Any) -> Any:
        return self.cholesky(matrix)

    def solve_factored(self, factor: Any, right: Any) -> Any:
        return self._torch.cholesky_solve(right, factor)

    def inverse(self, matrix: Any) -> Any:
        return self._torch.cholesky_inverse(self.cholesky(matrix))

    def _checked(self, found: Any, info: Any) -> Any:
        if bool(info.any()):
            raise LinAlgError("singular, or not positive definite")
        return found


CPU = Device()
