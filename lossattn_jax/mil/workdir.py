"""Workdirs of experiments with bags: lock and folders."""

import contextlib
import logging
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Self

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

TABLE_NAME = "table.md"
# Of the workdir itself; no data set's folder may be called so.
OWN_NAMES = (run_folder.CONFIG_NAME, TABLE_NAME, run_folder.LOCK_NAME)


class Workdir:
    """A workdir, locked against other commands while it is open.

        with Workdir("runs/mil") as workdir:
            workdir.make()
            folder = workdir.make_folder(workdir.folder_of("musk1"), "mi_svm", "final")
            with workdir.writing():
                files.write(folder / "summary.json", content)
            workdir.refuse_moved()

    A workdir that is there already is locked at once, an absent one when it is made.

    Attributes:
      path: of the workdir, which may be a symbolic link; what is in it may not.
      writable: whether files can be made in it; so is what is still to be made.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.writable = True
        self._resources = contextlib.ExitStack()
        self._is_locked = False
        self._folder: files.HeldFolder | None = None

    def __enter__(self) -> Self:
        try:
            if os.path.isdir(self.path):
                self._lock()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def make(self) -> bool:
        """Makes and locks the workdir where it was absent.

        Returns:
          Whether that has been done now.

        Raises:
          UserError: it cannot be made, or another command writes it.
        """
        if self._is_locked:
            return False
        run_folder.make_workdir(self.path)
        self._lock()
        return True

    def folder_of(self, dataset: str) -> pathlib.Path:
        """Returns the folder of a data set, which need not exist."""
        return self.path / files.safe_name(dataset, OWN_NAMES)

    def refuse_links(self, *folders: pathlib.Path) -> None:
        """Refuses symbolic links and files in place of folders.

        Raises:
          UserError: one of them, or of those that it is in up to the workdir, is a symbolic link or a file.
        """
        for folder in folders:
            for part in reversed((folder, *folder.parents)):
                if self.path not in part.parents:
                    continue
                try:
                    mode = os.lstat(part).st_mode
                except (FileNotFoundError, NotADirectoryError):
                    break
                if not stat.S_ISDIR(mode):
                    what = "symbolic link" if stat.S_ISLNK(mode) else "file"
                    raise UserError(
                        f"{part} is a {what}, but must be a folder for results; remove it, or use another "
                        "workdir"
                    )

    def make_folder(self, folder: pathlib.Path, *parts: str) -> pathlib.Path:
        """Makes a folder in the workdir; removes killed commands' temporaries.

        Args:
          folder: in the workdir.
          parts: names of folders in it, one in the other.

        Returns:
          The innermost one.

        Raises:
          UserError: it cannot be made, or as of `refuse_links` and `refuse_moved`.
        """
        inner = folder.joinpath(*parts)
        self.refuse_links(inner)
        with self.writing():
            for part in reversed((inner, *inner.parents)):
                if self.path in part.parents:
                    part.mkdir(exist_ok=True)
                    files.remove_temporaries(part)
        return inner

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns errors of writing in the workdir into a `UserError`.

        Raises:
          UserError: an `OSError` was raised within, or as of `refuse_moved`.
        """
        self.refuse_moved()
        with run_folder.writing(self.path):
            yield

    def refuse_moved(self) -> None:
        """Refuses to go on where the workdir was moved or replaced.

        Raises:
          UserError: it does.
        """
        if self._folder is not None and not self._folder.is_there():
            raise UserError(run_folder.describe_move(self.path))

    def _lock(self) -> None:
        self._is_locked = True
        self.writable = os.access(self.path, os.W_OK | os.X_OK)
        if self.writable:
            self._resources.enter_context(run_folder.lock_workdir(self.path))
        try:
            self._folder = files.HeldFolder(self.path)
        except OSError as error:
            raise UserError(f"the workdir {self.path} cannot be read: {error.strerror}") from None
        self._resources.callback(self._folder.close)
