"""Folds of cross-validation, and held-out bags of a training fold.

for numbers in draw_repeats(dataset.labels, folds=10, repeats=5, seed=0):
    for fold in range(10):
        train = np.flatnonzero(numbers != fold)
        validation = train[held_out(dataset.labels, train, share=0.1, seed=fold)]
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lossattn_jax.data.bags import multilabel_folds
from lossattn_jax.data.bags.label_sets import has_several
from lossattn_jax.errors import UserError

# Keeps the draw apart from others that are made from the same seed.
_HELD_OUT_KEY = 0x4E1D


def stratified_folds(labels: ArrayLike, folds: int, seed: int) -> np.ndarray:
    """Assigns bags to folds with nearly equal shares of each class.

    The folds are those of scikit-learn's `StratifiedKFold` with shuffling. Every fold has bags of every
    class: where a class has too few for that, scikit-learn warns and this refuses.

    Args:
      labels: `[bags]`, of any sortable type.
      folds: number of folds, 2 or more.
      seed: of the draw, 0 ... 2**32 - 1.

    Returns:
      `[bags]` int64 in [0, folds).

    Raises:
      UserError: fewer than 2 folds, fewer bags than folds, fewer bags of a class than folds, or a seed
        out of range.
    """
    labels = np.asarray(labels)
    if folds < 2:
        raise UserError(f"the number of folds is {folds}, but must be 2 or more")
    if len(labels) < folds:
        raise UserError(f"{len(labels)} bags cannot be split into {folds} folds; take fewer folds")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        rarest = int(np.argmin(counts))
        raise UserError(
            f"the label {classes[rarest].item()!r} has {counts[rarest]} of {len(labels)} bags, but must "
            f"have one for each of {folds} folds; take fewer folds or leave that class out"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed is {seed}, but must be from 0 to 2**32 - 1")
    numbers = np.empty(len(labels), np.int64)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    for fold, (_, test) in enumerate(splits):
        numbers[test] = fold
    return numbers


def grouped_folds(labels: ArrayLike, groups: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Assigns each group's bags to one fold, stratified by class.

    The folds are those of scikit-learn's `StratifiedGroupKFold` with shuffling. A fold may have no bag of a
    class that few groups have; every class has bags outside of each fold.

    Args:
      labels: `[bags]`, of any sortable type.
      groups: `[bags]`, such as patients.
      folds: number of folds, 2 or more.
      seed: of the draw, 0 ... 2**32 - 1.

    Returns:
      `[bags]` int64 in [0, folds).

    Raises:
      UserError: fewer than 2 folds, fewer groups than folds, a class of one group alone, a seed out of range,
        or a fold that would be empty or have all bags of a class.
    """
    labels, names = np.asarray(labels), np.asarray(groups)
    if folds < 2:
        raise UserError(f"the number of folds is {folds}, but must be 2 or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed is {seed}, but must be from 0 to 2**32 - 1")
    different = len(np.unique(names))
    if different < folds:
        raise UserError(
            f"{different} groups of bags cannot be split into {folds} folds; take fewer folds"
        )
    numbers = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of a class with fewer bags than folds: what matters follows
        try:
            for fold, (_, test) in enumerate(splitter.split(labels, labels, names)):
                numbers[test] = fold
        except ValueError:  # all classes have fewer bags than folds
            raise UserError(
                f"each label has fewer than {folds} of {len(labels)} bags, but one label must have one for "
                "each fold; take fewer folds"
            ) from None
    if len(np.unique(numbers)) < folds:
        raise UserError(
            f"{different} groups of bags leave one of {folds} folds empty; take fewer folds"
        )
    for label in np.unique(labels):
        inside = np.unique(numbers[labels == label])
        if len(inside) < 2:
            raise UserError(
                f"all bags with the label {label.item()!r} are in fold {inside[0]} of {folds}, since few "
                "groups have them, so that it would be trained without; take fewer folds or leave that "
                "class out"
            )
    return numbers


