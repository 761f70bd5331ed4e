"""Splits of bags into training and test, for each repeat and fold."""

import dataclasses

import numpy as np

from lossattn_jax.data.bags import folds
from lossattn_jax.data.bags.bags import BagDataset


@dataclasses.dataclass(frozen=True)
class Split:
    """One training and its test.

    Attributes:
      repeat, fold: from 0.
      train, test: `[bags]` bool.
    """

    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray

    @property
    def name(self) -> str:
        """Name for files."""
        return f"repeat{self.repeat}_fold{self.fold}"


def cross_validation(
    dataset: BagDataset, num_folds: int, repeats: int, seed: int
) -> tuple[Split, ...]:
    """Makes stratified folds, drawn anew for each repeat.

    Args:
      dataset: the bags.
      num_folds: of a repeat; each bag is tested once in it.
      repeats: how many.
      seed: repeat r depends on (seed, r) only.

    Raises:
      UserError: fewer bags, or bags of a class, than folds.
    """
    numbers = folds.draw_repeats(dataset.labels, num_folds, repeats, seed)
    return tuple(
        Split(repeat, fold, numbers[repeat] != fold, numbers[repeat] == fold)
        for repeat in range(repeats)
        for fold in range(num_folds)
    )
