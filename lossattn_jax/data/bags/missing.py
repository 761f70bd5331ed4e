"""Labels and ids that stand for a missing value."""

from typing import Any

import numpy as np

# What pandas reads as missing by default, and what other programs write for it, in small letters.
WORDS = frozenset(
    {
        *("", "nan", "-nan", "none", "null", "na", "n/a", "<na>", "nat", "#n/a", "#n/a n/a", "#na"),
        *("+nan", "nil", "<none>", "<null>", "(null)", "\\n", "undefined"),  # \N is of databases
        *("#value!", "#name?", "#div/0!", "#ref!", "#num!", "#null!"),  # of spreadsheets
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
        *("?", "-", "--", "."),  # ARFF, tables for print, and SAS
    }
)


def is_missing(value: Any) -> bool:
    """Whether a label or an id stands for a missing value.

    Args:
      value: text, a number or anything else.
    """
    if isinstance(value, str):
        return value.strip().lower() in WORDS
    if value is None or value is np.ma.masked:
        return True
    try:
        return bool(value != value)  # NaN and NaT alone differ from themselves
    except (TypeError, ValueError):  # pandas.NA knows no answer
        return True
