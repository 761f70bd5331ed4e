"""Reads tables in text files: rows of cells.

Commas, semicolons or tabs separate them, in UTF-8 or UTF-16, compressed or not."""

import codecs
import csv
import dataclasses
import gzip
import io
import os
import zlib
from collections.abc import Iterator

from lossattn_jax import files
from lossattn_jax.data.archives import MOST_BYTES as _MOST_BYTES
from lossattn_jax.data.bags import columns, unix_compress
from lossattn_jax.errors import UserError

Path = str | os.PathLike[str]

_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32_LE = codecs.BOM_UTF32_LE  # begins as UTF-16 does


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table whose rows are read one after the other.

    Attributes:
      path: of its file.
      separator: of the columns, one of `columns.SEPARATORS`.
      header: the columns' names, without blanks around them; empty for an empty file.
      rows: line and cells of each row, as many as the header has; raises `UserError` where that is not so, or
        the text is not CSV.
    """

    path: Path
    separator: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]


def open_table(path: Path) -> TextTable:
    """Opens a table; its first line says what separates columns.

    Args:
      path: of the file.

    Raises:
      UserError: as of `read_text`, it is a spreadsheet, or the header is not CSV.
    """
    if os.fspath(path).lower().endswith(_SPREADSHEETS):
        raise UserError(f"{path} is a spreadsheet, which is not read; save it as CSV")
    text = read_text(path)
    first = next(iter(text.splitlines()), "")
    separator = columns.separator(first)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        header = [field.strip() for field in next(lines, [])]
    except csv.Error as error:
        raise _no_csv(path, lines.line_num, error) from error
    return TextTable(path, separator, header, _rows(path, lines, len(header)))


def _rows(path: Path, lines, width: int) -> Iterator[tuple[int, list[str]]]:
    try:
        for fields in lines:
            if len(fields) < 2 and not "".join(fields).strip():
                continue
            if len(fields) != width:
                raise UserError(
                    f"line {lines.line_num} of {path} has {len(fields)} fields, but the header has {width}"
                )
            yield lines.line_num, fields
    except csv.Error as error:
        raise _no_csv(path, lines.line_num, error) from error


def _no_csv(path: Path, line: int, error: csv.Error) -> UserError:
    return UserError(f"line {line} of {path} is not CSV ({error})")


def read_text(path: Path) -> str:
    """Reads a text file, compressed or not.

    It is in UTF-8, or in UTF-16 with a byte-order mark; `.gz` and `.Z` are unpacked.

    Raises:
      UserError: it is missing, cannot be read, is damaged or in another encoding.
    """
    content = read_content(path)
    try:
        if content.startswith(_GZIP):
            content = _gunzipped(content)
        elif content.startswith(unix_compress.MAGIC):
            content = unix_compress.uncompress(content, _MOST_BYTES)
        elif os.fspath(path).endswith((".gz", ".Z")):
            raise UserError(f"{path} is not compressed as its name says")
        if content.startswith(_UTF_16) and not content.startswith(_UTF_32_LE):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path} is not text in UTF-8 ({error}); save it as such") from error
        raise UserError(f"{path} is damaged ({error})") from error


def read_content(path: Path) -> bytes:
    """Reads a regular file.

    Raises:
      UserError: it is missing or cannot be read.
    """
    try:
        return files.read(path)
    except FileNotFoundError as error:
        raise UserError(f"the file {path} does not exist") from error
    except OSError as error:
        raise UserError(f"the file {path} cannot be read ({error.strerror or error})") from error


def _gunzipped(content: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB uncompressed")
    return text
