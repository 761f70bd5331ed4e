"""Reads tables of instances in Parquet files."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.bags import cells, columns
from lossattn_jax.data.bags.columns import Choice, Columns
from lossattn_jax.data.bags.feature_formats.bag_file import check_regular, opening
from lossattn_jax.data.bags.feature_formats.parquet import NumericColumns, numeric_types
from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

INDEX = re.compile(r"__index_level_\d+__")  # what pandas calls an index without a name


@dataclasses.dataclass(frozen=True)
class InstanceTable:
    """The rows of a table.

    Attributes:
      ids, labels: of each row's bag, as text; a missing one is "".
      instance_labels: of each row, as text; None where there is no such column.
      values: `[N, D]` float64, finite.
      features: `[D]` names.
    """

    ids: list[str]
    labels: list[str]
    instance_labels: list[str] | None
    values: np.ndarray
    features: tuple[str, ...]


def read(path: str, choice: Choice) -> InstanceTable:
    """Reads a table; the log says which columns it takes.

    Args:
      path: of a Parquet file.
      choice: of features.

    Raises:
      UserError: it is missing, damaged or has no row, as of `columns.find`, a column that is to be a feature
        has no numbers, or a value is not finite in float32.
    """
    from pyarrow import parquet  # when a file is opened, not with the command

    with opening(path):
        check_regular(path)
        with parquet.ParquetFile(path) as file:
            return _read(path, file, choice)


def _read(path: str, file: Any, choice: Choice) -> InstanceTable:
    names = [name for name in file.schema_arrow.names if not INDEX.fullmatch(name)]
    header = [name.strip() for name in names]
    places = columns.find(path, header, choice)
    numeric = numeric_types(path, file.schema_arrow)
    if not file.metadata.num_rows:
        raise UserError(f"{path} has no instance, but must have one in each row")
    for place in sorted(places.exact):
        if names[place] not in numeric:
            kind = file.schema_arrow.field(names[place]).type
            raise UserError(
                f"the column {header[place]!r} of {path} has the type {kind}, but a feature must be numbers; "
                "write it as such, or leave it out of --features"
            )
    features = [place for place in places.features if names[place] in numeric]
    if not features:
        raise UserError(
            f"{path} has no column of numbers that is a feature, but {', '.join(map(repr, header[:8]))}"
        )
    values = NumericColumns(file, tuple(names[place] for place in features), np.dtype(float))[:]
    feature_names = tuple(header[place] for place in features)
    cells.check_finite(path, values, range(1, len(values) + 1), feature_names, unit="row")
    for place in places.indices:
        _check_index(path, place, _texts(file, names[place]))
    log.info("%s: %s", path, _describe(header, places, features, names, numeric))
    own = places.instance_label
    return InstanceTable(
        _texts(file, names[places.bag_id]),
        _texts(file, names[places.label]),
        None if own is None else _texts(file, names[own]),
        values,
        feature_names,
    )


def _texts(file: Any, name: str) -> list[str]:
    return [as_text(value) for value in read_column(file, name)]


def read_column(file: Any, name: str) -> list[Any]:
    """Reads a column of an opened Parquet file.

    Raises:
      ValueError: it has another length than the file, or holds text that is none.
    """
    values: list[Any] = file.read([name]).column(0).to_pylist()
    if len(values) != file.metadata.num_rows:
        raise ValueError(
            f"{name!r} has {len(values)} values, but must have {file.metadata.num_rows}"
        )
    return values


def as_text(value: Any) -> str:
    """Writes a cell as a table of text would have it."""
    if value is None:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value).strip()


def _check_index(path: str, place: int, texts: Sequence[str]) -> None:
    if not any(list(texts) == [str(row + start) for row in range(len(texts))] for start in (0, 1)):
        raise UserError(
            f"column {place + 1} of {path} has no name and does not count the rows; name it, or write the "
            "table without its index (pandas: index=False)"
        )


def _describe(
    header: Sequence[str],
    places: Columns,
    features: Sequence[int],
    names: Sequence[str],
    numeric: Any,
) -> str:
    others = [place for place in places.others if names[place] in numeric]
    text = [place for place in places.features if names[place] not in numeric]
    return cells.describe(header, places, features, others, text)
