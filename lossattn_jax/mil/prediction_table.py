"""The table `predictions.csv`: a line for each predicted bag.

bag,label,predicted,p_CLASS...,n_instances,repeat,fold
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from lossattn_jax import files
from lossattn_jax.files.escaping import for_spreadsheet

TABLE_NAME = "predictions.csv"


@dataclasses.dataclass(frozen=True)
class BagRow:
    """A line of the table.

    Attributes:
      bag: its id.
      label: as the user knows it; None where that is not known.
      predicted: likewise; None where a probability is not finite.
      probabilities: K numbers, None in place of one that is not finite.
      length: instances.
      repeat, fold: in which the bag was tested; None of others.
    """

    bag: str
    label: Any
    predicted: Any
    probabilities: Sequence[float | None]
    length: int
    repeat: int | None = None
    fold: int | None = None


def write(path: pathlib.Path, rows: Iterable[BagRow], classes: Sequence[Any]) -> None:
    """Writes the table, numbers with all their digits.

    Text that a spreadsheet would take for a formula has an apostrophe before it. What does not apply, or is
    not finite, is empty.

    Args:
      path: of the file, whose folder exists.
      rows: of the bags.
      classes: K labels in the order of the probabilities.

    Raises:
      OSError: it cannot be written.
    """
    names = [for_spreadsheet(f"p_{label}") for label in classes]
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["bag", "label", "predicted", *names, "n_instances", "repeat", "fold"])
    for row in rows:
        words = (row.bag, row.label, row.predicted)
        table.writerow(
            [
                *(None if word is None else for_spreadsheet(word) for word in words),
                *(None if number is None else repr(float(number)) for number in row.probabilities),
                *(row.length, row.repeat, row.fold),
            ]
        )
    files.write(path, text.getvalue().encode(errors="backslashreplace"))
