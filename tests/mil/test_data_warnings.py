"""Features that alone separate classes, and those whose digits are gone."""

import logging

import numpy as np
import pytest

from lossattn_jax.data.bags import data_warnings
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.data_warnings import separates, varies_by_rounding, warn

RANDOM = np.random.default_rng(0)


def bags(labels, *features, length=2):
    """Bags whose features are of (label, number of the bag); a random one is the first."""
    made = [
        [[RANDOM.normal(), *(cell(label, number) for cell in features)] for _ in range(length)]
        for number, label in enumerate(labels)
    ]
    names = ("f0", *(f"g{number}" for number in range(len(features))))
    return BagDataset.from_bags(made, labels, name="own", features=names)


def noisy(label, number):
    return label + 0.1 * RANDOM.uniform()


ALTERNATING = np.arange(20) % 2
SORTED = np.arange(20) // 10
THREE = np.arange(30) % 3


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (bags(ALTERNATING, lambda label, n: label), True),
        (bags(ALTERNATING, lambda label, n: 3 - 2 * label), True),
        (bags(ALTERNATING, lambda label, n: 1.7e9 + label), True),
        (bags(ALTERNATING, noisy), True),
        (bags(ALTERNATING, noisy, length=1), True),
        (bags(SORTED, lambda label, n: n), True),
        (bags(THREE, lambda label, n: label), True),
        (bags(THREE, lambda label, n: label == 1), False),
        (bags(ALTERNATING, lambda label, n: n), False),
        (bags(ALTERNATING, lambda label, n: label if n else 1), False),
        (bags(ALTERNATING, lambda label, n: 0.1), False),
        (bags(ALTERNATING, lambda label, n: max(0, label - n)), False),
        # Six bags: two of twenty orders separate by chance, unless the value is the bag's.
        (bags(ALTERNATING[:6], noisy), False),
        (bags(ALTERNATING[:6], lambda label, n: label), True),
        (bags(ALTERNATING[:6], lambda label, n: label, length=1), False),
        (bags(ALTERNATING[:2], lambda label, n: label), False),
    ],
    ids=range(16),
)
def test_a_feature_that_alone_separates_the_classes(dataset, expected):
    assert separates(dataset).tolist() == [False, expected]


def test_many_random_features_and_few_bags_are_no_alarm():
    random = np.random.default_rng(1)
    for count in (4, 6, 8, 10, 12):
        made = list(random.normal(size=(count, 3, 3000)))
        dataset = BagDataset.from_bags(made, np.arange(count) % 2)
        assert not separates(dataset).any()


def test_the_warning_names_the_features(caplog):
    caplog.set_level(logging.WARNING)
    warn(bags(ALTERNATING))
    assert not caplog.records
    warn(bags(ALTERNATING, lambda label, n: label))
    assert "own: the feature 'g0' alone separates the classes of all 20 bags" in caplog.text
    assert "--ignore leaves" in caplog.text
    caplog.clear()
    warn(BagDataset.from_bags([[[n % 2.0, n % 2]] * 2 for n in range(20)], ALTERNATING))
    assert "each of the features number 0, number 1 alone separates" in caplog.text
    assert "--ignore" not in caplog.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.7e9, 1.7e9 + 1], False),
        ([1e15, 1e15 + 4], False),
        ([1e17, 1e17 + 16], True),
        ([1e17, 1e17], True),  # as 1e17 + 0.5 is, too
        ([1.7e9, 1.7e9], False),
        ([0.3, 0.1 + 0.2], True),
        ([0.0, 1e-300], False),
        ([0.0, 0.0], False),
    ],
)
def test_features_that_vary_by_rounding_only(values, expected):
    dataset = BagDataset.from_bags([[[value]] for value in values * 3], [0, 1] * 3)
    assert varies_by_rounding(dataset).tolist() == [expected]


def test_a_warning_of_features_that_vary_by_rounding_only(caplog):
    caplog.set_level(logging.WARNING)
    warn(bags(ALTERNATING, lambda label, n: 1e17 + n % 3))
    assert "own: the feature 'g0' does not vary by more than float" in caplog.text


def test_images_are_not_looked_at(caplog):
    dataset = BagDataset.from_bags([np.full((2, 4, 4, 1), n % 2) for n in range(20)], ALTERNATING)
    warn(dataset)
    assert not caplog.records


def test_what_networks_lose():
    random = np.random.default_rng(0)
    made = [random.normal([1.7e9, 0, 1e5], 1, (3, 3)) for _ in range(6)]
    dataset = BagDataset.from_bags(made, [0, 1] * 3, name="own")
    told = data_warnings.loss_in_float32(dataset)
    assert "own: the spread of the features number 0, number 2 does not survive float32" in told
