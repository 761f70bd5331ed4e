"""File systems for trials: too small a disk, and a folder that cannot be written. Both take a superuser."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

# What making a mount fails with where this is not allowed, or there is no such command.
FAILURES = (OSError, subprocess.CalledProcessError)


@contextlib.contextmanager
def disk(folder: pathlib.Path, kib: int) -> Iterator[pathlib.Path]:
    """Makes a file system in memory of so many KiB.

    Args:
      folder: where it is to be; there is none yet.
      kib: its size.

    Raises:
      OSError, subprocess.CalledProcessError: it cannot be made here.
    """
    folder.mkdir()
    try:
        _call("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
        try:
            yield folder
        finally:
            _call("umount", folder)
    finally:
        folder.rmdir()


def resize(folder: pathlib.Path, kib: int) -> None:
    """Changes the size of a `disk`."""
    _call("mount", "-o", f"remount,size={kib}k", folder)


def occupied(folder: pathlib.Path) -> int:
    """How many KiB of a `disk` are in use."""
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize // 1024


@contextlib.contextmanager
def read_only(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Keeps everybody from writing in a folder, by a mount of it on itself.

    Raises:
      OSError, subprocess.CalledProcessError: this cannot be done here.
    """
    _call("mount", "--bind", folder, folder)
    try:
        _call("mount", "-o", "remount,bind,ro", folder)
        yield folder
    finally:
        _call("umount", folder)


def _call(*words: str | pathlib.Path) -> None:
    subprocess.run(words, check=True, capture_output=True)
