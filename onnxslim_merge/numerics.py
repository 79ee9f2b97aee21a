"""Dense arithmetic on weights, by numpy or by torch on a GPU: one code for both, in the words of the array API."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as numpy_words
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxslim_merge.errors import UsageError

Floats = NDArray[np.float64]
DENSE = 0.1  # share of entries above which a sparse product is slower


class Device:
    """Where arrays live: `cpu` is numpy, `cuda` or `cuda:1` torch on that GPU, `torch` the same code on the CPU.

    xp: the namespace of its arrays (Python array API standard 2023.12).
    Raises UsageError if torch, or the GPU, is not there.
    """

    def __init__(self, name: str = "cpu") -> None:
        """Torch is imported only if it is asked for."""
        self.name = name
        self._torch: Any = None
        self.xp: Any = numpy_words
        if name == "cpu":
            return
        try:
            import torch
            from array_api_compat import torch as words
        except ImportError as error:
            raise UsageError(f'--device {name} needs torch: pip install "onnxslim-merge[torch]"') from error
        self._torch, self.xp = torch, words
        self._place = "cpu" if name == "torch" else name
        there = torch.cuda.device_count()
        if name != "torch" and int(name.partition(":")[2] or 0) >= there:
            raise UsageError(f"--device {name}: torch {torch.__version__} sees {there} GPUs; --device cpu always works")

    def put(self, array: NDArray[Any]) -> Any:
        """A numpy array as one of this device, of the same type."""
        if self._torch is None:
            return array
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._place)

    def get(self, array: Any) -> NDArray[Any]:
        """An array of this device as a numpy array."""
        found: NDArray[Any] = array if self._torch is None else array.cpu().numpy()
        return found

    def spread(self, share: csr_array, values: Floats) -> Floats:
        """Sparse `share` (k, r) times dense `values` (r, f): (k, f). By a dense product on a GPU, or if it pays."""
        if self._torch is not None:
            return self.get(self.put(share.toarray()) @ self.put(values))
        dense = share.nnz > DENSE * share.shape[0] * share.shape[1]
        product: Floats = (share.toarray() if dense else share) @ values
        return product


CPU = Device()
