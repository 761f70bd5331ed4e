"""Reads headers of safetensors: what tensors there are, and where."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
}
_LENGTH_BYTES = 8  # of the header's length, which the file begins with


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of a tensor.

    Attributes:
      shape, dtype: of the tensor, in C order.
      offset: in bytes, from the file's start.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def read_headers(file: BinaryIO) -> tuple[dict[str, Header], Mapping[str, str]]:
    """Reads the headers of the tensors that have one of `DTYPES`.

    Args:
      file: opened for reading, from whose start is read.

    Returns:
      Headers by name, all of which lie within the file, and the texts that the file has about itself.

    Raises:
      ValueError: it is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    begin = _LENGTH_BYTES + length
    if size < _LENGTH_BYTES or begin > size:
        raise ValueError(f"it has {size} bytes, but its header tells of {begin}")
    content = json.loads(file.read(length))
    texts = content.pop("__metadata__", {})
    headers = {}
    for name, tensor in content.items():
        if tensor["dtype"] not in DTYPES:
            continue
        dtype = np.dtype(DTYPES[tensor["dtype"]])
        shape = tuple(map(int, tensor["shape"]))
        first, last = tensor["data_offsets"]
        needed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or last - first != needed or not 0 <= first <= size - begin:
            raise ValueError(f"{name!r} has {last - first} bytes, but its shape is {shape}")
        if begin + last > size:
            raise ValueError(f"{name!r} ends at {begin + last}, but the file has {size} bytes")
        headers[name] = Header(shape, dtype, begin + first)
    return headers, texts
