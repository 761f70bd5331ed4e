"""Reads Zarr of versions 2 and 3 with TensorStore.

A folder is an array, or a group with arrays."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags.feature_formats.bag_file import (
    FEATURES,
    BagFile,
    StoredArray,
    open_bag,
    opening,
)
from lossattn_jax.errors import UserError

# Files of metadata: of version 3, of an array of version 2, and of a group of version 2.
_OF_3, _ARRAY_OF_2, _GROUP_OF_2, _ATTRIBUTES_OF_2 = "zarr.json", ".zarray", ".zgroup", ".zattrs"
_LARGE_CHUNK = 1 << 28  # bytes that a chunk may have however small its array is
_DRIVERS = {_OF_3: "zarr3", _ARRAY_OF_2: "zarr"}


@dataclasses.dataclass(frozen=True)
class _Array:
    """An opened array of a store."""

    store: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.store[index].read().result()


class _Group(Mapping[str, StoredArray]):
    """The arrays of a group by name, opened when wanted."""

    def __init__(self, drivers: Mapping[str, tuple[str, str]]):
        self._drivers = drivers

    def __getitem__(self, name: str) -> StoredArray:
        import tensorstore  # when a store is opened, not with the command

        driver, folder = self._drivers[name]
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": os.path.abspath(folder)}}
        store = tensorstore.open(spec, open=True, read=True).result()
        _refuse_large_chunks(name, store)
        return _Array(store)

    def __iter__(self) -> Iterator[str]:
        return iter(self._drivers)

    def __len__(self) -> int:
        return len(self._drivers)


def _refuse_large_chunks(name: str, store: Any) -> None:
    """Refuses chunks that are far larger than their array.

    A chunk is unpacked whole, and TensorStore ends the process where there is no memory for it.
    """
    size = store.dtype.numpy_dtype.itemsize
    chunk, whole = (
        size * math.prod(shape) for shape in (store.chunk_layout.read_chunk.shape, store.shape)
    )
    if chunk > max(_LARGE_CHUNK, 2 * whole):
        raise ValueError(f"a chunk of {name!r} has {chunk} bytes, but the array has {whole}")


@contextlib.contextmanager
def arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the arrays of a group; one alone is called `features`."""
    yield _Group({name: (_DRIVERS[kind], folder) for name, kind, folder in _find_arrays(path)})


def open_file(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`."""
    with opening(path):
        os.stat(path)
    irregular = files.find_irregular(path)
    if irregular is not None:
        raise UserError(f"{irregular} is no regular file")
    return open_bag(path, arrays)


def read_attributes(path: str) -> dict[str, dict[str, Any]]:
    """Reads the attributes of a group and its arrays.

    The group's own are those of ""; an array alone is called `features`.

    Raises:
      UserError: the store cannot be read.
    """
    with opening(path):
        owners = {name: folder for name, _, folder in _find_arrays(path)}
        if path not in owners.values():
            owners[""] = path
        attributes = {name: _attributes(folder) for name, folder in owners.items()}
    return {name: values for name, values in attributes.items() if values}


def _find_arrays(path: str) -> Iterator[tuple[str, str, str]]:
    """Yields name, metadata file and folder of each array."""
    kind = _kind(path)
    if kind:
        yield FEATURES[0], kind, path
        return
    if not os.path.isdir(path):
        raise FileNotFoundError(path)
    if not any(os.path.isfile(os.path.join(path, name)) for name in (_OF_3, _GROUP_OF_2)):
        raise UserError(
            f"{path} is no Zarr store: it has neither {_OF_3} nor {_ARRAY_OF_2} nor {_GROUP_OF_2}"
        )
    for name in sorted(os.listdir(path)):
        folder = os.path.join(path, name)
        kind = _kind(folder)
        if kind:
            yield name, kind, folder


def _kind(folder: str) -> str:
    """Finds the metadata file of an array's folder; else ""."""
    if os.path.isfile(os.path.join(folder, _OF_3)):
        return _OF_3 if _json(os.path.join(folder, _OF_3)).get("node_type") == "array" else ""
    return _ARRAY_OF_2 if os.path.isfile(os.path.join(folder, _ARRAY_OF_2)) else ""


def _attributes(folder: str) -> dict[str, Any]:
    if os.path.isfile(os.path.join(folder, _OF_3)):
        return _json(os.path.join(folder, _OF_3)).get("attributes") or {}
    own = os.path.join(folder, _ATTRIBUTES_OF_2)
    return _json(own) if os.path.isfile(own) else {}


def _json(path: str) -> dict[str, Any]:
    content = json.loads(files.read(path))
    if not isinstance(content, dict):
        raise ValueError(f"{os.path.basename(path)} is no JSON object")
    return content
