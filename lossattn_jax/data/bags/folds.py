"""Folds of cross-validation, and held-out bags of a training fold.

for numbers in draw_repeats(dataset.labels, folds=10, repeats=5, seed=0):
    for fold in range(10):
        train = np.flatnonzero(numbers != fold)
        validation = train[held_out(dataset.labels, train, share=0.1, seed=fold)]
"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedKFold

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


def draw_repeats(labels: ArrayLike, folds: int, repeats: int, seed: int) -> np.ndarray:
    """Draws `stratified_folds` several times.

    Args:
      labels: `[bags]`, of any sortable type.
      folds: number of folds, 2 or more.
      repeats: how many draws, 1 or more; more of them begin with the same ones.
      seed: 0 or more.

    Returns:
      `[repeats, bags]` int64 in [0, folds). Repeat r is a function of labels, folds, seed and r only.

    Raises:
      UserError: as for `stratified_folds`, or fewer repeats than 1.
    """
    if repeats < 1:
        raise UserError(f"the number of repeats is {repeats}, but must be 1 or more")
    if seed < 0:
        raise UserError(f"the seed is {seed}, but must be 0 or more")
    seeds = [int(np.random.SeedSequence([seed, r]).generate_state(1)[0]) for r in range(repeats)]
    return np.stack([stratified_folds(labels, folds, draw) for draw in seeds])


def held_out(labels: ArrayLike, train_rows: ArrayLike, share: float, seed: int) -> np.ndarray:
    """Draws a stratified part of the training bags for validation.

    Of a class with n training bags, `share * n` are drawn, rounded to the nearest number (a half to the
    even one), but at least 1 and at most n - 1; none of a class with a single bag.

    Args:
      labels: `[bags]` of the whole data set, of any sortable type.
      train_rows: `[n]` int, positions of the training bags.
      share: of them that are drawn, between 0 and 1.
      seed: 0 or more.

    Returns:
      `[n]` bool: True for the drawn ones of `train_rows`. It follows from the arguments alone.

    Raises:
      UserError: share or seed out of range.
    """
    if not 0 < share < 1:
        raise UserError(f"the share to hold out is {share}, but must be between 0 and 1")
    if seed < 0:
        raise UserError(f"the seed is {seed}, but must be 0 or more")
    own = np.asarray(labels)[np.asarray(train_rows, np.int64)]
    generator = np.random.default_rng([seed, _HELD_OUT_KEY])
    is_held_out = np.zeros(len(own), bool)
    for label in np.unique(own):
        members = np.flatnonzero(own == label)
        if len(members) > 1:
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            is_held_out[generator.permutation(members)[:count]] = True
    return is_held_out
