"""Splits of cross-validation: each bag tested once a repeat, trained on in all other folds."""

import dataclasses

import numpy as np
import pytest

from lossattn_jax.data.bags import folds
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import (
    Split,
    cross_validation,
    leave_one_group_out,
    own_folds,
    own_split,
)
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


GROUPED = dataclasses.replace(DATASET, groups=tuple("ppqqrrppqqrr"))


def test_groups_are_not_divided():
    for one in cross_validation(GROUPED, 3, 2, seed=4):
        assert one.test.sum() == 4
        assert len({GROUPED.groups[row] for row in np.flatnonzero(one.test)}) == 1


def test_a_fold_for_each_group():
    splits = leave_one_group_out(GROUPED, 2)
    assert [(one.repeat, one.fold) for one in splits] == [
        (r, f) for r in range(2) for f in range(3)
    ]
    for one in splits:
        np.testing.assert_array_equal(
            one.test, [group == "pqr"[one.fold] for group in GROUPED.groups]
        )
    with pytest.raises(
        UserError, match="all bags of bags are in the fold 0, but there must be two folds"
    ):
        leave_one_group_out(dataclasses.replace(DATASET, groups=("p",) * 12), 1)
    divided = dataclasses.replace(DATASET, groups=tuple("pqpqpqpqpqpq"))
    with pytest.raises(
        UserError, match="no bag that fold 0 of bags is trained on has the label 0, but"
    ):
        leave_one_group_out(divided, 1)


def test_own_folds_keep_their_numbers():
    numbers = np.array([7, 7, 2, 2] * 3)
    splits = own_folds(DATASET, numbers, 1)
    assert [one.fold for one in splits] == [2, 7]
    for one in splits:
        np.testing.assert_array_equal(one.test, numbers == one.fold)
        np.testing.assert_array_equal(one.train, numbers != one.fold)


def test_an_own_split_has_bags_for_validation_or_none():
    words = ["train", "train", "test", "validation"] * 3
    (one,) = own_split(dataclasses.replace(DATASET, labels=[0, 1, 1, 1] * 3), words, 1)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, part), [word == part for word in words])
    assert one.used.all() and list(one.parts) == ["train", "test", "validation"]
    one, other = own_split(DATASET, ["train", "train", "test", "train"] * 3, 2)
    assert one.validation is None and list(one.parts) == ["train", "test"]
    assert (one.repeat, other.repeat, other.fold) == (0, 1, 0)


def test_own_splits_that_are_refused():
    words = ["train", "train", "validation", "validation", "test", "test"] * 2
    assert isinstance(own_split(GROUPED, words, 1)[0], Split)  # groups p, q and r
    with pytest.raises(
        UserError, match="no bag of bags is in the split 'test', but some must be trained on"
    ):
        own_split(DATASET, ["train", "validation"] * 6, 1)
    words[2] = "train"
    with pytest.raises(
        UserError,
        match="the group 'q' of bags has bags for train and for validation in fold 0, but must be",
    ):
        own_split(GROUPED, words, 1)
    with pytest.raises(
        UserError, match="the group 'p' of bags has bags for train and for test in fold 0"
    ):
        own_folds(GROUPED, np.array([0] + [1] * 11), 1)
    with pytest.raises(UserError, match="fold 0 of bags is trained on has the label 1"):
        own_split(DATASET, ["train", "test"] * 6, 1)
