"""Splits of bags into training and test, for each repeat and fold."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lossattn_jax.data.bags import folds
from lossattn_jax.data.bags.label_sets import find_lacking
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.errors import UserError

LEAVE_ONE_GROUP_OUT = "leave_one_group_out"


@dataclasses.dataclass(frozen=True)
class Split:
    """One training and its test.

    Attributes:
      repeat, fold: from 0.
      train, test: `[bags]` bool.
      validation: `[bags]` bool, bags to choose epochs and settings on and never to train on; None: they are
        drawn from those of the training.
    """

    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray
    validation: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Name for files."""
        return f"repeat{self.repeat}_fold{self.fold}"

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The parts that there are, by their names."""
        parts = {"train": self.train, "test": self.test}
        return parts if self.validation is None else {**parts, "validation": self.validation}

    @property
    def used(self) -> np.ndarray:
        """`[bags]` bool: bags of any part."""
        return np.logical_or.reduce(list(self.parts.values()))


def cross_validation(
    dataset: PlacedBags, num_folds: int, repeats: int, seed: int
) -> tuple[Split, ...]:
    """Draws stratified folds for each repeat.

    Bags of a group are in one fold.

    Args:
      dataset: the bags.
      num_folds: of a repeat; each bag is tested once in it.
      repeats: how many.
      seed: repeat r depends on (seed, r) only.

    Raises:
      UserError: fewer bags, groups, or bags of a class, than folds; see `folds.grouped_folds`.
    """
    numbers = folds.draw_repeats(dataset.labels, num_folds, repeats, seed, dataset.groups)
    return tuple(
        Split(repeat, fold, numbers[repeat] != fold, numbers[repeat] == fold)
        for repeat in range(repeats)
        for fold in range(num_folds)
    )


def leave_one_group_out(dataset: PlacedBags, repeats: int) -> tuple[Split, ...]:
    """A fold for each group, in the order of their first bags.

    Args:
      dataset: the bags.
      repeats: of the trainings, from other seeds; all have the same folds.

    Raises:
      UserError: bags have no groups or a single one, or a class is in one group alone.
    """
    if dataset.groups is None:
        raise UserError(
            f"--folds={LEAVE_ONE_GROUP_OUT} tests each group of bags once, but those of {dataset.name} have "
            "no groups; --group_column says which column has them"
        )
    place = {group: number for number, group in enumerate(dict.fromkeys(dataset.groups))}
    return own_folds(dataset, np.array([place[group] for group in dataset.groups]), repeats)


def own_folds(dataset: PlacedBags, numbers: np.ndarray, repeats: int) -> tuple[Split, ...]:
    """The folds that a user has assigned.

    Args:
      dataset: the bags.
      numbers: `[bags]` int, of the fold in which a bag is tested; from 0, not necessarily all.
      repeats: of the trainings, from other seeds; all have the same folds.

    Raises:
      UserError: there is one fold only, a group is in several, or all bags of a class are in one.
    """
    different = np.unique(numbers)
    if len(different) < 2:
        raise UserError(
            f"all bags of {dataset.name} are in the fold {different[0]}, but there must be two folds"
        )
    splits = tuple(
        Split(repeat, int(fold), numbers != fold, numbers == fold)
        for repeat in range(repeats)
        for fold in different
    )
    return _checked(dataset, splits)


def own_split(dataset: PlacedBags, words: Sequence[str], repeats: int) -> tuple[Split, ...]:
    """The split that a user has made.

    Args:
      dataset: the bags.
      words: for each bag "train", "validation" or "test"; none has to be "validation".
      repeats: of the training, from other seeds.

    Raises:
      UserError: there is no bag to train on or to test, a group is in several parts, or a class is not among
        the training's.
    """
    parts = {
        part: np.array([word == part for word in words]) for part in ("train", "validation", "test")
    }
    for part in ("train", "test"):
        if not parts[part].any():
            raise UserError(
                f"no bag of {dataset.name} is in the split {part!r}, but some must be trained on and "
                "some tested"
            )
    if not parts["validation"].any():
        parts.pop("validation")
    return _checked(dataset, tuple(Split(repeat, 0, **parts) for repeat in range(repeats)))


def _checked(dataset: PlacedBags, splits: tuple[Split, ...]) -> tuple[Split, ...]:
    """Splits, none of which divides a group or trains without a class.

    Raises:
      UserError: one does.
    """
    groups = None if dataset.groups is None else np.array(dataset.groups)
    for split in splits:
        if split.repeat:
            continue  # has the same parts as the first
        lacking = find_lacking(dataset.labels, split.train)
        if len(lacking):
            raise UserError(
                f"no bag that fold {split.fold} of {dataset.name} is trained on has the label "
                f"{dataset.classes[lacking[0]]!r}, but every label must be among them"
            )
        if groups is None:
            continue
        owners: dict[str, str] = {}
        for part, rows in split.parts.items():
            for group in np.unique(groups[rows]).tolist():
                if owners.setdefault(group, part) != part:
                    raise UserError(
                        f"the group {group!r} of {dataset.name} has bags for {owners[group]} and for {part} "
                        f"in fold {split.fold}, but must be in one part; --group_column= says that there "
                        "are no groups"
                    )
    return splits
