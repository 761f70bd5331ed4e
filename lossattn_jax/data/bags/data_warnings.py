"""Warnings of suspicious features: labels in disguise, values without their digits."""

import logging
import math
from collections.abc import Iterable

import numpy as np

from lossattn_jax.data.bags import precision
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import name_first

log = logging.getLogger(__name__)

# How many of the features of a data set may be expected to separate its classes by chance.
_BY_CHANCE = 0.01
_MOST_NAMED = 5
# From here on float64 has no fractions, so that equal values may have been different ones.
_NO_FRACTIONS = 2.0**53


def warn(dataset: BagDataset) -> None:
    """Warns of features that separate the classes alone or lost their digits.

    Args:
      dataset: bags of vectors; of others nothing is said.
    """
    if dataset.instances.ndim != 2:
        return
    separating = np.flatnonzero(separates(dataset))
    if len(separating):
        log.warning(
            "%s: %s alone separates the classes of all %d bags, and may be a label in disguise%s",
            dataset.name,
            _name_features(dataset, separating, "the feature", "each of the features"),
            len(dataset),
            "; --ignore leaves a column out" if dataset.features else "",
        )
    equal = np.flatnonzero(varies_by_rounding(dataset))
    if len(equal):
        log.warning(
            "%s: %s not vary by more than %s rounds, which is taken for constant; take an offset away before",
            dataset.name,
            _name_features(dataset, equal, "the feature", "the features", (" does", " do")),
            dataset.instances.dtype,
        )


def loss_in_float32(dataset: BagDataset) -> str:
    """Names features whose spread float32 loses without standardisation."""
    places = np.flatnonzero(precision.loses_spread(dataset.instances).ravel())
    names = _name_features(dataset, places, "the feature", "the features")
    return (
        f"{dataset.name}: the spread of {names} does not "
        "survive float32, in which networks compute; standardise features, or take their offset away before"
    )


def separates(dataset: BagDataset) -> np.ndarray:
    """Finds features whose means over bags alone separate the classes.

    They do where, in the order of their means, all bags of a class follow each other and two of different
    classes are never equal. Of n bags, n_k of class k, a feature without any relation to them does so with
    the probability `K! prod_k n_k! / n!`. Where this makes more than 0.01 features expected, only those are
    counted that are constant in each bag, some bag having several instances: a value of the bag, then.

    Args:
      dataset: bags of vectors.

    Returns:
      `[D]` bool; all False for a single class, and for several labels of a bag.
    """
    width = dataset.instances.shape[1]
    if dataset.several_labels:
        return np.zeros(width, bool)
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    counts = counts[counts > 0]
    if len(counts) < 2 or len(dataset) < 3:
        return np.zeros(width, bool)
    starts = dataset.offsets[:-1]
    separating = np.zeros(width, bool)
    logs = sum(math.lgamma(count + 1) for count in (len(counts), *counts.tolist()))
    chance = width * math.exp(logs - math.lgamma(len(dataset) + 1))
    for feature in range(width):
        values = dataset.instances[:, feature].astype(np.float64)
        values -= values[0]  # means of an offset would differ by rounding
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        constant = (low == high).all()
        means = low if constant else np.add.reduceat(values, starts) / dataset.lengths
        order = np.argsort(means, kind="stable")
        changes = np.flatnonzero(np.diff(dataset.labels[order]))
        if len(changes) != len(counts) - 1:
            continue
        sorted_means = means[order]
        if (sorted_means[changes] == sorted_means[changes + 1]).any():
            continue
        separating[feature] = (constant and dataset.lengths.max() > 1) or chance <= _BY_CHANCE
    return separating


def varies_by_rounding(dataset: BagDataset) -> np.ndarray:
    """Finds features that vary by no more than rounding.

    Args:
      dataset: bags of vectors.

    Returns:
      `[D]` bool.
    """
    instances = dataset.instances
    low, high = instances.min(axis=0), instances.max(axis=0)
    largest = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
    spread = precision.moments(instances)[1]
    nearly = (high > low) & (spread <= 4 * np.finfo(instances.dtype).eps * largest)
    return nearly | ((high == low) & (largest >= _NO_FRACTIONS))


def _name_features(
    dataset: BagDataset,
    places: Iterable[int],
    one: str,
    several: str,
    verbs: tuple[str, str] = ("", ""),
) -> str:
    names = [dataset.feature_name(int(place)) for place in places]
    text = name_first(names, _MOST_NAMED)
    return f"{one if len(names) == 1 else several} {text}{verbs[len(names) > 1]}"
