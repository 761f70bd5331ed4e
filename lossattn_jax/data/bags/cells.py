"""The numeric cells of a table of bags."""

import array
import re
from collections.abc import Sequence

import numpy as np

from lossattn_jax.data.bags.columns import Columns
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.errors import UserError

# Numbers with a decimal comma, or with commas between thousands.
_COMMAS = re.compile(r"[+-]?[\d.' ]*(,\d+)+(\.\d*)?([eE][+-]?\d+)?")
# Those whose comma can be a decimal one, and of these the ones where it can be one of thousands too.
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
_PERHAPS_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


class Cells:
    """Collects features row by row, and reports wrong cells by line.

    A column is one of numbers, all of whose cells have to be, or one of text, none of whose cells may be: one
    wrong cell must not take a feature away unnoticed.

    Attributes:
      values: the features' cells so far, row by row.
      lines: of each row.
    """

    def __init__(
        self,
        path: object,
        header: Sequence[str],
        columns: Columns,
        *,
        commas: bool = False,
    ):
        """Starts a table.

        Args:
          path: of the table, for messages.
          header: names of its columns.
          columns: what they are.
          commas: whether decimals may be written with a comma, as no column is separated by one.
        """
        self.path = path
        self.header = header
        self.columns = columns
        self.values = array.array("d")
        self.lines: list[int] = []
        self._features = columns.features
        self._text: dict[int, tuple[int, str]] = {}  # first line and cell of columns of text
        self._numeric = dict.fromkeys(
            columns.others, False
        )  # whether a number was seen, in columns without text
        self._counts_from: dict[int, int | None] = {}
        self._commas = commas
        # Where a decimal comma, one that may be of thousands, and a decimal point was first.
        self._first: dict[str, tuple[int, int, str]] = {}

    def add(self, line: int, fields: Sequence[str]) -> None:
        """Adds the next row.

        Raises:
          UserError: a cell of a feature is no number, or a column without a name does not count the rows.
        """
        if self._commas:
            fields = self._with_points(line, fields)
        if not self.lines:
            self._begin(line, fields)
        self.lines.append(line)
        try:
            cells = [fields[place] for place in self._features]
            self.values.extend(map(float, cells))
            if "_" in "".join(cells):  # Python's numbers may have underscores
                raise ValueError
        except ValueError:
            place = next(place for place in self._features if not is_number(fields[place]))
            raise self._no_number(line, place, fields[place]) from None
        for place, (first, text) in self._text.items():
            cell = fields[place]
            if is_number(cell):
                raise self._no_number(first, place, text)
            if is_missing(text) and not is_missing(cell):
                self._text[place] = line, cell
            if _COMMAS.fullmatch(cell.strip()):
                raise self._no_number(line, place, cell)
        for place in list(self._numeric):
            if is_number(fields[place]):
                self._numeric[place] = True
            elif not is_missing(fields[place]):
                del self._numeric[place]
        for place, start in self._counts_from.items():
            if start is None or fields[place].strip() != str(start + len(self.lines) - 1):
                raise UserError(
                    f"column {place + 1} of {self.path} has no name and does not count the rows (line {line} "
                    f"has {fields[place]!r}); name it, or write the table without its index (pandas: "
                    "index=False)"
                )

    def end(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns `[N, D]` float64 features and their names.

        Raises:
          UserError: there is no row, no column of numbers, or a value that is not finite in float32.
        """
        if not self.lines:
            raise UserError(f"{self.path} has no instance, but must have one in each line")
        if "perhaps" in self._first and "comma" not in self._first:
            raise self._no_number(*self._first["perhaps"])
        for place, (line, text) in self._text.items():
            if is_missing(text):
                raise self._no_number(line, place, text)
        if not self._features:
            place, (line, text) = next(iter(self._text.items()))
            raise UserError(
                f"{self.path} has no column of numbers that is a feature: line {line} has {text!r} in the "
                f"column {self.header[place]!r}"
            )
        values = np.frombuffer(self.values).reshape(len(self.lines), -1)
        names = tuple(self.header[place] for place in self._features)
        check_finite(self.path, values, self.lines, names)
        return values, names

    def describe(self) -> str:
        """Describes the columns for the log; after `end`."""
        numeric = [place for place, number in self._numeric.items() if number]
        text = describe(self.header, self.columns, self._features, numeric, list(self._text))
        return f"{text}; decimals are written with a comma" if "comma" in self._first else text

    def _with_points(self, line: int, fields: Sequence[str]) -> Sequence[str]:
        """The row with points in place of decimal commas.

        Raises:
          UserError: the table has both.
        """
        converted = list(fields)
        for place in self.columns.features:
            cell = fields[place].strip()
            if "," in cell and _DECIMAL_COMMA.fullmatch(cell):
                perhaps = _PERHAPS_THOUSANDS.fullmatch(cell) is not None
                self._first.setdefault("perhaps" if perhaps else "comma", (line, place, cell))
                converted[place] = cell.replace(",", ".")
            elif "." in cell and "point" not in self._first and is_number(cell):
                self._first["point"] = line, place, cell
        commas = [self._first[kind] for kind in ("comma", "perhaps") if kind in self._first]
        if commas and "point" in self._first:
            (one, _, text), (other, _, pointed) = min(commas), self._first["point"]
            raise UserError(
                f"line {one} of {self.path} has {text!r} and line {other} has {pointed!r}: write decimals "
                "with a point or with a comma, and thousands with neither (pandas: decimal='.')"
            )
        return converted

    def _begin(self, line: int, fields: Sequence[str]) -> None:
        """Finds columns of text and index columns by the first row."""
        self._text = {
            place: (line, fields[place])
            for place in self.columns.features
            if place not in self.columns.exact and not is_number(fields[place])
        }
        for place, (_, text) in self._text.items():
            if _COMMAS.fullmatch(text.strip()):
                raise self._no_number(line, place, text)
        self._features = tuple(p for p in self.columns.features if p not in self._text)
        for place in self.columns.indices:
            first = fields[place].strip()
            self._counts_from[place] = int(first) if first in ("0", "1") else None

    def _no_number(self, line: int, place: int, text: str) -> UserError:
        name = self.header[place]
        if _COMMAS.fullmatch(text.strip()):
            hint = (
                "write decimals with a point and thousands without a comma (pandas: decimal='.'), or leave "
                f"the column out with --ignore={name}"
            )
        elif is_missing(text):
            hint = f"fill it in, or leave its row out, or the column with --ignore={name}"
        else:
            hint = f"correct it, or leave the column out with --ignore={name}"
        return UserError(
            f"line {line} of {self.path} has {text!r}, which is not a number, in the column {name!r}; {hint}"
        )


def describe(
    header: Sequence[str],
    columns: Columns,
    features: Sequence[int],
    numeric: Sequence[int],
    text: Sequence[int],
) -> str:
    """Describes the columns of a table for the log.

    Args:
      header: their names.
      columns: what they are by their names.
      features: places of those that are taken.
      numeric, text: of those of numbers and of text that are not.
    """
    names = [header[place] for place in features]
    uses = f"labels in {header[columns.label]!r}, ids in {header[columns.bag_id]!r}"
    if columns.instance_label is not None:
        uses += f", labels of instances in {header[columns.instance_label]!r}"
    ends = repr(names[0]) if len(names) == 1 else f"from {names[0]!r} to {names[-1]!r}"
    parts = [f"{len(names)} feature{'s'[: len(names) > 1]}, {ends}; {uses}"]
    for what, places in (
        ("columns of numbers not taken", numeric),
        ("columns of text not taken", text),
        ("index of the rows not taken", columns.indices),
    ):
        if places:
            others = [header[place] or f"column {place + 1}" for place in places]
            parts.append(f"{what}: {', '.join(map(repr, others))}")
    return "; ".join(parts)


def check_finite(
    path: object,
    values: np.ndarray,
    lines: Sequence[int],
    names: Sequence[str] = (),
    *,
    unit: str = "line",
) -> None:
    """Refuses non-finite features in float32, naming the line.

    Args:
      path: of the file, for the message.
      values: `[N, D]` float64.
      lines: `[N]`.
      names: `[D]` of the features; empty where they have none.
      unit: what the message calls a line.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32))
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        place = int(np.argmin(finite[row]))
        column = ""
        if names:
            way_out = (
                f"correct it, or leave its row out, or the column with --ignore={names[place]}"
            )
            column = f" in the column {names[place]!r}; {way_out}"
        raise UserError(
            f"{unit} {lines[row]} of {path} has the value {values[row, place]:g}, but values must be finite "
            f"numbers (in float32){column}"
        )


def is_number(text: str) -> bool:
    """Whether a cell is a number, infinite and NaN included."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
