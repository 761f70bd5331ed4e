"""Digests by content: SHA-256 of arrays and of JSON, in hexadecimal digits."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax import files

_READ_AT_ONCE = 1 << 22  # bytes of a file


def of_array(array: np.ndarray) -> str:
    """Digests an array's bytes, without shape and dtype."""
    content: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(content).hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Digests arrays with names, shapes and dtypes, in any order."""
    return of_json(
        {
            name: [array.dtype.str, list(array.shape), of_array(array)]
            for name, array in arrays.items()
        }
    )


def of_file(path: files.Path) -> str | None:
    """Digests a file's bytes; None where it cannot be read."""
    try:
        digest = hashlib.sha256()
        with files.open_regular(path) as file:
            while part := file.read(_READ_AT_ONCE):
                digest.update(part)
        return digest.hexdigest()
    except OSError:
        return None


def of_json(value: Any) -> str:
    """Digests a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
