"""Arrays and attributes written as an HDF5 file, whole or not at all."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax import files


def write(path: files.Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> str:
    """Writes an HDF5 file.

    Args:
      path: of the file, whose folder exists.
      arrays: by name.
      attributes: of the file: text, numbers, or lists of them.

    Returns:
      SHA-256 of the file's bytes, in hexadecimal digits.

    Raises:
      OSError: it cannot be written.
    """
    import h5py  # for commands that write such files, and not for all

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for name, value in attributes.items():
            file.attrs[name] = value
    content = buffer.getvalue()
    files.write(path, content)
    return hashlib.sha256(content).hexdigest()
