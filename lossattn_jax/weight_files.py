"""Files of named arrays: `.npz` and `.safetensors`, and PyTorch's `.pt` and `.pth` for reading.

Whatever a file holds, nothing of it is run.
"""

import os
import pathlib
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from lossattn_jax.errors import UserError

_SAFETENSORS_DTYPES = {
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
_MOST_BYTES = 1 << 33  # of arrays in a compressed file; some kB can hold any number of zeros
# Older ones can be made to run code that is in a file, in spite of `weights_only` (CVE-2025-32434).
_OLDEST_TORCH = (2, 6)


def read(path: str | pathlib.Path) -> Mapping[str, Any]:
    """Reads a file of named arrays.

    Args:
      path: ends in `.npz`, `.safetensors`, or `.pt` or `.pth`, for which PyTorch must be installed.

    Returns:
      What the file holds: NumPy arrays by name, or whatever a PyTorch file has, tensors on the CPU.

    Raises:
      UserError: there is no such file, its name ends otherwise, it is damaged, or holds Python objects
        that are not arrays.
    """
    path = pathlib.Path(path)
    reader, content = _ending(path, _READERS)
    if not os.path.isfile(path):  # pathlib's raises where a name is too long
        raise UserError(f"there is no file {path}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return reader(path)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} is damaged, or needs more memory than there is") from None
    # A damaged file ends in exceptions of almost any kind, and some of the libraries' sentences tell
    # how to run what is in the file.
    except Exception:
        raise UserError(f"{path} is damaged, or holds anything but {content}") from None


def write(arrays: Mapping[str, np.ndarray], path: str | pathlib.Path) -> None:
    """Writes named arrays; an existing file is replaced whole.

    Args:
      arrays: by name.
      path: ends in `.npz` or `.safetensors`.

    Raises:
      UserError: its name ends otherwise, or it cannot be written.
    """
    path = pathlib.Path(path)
    writer = _ending(path, _WRITERS)
    part = path.with_name(path.name + ".part")
    try:
        writer(part, dict(arrays))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def check_writable(path: str | pathlib.Path) -> None:
    """Refuses a path that `write` would not take, before there is anything to write.

    Raises:
      UserError: its name ends otherwise, or its folder does not exist.
    """
    path = pathlib.Path(path)
    _ending(path, _WRITERS)
    if not os.path.isdir(path.parent):
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")


def _ending(path: pathlib.Path, known: Mapping[str, Any]) -> Any:
    try:
        return known[path.suffix.lower()]
    except KeyError:
        raise UserError(f"{path} must end in one of: {', '.join(known)}") from None


def _read_npz(path: pathlib.Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MOST_BYTES:
        raise UserError(f"{path} has {size} bytes uncompressed, but at most {_MOST_BYTES} are read")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_safetensors(path: pathlib.Path) -> Mapping[str, Any]:
    arrays = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        dtype = _SAFETENSORS_DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise UserError(f"{path} holds {name!r} as {tensor['dtype']}, which is not supported")
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays


def _read_torch(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} can be read only where PyTorch is installed; .safetensors and .npz need none"
        ) from None
    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if release < _OLDEST_TORCH:
        raise UserError(
            f"{path} is not read with PyTorch {torch.__version__}, which can be made to run what is "
            "in a file: install 2.6 or newer"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _write_npz(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(safetensors.numpy.save(arrays))


# By ending: what reads the file, and what it should hold.
_TORCH = (_read_torch, "tensors, as of torch.save(model.state_dict(), ...)")
_READERS = {
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".npz": (_read_npz, "named NumPy arrays"),
    ".safetensors": (_read_safetensors, "tensors in the format safetensors"),
}
_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
