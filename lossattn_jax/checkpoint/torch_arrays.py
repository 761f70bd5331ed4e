"""Arrays of a state dict: whether they can be a network's, and as NumPy's."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lossattn_jax.checkpoint.torch_names import COUNTER, Slot
from lossattn_jax.errors import UserError

_VARIANCE = "var"  # of a normalisation, in our variables


def is_array(value: Any) -> bool:
    """Whether a value is an array or a number."""
    return hasattr(value, "__array__") or isinstance(value, numbers.Number)


def to_array(key: str, value: Any) -> np.ndarray:
    """Converts a value to float32, a counter to int64.

    Raises:
      UserError: it is no array of numbers, or they are beyond the range of float32.
    """
    if hasattr(value, "detach"):  # a PyTorch tensor, whose bfloat16 NumPy does not know
        try:
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        except (TypeError, RuntimeError):
            raise UserError(
                f"{key!r} of the weights is a tensor of {value.dtype} and {value.layout}, but must be a "
                "dense one of numbers"
            ) from None
    if not is_array(value):
        raise UserError(
            f"{key!r} of the weights is of type {type(value).__name__}, but must be an array"
        )
    array = np.asarray(value)
    check_dtype(key, array)
    if key.endswith(COUNTER):
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if (np.isinf(single) & np.isfinite(array)).any():
        raise UserError(f"{key!r} of the weights holds numbers beyond the range of float32")
    return single


def check_dtype(key: str, array: np.ndarray) -> None:
    """Refuses an array that holds no numbers, by a `UserError`."""
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer)):
        raise UserError(f"{key!r} of the weights has dtype {array.dtype}, but must hold numbers")


def refuse_unusable(slots: Sequence[Slot], arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses values that make every output NaN.

    Args:
      slots: of the arrays that take part.
      arrays: float32 by key.

    Raises:
      UserError: an array is not finite, or a running variance negative.
    """
    wrong = []
    for slot in slots:
        array, name = arrays[slot.key], f"{slot.key!r} ({'/'.join(slot.path)})"
        if count := int((~np.isfinite(array)).sum()):
            wrong.append(f"{name} holds {count} of {array.size} values that are not finite")
        elif slot.path[-1] == _VARIANCE and (array < 0).any():
            wrong.append(f"{name} holds a negative variance, {array.min()}")
    if wrong:
        more = f"; nor can {len(wrong) - 1} more be used" if len(wrong) > 1 else ""
        raise UserError(f"of the weights, {wrong[0]}{more}")
