"""Where the data of big tensors goes when a model is written: into the message, or into a file beside it."""

from __future__ import annotations

import mmap
from typing import BinaryIO, Protocol

import numpy as np
from onnx import TensorProto

from onnxslim_merge.model_io.protos import data_type_of, from_array, is_packed

_ALIGNMENT = 4096


class Store(Protocol):
    """Where the data of big tensors goes."""

    def put(self, proto: TensorProto, array: np.ndarray) -> None:
        """Give `proto` (name, type and dims are set) the values of `array`."""


class InlineStore:
    """Data inside the message."""

    def put(self, proto: TensorProto, array: np.ndarray) -> None:
        """Copy the values into `raw_data`."""
        proto.raw_data = from_array(array, proto.name).raw_data


class FileStore:
    """Data streamed into a file beside the model: no copy of the weights is made in memory."""

    def __init__(self, stream: BinaryIO, location: str) -> None:
        """`location` is the file's name as the model will refer to it."""
        self.stream, self.location = stream, location

    def put(self, proto: TensorProto, array: np.ndarray) -> None:
        """Append the values, aligned to pages so that runtimes can map them, and point `proto` to them."""
        offset = -(-self.stream.tell() // _ALIGNMENT) * _ALIGNMENT
        self.stream.write(bytes(offset - self.stream.tell()))
        flat = np.ascontiguousarray(array).reshape(-1)
        # Types below a byte are packed; `tofile` is not used because it hides the reason of a failed write.
        packed = is_packed(data_type_of(array))
        length = self.stream.write(from_array(array, "").raw_data if packed else flat.view(np.uint8).data)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=key, value=value)
        forget_pages(array)


def forget_pages(array: np.ndarray) -> None:
    """Let go of the pages of a memory-mapped array; they are read again when needed. Nothing for other arrays."""
    base: object = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
