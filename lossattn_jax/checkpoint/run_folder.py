"""The folder of a run (its workdir): its config and its lock."""

import contextlib
import errno
import logging
import os
import pathlib
import time
from collections.abc import Collection, Iterator

import filelock
import jax
from ml_collections import ConfigDict

from lossattn_jax import devices, files
from lossattn_jax.checkpoint import data_set_record
from lossattn_jax.config import config_json
from lossattn_jax.config.options import ImageOptions
from lossattn_jax.data import DatasetSpec
from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
LOCK_NAME = "workdir.lock"

# Seconds for which another host's file may be invisible: NFS caches for a minute that it was absent.
_UNSEEN_SECONDS = 90.0


def write_config(
    options: ImageOptions, workdir: pathlib.Path, spec: DatasetSpec | None = None
) -> None:
    """Stores a run's options in its folder, and its data set.

    The first process writes, the others wait for it.

    Raises:
      UserError: the folder cannot be written, or another process' folder is another one.
    """
    path = workdir / CONFIG_NAME
    if jax.process_index() == 0:
        with writing(workdir):
            if spec is not None:
                data_set_record.write(workdir, spec)
            config_json.write(options, path)
    devices.barrier("config written")
    until = time.monotonic() + _UNSEEN_SECONDS
    while not (exists := path.exists()) and time.monotonic() < until:
        time.sleep(0.5)
    if not exists:
        raise UserError(
            f"the workdir {workdir} has no {CONFIG_NAME} here, which process 0 has written: it must be one "
            "folder, on a file system that all hosts share"
        )


def make_workdir(workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder of a run where it is absent.

    Raises:
      UserError: it cannot be made.
    """
    folder = pathlib.Path(workdir)
    with writing(workdir):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def lock_workdir(folder: str | pathlib.Path, beside: bool = False) -> Iterator[None]:
    """Locks a folder against other commands within the context.

    All processes of a command have to come here. What killed processes have left of files is removed. Where
    the folder cannot be locked, a warning says so.

    Args:
      folder: that exists.
      beside: whether the lock's file is beside the folder, for one that may have no file of ours.

    Raises:
      UserError: another command has it.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    path = folder.with_name(f".{folder.name}.lock") if beside else folder / LOCK_NAME
    lock = filelock.FileLock(path)
    busy, failure = False, None
    # Asked alone, JAX would start a backend: a GPU's memory or a whole TPU for a command that needs none.
    several = jax.distributed.is_initialized()
    first = not several or jax.process_index() == 0
    if first:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            busy = True
        except (OSError, NotImplementedError) as error:
            failure = error
    try:
        if devices.anywhere(busy) if several else busy:
            raise UserError(
                f"{folder} is being written by another command already: wait for that to end, or use "
                "another folder"
            )
        if failure is not None:
            log.warning(
                "warning: %s cannot be locked (%s): take care that no second command writes it",
                folder,
                getattr(failure, "strerror", None) or failure,
            )
        elif first:
            files.remove_temporaries(folder)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def make_and_lock(folder: str | pathlib.Path) -> Iterator[None]:
    """Makes a folder where it is absent, and locks it; see `lock_workdir`.

    A new folder into which nothing is written goes again.

    Raises:
      OSError: it cannot be made, or no file in it.
      UserError: another command has it.
    """
    folder = pathlib.Path(folder)
    fresh = not os.path.lexists(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.check_writable(folder)
    with leave_no_lock(folder, fresh), lock_workdir(folder):
        yield


@contextlib.contextmanager
def leave_no_lock(folder: pathlib.Path, fresh: bool) -> Iterator[None]:
    """Removes a folder that in the end holds nothing but a lock.

    Args:
      folder: that exists.
      fresh: whether it was made for this command; others stay.
    """
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if fresh and jax.process_index() == 0 and os.listdir(folder) == [LOCK_NAME]:
                (folder / LOCK_NAME).unlink()
                folder.rmdir()


@contextlib.contextmanager
def writing(workdir: str | pathlib.Path) -> Iterator[None]:
    """Turns errors of writing in a folder into a sentence.

    Raises:
      UserError: an `OSError` was raised within.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.isdir(workdir):
            raise UserError(describe_move(workdir)) from None
        path = files.path_of(error)
        place = f" ({path})" if path not in (None, str(workdir)) else ""
        raise UserError(
            f"the workdir {workdir} cannot be written: {error.strerror or error}{place}"
        ) from None


def check_whole(workdir: str | pathlib.Path, *names: str) -> None:
    """Refuses to call a run finished where a file is gone.

    Args:
      workdir: of the run.
      names: of files in it, besides the config.

    Raises:
      UserError: one is not there.
    """
    for name in (CONFIG_NAME, *names):
        if not os.path.isfile(os.path.join(workdir, name)):
            raise UserError(
                f"the workdir {workdir} has lost its {name} while this command wrote in it; bring it back, "
                "or use another workdir"
            )


def describe_move(workdir: str | pathlib.Path) -> str:
    """Describes in a sentence that a folder was moved."""
    return (
        f"the workdir {workdir} was moved, removed or replaced while this command wrote in it; bring it back "
        "and run the command again to go on, or use another workdir"
    )


def config_digest(workdir: str | pathlib.Path) -> str | None:
    """Returns the digest of a run's config; None without one.

    It tells a run from others.
    """
    return config_json.read_digest(pathlib.Path(workdir) / CONFIG_NAME)


def stored_config(
    workdir: str | pathlib.Path, *, trust_code: bool | Collection[str] = False
) -> ConfigDict:
    """Reads the config stored beside a run's checkpoints.

    Args:
      workdir: folder of the run.
      trust_code: as `registry.refuse_untrusted` takes it.

    Raises:
      UntrustedCode: it names code by reference that is not trusted; nothing was imported.
      UserError: there is none, or it cannot be read.
    """
    return config_json.read(pathlib.Path(workdir) / CONFIG_NAME, trust_code=trust_code)
