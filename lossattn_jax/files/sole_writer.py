"""Files that any process may write, one at a time."""

import contextlib
import logging
import os
from collections.abc import Iterator

import filelock

from lossattn_jax import files

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def attempt(path: files.Path) -> Iterator[bool]:
    """Locks a file for writing, unless another process has; nobody waits.

    What killed writers have left of it is removed. Where the folder's file system has no locks, any process
    may write, and what they leave stays.

    Args:
      path: of the file, which `files.replacing` is to write.

    Yields:
      Whether this process is to write it.
    """
    folder, name = os.path.split(os.fspath(path))
    lock = filelock.FileLock(os.path.join(folder, f".{name}.lock"))
    try:
        try:
            lock.acquire(blocking=False)
            files.remove_temporaries(folder, name)
        except filelock.Timeout:
            _LOG.info("%s is being written by another process", path)
            yield False
            return
        except (OSError, NotImplementedError) as error:
            _LOG.debug("%s cannot be locked: %s", path, error)
        yield True
    finally:
        lock.release()
