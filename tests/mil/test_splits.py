"""Splits of cross-validation: each bag tested once a repeat, trained on in all other folds."""

import numpy as np
import pytest

from lossattn_jax.data.bags import folds
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import cross_validation
from lossattn_jax.errors import UserError

LABELS = [0, 1] * 6
DATASET = BagDataset.from_bags([np.ones((1, 2))] * 12, LABELS)


def test_every_bag_is_tested_once_a_repeat():
    splits = cross_validation(DATASET, 3, 2, seed=4)
    assert [(one.repeat, one.fold) for one in splits] == [
        (r, f) for r in range(2) for f in range(3)
    ]
    assert [one.name for one in splits][:2] == ["repeat0_fold0", "repeat0_fold1"]
    assert len({one.name for one in splits}) == 6
    for repeat in range(2):
        tested = np.stack([one.test for one in splits if one.repeat == repeat])
        np.testing.assert_array_equal(tested.sum(axis=0), 1)
        np.testing.assert_array_equal(tested.sum(axis=1), 4)
        assert (tested @ np.array(LABELS) == 2).all()  # stratified
    for one in splits:
        assert one.train.dtype == one.test.dtype == bool
        np.testing.assert_array_equal(one.train, ~one.test)


def test_they_are_the_folds_of_the_seed():
    numbers = folds.draw_repeats(LABELS, 3, 2, seed=4)
    for one in cross_validation(DATASET, 3, 2, seed=4):
        np.testing.assert_array_equal(one.test, numbers[one.repeat] == one.fold)


def test_more_repeats_begin_with_the_same_ones():
    few, many = (cross_validation(DATASET, 3, repeats, seed=4) for repeats in (1, 3))
    for one, other in zip(few, many[:3], strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.test, other.test)


def test_more_folds_than_bags_of_a_class_are_refused():
    with pytest.raises(UserError, match="the label 0 has 6 of 12 bags"):
        cross_validation(DATASET, 7, 1, seed=0)
