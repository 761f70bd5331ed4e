"""Reads PyTorch's `.pt` and `.pth`, where PyTorch is installed.

They hold a tensor, or a dictionary of tensors."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lossattn_jax.data.bags.feature_formats.bag_file import (
    FEATURES,
    BagFile,
    StoredArray,
    check_regular,
    open_bag,
)
from lossattn_jax.errors import UserError
from lossattn_jax.files import torch_files


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor that is mapped from its file."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        name = str(self.tensor.dtype).removeprefix("torch.")
        return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self.tensor.detach()[index].contiguous()
        if self.dtype == ml_dtypes.bfloat16:  # which PyTorch gives no NumPy array of
            import torch

            return rows.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return rows.numpy()


@contextlib.contextmanager
def arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the tensors of a file; one alone is called `features`."""
    check_regular(path)
    try:
        content = torch_files.read_mapped(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (MemoryError, OSError):
        raise
    # Some of PyTorch's sentences tell how to run what is in the file.
    except Exception:
        raise UserError(f"{path} is damaged, or holds anything but tensors") from None
    named = content if isinstance(content, Mapping) else {FEATURES[0]: content}
    yield {
        str(name): _Tensor(tensor)
        for name, tensor in named.items()
        if torch_files.is_tensor(tensor)
    }


def open_file(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`."""
    return open_bag(path, arrays)
