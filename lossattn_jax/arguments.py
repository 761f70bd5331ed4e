"""Checks of library arguments: shapes, dtypes and numbers.

Each refusal is one sentence.

    sizes = check_arrays(
        patch_logits=(patch_logits, "B P K", NUMBERS),
        mask=(mask, "B P", MASK),
    )

They look at what is known when a program is traced and at nothing else. So they cost nothing in a compiled
program, and raise inside `jit`, `vmap`, `grad` and `pmap` as they do outside. What is wrong with traced
values cannot be seen by them.
"""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the values of an array may be.

    Attributes:
      name: for sentences.
      dtypes: the allowed ones, as NumPy's and JAX's abstract dtypes.
      optional: whether None may stand for the array.
    """

    name: str
    dtypes: tuple[Any, ...]
    optional: bool = False


NUMBERS = Kind("real numbers", (jnp.floating, jnp.integer))
WHOLE = Kind("whole numbers", (jnp.integer,))
FLAGS = Kind("True and False, or 1 and 0", (jnp.bool_, jnp.integer, jnp.floating))
MASK = dataclasses.replace(FLAGS, optional=True)

_LEADING = "..."


def check_arrays(**arrays: tuple[Any, str, Kind]) -> dict[str, Any]:
    """Refuses arrays whose axes, sizes or dtypes do not fit together.

    Args:
      **arrays: by the name of the argument: the array, the names of its axes, and what it holds. An axis
        of one name has one size in all arrays, and at least 1 unless its name is "B", of a batch. A
        number stands for an axis of that size. "..." at the front stands for any axes, the same in all
        arrays. None is left out where the kind is optional.

    Returns:
      The size of each axis by its name; of "..." the tuple of sizes.

    Raises:
      ValueError: a sentence with the argument, its shape or dtype, and what they must be.
    """
    sizes: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, (array, axes, kind) in arrays.items():
        if array is None and kind.optional:
            continue
        names = axes.split()
        layout = f"[{', '.join(names)}]"
        shape = _shape(name, array, layout, kind)
        free = _LEADING in names
        names = [axis for axis in names if axis != _LEADING]
        if len(shape) < len(names) or (len(shape) > len(names) and not free):
            raise ValueError(f"{name} has the shape {shape}, but must be {layout}")
        lead = len(shape) - len(names)
        pairs: list[tuple[str, Any]] = [(_LEADING, shape[:lead])] if free else []
        pairs += zip(names, shape[lead:], strict=True)
        for axis, size in pairs:
            expected_size = int(axis) if axis.isdecimal() else sizes.setdefault(axis, size)
            owner = "" if axis.isdecimal() else owners.setdefault(axis, name)
            if size != expected_size:
                where = f" with {axis} = {expected_size} as in {owner}" if owner else ""
                raise ValueError(f"{name} has the shape {shape}, but must be {layout}{where}")
            if size == 0 and axis != "B":
                raise ValueError(
                    f"{name} has the shape {shape}, but {axis} of {layout} must be 1 or more"
                )
    return sizes


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
    low_too: bool = True,
    high_too: bool = False,
    static: bool = False,
) -> None:
    """Refuses a number out of range.

    Of a traced number only the shape is checked.

    Args:
      name: of the argument.
      value: a Python number or an array without axes.
      low: what it must not be below; minus infinity: any finite number.
      high: what it must be below; infinity: any finite number.
      whole: whether it must be a whole number.
      low_too: whether `low` itself is allowed.
      high_too: whether `high` itself is allowed.
      static: whether it must be known while a program is traced.

    Raises:
      ValueError: a sentence with the argument, its value and what is allowed.
    """
    requirement = f"a {'whole' if whole else 'finite'} number"
    if low > -math.inf:
        requirement += f", {'at least' if low_too else 'above'} {low:g}"
    if high < math.inf:
        requirement += f" and {'at most' if high_too else 'below'} {high:g}"
    if np.ndim(value):
        raise ValueError(f"{name} has the shape {np.shape(value)}, but must be {requirement}")
    if isinstance(value, jax.core.Tracer):
        if static:
            raise ValueError(f"{name} is traced, but must be {requirement}, that is known before")
        return
    plain = value.item() if hasattr(value, "item") else value
    real = isinstance(plain, numbers.Real) and not isinstance(plain, bool)
    ends = [low] * low_too + [high] * high_too
    inside = real and math.isfinite(plain) and (low < plain < high or plain in ends)
    if not inside or (whole and plain != int(plain)):
        raise ValueError(f"{name} is {value!r}, but must be {requirement}")


def is_zero(value: Any) -> bool:
    """Whether a number is known to be 0; never if traced."""
    return not isinstance(value, jax.core.Tracer) and not value


def _shape(name: str, array: Any, layout: str, kind: Kind) -> tuple[int, ...]:
    """The array's shape, after its type and dtype have been checked."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        raise ValueError(
            f"{name} is of type {type(array).__name__}, but must be an array {layout} of {kind.name}"
        )
    if not any(jnp.issubdtype(dtype, requirement) for requirement in kind.dtypes):
        raise ValueError(f"{name} has the dtype {dtype}, but must hold {kind.name}")
    return tuple(shape)
