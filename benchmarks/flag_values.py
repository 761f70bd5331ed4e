"""Values of flags as a measurement takes them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags

from lossattn_jax.errors import UserError

Number = TypeVar("Number", int, float)


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Values of the flags that are called as a function's parameters."""
    values = flags.FLAGS.flag_values_dict()
    return {name: values[name] for name in inspect.signature(function).parameters if name in values}


def parse_numbers(
    name: str, values: Sequence[str], kind: Callable[[str], Number], zero: bool = False
) -> list[Number]:
    """The numbers of a flag that is a list.

    Args:
      name: of the flag.
      values: what was given.
      kind: `int` or `float`.
      zero: whether 0 is allowed.

    Raises:
      UserError: there is none, or one is not a number of that kind, or too low.
    """
    try:
        numbers = [kind(value) for value in values]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or (0 in numbers and not zero):
        what = f"{'whole ' if kind is int else ''}numbers {'from' if zero else 'above'} 0"
        raise UserError(
            f"--{name} is {','.join(values)!r}, but must be {what}, with commas between"
        )
    return numbers
