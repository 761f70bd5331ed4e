"""Folds, repeats and held-out bags: stratified, and the same for the same seed."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from lossattn_jax.data.bags.folds import draw_repeats, grouped_folds, held_out, stratified_folds
from lossattn_jax.errors import UserError

LABELS = np.array([0] * 55 + [1] * 37)  # shares as of a small benchmark


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 6),
    st.lists(st.integers(6, 30), min_size=2, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_every_fold_has_its_share_of_every_class(folds, counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    numbers = stratified_folds(labels, folds, seed)
    assert numbers.shape == labels.shape
    for label, count in enumerate(counts):
        inside = np.bincount(numbers[labels == label], minlength=folds)
        assert len(inside) == folds and inside.sum() == count
        assert inside.min() >= count // folds and inside.max() <= -(-count // folds)


def test_labels_may_be_text():
    numbers = stratified_folds(np.array(["no", "yes"])[LABELS], 10, seed=1)
    np.testing.assert_array_equal(numbers, stratified_folds(LABELS, 10, seed=1))


def test_a_repeat_follows_from_seed_and_number_alone():
    numbers = draw_repeats(LABELS, 10, repeats=5, seed=3)
    assert numbers.shape == (5, 92)
    np.testing.assert_array_equal(draw_repeats(LABELS, 10, repeats=2, seed=3), numbers[:2])
    assert len({row.tobytes() for row in numbers}) == 5
    others = draw_repeats(LABELS, 10, repeats=5, seed=4)
    assert not {row.tobytes() for row in numbers} & {row.tobytes() for row in others}


@pytest.mark.parametrize(
    ("labels", "folds", "seed", "sentence"),
    [
        ([0, 1, 0], 4, 0, "3 bags cannot be split into 4 folds"),
        (
            [0] * 9 + [1] * 2,
            3,
            0,
            "the label 1 has 2 of 11 bags, but must have one for each of 3 folds",
        ),
        (["a"] * 9 + ["b"], 3, 0, "the label 'b' has 1 of 10 bags"),
        ([0, 1] * 9, 1, 0, "the number of folds is 1, but must be 2 or more"),
        ([0, 1] * 9, 3, -1, "the seed is -1"),
        ([0, 1] * 9, 3, 2**32, "the seed is 4294967296"),
    ],
)
def test_what_cannot_be_split_is_refused(labels, folds, seed, sentence):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=sentence):
            stratified_folds(labels, folds, seed)


def test_repeats_out_of_range_are_refused():
    with pytest.raises(UserError, match="the number of repeats is 0"):
        draw_repeats(LABELS, 10, repeats=0, seed=0)
    with pytest.raises(UserError, match="the seed is -1"):
        draw_repeats(LABELS, 10, repeats=1, seed=-1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.floats(0.01, 0.99),
    st.integers(0, 10**6),
)
def test_held_out_bags_are_a_share_of_every_class(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.random.default_rng(0).permutation(len(labels))
    drawn = held_out(labels, rows, share, seed)
    assert drawn.shape == rows.shape and drawn.dtype == bool
    for label, count in enumerate(counts):
        inside = drawn[labels[rows] == label].sum()
        expected = 0 if count == 1 else min(max(round(share * count), 1), count - 1)
        assert inside == expected


def test_held_out_bags_are_drawn_from_the_training_bags_alone():
    rows = np.flatnonzero(stratified_folds(LABELS, 10, seed=0) != 3)
    drawn = held_out(LABELS, rows, 0.1, seed=5)
    np.testing.assert_array_equal(drawn, held_out(LABELS, rows, 0.1, seed=5))
    assert not np.array_equal(drawn, held_out(LABELS, rows, 0.1, seed=6))
    changed = LABELS.copy()
    changed[np.setdiff1d(np.arange(92), rows)] = 7  # the labels of the test bags do not matter
    np.testing.assert_array_equal(drawn, held_out(changed, rows, 0.1, seed=5))


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="the share to hold out is"):
        held_out(LABELS, np.arange(92), share, 0)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="the seed is -1"):
        held_out(LABELS, np.arange(92), 0.1, -1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4)), min_size=12, max_size=30),
    st.integers(2, 4),
    st.integers(0, 2**32 - 1),
)
def test_a_group_is_in_one_fold_and_a_class_in_several(groups, folds, seed):
    labels = np.concatenate([[label] * count for label, count in groups])
    names = [f"g{n}" for n, (_, count) in enumerate(groups) for _ in range(count)]
    try:
        numbers = grouped_folds(labels, names, folds, seed)
    except UserError:
        few = min(sum(label == one for label, _ in groups) for one in (0, 1))
        assume(few < folds)  # else it must be possible
        return
    assert set(numbers) == set(range(folds))
    owners = {}
    for name, number in zip(names, numbers, strict=True):
        assert owners.setdefault(name, number) == number
    for label in set(labels):
        assert len(set(numbers[labels == label])) > 1


def test_grouped_folds_are_those_of_scikit_learn():
    groups = np.array([f"p{n // 4}" for n in range(92)])
    numbers = grouped_folds(LABELS, groups, 5, seed=7)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=7)
    for fold, (_, test) in enumerate(splitter.split(LABELS, LABELS, groups)):
        np.testing.assert_array_equal(np.flatnonzero(numbers == fold), test)
    repeats = draw_repeats(LABELS, 5, 3, 0, list(groups))
    assert len({row.tobytes() for row in repeats}) == 3
    np.testing.assert_array_equal(draw_repeats(LABELS, 5, 2, 0, list(groups)), repeats[:2])


@pytest.mark.parametrize(
    ("labels", "groups", "folds", "sentence"),
    [
        ("aabb", "pqpq", 1, "the number of folds is 1, but must be 2 or more"),
        ("aabbab", "ppqqpq", 3, "2 groups of bags cannot be split into 3 folds; take fewer folds"),
        (
            "aaab",
            "pqrs",
            2,
            "all bags with the label 'b' are in fold . of 2, since few groups have them",
        ),
        (
            "abbaab",
            "pqqrst",
            4,
            "each label has fewer than 4 of 6 bags, but one label must have one for",
        ),
    ],
)
def test_groups_that_cannot_be_split_are_refused(labels, groups, folds, sentence):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=sentence):
            grouped_folds(list(labels), list(groups), folds, 0)
    with pytest.raises(UserError, match="the seed is -1"):
        grouped_folds(list(labels), list(groups), 2, -1)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_held_out_groups_are_whole(share):
    groups = [f"p{n // 4}" for n in range(92)]
    rows = np.flatnonzero(grouped_folds(LABELS, groups, 5, 0) != 2)
    drawn = held_out(LABELS, rows, share, 5, groups)
    inside, outside = ({groups[row] for row in rows[part]} for part in (drawn, ~drawn))
    assert inside and outside and not inside & outside
    assert abs(drawn.mean() - share) < 0.1
    for part in (drawn, ~drawn):
        assert set(LABELS[rows[part]]) == {0, 1}
    np.testing.assert_array_equal(drawn, held_out(LABELS, rows, share, 5, groups))
    assert not np.array_equal(drawn, held_out(LABELS, rows, share, 6, groups))


def test_few_groups_are_held_out_as_they_can():
    labels, groups = np.array([0, 1, 0, 1, 0, 1]), list("ppqqrr")
    drawn = held_out(labels, np.arange(6), 0.1, 0, groups)  # a third, for a tenth cannot be had
    assert drawn.sum() == 2 and len({groups[row] for row in np.flatnonzero(drawn)}) == 1
    with pytest.raises(
        UserError, match="the 1 groups of the bags of a training cannot be divided to hold"
    ):
        held_out(labels, np.arange(2), 0.1, 0, groups)
