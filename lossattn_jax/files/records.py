"""JSON records with digests of their inputs and their content.

    made_from = {"bags": digests.of_arrays(arrays), "config.seed": 0}
    records.write(path, {"accuracy": 0.9}, made_from)
    record = records.read(path)
    if (reason := records.difference(record.made_from, made_from)) is not None:
        raise UserError(f"{path} was made from other inputs ({reason}); use another workdir")

Beside its content a file has `made_from` and `digest`, SHA-256 of all the rest. Files from before there were
digests have neither: they are for reading, not for computing with.
"""

import dataclasses
import io
import json
import logging
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests

log = logging.getLogger(__name__)

MADE_FROM, DIGEST, NONFINITE = "made_from", "digest", "nonfinite"

_OF_CONTENT = re.compile(r"[0-9a-f]{16,64}")  # a digest, which says nothing to a reader
_REMEDY = "use another workdir"
_MOST_NAMED = 3  # differences that a sentence names


class DamagedRecord(Exception):
    """A file is damaged; the text names it and says why."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What a file holds.

    Attributes:
      content: as it was given to `write`, but for numbers that were not finite, which are None.
      made_from: likewise; None where the file was written before there were digests.
      digest: of both, as the file has it; None likewise. Not compared.
    """

    content: dict[str, Any]
    made_from: dict[str, Any] | None
    digest: str | None = dataclasses.field(default=None, compare=False)


def write(
    path: pathlib.Path,
    content: Mapping[str, Any],
    made_from: Mapping[str, Any],
    indent: int | None = None,
) -> None:
    """Writes a record under another name and renames it.

    Args:
      path: of the file, whose folder exists.
      content, made_from: as of `complete`.
      indent: of the text; None: all in one line.

    Raises:
      OSError: the file cannot be written.
    """
    write_complete(path, complete(content, made_from), indent)


def complete(content: Mapping[str, Any], made_from: Mapping[str, Any]) -> dict[str, Any]:
    """A record as its file has it, with `made_from` and `digest`.

    Numbers have all their digits. What is not finite becomes null, and `nonfinite` counts it
    where the content has no such key of its own.

    Args:
      content: JSON but for numbers that are not finite, without the keys of `made_from` and `digest`.
      made_from: JSON; digests and plain values by names that a reader understands.
    """
    clean, nonfinite = without_nonfinite({**content, MADE_FROM: dict(made_from)})
    if nonfinite:
        clean.setdefault(NONFINITE, nonfinite)
    clean = json.loads(json.dumps(clean))  # the digest is of what a reader gets, lists for tuples
    clean[DIGEST] = digests.of_json(clean)
    return clean


def without_digests(record: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the digests that `complete` adds, for a screen."""
    return {key: value for key, value in record.items() if key not in (MADE_FROM, DIGEST)}


def write_complete(
    path: pathlib.Path, record: Mapping[str, Any], indent: int | None = None
) -> None:
    """Writes what `complete` gave; see `write`."""
    files.write(path, (json.dumps(record, indent=indent, allow_nan=False) + "\n").encode())


def read(path: pathlib.Path) -> Record:
    """Reads what `write` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the process has no more files or memory.
      DamagedRecord: it is not as it was written, or cannot be read.
    """
    try:
        return from_json(json.loads(files.read(path)), path)
    except FileNotFoundError:
        raise
    # The last one for what is nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in files.LACKS:
            raise  # no sign of damage
        reason = getattr(error, "strerror", None) or error
        raise DamagedRecord(f"{path} cannot be read ({reason})") from None


def from_json(value: Any, where: object) -> Record:
    """Reads what `complete` gave.

    Args:
      value: JSON.
      where: what messages call it.

    Raises:
      DamagedRecord: it is not as it was written.
    """
    if not isinstance(value, dict):
        raise DamagedRecord(f"{where} holds no keys")
    content = dict(value)
    digest, made_from = content.pop(DIGEST, None), content.get(MADE_FROM)
    if digest is None and made_from is None:
        return Record(content, None)
    if not isinstance(made_from, dict) or digest != digests.of_json(content):
        raise DamagedRecord(f"{where} is not as it was written")
    del content[MADE_FROM]
    return Record(content, made_from, digest)


def find(
    path: pathlib.Path,
    made_from: Mapping[str, Any],
    rename: Callable[[Mapping[str, Any] | None], Mapping[str, Any] | None] = lambda before: before,
    *,
    remedy: str = _REMEDY,
) -> Record | None:
    """Finds a record of an earlier run, to resume with.

    Args:
      path: of the file.
      made_from: of what is to be computed, as `write` takes it.
      rename: gives the inputs of a record of an earlier release the names that they have now.
      remedy: what a user is told to do about a record of other inputs.

    Returns:
      None where there is no file, and with a warning where it is damaged: it is to be made again.

    Raises:
      UserError: it was made from other inputs, or before there were digests.
    """
    try:
        record = read(path)
    except FileNotFoundError:
        return None
    except DamagedRecord as error:
        log.warning("%s; it is made again", error)
        return None
    refuse_other(path, rename(record.made_from), made_from, remedy=remedy)
    return record


def refuse_other(
    path: pathlib.Path,
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    *,
    remedy: str = _REMEDY,
) -> None:
    """Refuses to resume with, or to overwrite, a record of other inputs.

    Args:
      path: of its file.
      before: what it was made from; None where that is not known.
      now: of what is to be computed; JSON.
      remedy: what a user is told to do about it.

    Raises:
      UserError: they differ, or the record was written before there were digests.
    """
    if before is None:
        raise UserError(
            f"{path} was written before results carried digests, so that nobody knows whether it was made "
            f"from these inputs; {remedy}"
        )
    reason = difference(before, now)
    if reason is not None:
        raise UserError(f"{path} was made from other inputs ({reason}); {remedy}")


def difference(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """Says how two records of inputs differ, as a clause, or None.

    Args:
      before: of the file; None where it has none.
      now: of what is to be computed; JSON.
    """
    if before is None:
        return "it was written before results carried digests"
    now = json.loads(json.dumps(now))
    clauses = list(_clauses(before, now))
    if len(clauses) > _MOST_NAMED:
        clauses[_MOST_NAMED:] = [f"{len(clauses) - _MOST_NAMED} more"]
    return ", ".join(clauses) or None


def _clauses(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    for key in [*now, *(key for key in before if key not in now)]:
        old, new = before.get(key), now.get(key)
        if old == new and (key in before) == (key in now):
            continue
        if any(isinstance(value, str) and _OF_CONTENT.fullmatch(value) for value in (old, new)):
            yield f"other {key}"
        else:
            yield f"{key} {_shorten(old)} instead of {_shorten(new)}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def without_nonfinite(value: Any) -> tuple[Any, int]:
    """Replaces non-finite numbers of a JSON value by None, and counts them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, 1
    if isinstance(value, Mapping):
        pairs = {key: without_nonfinite(item) for key, item in value.items()}
        return {k: item for k, (item, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, list | tuple):
        items = [without_nonfinite(item) for item in value]
        return [item for item, _ in items], sum(n for _, n in items)
    return value, 0


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as .npz, whole; see `files.write`."""
    buffer = io.BytesIO()
    values: dict[str, Any] = dict(arrays)
    np.savez(buffer, **values)
    files.write(path, buffer.getvalue())
