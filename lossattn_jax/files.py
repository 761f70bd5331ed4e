"""Files on disk: only regular ones are opened, whole ones are written, and their names are safe."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO

Path = str | os.PathLike[str]

# What errors say of the process or the machine, and not of the file: there may be too many open ones.
LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# Bytes of a name; file systems take 255, of which what is put beside the file needs some.
_LONGEST_NAME = 150
_DIGITS = 8  # of a digest, in a name
_BEGINNING = 32  # characters of a file's name in that of its temporary
# What no name may have on some system, or at its beginning or end; what is not printable besides.
_UNSAFE = re.compile(r'[<>:"/\\|?*]|^[. ~-]|[. ]$')
_TEMPORARY = r"\.%s\.[0-9a-f]{16}\.part"


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading bytes; a link to one counts as one.

    Others may keep their reader waiting for ever (FIFOs), or never end (devices).

    Raises:
      OSError: there is none, it cannot be read, or it is a folder, FIFO, socket or device; `strerror` is for
        people.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read(path: Path) -> bytes:
    """Reads a whole regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def write(path: Path, content: bytes) -> None:
    """Writes a whole file; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing under another name, which is renamed when all is written.

    A symbolic link is replaced, not followed. The other name cannot be foreseen; `remove_temporaries` knows
    it, for what a killed process has left.

    Raises:
      OSError: it cannot be written, or there is a FIFO, socket or device. What there was is still there then.
    """
    if _is_special(path):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name[:_BEGINNING]}.{secrets.token_hex(8)}.part")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def path_of(error: OSError) -> str | None:
    """The file or folder that an error is about, as far as it is known and no temporary of `replacing`."""
    for path in (error.filename2, error.filename):
        if isinstance(path, str | os.PathLike):
            name = os.path.basename(os.fspath(path))
            if not (name.startswith(".") and name.endswith(".part")):
                return os.fspath(path)
    return None


def _is_special(path: Path) -> bool:
    """Whether a path leads to what is neither a file nor a folder, such as /dev/null."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_writable(folder: Path) -> None:
    """Makes a file in a folder and removes it, before there is anything to write.

    Raises:
      OSError: that cannot be done.
    """
    path = os.path.join(folder, f".{secrets.token_hex(8)}.part")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def is_forbidden(error: OSError) -> bool:
    """Whether a place may not be written, whatever is tried: a mount or permissions are against it."""
    return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one that comes to its name; None where there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Removes what killed processes have left of `replacing` in a folder, where nobody else writes.

    Args:
      folder: to look in.
      name: of a file: what they have left of that one, which nobody else writes.
    """
    beginning = re.escape(name[:_BEGINNING]) or ".*"
    pattern = re.compile(_TEMPORARY % beginning, re.DOTALL)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def safe_name(text: str, reserved: Collection[str] = ()) -> str:
    """Makes a name for a file or folder of any text, another one for another text.

    A text that every system takes for a name stays as it is. Of others, what is in the way becomes `_`, and
    a dash and digits of the text's digest are added; likewise where it is too long or reserved.

    Args:
      text: whatever a user calls something.
      reserved: names that others have in the same folder, compared as in file systems without capitals.
    """
    name = "".join(c if c.isprintable() else "_" for c in _UNSAFE.sub("_", text))
    taken = {other.lower() for other in reserved}
    encoded = name.encode()
    if name == text and name and len(encoded) <= _LONGEST_NAME and name.lower() not in taken:
        return name
    short = encoded[:_LONGEST_NAME].decode(errors="ignore").rstrip(". ")
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{short or '_'}-{digest[:_DIGITS]}"
