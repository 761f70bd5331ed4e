"""Reads HDF5, as CLAM, TRIDENT and STAMP write it.

Links to other files and datasets that are kept in them are not followed: a file says nothing of what is
elsewhere on the reader's disks.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lossattn_jax.data.bags.feature_formats.bag_file import (
    BagFile,
    StoredArray,
    check_regular,
    open_bag,
    opening,
)
from lossattn_jax.errors import UserError


class _Datasets(Mapping[str, StoredArray]):
    """The datasets of a file's root that are stored in it."""

    def __init__(self, path: str, file: Any):
        import h5py  # when a file is opened, not with the command

        self._path, self._file = path, file
        self._names = [
            name
            for name in file
            if isinstance(file.get(name, getlink=True), h5py.HardLink)
            and file.get(name, getclass=True) is h5py.Dataset
        ]

    def __getitem__(self, name: str) -> StoredArray:
        if name not in self._names:
            raise KeyError(name)
        dataset = self._file[name]
        if dataset.external or dataset.is_virtual:
            raise UserError(
                f"{self._path} has {name!r} in other files, which are not read; write it as a dataset of its "
                "own (h5repack)"
            )
        return dataset

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the datasets of a file's root."""
    with _open(path) as file:
        yield _Datasets(path, file)


def open_file(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`."""
    return open_bag(path, arrays)


def read_attributes(path: str) -> dict[str, dict[str, Any]]:
    """Reads the attributes of a file and its datasets.

    The file's own are those of "".

    Raises:
      UserError: the file cannot be read.
    """
    with opening(path), _open(path) as file:
        stored = _Datasets(path, file)
        owners = {"": file, **{name: file[name] for name in stored}}
        return {
            name: {key: _plain(value) for key, value in owner.attrs.items()}
            for name, owner in owners.items()
            if len(owner.attrs)
        }


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    import h5py  # when a file is opened, not with the command

    check_regular(path)
    # Some network file systems know no locks, and on those that do a writer's is respected.
    with h5py.File(path, "r", locking="best-effort") as file:
        yield file


def _plain(value: Any) -> Any:
    """An attribute as Python's own value."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist()) if value.dtype.kind in "SO" else value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
