"""Reads tables of bags: ids, labels, groups, splits.

    table = read_table("labels.csv", TableColumns(label="subtype"))

    slide_id,subtype,patient
    s01,LUAD,p7
    s02,LUSC,p9

CSV, TSV and Parquet files are read, and from Python what pandas, polars and pyarrow have. Columns that are
not named are found by their usual names.
"""

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lossattn_jax.data.bags import columns, table_cells
from lossattn_jax.data.bags.label_sets import SEPARATOR, split_words
from lossattn_jax.data.bags.label_values import label_values
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.data.bags.table_cells import TableCells
from lossattn_jax.errors import UserError, name_first

log = logging.getLogger(__name__)

# Of each part of a table the usual names of its column, in small letters; the first one counts.
NAMES: Mapping[str, tuple[str, ...]] = {
    "bag": columns.IDS,
    "label": columns.LABELS,
    "group": ("group", "patient", "patient_id", "case_id"),
    "split": ("split",),
    "fold": ("fold",),
    "path": ("path",),
}
# What words of a column of splits mean, in small letters.
SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What cells of a column say of its label, in small letters.
_TRUTH: Mapping[str, bool] = {
    **dict.fromkeys(("0", "0.0", "no", "false", "negative"), False),
    **dict.fromkeys(("1", "1.0", "yes", "true", "positive"), True),
}
_SEVERAL_LABELS = re.compile(r"(bag_)?labels?[ _.-].+")
_WHOLE = re.compile(r"\+?\d{1,9}(\.0*)?", re.ASCII)
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table.

    None: it is found by its usual names, see `NAMES`. Empty: there is none, whatever the names.

    Attributes:
      bag: of the bags' ids.
      label: of their labels; several with commas between them, or a tuple, where each column says of its
        label whether bags have it.
      group: of what bags share, such as a patient.
      split: of "train", "validation" and "test", or what else `SPLITS` has.
      fold: of whole numbers, the fold in which a bag is tested.
      path: of the feature files.
    """

    bag: str | None = None
    label: str | Sequence[str] | None = None
    group: str | None = None
    split: str | None = None
    fold: str | None = None
    path: str | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class BagTable:
    """What a table says of bags.

    What it has no column for is None.

    Attributes:
      place: where it was, for messages.
      ids: of the bags, in the table's order; no two are the same.
      labels: whole numbers where all are written as such, otherwise text; of bags with several labels a tuple
        of text for each.
      label_names: all labels that bags may have several of, in the order of their columns; None where each
        bag has one.
      groups: for each bag.
      splits: "train", "validation" or "test" for each bag.
      folds: for each bag.
      paths: of the feature files, as they are written.
    """

    place: str
    ids: tuple[str, ...]
    labels: tuple[Any, ...] | None = None
    groups: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    folds: tuple[int, ...] | None = None
    paths: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None


def read_table(
    source: Any,
    names: TableColumns | None = None,
    *,
    labelled: bool = True,
    by_instance: bool = False,
) -> BagTable:
    """Reads a table of bags; the log says which columns it takes.

    Args:
      source: path of a CSV or TSV file (also `.gz`) or of a `.parquet` file; or what has
        `__arrow_c_stream__`, such as a DataFrame of pandas or polars or a table of pyarrow.
      names: of the columns.
      labelled: whether it must have labels.
      by_instance: whether it has a row for each instance; those of a bag have to say the same.

    Raises:
      UserError: it cannot be read, a column is not there or there are several of labels, there is no bag, a
        bag is there twice, or a cell is missing or of no allowed value; the sentence has line and bag.
    """
    table = table_cells.read_cells(source)
    names = names or TableColumns()
    label_places = _find_label_columns(table, names.label)
    if label_places:
        places = _find_columns(table, dataclasses.replace(names, label=""), labelled=False)
    else:
        places = _find_columns(table, names, labelled)
    ids, table = _by_bag(table, places, by_instance)
    names_by_part = {part: table.header[place] for part, place in places.items()}
    label_columns = [table.header[place] for place in label_places]
    used = {*names_by_part.values(), *label_columns}
    others = [name for name in table.header if name and name not in used]
    log.info(
        "%s: %d bags; %s%s",
        table.place,
        len(ids),
        ", ".join(
            [
                *(f"{part} in {name!r}" for part, name in names_by_part.items()),
                *([f"labels in {_some(label_columns)}"] if label_columns else []),
            ]
        ),
        f"; not taken: {_some(others)}" if others else "",
    )

    def cells(part: str) -> list[str] | None:
        return _known(table, part, places[part], ids) if part in places else None

    labels, groups, paths = cells("label"), cells("group"), cells("path")
    values: tuple[Any, ...] | None = None if labels is None else tuple(label_values(labels))
    label_names: tuple[str, ...] | None = None
    if label_places:
        label_names = tuple(label_columns)
        values = _labels_of_columns(table, label_places, ids)
    elif labels is not None and any(SEPARATOR in label for label in labels):
        values = tuple(map(split_words, labels))
        label_names = tuple(sorted({word for own in values for word in own}))
    return BagTable(
        table.place,
        ids,
        values,
        None if groups is None else tuple(groups),
        _splits(table, places["split"], ids) if "split" in places else None,
        _folds(table, places["fold"], ids) if "fold" in places else None,
        None if paths is None else tuple(paths),
        label_names,
    )


def _find_columns(table: TableCells, names: TableColumns, labelled: bool) -> dict[str, int]:
    """Finds the columns of the parts of a bag."""
    if not any(table.header):
        raise UserError(f"{table.place} is empty or its first line is, but must be the header")
    places = {}
    for part, usual in NAMES.items():
        name = getattr(names, part)
        if name:
            places[part] = _named(table, part, name)
        elif name is None:
            place = columns.find_first(table.place, table.header, usual)
            if place is not None:
                places[part] = place
    needed = ("bag", "label") if labelled else ("bag",)
    if "label" not in places:
        several = [name for name in table.header if _SEVERAL_LABELS.fullmatch(name.lower())]
        if len(several) > 1:
            raise UserError(
                f"{table.place} has the columns {_some(several)}; --label_column says which has the label, "
                "or which have several, with commas between them"
            )
    for part in needed:
        if part not in places:
            raise UserError(
                f"{table.place} has no column {' or '.join(map(repr, NAMES[part]))} of the {part}s, but "
                f"{_some(table.header)}; --{part}_column=NAME says which it is"
            )
    if places.get("label") == places["bag"]:
        raise UserError(
            f"the column {table.header[places['bag']]!r} of {table.place} cannot have both the bags' ids and "
            "their labels; name two columns"
        )
    return places


def _find_label_columns(table: TableCells, name: str | Sequence[str] | None) -> list[int]:
    """Finds the columns of several labels; none where one column has the labels."""
    if not name or name in table.header:
        return []
    names = name.split(",") if isinstance(name, str) else list(name)
    if len(names) < 2:
        return []
    places = [_named(table, "label", own.strip()) for own in names]
    if len(set(places)) < len(places):
        raise UserError(f"--label_column is {name!r}, but must name each column once")
    wrong = [table.header[place] for place in places if SEPARATOR in table.header[place]]
    if wrong:
        raise UserError(
            f"the column {wrong[0]!r} of {table.place} cannot be a label's: {SEPARATOR!r} stands between "
            "labels; rename it"
        )
    return places


def _labels_of_columns(
    table: TableCells, places: Sequence[int], ids: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """For each bag the names of the columns that say it has their label."""
    labels: list[list[str]] = [[] for _ in ids]
    for place in places:
        name = table.header[place]
        for row, cell in enumerate(_known(table, "label", place, ids)):
            if cell.lower() not in _TRUTH:
                raise UserError(
                    f"{table.lines[row]} of {table.place} has {cell!r} for bag {ids[row]!r} in the column "
                    f"{name!r} of a label, but allowed are {', '.join(_TRUTH)}"
                )
            if _TRUTH[cell.lower()]:
                labels[row].append(name)
    return tuple(map(tuple, labels))


def _named(table: TableCells, part: str, name: Any) -> int:
    """Finds a column by its name."""
    header = list(table.header)
    if name in header:
        if header.count(name) > 1:
            raise UserError(f"{table.place} has two columns {name!r}, but names must differ")
        return header.index(name)
    same = [place for place, other in enumerate(header) if other.lower() == str(name).lower()]
    if len(same) == 1:
        return same[0]
    near = difflib.get_close_matches(str(name), header, _MOST_NAMED, 0.5)
    raise UserError(
        f"--{part}_column is {name!r}, which is no column of {table.place}; "
        f"{'near are' if near else 'its columns are'} {_some(near or header)}"
    )


def _by_bag(
    table: TableCells, places: Mapping[str, int], by_instance: bool
) -> tuple[tuple[str, ...], TableCells]:
    """Finds the bags' ids and the first row of each.

    Raises:
      UserError: there is no row, an id is missing, or two rows of a bag say different things, or without
        `by_instance` there are two.
    """
    cells = table.column(places["bag"])
    if not cells:
        raise UserError(f"{table.place} has no bag, but must have one in each line")
    first: dict[str, int] = {}
    repeats = []
    for row, bag_id in enumerate(cells):
        if is_missing(bag_id):
            raise UserError(
                f"{table.lines[row]} of {table.place} has the bag id {bag_id!r}, which stands for a missing "
                "one; give the bag one or leave it out"
            )
        if first.setdefault(bag_id, row) != row:
            repeats.append(row)
    if repeats and not by_instance:
        bag_id = cells[repeats[0]]
        raise UserError(
            f"{table.place} has the bag {bag_id!r} twice, in {table.lines[first[bag_id]]} and in "
            f"{table.lines[repeats[0]]}, but must have a line for each bag"
        )
    for part, place in places.items():
        column = table.column(place) if repeats else []
        for row in repeats:
            before = first[cells[row]]
            if column[row] != column[before]:
                raise UserError(
                    f"{table.lines[row]} of {table.place} has the {part} {column[row]!r} for bag "
                    f"{cells[row]!r}, which had {column[before]!r} in {table.lines[before]}"
                )
    rows = list(first.values())
    lines = [table.lines[row] for row in rows]

    def column_of_bags(place: int) -> list[str]:
        column = table.column(place)
        return [column[row] for row in rows]

    return tuple(first), TableCells(table.place, table.header, lines, column_of_bags)


def _known(table: TableCells, part: str, place: int, ids: Sequence[str]) -> list[str]:
    """The cells of a column, none of which is missing."""
    cells = table.column(place)
    missing = [row for row, cell in enumerate(cells) if is_missing(cell)]
    if missing:
        first = missing[0]
        ways = ", or rename it" if cells[first] else ""
        if part == "label" and any(SEPARATOR in cell for cell in cells):
            ways += f", or write {SEPARATOR} alone for a bag that has none of the labels"
        raise UserError(
            f"{len(missing)} of {len(ids)} bags of {table.place} have no {part} in the column "
            f"{table.header[place]!r}, the first {ids[first]!r} ({table.lines[first]} has {cells[first]!r}); "
            f"give them one or leave these bags out{ways}"
        )
    return cells


def _splits(table: TableCells, place: int, ids: Sequence[str]) -> tuple[str, ...]:
    cells = _known(table, "split", place, ids)
    for line, cell, bag_id in zip(table.lines, cells, ids, strict=True):
        if cell.lower() not in SPLITS:
            raise UserError(
                f"{line} of {table.place} has the split {cell!r} for bag {bag_id!r}, but allowed are "
                f"{', '.join(SPLITS)}"
            )
    return tuple(SPLITS[cell.lower()] for cell in cells)


def _folds(table: TableCells, place: int, ids: Sequence[str]) -> tuple[int, ...]:
    cells = _known(table, "fold", place, ids)
    for line, cell, bag_id in zip(table.lines, cells, ids, strict=True):
        if not _WHOLE.fullmatch(cell):
            raise UserError(
                f"{line} of {table.place} has the fold {cell!r} for bag {bag_id!r}, but must have a "
                "whole number from 0"
            )
    return tuple(int(cell.split(".")[0]) for cell in cells)


def _some(names: Iterable[str]) -> str:
    return name_first([repr(name) for name in names if name], _MOST_NAMED)
