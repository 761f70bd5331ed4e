"""Reads NumPy's `.npy` and `.npz`.

The first is memory-mapped; of the second no more than the rows is unpacked into memory. Neither is read where
it holds Python objects.
"""

import contextlib
import dataclasses
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags.feature_formats.bag_file import (
    FEATURES,
    BagFile,
    StoredArray,
    check_regular,
    contiguous_rows,
    open_bag,
)
from lossattn_jax.files import npz


@contextlib.contextmanager
def npy_arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the one array of an `.npy` file."""
    check_regular(path)
    yield {FEATURES[0]: np.load(path, mmap_mode="r", allow_pickle=False)}


@dataclasses.dataclass(frozen=True)
class _Member:
    """An array of an `.npz` file."""

    archive: zipfile.ZipFile
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        with self.archive.open(f"{self.name}.npy") as content:
            version = np.lib.format.read_magic(content)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            _, by_columns, _ = read(content)
            if by_columns:
                flat = np.frombuffer(content.read(), self.dtype)
                return flat.reshape(self.shape, order="F")[index]
            start, shape = contiguous_rows(self.shape, index)
            content.seek(start * self.dtype.itemsize, 1)
            size = int(np.prod(shape)) * self.dtype.itemsize
            rows = content.read(size)
            content.read(1)  # at the end the checksum is compared
        return np.frombuffer(rows, self.dtype).reshape(shape)


@contextlib.contextmanager
def npz_arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the arrays of an `.npz` file."""
    with files.open_regular(path) as file:
        headers = npz.read_headers(file)
        with zipfile.ZipFile(file) as archive:
            yield {
                name: _Member(archive, name, shape, dtype)
                for name, (shape, dtype) in headers.items()
            }


def open_npy(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`."""
    return open_bag(path, npy_arrays)


def open_npz(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`."""
    return open_bag(path, npz_arrays)
