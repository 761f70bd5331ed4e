"""Rules of selection: how epoch and settings of a fold are chosen."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_expit, log_softmax

from lossattn_jax.data.bags import folds
from lossattn_jax.data.bags.label_sets import has_several
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.data.order import derive_seed
from lossattn_jax.errors import UserError
from lossattn_jax.registry import lookup
from lossattn_jax.train.bags.settings import PER_MODEL

FINAL, VALIDATION, BEST_TEST = "final", "validation", "best_test_epoch"

LOSS = "loss"  # by which epochs are compared, as
ACCURACY = "accuracy"

# Rule: what it does, for the log and for tables.
RULES = {
    FINAL: "the last epoch, and default settings",
    VALIDATION: "epoch and settings chosen on part of the training fold, then trained on all of it",
    BEST_TEST: "OPTIMISTIC: the best epoch or settings on the test fold itself, as the public code does",
}


@dataclasses.dataclass(frozen=True)
class Validation:
    """Settings of the rule `VALIDATION`.

    Attributes:
      share: of the training fold's bags that are held out.
      splits: how many times, each with bags drawn anew; the accuracies are averaged. Bags that a user has
        set aside for validation are taken once instead.
      grid: values to try for settings of networks, of those that `settings.PER_MODEL` names; every
        combination is tried, besides the default.
      patience: epochs without a better one after which a training ends; 0: it has all epochs.
      metric: of `METRICS` the one by which epochs are compared; None: "loss" with patience, else "accuracy".
    """

    share: float = 0.2
    splits: int = 1
    grid: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    patience: int = 0
    metric: str | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values with a `UserError`."""
        if not 0 < self.share < 1:
            raise UserError(f"validation share is {self.share}, but must be between 0 and 1")
        if self.splits < 1:
            raise UserError(f"validation splits is {self.splits}, but must be 1 or more")
        if self.patience < 0:
            raise UserError(f"validation patience is {self.patience}, but must be 0 or more")
        lookup("validation metric", self.compared_by, METRICS)
        for name in self.grid:
            if name not in PER_MODEL:
                raise UserError(f"validation cannot try {name}; it can: {', '.join(PER_MODEL)}")

    @property
    def compared_by(self) -> str:
        """The one of `METRICS` by which epochs are compared."""
        return self.metric or (LOSS if self.patience else ACCURACY)

    def end_of(self, accuracy: np.ndarray, loss: np.ndarray) -> int | None:
        """The epoch, from 1, after which a training ends: `patience` epochs after its best one.

        Args:
          accuracy, loss: `[epochs]` of the held-out bags after each epoch, as far as they are known.

        Returns:
          None where it has not ended yet.
        """
        if not self.patience:
            return None
        best = 0
        ranks = METRICS[self.compared_by](accuracy, loss)
        for epoch, rank in enumerate(ranks):
            if rank < ranks[best]:
                best = epoch
            elif epoch - best >= self.patience:
                return epoch + 1
        return None

    def best(self, accuracy: np.ndarray, loss: np.ndarray) -> tuple[Any, ...]:
        """The index of the best of several settings and epochs.

        Args:
          accuracy, loss: `[settings, epochs]`; what comes after a training's end does not count.
        """
        ranks = METRICS[self.compared_by](accuracy, loss).astype(np.float64)
        for number in range(len(ranks)):
            end = self.end_of(accuracy[number], loss[number])
            ranks[number, ranks.shape[1] if end is None else end :] = np.inf
        return _first_lowest(ranks)

    def overrides(self) -> tuple[dict[str, float], ...]:
        """Returns the settings to try; the default, {}, comes first."""
        names = [name for name, values in self.grid.items() if values]
        product = itertools.product(*(self.grid[name] for name in names))
        combinations = [dict(zip(names, values, strict=True)) for values in product if values]
        return ({}, *combinations)

    def parts(self, dataset: PlacedBags, split: Split, seed: int) -> list[np.ndarray]:
        """Finds the bags to choose on, `[bags]` bool for each time.

        Args:
          dataset: the bags.
          split: the fold; where it has bags for validation, these are taken, once.
          seed: of the fold.
        """
        if split.validation is not None:
            return [split.validation]
        return [
            self.held_out(dataset.labels, split.train, number, seed, dataset.groups)
            for number in range(self.splits)
        ]

    def held_out(
        self,
        labels: np.ndarray,
        train: np.ndarray,
        split: int,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Draws the held-out bags of a training fold, `[bags]` bool.

        Args:
          labels: `[bags]` int.
          train: `[bags]` bool, the training fold.
          split: from 0.
          seed: of the fold.
          groups: `[bags]`, none of which is divided; None: each bag is by itself.
        """
        rows = np.flatnonzero(train)
        in_draw = folds.held_out(labels, rows, self.share, derive_seed(seed, split), groups)
        mask = np.zeros(len(labels), bool)
        mask[rows[in_draw]] = True
        return mask


def refuse_patience(names: Sequence[str], patience: int) -> None:
    """Refuses patience without the rule that it is for, with a `UserError`."""
    if patience and VALIDATION not in names:
        raise UserError(
            f"--patience is {patience}, but only held-out bags can say when a training is to end: add "
            f"--select={VALIDATION}, or leave it out"
        )


def check_rules(names: tuple[str, ...]) -> None:
    """Refuses an unknown rule with a `UserError`."""
    for name in names:
        if name not in RULES:
            raise UserError(f"the rule {name!r} is not known; allowed are {', '.join(RULES)}")


def accuracy_and_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean accuracy and loss over bags.

    Args:
      logits: `[..., bags, K]`.
      labels: `[bags]` int; or `[bags, K]`, 1 for each label that a bag has.

    Returns:
      Two float64 arrays `[...]`; the loss is the cross-entropy in nats. Of several labels the accuracy is the
      share of labels that are predicted rightly, and the loss the sum of the labels' own. A bag whose logits
      are not finite counts as wrong, and its loss may be NaN, which is never the lowest.
    """
    finite = np.isfinite(logits).all(axis=-1)
    if has_several(labels):
        signs = np.where(labels > 0, 1.0, -1.0)
        own = (((logits > 0) == (labels > 0)).mean(axis=-1) * finite).mean(axis=-1)
        return own, -log_expit(signs * logits.astype(np.float64)).sum(axis=-1).mean(axis=-1)
    with np.errstate(invalid="ignore"):  # of infinite logits
        logs = log_softmax(logits.astype(np.float64), axis=-1)
    own_logs = np.take_along_axis(
        logs, np.broadcast_to(labels, logs.shape[:-1])[..., None], axis=-1
    )
    right = (np.argmax(logits, axis=-1) == labels) & finite
    return right.mean(axis=-1), -own_logs[..., 0].mean(axis=-1)


def _rank(*keys: np.ndarray) -> np.ndarray:
    """Ranks values by several keys, the first of which counts most; equal ones have the same rank.

    Args:
      keys: arrays of one shape; what is not a number is as if it were infinite.

    Returns:
      Of that shape int64, 0 for the lowest.
    """
    rows = np.stack([np.nan_to_num(key, nan=np.inf, posinf=np.inf).ravel() for key in keys], axis=1)
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(keys[0].shape)


# By which epochs are compared: of accuracies and losses of one shape their ranks, the best one's is 0.
METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    LOSS: lambda accuracy, loss: _rank(loss, -accuracy),
    ACCURACY: lambda accuracy, loss: _rank(-accuracy, loss),
}


def best(accuracy: np.ndarray, loss: np.ndarray) -> tuple[Any, ...]:
    """Finds the index of highest accuracy, then lowest loss.

    Of equal ones it is the first.
    """
    return _first_lowest(METRICS[ACCURACY](accuracy, loss))


def _first_lowest(ranks: np.ndarray) -> tuple[Any, ...]:
    return np.unravel_index(np.argmin(ranks), ranks.shape)
