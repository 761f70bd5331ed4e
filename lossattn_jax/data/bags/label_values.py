"""Labels that are written in tables, as whole numbers or text."""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

log = logging.getLogger(__name__)

# Python converts no more than 4,300 digits.
_INTEGER = re.compile(r"[+-]?\d{1,4000}(\.0*)?", re.ASCII)


def label_values(labels: Sequence[str]) -> list[Any]:
    """Turns labels into whole numbers where all are (1, -1, 2.0)."""
    if all(_INTEGER.fullmatch(label) for label in labels):
        return [label_value(label) for label in labels]
    return list(labels)


def warn_of_case(names: Iterable[Any], place: object) -> None:
    """Warns of two names of classes that differ in capitals alone.

    Args:
      names: of the classes.
      place: where they are, for the message.
    """
    first: dict[str, str] = {}
    for name in (name for name in names if isinstance(name, str)):
        other = first.setdefault(name.casefold(), name)
        if other != name:
            log.warning(
                "warning: %s has the classes %r and %r, which differ in capitals alone; write both "
                "the same way if they are one",
                place,
                other,
                name,
            )


def label_value(label: str) -> int | str:
    """A label as a whole number where it is written as one."""
    return int(label.split(".")[0]) if _INTEGER.fullmatch(label) else label
