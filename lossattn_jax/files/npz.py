"""NumPy's `.npz` files: headers, which are read before the content, and arrays.

Some kB of such a file can unpack to any number of zeros, so that shapes have to be seen first.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from lossattn_jax import files

_ENDING = ".npy"
# Bytes of a member that are read for its header; NumPy's own headers have 128, and it refuses 10,000.
_LONGEST_HEADER = 1 << 14


def read_headers(
    source: files.Path | BinaryIO,
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Reads shape and dtype of every array of an `.npz` file.

    What the headers say is what the archive's directory has room for, so that no array takes more memory.

    Args:
      source: path of a regular file, or one that is opened for reading, from whose start is read.

    Returns:
      Shape and dtype by name, without the ending `.npy`.

    Raises:
      OSError: there is no such file, it is not a regular one, or it cannot be read.
      ValueError: it is damaged, or holds anything but arrays without Python objects.
    """
    if isinstance(source, str | os.PathLike):
        with files.open_regular(source) as file:
            return read_headers(file)
    source.seek(0)
    try:
        with zipfile.ZipFile(source) as archive:
            return dict(_read_header(archive, member) for member in archive.infolist())
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile fails in many ways on a damaged file
        raise ValueError(str(error) or type(error).__name__) from None


def read_arrays(source: files.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file that is not compressed.

    Args:
      source: as of `read_headers`.

    Returns:
      Arrays by name, without the ending `.npy`.

    Raises:
      OSError: as of `read_headers`.
      ValueError: likewise, or the arrays have more bytes than the file.
    """
    with files.open_regular(source) as file:
        headers = read_headers(file)
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values())
        size = os.fstat(file.fileno()).st_size
        if total > size:
            raise ValueError(f"it has {size} bytes and would unpack to {total}")
        return load_arrays(file, headers)


def load_arrays(file: BinaryIO, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Loads arrays of an `.npz` file, behind its headers (`read_headers`).

    Raises:
      OSError: it cannot be read.
      ValueError: it is damaged.
    """
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError):
        raise
    except Exception as error:  # NumPy and zipfile fail in many ways on a damaged file
        raise ValueError(str(error) or type(error).__name__) from None


def _read_header(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[str, tuple[tuple[int, ...], np.dtype]]:
    if not member.filename.endswith(_ENDING):
        raise ValueError(f"{member.filename!r} is no array")
    name = member.filename.removesuffix(_ENDING)
    with archive.open(member) as content:
        # A copy of some kB: a header may say that it is of any length.
        start = io.BytesIO(content.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(start)
    else:  # 3.0 is for names of fields, which no array here has
        raise ValueError(f"{name!r} has a header of version {version[0]}.{version[1]}")
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects")
    size = start.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or member.file_size != size:
        raise ValueError(f"{name!r} has {member.file_size} bytes, but its header tells of {size}")
    return name, (shape, dtype)
