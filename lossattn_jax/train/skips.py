"""Skipped updates of a training: counts, warnings, and its end."""

import logging
import pathlib
from collections.abc import Callable
from typing import Generic, TypeVar

import jax
import numpy as np

from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

P = TypeVar("P")  # what names an update; its text is how sentences call it


class Skips(Generic[P]):
    """Counts the skipped non-finite updates of M models.

    Attributes:
      total: `[M]` int32, skipped updates.
      in_a_row: `[M]` int32, those since the last update that was applied.
      first: for each model, the first of those in a row; None: the last update was applied.
    """

    def __init__(self, models: int, max_skipped: int, label: str = ""):
        """Starts with no skipped update.

        Args:
          models: M.
          max_skipped: updates in a row at which a training ends.
          label: what messages call the training; empty where it is the only one.
        """
        self.total = np.zeros(models, np.int32)
        self.in_a_row = np.zeros(models, np.int32)
        self.first: list[P | None] = [None] * models
        self._max_skipped = max_skipped
        self._label = f"{label}: " if label else ""

    def clear_rows(self) -> None:
        """Notes that every model's last update was applied."""
        self.in_a_row[:] = 0
        self.first = [None] * len(self.first)

    def add(
        self, model: int, skip_mask: np.ndarray, active: np.ndarray, update: Callable[[int], P]
    ) -> None:
        """Counts the skipped updates of a model's next steps.

        Args:
          model: its number.
          skip_mask: `[steps]` bool, the updates that were skipped.
          active: `[steps]` bool, the steps in which the model has an update.
          update: names the update of a step.
        """
        steps_taken, row = np.flatnonzero(active & ~skip_mask), np.flatnonzero(skip_mask)
        self.total[model] += len(row)
        if len(steps_taken):
            self.in_a_row[model], self.first[model] = 0, None
            row = row[row > steps_taken[-1]]
        if len(row) and self.first[model] is None:
            self.first[model] = update(int(row[0]))
        self.in_a_row[model] += len(row)

    def set_row(self, model: int, in_a_row: int, first: P) -> None:
        """Sets a model's count of skipped updates in a row.

        Args:
          model: its number.
          in_a_row: updates skipped in a row, up to the last one.
          first: names the first of them.
        """
        self.in_a_row[model] = in_a_row
        self.first[model] = first if in_a_row else None

    def stuck_model(self) -> int | None:
        """Finds the first model with too many skips in a row.

        None: there is none.
        """
        models = np.flatnonzero(self.in_a_row >= self._max_skipped)
        return int(models[0]) if len(models) else None

    def warn(self, count: int, of: str, first: P, when: str = "") -> None:
        """Warns of skipped updates, in the first process.

        Args:
          count: of them.
          of: which ones, as in "of the last 50 updates".
          first: names the first of them.
          when: the epochs that they are of, as in " in epoch 3".
        """
        if jax.process_index() == 0:
            log.warning(
                "warning: %s%d %s were skipped%s because loss or gradient was not finite (first %s)",
                self._label,
                count,
                of,
                when,
                first,
            )

    def error(
        self,
        model: int,
        remedy: str,
        write: Callable[[pathlib.Path], None],
        folder: pathlib.Path | None,
    ) -> UserError:
        """Makes the error that ends a training; dumps the first update.

        A full disk must not hide why a training ends.

        Args:
          model: one with too many skipped updates in a row.
          remedy: a main clause that says what may help.
          write: writes the dump into a folder; raises UserError.
          folder: of the dump; None: nothing is written.
        """
        replay = ""
        if folder is not None:
            try:
                write(folder)
                replay = (
                    f"python -m lossattn_jax.replay --dump={folder} says what was not finite, and "
                )
            except UserError as error:
                replay = f"to replay it nothing was kept ({error}), and "
        return UserError(
            f"{self._label}the loss or its gradient was not finite in {self._max_skipped} updates in a "
            f"row, the first {self.first[model]}: {replay}{remedy}"
        )
