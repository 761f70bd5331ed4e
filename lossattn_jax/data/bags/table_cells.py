"""Cells of tables of any kind, as text: CSV, TSV, Parquet, data frames."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from lossattn_jax.data.bags import text_tables
from lossattn_jax.data.bags.feature_formats.bag_file import check_regular, opening
from lossattn_jax.data.bags.parquet_table import INDEX, as_text, read_column
from lossattn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TableCells:
    """The cells of a table, as text.

    Attributes:
      place: of the table, for messages.
      header: names of the columns.
      lines: what messages call each row, such as "line 2" of a text file.
      column: reads the cells of a column by its place; an empty one is "".
    """

    place: str
    header: Sequence[str]
    lines: Sequence[str]
    column: Callable[[int], list[str]]


def read_cells(source: Any) -> TableCells:
    """Reads a table of any kind as cells of text.

    Args:
      source: path of a CSV or TSV file (also `.gz`) or of a `.parquet` file; or what has
        `__arrow_c_stream__`, such as a DataFrame of pandas or polars or a table of pyarrow.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    if hasattr(source, "__arrow_c_stream__"):
        import pyarrow  # where a table of its kind is read, not with the command

        whole = pyarrow.table(source)
        return _of_arrow(
            "the table",
            whole.column_names,
            whole.num_rows,
            lambda name: whole.column(name).to_pylist(),
        )
    if not isinstance(source, str | os.PathLike):
        raise UserError(
            f"the table of labels is a {type(source).__name__}, but must be the path of a file, or a table "
            "with __arrow_c_stream__: a DataFrame of pandas (from 2.2) or polars, or a table of pyarrow"
        )
    path = os.fspath(source)
    if path.lower().endswith(".parquet"):
        from pyarrow import parquet

        with opening(path):
            check_regular(path)
            with parquet.ParquetFile(path) as file:
                names, length = file.schema_arrow.names, file.metadata.num_rows

        def read(name: str) -> list[Any]:
            with opening(path), parquet.ParquetFile(path) as file:
                return read_column(file, name)

        return _of_arrow(path, names, length, read)
    table = text_tables.open_table(path)
    rows = list(table.rows)
    return TableCells(
        path,
        table.header,
        [f"line {line}" for line, _ in rows],
        lambda place: [cells[place].strip() for _, cells in rows],
    )


def _of_arrow(
    place: str, names: Sequence[str], length: int, read: Callable[[str], list[Any]]
) -> TableCells:
    header = [name for name in names if not INDEX.fullmatch(name)]
    return TableCells(
        place,
        [name.strip() for name in header],
        [f"row {row + 1}" for row in range(length)],
        lambda column: [as_text(value) for value in read(header[column])],
    )
