"""Files of measurements, in a workdir or where `--out` says."""

import json
import logging
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.files import records

log = logging.getLogger(__name__)


def check_out(out: str | None, pictures: Collection[str] = ()) -> None:
    """Refuses an unwritable `--out` before there is anything to write.

    Args:
      out: path of a file; None: the file's usual place, which `write` may leave without one.
      pictures: endings of the files beside it.

    Raises:
      UserError: it is a folder, has the name of a picture, or nothing can be written beside it.
    """
    if out is None:
        return
    folder = os.path.dirname(out) or "."
    if os.path.isdir(out):
        raise UserError(f"--out is {out}, which is a folder, but must be a file")
    ending = pathlib.Path(out).suffix
    if ending in pictures:
        raise UserError(
            f"--out is {out}, but {ending} is the picture beside it; let it end in .json"
        )
    if not os.path.isdir(folder):
        raise UserError(f"{out} cannot be written: there is no folder {folder}")
    try:
        files.check_writable(folder)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None


def write(
    result: Mapping[str, Any],
    usual: pathlib.Path,
    out: str | None,
    pictures: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a measurement, or warns where its usual place is read-only.

    Args:
      result: of `records.complete`.
      usual: path of its JSON file.
      out: path to write instead; None: `usual`.
      pictures: content of files beside it, by the endings that take that of JSON's place.

    Raises:
      UserError: it cannot be written; the result is logged.
    """
    path = pathlib.Path(out or usual)
    try:
        records.write_complete(path, result, indent=2)
        for ending, content in (pictures or {}).items():
            files.write(path.with_suffix(ending), content)
    except OSError as error:
        if files.is_forbidden(error) and out is None:
            log.warning(
                "warning: %s cannot be written (%s): the result is printed alone; --out names another file",
                path,
                error.strerror,
            )
            return
        log.warning("the result %s", json.dumps(result))
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    log.info("written: %s%s", path, "".join(f" and {ending}" for ending in pictures or {}))
