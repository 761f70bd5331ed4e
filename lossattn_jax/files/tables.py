"""Tables of comma-separated values, written line by line."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def line(cells: Sequence[Any]) -> bytes:
    """Makes a line of a table, in UTF-8; what UTF-8 does not have is escaped."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode(errors="backslashreplace")
