"""Flags that are lists of numbers."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from lossattn_jax.errors import UserError

Number = TypeVar("Number", int, float)


def parsed(
    name: str, values: Sequence[str], kind: Callable[[str], Number], zero: bool = False
) -> list[Number]:
    """The numbers of a flag.

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
        given = ",".join(values)
        raise UserError(f"--{name} is {given!r}, but must be {what}, with commas between")
    return numbers
