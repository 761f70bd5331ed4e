"""Rules of allowed values, each with the words of a refusal."""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for the values of a key.

    Attributes:
      accepts: whether a value is allowed.
      requirement: what is allowed, as the end of "but must be".
      whole: whether values count something, so that 2.0 stands for 2.
    """

    accepts: Callable[[Any], bool]
    requirement: str
    whole: bool = False


def one_of(*values: Any) -> Rule:
    """Accepts a few values."""
    return Rule(lambda v: v in values, "one of: " + ", ".join(str(v) for v in values))


def at_least(low: float) -> Rule:
    """Accepts finite numbers from `low` on."""
    return Rule(lambda v: _is_finite(v) and v >= low, f"a number, at least {low}")


def between(low: float, high: float) -> Rule:
    """Accepts finite numbers from `low` to `high`, both included."""
    return Rule(lambda v: _is_finite(v) and low <= v <= high, f"between {low} and {high}")


def positive(high: float) -> Rule:
    """Accepts numbers above 0 and at most `high`."""
    return Rule(lambda v: _is_finite(v) and 0 < v <= high, f"a positive number, at most {high}")


def whole(low: int) -> Rule:
    """Accepts whole numbers from `low` on."""
    return Rule(
        lambda v: _is_finite(v) and v == int(v) and v >= low,
        f"a whole number, at least {low}",
        whole=True,
    )


def none_or(rule: Rule) -> Rule:
    """Accepts None, and what another rule accepts."""
    return Rule(lambda v: v is None or rule.accepts(v), f"None, or {rule.requirement}")


def every(rule: Rule) -> Rule:
    """Accepts tuples of values that another rule accepts.

    Empty ones too.
    """
    return Rule(
        lambda v: isinstance(v, tuple) and all(map(rule.accepts, v)),
        f"a tuple, each of it {rule.requirement}",
    )


def non_empty(rule: Rule) -> Rule:
    """Accepts what another rule of tuples does, but no empty tuple."""
    return Rule(lambda v: rule.accepts(v) and len(v) > 0, f"{rule.requirement}, and not empty")


def parse_span(text: Any) -> tuple[int, int] | None:
    """Parses "start:stop" with start < stop; None for others."""
    match = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", str(text))
    start, stop = map(int, match.groups()) if match else (0, 0)
    return (start, stop) if start < stop else None


def parse_assignments(text: Any) -> dict[str, dict[str, float]] | None:
    """Parses "METHOD.OPTION=NUMBER,..." into numbers by method and option; None for others."""
    values: dict[str, dict[str, float]] = {}
    for part in str(text).split(",") if text else ():
        match = re.fullmatch(r"(.+)\.([A-Za-z_]\w*)=([^=]+)", part.strip(), re.ASCII)
        try:
            number = float(match[3]) if match else math.nan
        except ValueError:
            return None
        if match is None or not math.isfinite(number):
            return None
        values.setdefault(match[1], {})[match[2]] = number
    return values


def _is_finite(value: Any) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _rises(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and all(_is_finite(epoch) and epoch > 0 for epoch in value)
        and list(value) == sorted(set(value))
    )


COUNT = whole(1)
COUNT_FROM_ZERO = whole(0)
BOOLEAN = one_of(False, True)
POSITIVE = Rule(lambda v: _is_finite(v) and v > 0, "a positive number")
BELOW_ONE = Rule(lambda v: _is_finite(v) and 0 <= v < 1, "at least 0 and below 1")
SHARE = Rule(lambda v: _is_finite(v) and 0 < v < 1, "above 0 and below 1")
SIDE = Rule(  # in pixels
    lambda v: _is_finite(v) and v == int(v) and (v == 0 or 8 <= v <= 2048),
    "0, or a whole number from 8 to 2048",
    whole=True,
)
SEED = between(0, 2**31 - 1)
RISING_EPOCHS = Rule(_rises, "a rising tuple of positive epochs")
SPAN = Rule(
    lambda v: v == "" or parse_span(v) is not None,
    "empty or START:STOP, updates with START < STOP",
)
ASSIGNMENTS = Rule(
    lambda v: isinstance(v, str) and parse_assignments(v) is not None,
    "empty or METHOD.OPTION=NUMBER[,METHOD.OPTION=NUMBER...]",
)
