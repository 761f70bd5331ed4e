"""Handwritten digits in `.npz` files; headers are checked before content is read."""

import os
from collections.abc import Mapping

import numpy as np

from lossattn_jax.errors import UserError
from lossattn_jax.files import LACKS, open_regular
from lossattn_jax.files.npz import load_arrays, read_headers

# A small file can unpack to any number of digits; MNIST has 70,000.
_MOST_DIGITS = 1_000_000


def read(source: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and labels of an `.npz` file.

    Args:
      source: the file, with the arrays `image` (uint8 `[N, 28, 28]`) and `label` (integers `[N]`).

    Raises:
      UserError: there is no such file, or it has other content.
      OSError: this process may not open more files.
    """
    try:
        with open_regular(source) as file:
            headers = read_headers(file)
            if not {"image", "label"} <= set(headers):
                raise UserError(f"{source} must hold the arrays 'image' and 'label'")
            _refuse_other_arrays(source, headers)
            arrays = load_arrays(file, ("image", "label"))
            return arrays["image"], arrays["label"]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"the file {source} does not exist") from error
    except Exception as error:  # NumPy and zipfile fail in many ways on a damaged file
        if isinstance(error, OSError) and error.errno in LACKS:
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{source} cannot be read as an .npz file ({reason})") from error


def _refuse_other_arrays(
    source: str | os.PathLike[str], headers: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> None:
    (shape, dtype), (labels_shape, labels_dtype) = headers["image"], headers["label"]
    fits = len(labels_shape) == 1 and shape == (*labels_shape, 28, 28)
    if not fits or dtype != np.uint8 or labels_dtype.kind not in "iu":
        raise UserError(
            f"{source} holds images {dtype} {shape} and labels {labels_dtype} {labels_shape}, but must hold "
            "uint8 [N, 28, 28] and integers [N]"
        )
    if shape[0] > _MOST_DIGITS:
        raise UserError(f"{source} holds {shape[0]} images, but may hold {_MOST_DIGITS} at most")
