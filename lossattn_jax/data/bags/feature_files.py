"""Reads feature files: the instances of one bag each.

    reader = open_file("slides/s01.h5")
    reader.shape, reader.dtype      # (12034, 1024), float32; no instance is read
    reader.read(0, 100)             # [100, 1024]
    reader.read_coords()            # [12034, 2]
    read_attributes("slides/s01.h5")["coords"]["patch_size_level0"]

What CLAM, TRIDENT and STAMP write is read as it is. `feature_formats.bag_file` says which of a file's arrays
are the features.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from lossattn_jax.data.bags.feature_formats import (
    hdf5,
    numpy_arrays,
    parquet,
    safetensors_file,
    torch_tensors,
    zarr_store,
)
from lossattn_jax.data.bags.lazy_bags import BagReader
from lossattn_jax.errors import UserError
from lossattn_jax.registry import Registry

Attributes = Mapping[str, Mapping[str, Any]]


def _no_attributes(path: str) -> Attributes:
    return {}


@dataclasses.dataclass(frozen=True)
class FeatureFormat:
    """A format of feature files.

    Attributes:
      endings: of the files' names, in small letters, with the point.
      open: makes a reader of a path, without reading instances; raises `UserError` where it cannot.
      read_attributes: of a path, what the file says of itself by array, and as "" of all.
      is_folder: whether a bag is a folder of that name.
    """

    endings: tuple[str, ...]
    open: Callable[[str], BagReader]
    read_attributes: Callable[[str], Attributes] = _no_attributes
    is_folder: bool = False


FORMATS: Registry[FeatureFormat] = Registry(
    "format of feature files",
    FeatureFormat,
    {
        "hdf5": FeatureFormat((".h5", ".hdf5"), hdf5.open_file, hdf5.read_attributes),
        "torch": FeatureFormat((".pt", ".pth"), torch_tensors.open_file),
        "npy": FeatureFormat((".npy",), numpy_arrays.open_npy),
        "npz": FeatureFormat((".npz",), numpy_arrays.open_npz),
        "safetensors": FeatureFormat(
            (".safetensors",), safetensors_file.open_file, safetensors_file.read_attributes
        ),
        "zarr": FeatureFormat(
            (".zarr",), zarr_store.open_file, zarr_store.read_attributes, is_folder=True
        ),
        "parquet": FeatureFormat((".parquet",), parquet.open_file),
    },
)


def find_formats(name: str | None) -> Mapping[str, FeatureFormat]:
    """The formats among which the ending of a file's name chooses.

    Args:
      name: of the only one, or `package.module:attribute` of the user's own; None: all of `FORMATS`.

    Raises:
      UserError: there is none of that name.
    """
    return FORMATS if name is None else {name: FORMATS.find(name, "--file_format")}


def split_name(
    path: str | os.PathLike[str], formats: Mapping[str, FeatureFormat] = FORMATS
) -> tuple[str, FeatureFormat] | None:
    """Splits a feature file's name into bag id and format.

    Args:
      path: of the file; only its name is looked at.
      formats: that are known.

    Returns:
      The name without the ending (in any case of letters), and the format; None where it has none.
    """
    name = os.path.basename(os.path.normpath(path))
    for entry in formats.values():
        for ending in entry.endings:
            if name.lower().endswith(ending) and len(name) > len(ending):
                return name[: -len(ending)], entry
    return None


def open_file(
    path: str | os.PathLike[str], formats: Mapping[str, FeatureFormat] = FORMATS
) -> BagReader:
    """Opens a feature file; reads no instance.

    Args:
      path: of the file.
      formats: that are known.

    Raises:
      UserError: its name ends otherwise, or as of the format's `open`.
    """
    return _format_of(path, formats).open(os.fspath(path))


def read_attributes(
    path: str | os.PathLike[str], formats: Mapping[str, FeatureFormat] = FORMATS
) -> Attributes:
    """Reads the attributes of a feature file, such as the patch size.

    Args:
      path: of the file.
      formats: that are known.

    Returns:
      Attributes by the array that they are of, and as "" those of the file; empty for formats without any.

    Raises:
      UserError: its name ends otherwise, or it cannot be read.
    """
    return _format_of(path, formats).read_attributes(os.fspath(path))


def list_endings(formats: Mapping[str, FeatureFormat] = FORMATS) -> tuple[str, ...]:
    """All endings of feature files."""
    return tuple(ending for entry in formats.values() for ending in entry.endings)


def _format_of(path: str | os.PathLike[str], formats: Mapping[str, FeatureFormat]) -> FeatureFormat:
    parts = split_name(path, formats)
    if parts is None:
        raise UserError(
            f"{os.fspath(path)} is no feature file: its name must end in one of "
            f"{', '.join(list_endings(formats))}"
        )
    return parts[1]
