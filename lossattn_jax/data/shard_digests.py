"""Digests of the shards of a prepared data set by what their examples hold, remembered beside them.

Data are known by content: a copied folder is the same data set, whatever its dates are, and so is one that
was prepared again, whose files differ in how TFDS orders the fields of a record. To read all of COCO takes
minutes, so a shard's digest is remembered with what the file system says of the file and with the SHA-256 of
its bytes. Where the former has changed, the bytes are read; where these have, the examples are. Where the
folder cannot be written, nothing is remembered.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from lossattn_jax import records
from lossattn_jax.errors import UserError

NAME = "shard_digests.json"

_LOG = logging.getLogger(__name__)
_TOLD_SECONDS = 5.0  # what takes longer is worth a line


@dataclasses.dataclass(frozen=True)
class Shard:
    """Successive examples of a file.

    Attributes:
      path: of the file, in the folder of the data set.
      skip: examples of the file before them.
      count: how many there are.
    """

    path: str
    skip: int
    count: int

    @property
    def name(self) -> str:
        """The file's name, and the places of the examples in it."""
        return f"{os.path.basename(self.path)}[{self.skip}:{self.skip + self.count}]"


def of_shards(
    folder: str, shards: Sequence[Shard], digest_examples: Callable[[int], str]
) -> list[str]:
    """The digests of shards by what their examples hold.

    Args:
      folder: that they lie in, and where digests are remembered.
      shards: whose digests.
      digest_examples: computes the digest of the shard at a place in `shards`.

    Raises:
      UserError: a file cannot be read.
    """
    began = time.monotonic()
    memory = pathlib.Path(folder) / NAME
    known = _remembered(memory)
    changed = False
    for place, shard in enumerate(shards):
        facts, before = _facts(shard.path), known.get(shard.name, {})
        if before.get("file") == facts:
            continue
        sha256 = _sha256(shard.path)
        same = before.get("sha256") == sha256
        examples = before["examples"] if same else digest_examples(place)
        known[shard.name] = {"file": facts, "sha256": sha256, "examples": examples}
        changed = True
    if changed:
        _remember(memory, known)
    if time.monotonic() - began > _TOLD_SECONDS:
        seconds = time.monotonic() - began
        _LOG.info("read the examples in %s in %.0f s, to know them by content", folder, seconds)
    return [known[shard.name]["examples"] for shard in shards]


def _facts(path: str) -> dict[str, int]:
    """Describes a file by size, dates and inode, which change with its content.

    An edit may set the date of the content back, but not that of the inode.
    """
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


def _sha256(path: str) -> str:
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
        _LOG.warning("%s; the examples are read again", error)
        return {}
    return record.content if record.made_from is not None else {}


def _remember(memory: pathlib.Path, known: dict[str, dict[str, Any]]) -> None:
    try:
        records.write(memory, known, {}, indent=1)
    except OSError as error:
        _LOG.debug("%s is not written: %s", memory, error)
