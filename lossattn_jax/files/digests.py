"""Digests by content: SHA-256 of arrays and of JSON, in hexadecimal digits."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def of_array(array: np.ndarray) -> str:
    """Digests the bytes of an array; its shape and dtype are not looked at."""
    content: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(content).hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Digests arrays with their names, shapes and dtypes; their order does not matter."""
    return of_json(
        {
            name: [array.dtype.str, list(array.shape), of_array(array)]
            for name, array in arrays.items()
        }
    )


def of_json(value: Any) -> str:
    """Digests a value that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
