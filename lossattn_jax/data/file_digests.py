"""Digests of a prepared data set's files, which are remembered beside them.

Files are known by content: a copied folder is the same data set, whatever its dates are. To read COCO's
25 GB takes a minute or more, so a digest is remembered with what the file system says of the file, and is
computed again where that has changed. Where the folder cannot be written, it is computed each time.
"""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from lossattn_jax import records
from lossattn_jax.errors import UserError

NAME = "file_digests.json"

_LOG = logging.getLogger(__name__)
_THREADS = 4  # a disk hands out more when it is asked for several files
_TOLD_BYTES = 2**31  # files that take seconds are announced


def of_files(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, by their names.

    Args:
      folder: that they lie in, where their digests are remembered.
      paths: of the files.

    Raises:
      UserError: a file cannot be read.
    """
    now = {os.path.basename(path): (path, _facts(path)) for path in paths}
    memory = pathlib.Path(folder) / NAME
    known = _remembered(memory)
    unknown = {
        name: path
        for name, (path, facts) in now.items()
        if {**known.get(name, {}), "sha256": None} != {**facts, "sha256": None}
    }
    if unknown:
        size = sum(now[name][1]["size"] for name in unknown)
        if size > _TOLD_BYTES:
            _LOG.info("reading %.1f GB in %s, to know them by content", size / 1e9, folder)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            digests = list(pool.map(_digest, unknown.values()))
        for name, digest in zip(unknown, digests, strict=True):
            known[name] = {**now[name][1], "sha256": digest}
        _remember(memory, known)
    return {name: known[name]["sha256"] for name in now}


def _facts(path: str) -> dict[str, int]:
    """What changes with a file's content; an edit may set the date back, but not that of the inode."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _remembered(memory: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        record = records.read(memory)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except records.DamagedRecord as error:
        _LOG.warning("%s; the data set's files are read again", error)
        return {}
    files = record.content.get("files")
    if record.made_from is None or not isinstance(files, dict):  # not one of ours
        return {}
    return files


def _remember(memory: pathlib.Path, known: dict[str, dict[str, Any]]) -> None:
    try:
        records.write(memory, {"files": known}, {"files": sorted(known)}, indent=1)
    except OSError as error:
        _LOG.debug("%s is not written: %s", memory, error)