def draw_repeats(
    labels: ArrayLike, folds: int, repeats: int, seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Repeats of `stratified_folds`, or `grouped_folds`, with different draws.

    Args:
      labels: `[bags]`, of any sortable type; or `[bags, K]` 0 and 1, for folds of `multilabel_folds`.
      folds: number of folds, 2 or more.
      repeats: how many draws, 1 or more; more of them begin with the same ones.
      seed: 0 or more.
      groups: `[bags]`; None: each bag is by itself.

    Returns:
      `[repeats, bags]` int64 in [0, folds). Repeat r is a function of labels, groups, folds, seed and r only.

    Raises:
      UserError: as for these two, or fewer repeats than 1.
    """
    if repeats < 1:
        raise UserError(f"the number of repeats is {repeats}, but must be 1 or more")
    if seed < 0:
        raise UserError(f"the seed is {seed}, but must be 0 or more")
    seeds = [int(np.random.SeedSequence([seed, r]).generate_state(1)[0]) for r in range(repeats)]
    if has_several(labels):
        own = np.asarray(labels)
        return np.stack([multilabel_folds.draw_folds(own, folds, draw, groups) for draw in seeds])
    if groups is None:
        return np.stack([stratified_folds(labels, folds, draw) for draw in seeds])
    return np.stack([grouped_folds(labels, groups, folds, draw) for draw in seeds])


def held_out(
    labels: ArrayLike,
    train_rows: ArrayLike,
    share: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws a stratified part of the training bags to validate on.

    Of a class with n training bags, `share * n` are drawn, rounded to the nearest number (a half to the
    even one), but at least 1 and at most n - 1; none of a class with a single bag. Of groups, one of about
    `1 / share` of `grouped_folds` is drawn. Of several labels see `multilabel_folds.hold_out`.

    Args:
      labels: `[bags]` of the whole data set, of any sortable type; or `[bags, K]` 0 and 1.
      train_rows: `[n]` int, positions of the training bags.
      share: of them that are drawn, between 0 and 1.
      seed: 0 or more.
      groups: `[bags]` of the whole data set, none of which is divided; None: each bag is by itself.

    Returns:
      `[n]` bool: True for the drawn ones of `train_rows`. It follows from the arguments alone.

    Raises:
      UserError: share or seed out of range, or groups that cannot be divided.
    """
    if not 0 < share < 1:
        raise UserError(f"the share to hold out is {share}, but must be between 0 and 1")
    if seed < 0:
        raise UserError(f"the seed is {seed}, but must be 0 or more")
    rows = np.asarray(train_rows, np.int64)
    own = np.asarray(labels)[rows]
    if has_several(labels):
        draw = int(np.random.SeedSequence([seed, _HELD_OUT_KEY]).generate_state(1)[0])
        own_groups = None if groups is None else [groups[row] for row in rows]
        return multilabel_folds.hold_out(own, share, draw, own_groups)
    if groups is not None:
        return _held_out_groups(own, [groups[row] for row in rows], share, seed)
    generator = np.random.default_rng([seed, _HELD_OUT_KEY])
    is_held_out = np.zeros(len(own), bool)
    for label in np.unique(own):
        members = np.flatnonzero(own == label)
        if len(members) > 1:
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            is_held_out[generator.permutation(members)[:count]] = True
    return is_held_out


def _held_out_groups(
    labels: np.ndarray, groups: Sequence[str], share: float, seed: int
) -> np.ndarray:
    """Draws one of `1 / share` grouped folds, or of fewer."""
    draw = int(np.random.SeedSequence([seed, _HELD_OUT_KEY]).generate_state(1)[0])
    most = min(max(2, round(1 / share)), len(set(groups)))
    for folds in range(most, 1, -1):
        try:
            return grouped_folds(labels, groups, folds, draw) == 0
        except UserError:
            continue
    raise UserError(
        f"the {len(set(groups))} groups of the bags of a training cannot be divided to hold some out, so "
        "that every label has bags in both parts; take another rule than validation, or fewer folds"
    )
