"""Files on disk: safe opening, whole writing, safe names.

Beside these functions the folder has what files say of themselves: `digests` by content, `records` that
carry them, headers of `.npz` files; lines of `tables`; and texts of users, escaped for Markdown and
spreadsheets.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO

from lossattn_jax.errors import UserError

Path = str | os.PathLike[str]

# Errors of the process or the machine, not of the file, such as too many open files.
LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# Bytes of a name; file systems take 255, of which what is put beside the file needs some.
_LONGEST_NAME = 150
_DIGITS = 8  # of a digest, in a name
_BEGINNING = 32  # characters of a file's name in that of its temporary
# What no name may have on some system, or at its beginning or end; what is not printable besides.
_UNSAFE = re.compile(r'[<>:"/\\|?*]|^[. ~-]|[. ]$')
# The beginning of an address; a drive of Windows has one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_TEMPORARY = r"\.%s\.[0-9a-f]{16}\.part"


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading.

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


def find_irregular(folder: Path) -> str | None:
    """Finds a file in a folder that is not regular.

    Before a library opens all that is there.
    """
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in names):
            if os.path.exists(path) and not os.path.isfile(path):
                return path
    return None


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
    """Opens a temporary file that replaces another when whole.

    A symbolic link or a FIFO is replaced, not followed or waited for. The other name cannot be foreseen;
    `remove_temporaries` knows it, for what a killed process has left.

    Raises:
      OSError: it cannot be written, or there is a device. What there was is still there then.
    """
    if _is_device(path):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, _name_temporary(name))
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def refuse_url(path: Path, what: str) -> None:
    """Refuses an address of the network in a path's place.

    Args:
      path: as a user gave it; of a `pathlib.Path`, which drops a slash, the address is made whole again.
      what: of the sentence, such as "the image".

    Raises:
      UserError: it is one, and no file.
    """
    address = _URL.match(os.fspath(path))
    if address and not os.path.exists(path):
        whole = f"{address[1]}://{os.fspath(path)[address.end() :]}"
        raise UserError(
            f"{what} is {whole}, but must be on this machine: download it, and give the path of the copy"
        )


def make_folder(path: Path) -> None:
    """Makes a folder of a command's own files, unless it is there.

    Raises:
      OSError: it cannot be made, or a symbolic link is in its place, which may lead to somebody else's files.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed on writing", path)
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:  # Python raises it where a file is in the folder's place
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


def path_of(error: OSError) -> str | None:
    """Returns the path that an error is about, if known.

    It is no temporary of `replacing`.
    """
    for path in (error.filename2, error.filename):
        if isinstance(path, str | os.PathLike):
            name = os.path.basename(os.fspath(path))
            if not (name.startswith(".") and name.endswith(".part")):
                return os.fspath(path)
    return None


@contextlib.contextmanager
def writing_out(path: Path) -> Iterator[None]:
    """Turns errors of writing a command's --out into a sentence.

    Raises:
      UserError: an `OSError` was raised within.
    """
    try:
        yield
    except OSError as error:
        place = path_of(error)
        at = f" ({place})" if place not in (None, os.fspath(path)) else ""
        raise UserError(
            f"--out={os.fspath(path)} cannot be written: {error.strerror or error}{at}"
        ) from None


def _is_device(path: Path) -> bool:
    """Whether a path leads to no file or folder.

    As /dev/stdout does.
    """
    try:
        own, behind = os.lstat(path).st_mode, os.stat(path).st_mode
    except OSError:
        return False
    regular = stat.S_ISREG(behind) or stat.S_ISDIR(behind)
    return not (regular or stat.S_ISFIFO(own) or stat.S_ISSOCK(own))


def check_writable(folder: Path) -> None:
    """Refuses a folder in which no file can be made.

    Raises:
      OSError: that cannot be done.
    """
    path = os.path.join(folder, _name_temporary(""))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def is_forbidden(error: OSError) -> bool:
    """Whether a mount or permissions forbid to write in a place."""
    return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


class HeldFolder:
    """An open folder, told from another one at its path."""

    def __init__(self, path: Path):
        """Holds the folder until `close`.

        Raises:
          OSError: it cannot be read.
        """
        self._path = path
        # Without the flag, on Windows, nobody can move a folder in which a file is open.
        flag = getattr(os, "O_DIRECTORY", None)
        self._handle = None if flag is None else os.open(path, os.O_RDONLY | flag)

    def is_there(self) -> bool:
        """Whether its path still leads to it."""
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return self._handle is None or os.path.samestat(os.fstat(self._handle), status)

    def close(self) -> None:
        """Lets it go; of a second call nothing comes."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _name_temporary(name: str) -> str:
    """Makes an unpredictable temporary name that `remove_temporaries` knows."""
    return f".{name[:_BEGINNING]}.{secrets.token_hex(8)}.part"


def is_temporary(name: str) -> bool:
    """Whether a file has a temporary name of `replacing`."""
    return re.fullmatch(_TEMPORARY % ".*", name, re.DOTALL) is not None


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Removes temporaries of killed processes from a folder where nobody else writes.

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


def safe_name(text: str, reserved_names: Collection[str] = ()) -> str:
    """Makes a safe name of a file or folder from any text.

    A text that every system takes for a name stays as it is. Of others, what is in the way becomes `_`, and
    a dash and digits of the text's digest are added; likewise where it is too long or reserved.

    Args:
      text: whatever a user calls something.
      reserved_names: names that others have in the same folder, compared as in file systems without capitals.
    """
    name = "".join(c if c.isprintable() else "_" for c in _UNSAFE.sub("_", text))
    others = {other.lower() for other in reserved_names}
    raw = name.encode()
    if name == text and name and len(raw) <= _LONGEST_NAME and name.lower() not in others:
        return name
    short = raw[:_LONGEST_NAME].decode(errors="ignore").rstrip(". ")
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{short or '_'}-{digest[:_DIGITS]}"
