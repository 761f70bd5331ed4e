"""Reads PyTorch's files, where PyTorch is installed.

Nothing in them is run, or takes more memory than their size."""

import os
import sys
import warnings
import zipfile
from typing import Any, BinaryIO

from lossattn_jax import files
from lossattn_jax.errors import UserError

# Older ones can be made to run code that is in a file, in spite of `weights_only` (CVE-2025-32434).
_OLDEST = (2, 6)


def read(file: BinaryIO) -> Any:
    """Reads what an open file holds, tensors on the CPU.

    Raises:
      UserError: PyTorch is not installed, or too old; or the file would unpack to more than its size.
      Exception: of any kind, the file is damaged or holds other objects than tensors in containers; the
        message may tell how to run them.
    """
    _check_release()
    _refuse_packed(file)
    return _load(file)


def read_mapped(path: str) -> Any:
    """Reads what a file holds; tensors are mapped where possible.

    Args:
      path: of a regular file.

    Raises:
      UserError, Exception: as of `read`.
    """
    _check_release()
    with files.open_regular(path) as file:
        _refuse_packed(file)
        # Before release 1.6 files were no archives, and cannot be mapped.
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _load(file)
    return _load(path, mmap=True)


def is_tensor(value: Any) -> bool:
    """Whether a value is one of PyTorch's tensors; does not import it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _load(source: Any, **options: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(source, map_location="cpu", weights_only=True, **options)


def _check_release() -> None:
    try:
        import torch
    except ImportError:
        raise UserError(
            "it can be read only where PyTorch is installed (pip install 'lossattn_jax[torch]'); "
            ".safetensors and .npz need none"
        ) from None
    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if release < _OLDEST:
        raise UserError(
            f"it is not read with PyTorch {torch.__version__}, which can be made to run what is in a file: "
            "install 2.6 or newer"
        )


def _refuse_packed(file: BinaryIO) -> None:
    """Refuses an archive that holds more than its size; PyTorch compresses none."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        size = os.fstat(file.fileno()).st_size
        if unpacked > size:
            raise UserError(
                f"it has {size} bytes and would unpack to {unpacked}, but PyTorch's files are not compressed"
            )
    file.seek(0)
