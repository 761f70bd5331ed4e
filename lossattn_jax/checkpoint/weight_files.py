"""Files of named arrays: `.npz`, `.safetensors`, and PyTorch's for reading.

Whatever a file holds, nothing of it is run, and it takes no more memory than its size on disk or, in an
`.npz`, than its reader has asked for.
"""

import errno
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.files import npz, torch_files
from lossattn_jax.files.safetensors_headers import DTYPES

_MOST_BYTES = 1 << 33  # of arrays in a compressed file; some kB can hold any number of zeros

# Refuses arrays, by a UserError.
Check = Callable[[Mapping[str, Any]], object]


def read(path: str | pathlib.Path, check: Check | None = None) -> Mapping[str, Any]:
    """Reads a file of named arrays.

    Args:
      path: ends in `.npz`, `.safetensors`, or `.pt` or `.pth`, for which PyTorch must be installed; a regular
        file.
      check: is called with arrays of the names, shapes and dtypes that an `.npz` or `.safetensors` file
        says it has, all zeros that take no memory, before its content is read.

    Returns:
      What the file holds: NumPy arrays by name, or whatever a PyTorch file has, tensors on the CPU.

    Raises:
      UserError: there is no such file, its name ends otherwise, it is damaged, or holds Python objects
        that are not arrays; or as `check`, with the path before it.
    """
    path = pathlib.Path(path)
    reader, content = _ending(path, _READERS)
    try:
        file = files.open_regular(path)
    except (FileNotFoundError, IsADirectoryError, ValueError):  # the last one for a zero byte
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"there is no file {path}") from None
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with file:
            return reader(file, check or (lambda arrays: None))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except MemoryError:
        raise UserError(f"{path} is damaged, or needs more memory than there is") from None
    # A damaged file ends in exceptions of almost any kind, and some of the libraries' sentences tell
    # how to run what is in the file.
    except Exception:
        raise UserError(f"{path} is damaged, or holds anything but {content}") from None


def write(arrays: Mapping[str, np.ndarray], path: str | pathlib.Path) -> None:
    """Writes named arrays, in place of an existing file.

    Args:
      arrays: by name.
      path: ends in `.npz` or `.safetensors`.

    Raises:
      UserError: its name ends otherwise, or it cannot be written.
    """
    path = pathlib.Path(path)
    writer = _ending(path, _WRITERS)
    try:
        with files.replacing(path) as file:
            writer(file, dict(arrays))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def check_writable(path: str | pathlib.Path) -> None:
    """Refuses early a path that `write` would not take.

    Raises:
      UserError: its name ends otherwise, or its folder does not exist.
    """
    path = pathlib.Path(path)
    _ending(path, _WRITERS)
    if not os.path.isdir(path.parent):
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")


def _ending(path: pathlib.Path, endings: Mapping[str, Any]) -> Any:
    try:
        return endings[path.suffix.lower()]
    except KeyError:
        raise UserError(f"{path} must end in one of: {', '.join(endings)}") from None


def _read_npz(file: BinaryIO, check: Check) -> Mapping[str, Any]:
    headers = npz.read_headers(file)
    check({name: _stand_in(shape, dtype) for name, (shape, dtype) in headers.items()})
    size = sum(_stand_in(*header).nbytes for header in headers.values())
    if size > _MOST_BYTES:
        raise UserError(f"it has {size} bytes uncompressed, but at most {_MOST_BYTES} are read")
    return npz.load_arrays(file, headers)


def _read_safetensors(file: BinaryIO, check: Check) -> Mapping[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    size = os.fstat(file.fileno()).st_size
    header = json.loads(file.read(length if length <= size else 0))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    check(
        {name: _stand_in(tensor["shape"], _dtype(name, tensor)) for name, tensor in tensors.items()}
    )
    file.seek(0)
    arrays = {}
    for name, tensor in safetensors.deserialize(file.read()):
        data = np.frombuffer(tensor["data"], _dtype(name, tensor))
        arrays[name] = data.reshape(tensor["shape"])
    return arrays


def _dtype(name: str, tensor: Mapping[str, Any]) -> Any:
    dtype = DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise UserError(f"it holds {name!r} as {tensor['dtype']}, which is not supported")
    return dtype


def _stand_in(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Makes an array of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _read_torch(file: BinaryIO, check: Check) -> Mapping[str, Any]:
    return torch_files.read(file)


def _write_npz(file: BinaryIO, arrays: dict[str, Any]) -> None:
    np.savez(file, **arrays)


def _write_safetensors(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    file.write(safetensors.numpy.save(arrays))


# By ending: what reads the file, and what it should hold.
_TORCH = (_read_torch, "tensors, as of torch.save(model.state_dict(), ...)")
_READERS = {
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".npz": (_read_npz, "named NumPy arrays"),
    ".safetensors": (_read_safetensors, "tensors in the format safetensors"),
}
_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
