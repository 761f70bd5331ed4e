"""Folds of bags with several labels, so that each fold has nearly its share of every label.

By iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label
data"): again and again the label is taken that the fewest units have which are still to be assigned, and
each of these goes where most is missing of that label. So rare labels, which leave the least choice, come
first. A unit is a bag, or a group of bags.
"""

from collections.abc import Sequence

import numpy as np

from lossattn_jax.data.bags.label_sets import find_lacking
from lossattn_jax.errors import UserError


def assign(
    labels: np.ndarray, shares: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Assigns bags to parts.

    Args:
      labels: `[bags, K]` 0 and 1.
      shares: of all bags that each part is to have; they sum to 1.
      seed: of the draw, 0 or more.
      groups: `[bags]`, none of which is divided; None: each bag is by itself.

    Returns:
      `[bags]` int64, the number of each bag's part; a function of the arguments alone.
    """
    units = np.arange(len(labels))
    if groups is not None:
        units = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(units.max()) + 1
    sizes = np.bincount(units, minlength=count).astype(np.float64)
    having = np.zeros((count, labels.shape[1]))
    np.add.at(having, units, labels)
    part = np.asarray(shares, np.float64)
    missing = part[:, None] * having.sum(axis=0)  # [parts, K]
    room = part * sizes.sum()
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    ties = generator.permutation(len(part))
    numbers = np.full(count, -1, np.int64)

    def put(unit: int, wanted: np.ndarray) -> None:
        """Puts a unit where most is wanted, of equal ones where most room is."""
        best = np.lexsort((ties, -room, -wanted))[0]
        numbers[unit] = best
        missing[best] -= having[unit]
        room[best] -= sizes[unit]

    while True:
        open_units = numbers < 0
        holders = (having[open_units] > 0).sum(axis=0)
        if not holders.any():
            break
        label = int(np.argmin(np.where(holders > 0, holders, np.inf)))
        members = [unit for unit in order if open_units[unit] and having[unit, label]]
        for unit in sorted(
            members, key=lambda unit: -having[unit, label]
        ):  # which keeps the order of others
            put(unit, missing[:, label])
    for unit in sorted(
        (unit for unit in order if numbers[unit] < 0), key=lambda unit: -sizes[unit]
    ):
        put(unit, room)
    return numbers[units]


def draw_folds(
    labels: np.ndarray, folds: int, seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Assigns bags to folds of about equal size.

    Args:
      labels: `[bags, K]` 0 and 1.
      folds: number of folds, 2 or more.
      seed: of the draw.
      groups: as of `assign`.

    Returns:
      `[bags]` int64 in [0, folds). Every label has bags outside of each fold.

    Raises:
      UserError: fewer than 2 folds, fewer bags or groups than folds, an empty fold, or all bags of a label in
        one.
    """
    if folds < 2:
        raise UserError(f"the number of folds is {folds}, but must be 2 or more")
    units = len(labels) if groups is None else len(set(groups))
    what = "bags" if groups is None else "groups of bags"
    numbers = assign(labels, [1 / folds] * folds, seed, groups) if units >= folds else np.zeros(1)
    if len(np.unique(numbers)) < folds:
        raise UserError(f"{units} {what} cannot be split into {folds} folds; take fewer folds")
    refuse_lost_labels(labels, numbers)
    return numbers


def refuse_lost_labels(labels: np.ndarray, numbers: np.ndarray) -> None:
    """Refuses folds one of which has all bags of a label, with a `UserError`.

    Args:
      labels: `[bags, K]` 0 and 1.
      numbers: `[bags]` of their folds.
    """
    for place, own in enumerate(labels.T):
        inside = np.unique(numbers[own > 0])
        if len(inside) == 1:
            raise UserError(
                f"all bags with the label in place {place} (counted from 0) are in fold {inside[0]}, since "
                f"{np.count_nonzero(own)} of {len(own)} bags have it, so that it would be trained without; "
                "leave that label out"
            )


def hold_out(
    labels: np.ndarray, share: float, seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Draws bags to hold out of a training.

    Args:
      labels: `[bags, K]` 0 and 1, of the training's bags.
      share: of them that are held out.
      seed: of the draw.
      groups: as of `assign`.

    Returns:
      `[bags]` bool. Of a label that two units have or more, some bag is left.

    Raises:
      UserError: one of the two parts has no bag, or not a bag of a label is left.
    """
    is_held_out = assign(labels, [1 - share, share], seed, groups) == 1
    others = ~is_held_out
    if others.all() or not others.any() or len(find_lacking(labels, others)):
        raise UserError(
            f"the {len(labels)} bags of a training cannot be divided to hold some out, so that every label "
            "has bags among the others; take another rule than validation, or another "
            "config.validation.share"
        )
    return is_held_out
