"""Data sets that `lossattn prepare` makes on the spot, as folders like those of users' own files."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from lossattn_jax.data.datasets import resolve_data_dir
from lossattn_jax.errors import UserError
from lossattn_jax.files import records

RECORD_NAME = "prepared.json"

# Writes a data set into an empty folder, of settings by name, with the record `RECORD_NAME` of these.
Write = Callable[[pathlib.Path, Mapping[str, Any]], None]

_VERSION = "1.0.0"


def folder_of(name: str, data_dir: str | None) -> pathlib.Path:
    """Where a data set is, or is to be.

    Args:
      name: of the data set.
      data_dir: the folder data sets are kept in; None for TFDS' default.
    """
    return pathlib.Path(resolve_data_dir(data_dir)) / name


def make(folder: pathlib.Path, write: Write, settings: Mapping[str, Any]) -> pathlib.Path:
    """Makes a data set, unless it is there.

    To be called by one process at a time. What is not finished has another name, and goes on the next call.

    Args:
      folder: from `folder_of`.
      write: of the data set.
      settings: by name; a data set that is there has to be made with the same, where any are given.

    Returns:
      The folder.

    Raises:
      UserError: a setting is impossible or another one than that of the data set that is there, or that one
        is damaged.
      OSError: it cannot be written.
    """
    if folder.is_dir() and os.listdir(folder):
        made_from = read_record(folder).made_from or {}
        own = {key: value for key, value in made_from.items() if key in settings}
        if (reason := records.difference(own, settings)) is not None:
            raise UserError(
                f"the data set in {folder} was made with other settings ({reason}); name another data_dir, "
                "or remove the folder"
            )
        return folder
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        write(unfinished, settings)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_record(folder: pathlib.Path) -> records.Record:
    """Reads the record of a data set.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        record = records.read(folder / RECORD_NAME)
    except FileNotFoundError:
        raise damaged(folder, f"it has no {RECORD_NAME}") from None
    except records.DamagedRecord as error:
        raise damaged(folder, str(error)) from None
    if record.made_from is None:
        raise damaged(folder, f"its {RECORD_NAME} is another one")
    return record


def damaged(folder: pathlib.Path, reason: str) -> UserError:
    """The error of a data set that is not as it was written."""
    return UserError(
        f"the data set in {folder} is damaged or another one ({reason}); remove the folder and prepare it "
        "again, or name another --data_dir"
    )


def write_photos(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Draws and writes the photographs of `digit_photos`, a folder for `config.data.name=folder`.

    Args:
      folder: that exists and is empty.
      settings: fields of `digit_photos.Options`.

    Raises:
      UserError: a setting is impossible.
      OSError: a file cannot be written.
    """
    # Drawing takes SciPy, which other commands need not wait for.
    from lossattn_jax.data import digit_photos

    try:
        options = digit_photos.Options(**settings)
    except TypeError as error:
        raise UserError(f"digit_photos cannot be made so: {error}") from None
    paths = digit_photos.write_photos(folder, options)
    content = {"version": _VERSION, "photos": len(paths)}
    records.write(folder / RECORD_NAME, content, dataclasses.asdict(options), indent=1)


# Image files; bags are in `bags.prepared_bags`.
GENERATED_IMAGES: Mapping[str, Write] = {"digit_photos": write_photos}
