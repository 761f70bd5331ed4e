"""Errors of damaged or changed prepared data sets."""

import json
import os
import re
from collections.abc import Iterable, Mapping

from lossattn_jax import files
from lossattn_jax.errors import UserError

_IN_SENTENCES = (OSError, RuntimeError, ValueError)  # their texts are for people


class DamagedDataset(UserError):
    """A prepared data set cannot be read, or has changed."""


def unreadable(path: str, error: Exception | str, folder: str) -> DamagedDataset:
    """Makes the error for a file that cannot be read.

    Args:
      path: of the file.
      error: that reading it ended with, or a clause.
      folder: of the prepared data set, its version included.

    Raises:
      OSError, MemoryError: as of `refuse_lack`.
    """
    if isinstance(error, Exception):
        refuse_lack(error, path)
        error = _shorten(error)
    return DamagedDataset(
        f"{path} cannot be read ({error}); where it is damaged, remove the folder {folder} and prepare the "
        "data set again"
    )


def refuse_absent(folder: str, paths: Iterable[str]) -> None:
    """Refuses a prepared data set that lacks a regular file.

    Args:
      folder: as of `unreadable`.
      paths: of its files.

    Raises:
      DamagedDataset: it does.
    """
    for path in paths:
        if not os.path.isfile(path):
            there = os.path.exists(path)
            error = "it is not a regular file" if there else "there is no such file"
            raise unreadable(path, error, folder)


def refuse_other_counts(folder: str, counts: Mapping[str, int]) -> None:
    """Refuses a data set whose shard has another number of examples.

    Args:
      folder: as of `unreadable`.
      counts: of the examples that were prepared, by the path of the shard.

    Raises:
      DamagedDataset: there is one.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for path, count in counts.items():
        try:
            reader = ArrayRecordReader(path)
            there = reader.num_records()
            reader.close()
        except Exception:  # riegeli's errors share no base class
            continue  # whoever reads its examples says what is wrong
        if there != count:
            difference = f"it holds {there} examples, but {count} were prepared"
            raise unreadable(path, difference, folder)


def find_malformed_json(folder: str, names: Iterable[str]) -> str:
    """Finds the first malformed JSON file; else the folder."""
    for path in (os.path.join(folder, name) for name in names):
        try:
            json.loads(files.read(path))
        except (OSError, ValueError, RecursionError):
            return path
    return folder


def describe_change(path: str, memory: str, folder: str) -> DamagedDataset:
    """Makes the error for a file with changed content.

    Args:
      path: of the file.
      memory: of the file that remembers what it held.
      folder: as of `unreadable`.
    """
    return DamagedDataset(
        f"{path} is not as it was when the data set was prepared or first read: remove the folder {folder} "
        f"and prepare the data set again, or, if that is meant, remove {memory} alone"
    )


def refuse_lack(error: Exception, path: str) -> None:
    """Raises errors again that are no damage of a file.

    Raises:
      OSError: this process may not open more files, or has no memory left.
      MemoryError: likewise.
    """
    if isinstance(error, MemoryError):
        raise error
    for number in files.LACKS:
        # array_record has the system's words and no number.
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            raise OSError(number, os.strerror(number), path) from error


def _shorten(error: Exception) -> str:
    """The first clause of an error's text."""
    text = re.split(r"; | \(| <|\n", str(error).strip())[0].rstrip(".")
    return text if text and isinstance(error, _IN_SENTENCES) else f"{type(error).__name__} {text}"
