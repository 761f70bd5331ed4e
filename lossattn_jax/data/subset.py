"""Class-balanced parts of a training set."""

import numpy as np

from lossattn_jax.errors import UserError
from lossattn_jax.files import digests

# Keeps the draw apart from others that are made from the same seed.
_KEY = 0x5AB5E7


def labelled_subset(
    labels: np.ndarray, num_labels: int, num_classes: int, seed: int = 0
) -> np.ndarray:
    """Draws `num_labels` examples, equally many of every class.

    The draw is a pure function of the arguments, and a larger one of the same seed holds every
    smaller one. It makes the 1,000 and 5,000 labels of CIFAR-10 that the image experiments of the
    AAAI 2020 paper train on.

    Args:
      labels: int [N], the class of every example.
      num_labels: examples to draw.
      num_classes: number of classes K.
      seed: of the draw, 0 or more.

    Returns:
      int64 [num_labels], ascending places in the data set.

    Raises:
      UserError: `num_labels` is not a positive multiple of K, larger than the data set or more than
        a class can give, or the seed is negative.
      ValueError: labels that are not one number per example.
    """
    if labels.ndim != 1:
        raise ValueError(f"labels have to be [N], not of shape {labels.shape}")
    if num_labels < 1 or num_labels % num_classes:
        raise UserError(
            f"config.data.num_labels is {num_labels}, but must be 0 (all) or a positive multiple of "
            f"the number of classes, {num_classes}."
        )
    if num_labels > len(labels):
        raise UserError(
            f"config.data.num_labels is {num_labels}, but must be at most the number of training examples, "
            f"{len(labels)}."
        )
    if seed < 0:
        raise UserError(f"config.data.label_seed is {seed}, but must be 0 or more.")
    count = num_labels // num_classes
    parts = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise UserError(
                f"config.data.num_labels is {num_labels}, which takes {count} examples of each of the "
                f"{num_classes} classes, but class {label} has only {len(members)}."
            )
        entropy = np.random.SeedSequence([seed, label, _KEY])
        order = np.random.Generator(np.random.Philox(entropy)).permutation(members)
        parts.append(order[:count])
    return np.sort(np.concatenate(parts)).astype(np.int64, copy=False)


def digest_of_part(whole: str, indices: np.ndarray) -> str:
    """Digests a part of a data set.

    The part is at `indices` int64 [n], the data set's digest is `whole`.
    """
    return digests.of_json([whole, digests.of_array(indices.astype("<i8"))])
