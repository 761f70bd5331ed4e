"""The format safetensors, of which single rows are read."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags.feature_formats.bag_file import (
    BagFile,
    StoredArray,
    contiguous_rows,
    open_bag,
    opening,
)
from lossattn_jax.files import safetensors_headers


@dataclasses.dataclass(frozen=True)
class _Tensor:
    file: BinaryIO
    header: safetensors_headers.Header

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def dtype(self) -> np.dtype:
        return self.header.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        start, shape = contiguous_rows(self.shape, index)
        self.file.seek(self.header.offset + start * self.dtype.itemsize)
        rows = self.file.read(int(np.prod(shape)) * self.dtype.itemsize)
        return np.frombuffer(rows, self.dtype).reshape(shape)


@contextlib.contextmanager
def arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the tensors of types that NumPy and ml_dtypes have."""
    with files.open_regular(path) as file:
        headers, _ = safetensors_headers.read_headers(file)
        yield {name: _Tensor(file, header) for name, header in headers.items()}


def open_file(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`."""
    return open_bag(path, arrays)


def read_attributes(path: str) -> dict[str, dict[str, Any]]:
    """The texts that the file has about itself, as "".

    Raises:
      UserError: the file cannot be read.
    """
    with opening(path), files.open_regular(path) as file:
        _, texts = safetensors_headers.read_headers(file)
    return {"": dict(texts)} if texts else {}
