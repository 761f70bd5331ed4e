"""Class-balanced parts of a training set."""

import numpy as np

from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.registry import lookup

HELD_OUT = "held_out"  # the split of training images that are tested on in place of the test images
SPLITS = ("train", "test", HELD_OUT)

# Keep the draws apart from each other, and from others that are made from the same seed.
_LABELS_KEY = 0x5AB5E7
_HELD_OUT_KEY = 0x4E1D
_OF_ZERO = {"num_labels": "all", HELD_OUT: "none"}


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
    return _draw(labels, "num_labels", num_labels, num_classes, _LABELS_KEY, seed=seed)


def places_of_split(
    labels: np.ndarray,
    split: str,
    num_classes: int,
    *,
    held_out: int = 0,
    num_labels: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Places in the training images of what a split takes of them.

    The split "held_out" is drawn as a `labelled_subset` of its own; "train" is drawn from what it leaves.
    Both follow from the arguments alone.

    Args:
      labels: int [N], the class of every training example.
      split: "train" or "held_out".
      num_classes: number of classes K.
      held_out: examples of "held_out", a multiple of K; 0: none.
      num_labels: examples of "train", a multiple of K; 0: all others.
      seed: of both draws.

    Returns:
      int64 [n], ascending.

    Raises:
      UserError: a number that cannot be drawn, or nothing would be left to train on.
      UnknownName: another split.
    """
    test_places = np.empty(0, np.int64)
    if held_out or split == HELD_OUT:
        test_places = _draw(labels, HELD_OUT, held_out, num_classes, _HELD_OUT_KEY, seed=seed)
    others = np.setdiff1d(np.arange(len(labels)), test_places)
    if not len(others):
        raise UserError(
            f"config.data.held_out is {held_out}, but must be less than the number of training examples."
        )
    if num_labels and split != HELD_OUT:
        others = others[labelled_subset(labels[others], num_labels, num_classes, seed)]
    return lookup("the split", split, {"train": others, HELD_OUT: test_places})


def _draw(
    labels: np.ndarray, option: str, num_labels: int, num_classes: int, key: int, *, seed: int
) -> np.ndarray:
    """Draws as `labelled_subset`; sentences name the `option` of `config.data`, draws differ by `key`."""
    if labels.ndim != 1:
        raise ValueError(f"labels have to be [N], not of shape {labels.shape}")
    if num_labels < 1 or num_labels % num_classes:
        raise UserError(
            f"config.data.{option} is {num_labels}, but must be 0 ({_OF_ZERO[option]}) or a positive "
            f"multiple of the number of classes, {num_classes}."
        )
    if num_labels > len(labels):
        raise UserError(
            f"config.data.{option} is {num_labels}, but must be at most the number of training examples, "
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
                f"config.data.{option} is {num_labels}, which takes {count} examples of each of the "
                f"{num_classes} classes, but class {label} has only {len(members)}."
            )
        entropy = np.random.SeedSequence([seed, label, key])
        order = np.random.Generator(np.random.Philox(entropy)).permutation(members)
        parts.append(order[:count])
    return np.sort(np.concatenate(parts)).astype(np.int64, copy=False)


def digest_of_part(whole: str, indices: np.ndarray) -> str:
    """Digests a part of a data set.

    The part is at `indices` int64 [n], the data set's digest is `whole`.
    """
    return digests.of_json([whole, digests.of_array(indices.astype("<i8"))])
