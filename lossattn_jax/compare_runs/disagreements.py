"""Disagreements of networks on the same images: how many, between which classes, how strong."""

import itertools
from collections.abc import Sequence

import numpy as np


def find(predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Finds images on which predictions differ, bool `[N]`.

    Args:
      predicted: int `[N]` of each network.
    """
    first, *others = predicted
    return np.any([other != first for other in others], axis=0)


def rank(predicted: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Ranks images by how strongly networks disagree; see `strengths`.

    Returns:
      int64, places of the images on which predictions differ, the strongest first; of equal ones the first in
      the split.
    """
    strength = strengths(predicted, probabilities)
    order = np.lexsort((np.arange(len(strength)), -strength))
    return order[find(predicted)[order]]


def strengths(predicted: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Computes how strongly networks disagree on each image.

    Of two networks it is by how much each prefers its own class to that of the other, and of these two
    numbers the smaller one: it is large only where both are sure. Of several networks it is that of the two
    which disagree most.

    Args:
      predicted: int `[N]` of each network.
      probabilities: `[N, K]` of each network.

    Returns:
      `[N]` float64, 0 where all predict the same.
    """
    strength = np.zeros(len(predicted[0]))
    for one, other in itertools.combinations(range(len(predicted)), 2):
        preferences = [
            _preference(probabilities[own], predicted[own], predicted[against])
            for own, against in ((one, other), (other, one))
        ]
        strength = np.maximum(strength, np.minimum(*preferences))
    return strength


def cross_table(first: np.ndarray, other: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts images by what two networks predict.

    Args:
      first, other: int `[N]`, predicted classes.
      num_classes: K.

    Returns:
      int64 `[K, K]`, a row for each class that the first predicts.
    """
    places = first.astype(np.int64) * num_classes + other
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def _preference(probabilities: np.ndarray, own: np.ndarray, against: np.ndarray) -> np.ndarray:
    """By how much a network prefers its class to another, `[N]` float64."""
    rows = np.arange(len(own))
    values = probabilities.astype(np.float64)
    return values[rows, own] - values[rows, against]
