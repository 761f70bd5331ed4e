"""Files of predictions: parts from which a command goes on, and the table of all.

OUT.parts/run.json          a record of what is predicted, with which network
OUT.parts/000000.json       a record of the predictions for some of the files
OUT                         path,label,predicted,p_CLASS..., as CSV or Parquet
OUT.json                    a record of the whole: files that were left out, digest of the table
OUT.attention/IMAGE.h5      attention [P], logits [P, K] of an image's patches, where they are wanted

The parts go when the table is there.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.files import hdf5, tables
from lossattn_jax.files.escaping import for_spreadsheet
from lossattn_jax.predict.predictions import columns

RUN_NAME = "run.json"

Row = Mapping[str, Any]  # path, predicted and probabilities; None for what is not finite


@dataclasses.dataclass(frozen=True)
class OutputPaths:
    """Places of a command's files.

    Attributes:
      table: `--out`.
      record: of the whole.
      parts: folder of the parts.
      attention: folder of the patches' arrays.
    """

    table: pathlib.Path
    record: pathlib.Path
    parts: pathlib.Path
    attention: pathlib.Path

    def part(self, number: int) -> pathlib.Path:
        """Where the record of a part is."""
        return self.parts / f"{number:06d}.json"


def paths_of(out: str) -> OutputPaths:
    """Places of the files of `--out`.

    Raises:
      UserError: its name says no format.
    """
    path = pathlib.Path(out)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out is {out}, but must end with one of: {', '.join(FORMATS)}")
    beside = [path.with_name(f"{path.name}.{end}") for end in ("json", "parts", "attention")]
    return OutputPaths(path, *beside)


def write_patches(
    path: pathlib.Path,
    attention: np.ndarray,
    patch_logits: np.ndarray,
    attributes: Mapping[str, Any],
) -> str:
    """Writes the outputs of an image's patches as HDF5, as those of instances.

    Args:
      path: of the file, whose folder exists.
      attention: `[P]` float32, NaN where outputs are not finite.
      patch_logits: `[P, K]` float32.
      attributes: of the file.

    Returns:
      The file's digest.

    Raises:
      OSError: it cannot be written.
    """
    return hdf5.write(path, {"attention": attention, "logits": patch_logits}, attributes)


def write_table(path: pathlib.Path, parts: Iterable[Sequence[Row]], names: Sequence[str]) -> None:
    """Writes the table, part by part.

    Args:
      path: of the file; its name says the format.
      parts: rows.
      names: of the K classes.

    Raises:
      OSError: it cannot be written.
    """
    with files.replacing(path) as file:
        FORMATS[path.suffix.lower()](file, parts, names)


def _write_csv(file: BinaryIO, parts: Iterable[Sequence[Row]], names: Sequence[str]) -> None:
    """Writes CSV; text that a spreadsheet would take for a formula has an apostrophe before it."""
    file.write(tables.line([for_spreadsheet(name) for name in columns(names)]))
    for row in (row for rows in parts for row in rows):
        texts = (row["path"], None, row["predicted"])
        numbers = row["probabilities"]
        file.write(
            tables.line(
                [
                    *("" if text is None else for_spreadsheet(text) for text in texts),
                    *("" if number is None else repr(number) for number in numbers),
                ]
            )
        )


def _write_parquet(file: BinaryIO, parts: Iterable[Sequence[Row]], names: Sequence[str]) -> None:
    import pyarrow  # for those who want this format
    from pyarrow import parquet

    path, label, predicted, *classes = columns(names)
    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in (path, label, predicted)),
            *((name, pyarrow.float32()) for name in classes),
        ]
    )
    with parquet.ParquetWriter(file, schema) as writer:
        for rows in parts:
            if rows:
                numbers = zip(*(row["probabilities"] for row in rows), strict=True)
                texts = [
                    [as_utf8(row["path"]) for row in rows],
                    [None] * len(rows),
                    [row["predicted"] for row in rows],
                ]
                arrays = [*texts, *map(list, numbers)]
                writer.write_table(pyarrow.table(arrays, schema=schema))


def as_utf8(text: str) -> str:
    """A file's name as text; bytes that are none are escaped."""
    return text.encode(errors="backslashreplace").decode()


# How a table is written, by the end of its name.
FORMATS: dict[str, Callable[[BinaryIO, Iterable[Sequence[Row]], Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
