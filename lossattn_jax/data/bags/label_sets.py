"""Several labels of a bag: as an array, as sets, as text.

Of K labels those that bags have are an array `[bags, K]`. Labels of one class each are an array `[bags]`; the
number of axes is what tells the two apart everywhere.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.bags.invalid import InvalidInput

SEPARATOR = ";"  # of the labels of a bag in a cell


def has_several(labels: Any) -> bool:
    """Whether labels `[bags, K]` are several for each bag; False for `[bags]` and None."""
    return labels is not None and np.ndim(labels) == 2


def split_words(cell: str) -> tuple[str, ...]:
    """The different labels of a cell; that of a bag without any is the separator alone."""
    words = (word.strip() for word in cell.split(SEPARATOR))
    return tuple(dict.fromkeys(word for word in words if word))


def encode(sets: Sequence[Collection[Any]], classes: Sequence[Any]) -> np.ndarray:
    """`[bags, K]` int32: 1 for each of `classes` that a bag has, 0 for the others.

    Args:
      sets: the labels of each bag, all among `classes`.
      classes: K different labels.
    """
    place = {label: number for number, label in enumerate(classes)}
    encoded = np.zeros((len(sets), len(classes)), np.int32)
    for row, own in enumerate(sets):
        encoded[row, [place[label] for label in own]] = 1
    return encoded


def name(label: Any, classes: Sequence[Any]) -> Any:
    """A bag's label as the user knows it.

    Args:
      label: a place in `classes`; or `[K]`, 1 for each label that the bag has.
      classes: K labels.

    Returns:
      One of `classes`; of several labels the text of all, in the order of their words.
    """
    if np.ndim(label) == 0:
        return classes[int(label)]
    return as_text(classes[place] for place in np.flatnonzero(label).tolist())


def names(labels: Any, classes: Sequence[Any]) -> list[Any]:
    """Each bag's `name`, of labels `[bags]` or `[bags, K]`."""
    return [name(label, classes) for label in labels]


def find_lacking(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Finds labels that no bag of a part has, though others have them.

    Args:
      labels: `[bags]` places of classes, or `[bags, K]` 0 and 1.
      rows: `[bags]` bool, the part.

    Returns:
      Rising places in the classes.
    """
    if has_several(labels):
        return np.flatnonzero(labels.any(axis=0) & ~labels[rows].any(axis=0))
    return np.setdiff1d(labels, labels[rows])


def as_text(labels: Any) -> str:
    """The text of several labels, in the order of their words; of none as `split_words` takes it."""
    return SEPARATOR.join(sorted(map(str, labels))) or SEPARATOR


def find_sets(labels: Any) -> tuple[tuple[Any, ...], np.ndarray] | None:
    """Understands labels that a user gives `fit`, where they are several for each bag.

    Args:
      labels: a list with a tuple or a set of its labels for each bag; or an array `[bags, K]` of 0 and 1,
        whose labels then are the numbers of its columns.

    Returns:
      The K labels, sorted, and `[bags, K]` int32; None for labels of one class each.

    Raises:
      InvalidInput: an array has other values, there are fewer than two labels, or no bag has one of them.
    """
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.shape[1] > 1:
        if not np.isin(labels, (0, 1)).all():
            raise InvalidInput(
                "labels [bags, K] must be 1 for each label that a bag has, and 0 for others"
            )
        classes: tuple[Any, ...] = tuple(range(labels.shape[1]))
        encoded = labels.astype(np.int32)
    elif (
        isinstance(labels, list | tuple)
        and labels
        and all(isinstance(own, tuple | set | frozenset) for own in labels)
    ):
        classes = tuple(sorted({label for own in labels for label in own}))
        encoded = encode(labels, classes)
    else:
        return None
    if len(classes) < 2:
        raise InvalidInput(
            f"bags have the labels {', '.join(map(repr, classes)) or 'of no class'}, but there must be two"
        )
    absent = np.flatnonzero(~encoded.any(axis=0))
    if len(absent):
        raise InvalidInput(f"no bag has the label {classes[absent[0]]!r}; leave it out")
    return classes, encoded
