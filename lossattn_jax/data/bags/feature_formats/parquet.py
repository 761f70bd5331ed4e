"""Parquet: a row for each instance, columns of numbers are features.

Columns whose names have a role (`columns.ROLES`) are none, and `x` and `y`, else `coord_x` and `coord_y`, say
where the instances are. Row groups that hold none of the rows are not read.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lossattn_jax.data.bags import columns
from lossattn_jax.data.bags.feature_formats.bag_file import (
    COORDS,
    FEATURES,
    BagFile,
    StoredArray,
    check_regular,
    open_bag,
    opening,
)
from lossattn_jax.errors import UserError

_COORDS = (("x", "y"), ("coord_x", "coord_y"))
_PANDAS_INDEX = "__index_level_"


@dataclasses.dataclass(frozen=True)
class NumericColumns:
    """Columns of numbers of an opened file, side by side.

    Attributes:
      file: of pyarrow.
      names: of the columns, at least one where rows are read.
      dtype: that values are read with; a missing one is NaN.
    """

    file: Any
    names: tuple[str, ...]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.metadata.num_rows, len(self.names)

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(self.shape[0])
        values = np.empty((max(0, stop - start), len(self.names)), self.dtype)
        first = 0
        for group in range(self.file.metadata.num_row_groups):
            last = first + self.file.metadata.row_group(group).num_rows
            low, high = max(start, first), min(stop, last)
            if low < high:
                table = self.file.read_row_group(group, columns=list(self.names))
                for place, name in enumerate(self.names):
                    column = table.column(name).slice(low - first, high - low)
                    values[low - start : high - start, place] = column.to_numpy()
            first = last
        return values


@contextlib.contextmanager
def arrays(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """Opens the features and the coordinates of a table."""
    with _open(path) as file:
        types = numeric_types(path, file.schema_arrow)
        lowered = {name.lower(): name for name in types}
        coords = next((pair for pair in _COORDS if set(pair) <= set(lowered)), None)
        stored = {FEATURES[0]: _side_by_side(file, types, _features(types))}
        if coords is not None:
            stored[COORDS] = _side_by_side(file, types, tuple(lowered[name] for name in coords))
        yield stored


def open_file(path: str) -> BagFile:
    """Opens a bag; see `bag_file.open_bag`.

    Raises:
      UserError: as of `open_bag`, or it has no column of features, or two of one name.
    """
    with opening(path), _open(path) as file:
        names = _features(numeric_types(path, file.schema_arrow))
        if not names:
            raise UserError(
                f"{path} has no column of numbers that is a feature, but "
                f"{', '.join(map(repr, file.schema_arrow.names[:8])) or 'no column at all'}"
            )
    return open_bag(path, arrays, names)


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    from pyarrow import parquet  # when a file is opened, not with the command

    check_regular(path)
    with parquet.ParquetFile(path) as file:
        yield file


def numeric_types(path: str, schema: Any) -> dict[str, np.dtype]:
    """Types of the columns of numbers, in the file's order.

    Args:
      path: of the file, for messages.
      schema: of pyarrow.

    Raises:
      UserError: two columns have the same name.
    """
    import pyarrow

    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two columns {twice!r}, but names must differ")
    types = {}
    for field in schema:
        if field.name.startswith(_PANDAS_INDEX):
            continue
        if pyarrow.types.is_floating(field.type):
            types[field.name] = np.dtype(f"float{field.type.bit_width}")
        elif pyarrow.types.is_integer(field.type):
            types[field.name] = np.dtype(f"int{field.type.bit_width}")
    return types


def _features(types: Mapping[str, np.dtype]) -> tuple[str, ...]:
    return tuple(name for name in types if name.lower() not in columns.ROLES)


def _side_by_side(
    file: Any, types: Mapping[str, np.dtype], names: tuple[str, ...]
) -> NumericColumns:
    """Puts columns side by side, in a type that has all values."""
    dtypes = {types[name] for name in names} or {np.dtype(np.float32)}
    floats = [dtype if dtype.kind == "f" else np.dtype(np.float64) for dtype in dtypes]
    return NumericColumns(file, names, np.result_type(*floats))
