"""File systems for trials: small disks and read-only folders; for a superuser."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator


class CannotMount(Exception):
    """A mount is not possible here; the text says why."""


@contextlib.contextmanager
def disk(folder: pathlib.Path, kib: int) -> Iterator[pathlib.Path]:
    """Makes a file system in memory of so many KiB.

    Args:
      folder: where it is to be; there is none yet.
      kib: its size.

    Raises:
      CannotMount: it cannot be made here.
    """
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        folder.rmdir()


def resize(folder: pathlib.Path, kib: int) -> None:
    """Changes the size of a `disk`."""
    _mount("-o", f"remount,size={kib}k", folder)


def used_kib(folder: pathlib.Path) -> int:
    """How many KiB of a `disk` are in use."""
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize // 1024


@contextlib.contextmanager
def read_only(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder read-only by a mount of it on itself.

    Raises:
      CannotMount: this cannot be done here.
    """
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,bind,ro", folder)
        yield folder
    finally:
        _unmount(folder)


def _mount(*words: str | pathlib.Path) -> None:
    try:
        mount = subprocess.run(["mount", *words], capture_output=True, text=True)
    except OSError as error:
        raise CannotMount(f"mount cannot be called: {error.strerror}") from None
    if mount.returncode:
        raise CannotMount(mount.stderr.strip() or f"mount ended with {mount.returncode}")


def _unmount(folder: pathlib.Path) -> None:
    # Lazily: who read in it may still hold it for a moment.
    subprocess.run(["umount", "--lazy", folder], check=True)
