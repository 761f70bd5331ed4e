"""Labels that are written in tables, as whole numbers or text."""

import re
from collections.abc import Sequence
from typing import Any

# Python converts no more than 4,300 digits.
_INTEGER = re.compile(r"[+-]?\d{1,4000}(\.0*)?", re.ASCII)


def label_values(labels: Sequence[str]) -> list[Any]:
    """Turns labels into whole numbers where all are (1, -1, 2.0)."""
    if all(_INTEGER.fullmatch(label) for label in labels):
        return [label_value(label) for label in labels]
    return list(labels)


def label_value(label: str) -> int | str:
    """A label as a whole number where it is written as one."""
    return int(label.split(".")[0]) if _INTEGER.fullmatch(label) else label
