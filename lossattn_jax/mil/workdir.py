"""The workdir of experiments with bags: its lock and its folders."""

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
    """A workdir, no other command's as long as this one is in it.

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
        self._locked = False
        self._held: files.HeldFolder | None = None

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
        """Makes the workdir and locks it, where it was not there at first.

        Returns:
          Whether that has been done now.

        Raises:
          UserError: it cannot be made, or another command writes it.
        """
        if self._locked:
            return False
        run_folder.make_workdir(self.path)
        self._lock()
        return True

    def folder_of(self, dataset: str) -> pathlib.Path:
        """The folder of a data set, which need not exist."""
        return self.path / files.safe_name(dataset, OWN_NAMES)

    def refuse_links(self, *folders: pathlib.Path) -> None:
        """Refuses folders in the workdir that lead elsewhere, or are none.

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
        """Makes a folder in the workdir; removes temporaries of killed commands.

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
        """Turns errors of writing in the workdir into a sentence.

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
        if self._held is not None and not self._held.is_there():
            raise UserError(run_folder.describe_move(self.path))

    def _lock(self) -> None:
        self._locked = True
        self.writable = os.access(self.path, os.W_OK | os.X_OK)
        if self.writable:
            self._resources.enter_context(run_folder.alone(self.path))
        try:
            self._held = files.HeldFolder(self.path)
        except OSError as error:
            raise UserError(f"the workdir {self.path} cannot be read: {error.strerror}") from None
        self._resources.callback(self._held.close)
