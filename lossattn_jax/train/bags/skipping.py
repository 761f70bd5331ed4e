"""Updates of networks for bags that were skipped because they were not finite: counted, and told of.

`steps.Steps.epochs_again` skips them on the devices, and here the host looks at what it said.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from lossattn_jax.data.bags.bags import BagDataset

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Place:
    """An update of a model.

    Attributes:
      model: its number.
      epoch: from 0.
      updates: of the model in this epoch before it.
      rows: the bags that it was made of.
    """

    model: int
    epoch: int
    updates: int
    rows: tuple[int, ...]


class Skips:
    """What M models have skipped.

    Attributes:
      total: `[M]` int32, skipped updates.
      in_a_row: `[M]` int32, those since the last update that was made.
      label: what messages call the training.
      first: for each model, the first of those that are in a row; None: the last update was made.
    """

    def __init__(self, dataset: BagDataset, train: np.ndarray, names: Sequence[str], label: str):
        """Nothing yet.

        Args:
          dataset: the bags.
          train: `[M, bags]` bool, the bags that each model is trained on.
          names: M, of the models; empty where one has none.
          label: what messages call the training.
        """
        self.total = np.zeros(len(train), np.int32)
        self.in_a_row = np.zeros(len(train), np.int32)
        self.first: list[Place | None] = [None] * len(train)
        self._dataset, self._train, self._names = dataset, train, names
        self.label = label or "a training of bags"

    def none(self) -> None:
        """Takes note of epochs without a skipped update."""
        self.in_a_row[:] = 0
        self.first = [None] * len(self.first)

    def stuck(self, most: int) -> int | None:
        """The first model with `most` skipped updates in a row; None: there is none."""
        models = np.flatnonzero(self.in_a_row >= most)
        return int(models[0]) if len(models) else None

    def add(self, skipped: np.ndarray, order: np.ndarray, epochs: np.ndarray) -> None:
        """Takes note of epochs, and warns of what was skipped in them.

        Args:
          skipped: `[M, epochs, steps]` bool.
          order: `[epochs, steps, batch_size]` int, the bags of each step, -1 for none.
          epochs: `[epochs]` int, their numbers, from 0.
        """
        places = []
        for model in range(len(skipped)):
            seen = self._train[model][np.maximum(order, 0)] & (order >= 0)
            flat, active = skipped[model].ravel(), seen.any(axis=-1).ravel()
            made = np.flatnonzero(active & ~flat)
            since = np.flatnonzero(flat)
            if len(since):
                place = self._place(model, int(since[0]), seen, order, epochs)
                places.append((int(since[0]), int(flat.sum()), place))
            if len(made):
                self.in_a_row[model], self.first[model] = 0, None
                since = since[since > made[-1]]
            if len(since) and self.first[model] is None:
                self.first[model] = self._place(model, int(since[0]), seen, order, epochs)
            self.total[model] += flat.sum()
            self.in_a_row[model] += len(since)
        if places:
            span = sorted({int(epochs[0]) + 1, int(epochs[-1]) + 1})
            _, _, place = min(places, key=lambda found: found[0])
            log.warning(
                "warning: %s: %d updates of %d of %d models were skipped in %s because loss or gradient was "
                "not finite (first %s)",
                self.label,
                sum(count for _, count, _ in places),
                len(places),
                len(skipped),
                f"epoch{'s' if len(epochs) > 1 else ''} {'-'.join(map(str, span))}",
                self.told(place),
            )

    def told(self, place: Place) -> str:
        """An update in words: "of model 3 (repeat0_fold3) after 12 updates in epoch 2 on the bag m7"."""
        name = f" ({self._names[place.model]})" if self._names[place.model] else ""
        ids = [self._dataset.ids[row] for row in place.rows]
        return (
            f"of model {place.model}{name} after {place.updates} updates in epoch {place.epoch + 1} on the "
            f"bag{'s' if len(ids) > 1 else ''} {', '.join(ids)}"
        )

    def _place(
        self, model: int, step: int, seen: np.ndarray, order: np.ndarray, epochs: np.ndarray
    ) -> Place:
        epoch, step = divmod(step, order.shape[1])
        rows = order[epoch, step][seen[epoch, step]]
        before = seen[epoch, :step].any(axis=-1)
        return Place(model, int(epochs[epoch]), int(before.sum()), tuple(rows.tolist()))
