"""Digests of a data set's shards, stored beside them.

Data are known by content: a copied folder is the same data set, whatever its dates are, and so is one that
was prepared again, whose files differ in how TFDS orders the fields of a record. To read all of COCO takes
minutes, so a shard's digest is remembered with what the file system says of the file and with the SHA-256 of
its bytes. Where the former has changed, the bytes are read; where these have, the examples are; and where
these have too, the data set is refused: it is damaged, or a shard of another one is in the place of its own.
Where the folder cannot be written, nothing is remembered.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from lossattn_jax import files
from lossattn_jax.data import damage
from lossattn_jax.files import records, sole_writer

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
        """Names the file and the places of its examples."""
        return f"{os.path.basename(self.path)}[{self.skip}:{self.skip + self.count}]"


def of_shards(
    folder: str,
    shards: Sequence[Shard],
    digest_examples: Callable[[int], str],
    metadata: Sequence[str] = (),
) -> list[str]:
    """Digests shards by what their examples hold.

    Args:
      folder: that they lie in, and where digests are remembered.
      shards: whose digests.
      digest_examples: computes the digest of the shard at a place in `shards`.
      metadata: names of other files in the folder, which say what the examples are.

    Raises:
      DamagedDataset: a file cannot be read, or is not as it is remembered.
    """
    began = time.monotonic()
    memory = pathlib.Path(folder) / NAME
    memory_digests = _read_memory(memory)
    news: dict[str, dict[str, Any]] = {}

    def look_at(path: str, key: str, place: int | None) -> None:
        before = memory_digests.get(key, {})
        facts = _facts(path, folder)
        if before.get("file") == facts:
            return
        sha256 = _sha256(path, folder)
        if before.get("sha256") == sha256:
            content = before["examples"]
        else:
            content = sha256 if place is None else digest_examples(place)
        if before and content != before["examples"]:
            raise damage.describe_change(path, str(memory), folder)
        news[key] = {"file": facts, "sha256": sha256, "examples": content}

    # First of all, since they say what is read of the shards.
    for name in metadata:
        look_at(os.path.join(folder, name), name, None)
    for place, shard in enumerate(shards):
        look_at(shard.path, shard.name, place)
    if news:
        _remember(memory, news)
    if time.monotonic() - began > _TOLD_SECONDS:
        seconds = time.monotonic() - began
        _LOG.info("read the examples in %s in %.0f s, to know them by content", folder, seconds)
    return [{**memory_digests, **news}[shard.name]["examples"] for shard in shards]


def _facts(path: str, folder: str) -> dict[str, int]:
    """Describes a file by size, dates and inode.

    An edit may set the date of the content back, but not that of the inode.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise damage.unreadable(path, error, folder) from None
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _sha256(path: str, folder: str) -> str:
    try:
        file: Any  # mypy misses that a BinaryIO will do
        with files.open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damage.unreadable(path, error, folder) from None


def _read_memory(memory: pathlib.Path, warn: bool = True) -> dict[str, dict[str, Any]]:
    try:
        record = records.read(memory)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except records.DamagedRecord as error:
        if warn:
            _LOG.warning("%s; the examples are read again", error)
        return {}
    return record.content if record.made_from is not None else {}


def _remember(memory: pathlib.Path, news: dict[str, dict[str, Any]]) -> None:
    """Adds digests to those that are stored."""
    try:
        with sole_writer.attempt(memory) as sole:
            if sole:
                records.write(memory, {**_read_memory(memory, warn=False), **news}, {}, indent=1)
    except OSError as error:
        _LOG.debug("%s is not written: %s", memory, error)
