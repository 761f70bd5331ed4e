"""Published archives that our TFDS builders read."""

import contextlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from lossattn_jax.errors import UserError
from lossattn_jax.files import LACKS

# Bytes that one file in an archive may have: a small archive can unpack to any number.
MOST_BYTES = 1 << 30
MOST_IMAGE_BYTES = 1 << 26

# For TFDS, which has no manual folder without instructions.
INSTRUCTIONS = """The archives are downloaded. Those that lie in the manual folder under the names they are
published with are taken from there instead; `python -m lossattn_jax.data.prepare --archives=FOLDER` names
another folder."""


def locate(dl_manager: Any, urls: dict[str, str]) -> dict[str, Any]:
    """Finds archives in the manual folder; downloads missing ones.

    TFDS checks no checksums, since none are published.

    Args:
      dl_manager: of TFDS.
      urls: of archives, by any names.

    Returns:
      The paths of the archives by the same names.

    Raises:
      UserError: something else has an archive's name, such as a FIFO, whose reader would wait for ever.
    """
    try:
        folder = dl_manager.manual_dir
    except AssertionError:  # there is none, or nothing in it
        return dl_manager.download(urls)
    copies = {name: folder / os.path.basename(url) for name, url in urls.items()}
    local_paths = {name: path for name, path in copies.items() if path.exists()}
    for path in local_paths.values():
        if not os.path.isfile(path):
            raise UserError(
                f"the archive {os.fspath(path)} is not a regular file; give a folder with a complete one as "
                "--archives"
            )
    missing = {name: url for name, url in urls.items() if name not in local_paths}
    return local_paths | (dl_manager.download(missing) if missing else {})


def content(stream: IO[bytes], name: str, size: int = 0, most: int | None = None) -> bytes:
    """Reads a file of an archive into memory.

    Args:
      stream: the file, opened.
      name: of it, for the message.
      size: bytes that it has, as far as the archive says.
      most: bytes that it may have; None: `MOST_BYTES`.

    Raises:
      ValueError: it has more.
    """
    most = MOST_BYTES if most is None else most
    data = stream.read(most + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise ValueError(f"its file {name} has more than {most >> 20} MiB")
    return data


@contextlib.contextmanager
def reading(path: Any) -> Iterator[None]:
    """Turns errors of an archive's content into one sentence.

    Args:
      path: of the archive.

    Raises:
      UserError: the archive is damaged, lacks a file, or a file of it is malformed; the builder raises
        a `ValueError` for the last.
    """
    try:
        yield
    except (
        OSError,
        EOFError,
        RuntimeError,  # of zipfile, where it would need a password or another way of packing
        KeyError,
        ValueError,
        zlib.error,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        if isinstance(error, OSError) and error.errno in LACKS:
            raise
        # A KeyError's own text is in quotation marks.
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        reason = (text.strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"the archive {os.fspath(path)} cannot be used ({reason}); remove it and try again, or give "
            "a folder with a complete one as --archives"
        ) from error
