"""How an epoch or settings are chosen: ties, held-out bags, the grid, and what is refused."""

import dataclasses

import numpy as np
import pytest

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.order import derive_seed
from lossattn_jax.errors import UserError
from lossattn_jax.mil import selection
from lossattn_jax.mil.selection import Validation

LABELS = np.array([0] * 20 + [1] * 10 + [0, 1] * 5)
TRAIN = np.arange(40) < 30


def test_accuracy_and_loss_by_hand():
    # Odds of 3 to 1 for class 0, twice; then of 1 to 3.
    logits = np.log(np.array([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0]]))
    accuracy, loss = selection.accuracy_and_loss(logits, np.array([0, 1, 1]))
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx((2 * np.log(4 / 3) + np.log(4)) / 3)
    several = np.stack([[logits, -logits, 0 * logits]] * 2)
    accuracy, loss = selection.accuracy_and_loss(several, np.array([0, 1, 1]))
    assert accuracy.shape == loss.shape == (2, 3)
    np.testing.assert_allclose(accuracy[1], [2 / 3, 1 / 3, 1 / 3])
    assert loss[0, 2] == pytest.approx(np.log(2))


def test_a_loss_of_large_logits_is_finite():
    _, loss = selection.accuracy_and_loss(np.array([[1e30, -1e30]], np.float32), np.array([1]))
    assert np.isfinite(loss)


def test_a_bag_whose_logits_are_not_finite_counts_as_wrong():
    logits = np.array([[np.nan, np.nan], [np.inf, 0.0], [1.0, 0.0], [0.0, 1.0]])
    accuracy, _ = selection.accuracy_and_loss(logits, np.array([0, 0, 0, 0]))
    assert accuracy == 0.25


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [
        ([0.5, 0.9, 0.7], [0.1, 9.0, 0.1], 1),  # accuracy first
        ([0.9, 0.5, 0.9], [0.3, 0.1, 0.2], 2),  # of equal ones the lower loss
        ([0.5, 0.9, 0.9], [0.1, 0.2, 0.2], 1),  # of equal ones the first
        ([0.9, 0.9, 0.5], [np.nan, 0.4, 0.1], 1),  # a loss that is not a number is never lower
    ],
)
def test_the_best(accuracy, loss, expected):
    assert selection.best(np.array(accuracy), np.array(loss)) == (expected,)


def test_the_best_of_several_settings_and_epochs():
    accuracy, loss = np.zeros((3, 4)), np.ones((3, 4))
    accuracy[[1, 2], [3, 0]] = 0.8
    loss[2, 0] = 0.9
    assert selection.best(accuracy, loss) == (2, 0)


def test_the_grid_is_every_combination_besides_the_default():
    grid = {"learning_rate": (0.1, 0.2), "patch_weight": (), "weight_decay": (0.0,)}
    assert Validation(grid=grid).overrides() == (
        {},
        {"learning_rate": 0.1, "weight_decay": 0.0},
        {"learning_rate": 0.2, "weight_decay": 0.0},
    )
    assert Validation().overrides() == ({},)
    assert Validation(grid={"patch_weight": ()}).overrides() == ({},)


def test_held_out_bags_are_a_stratified_part_of_training_fold():
    validation = Validation(share=0.2, splits=3)
    parts = [validation.held_out(LABELS, TRAIN, split, seed=5) for split in range(3)]
    for part in parts:
        assert part.shape == (40,) and part.dtype == bool and not part[~TRAIN].any()
        assert part[LABELS == 0].sum() == 4 and part[LABELS == 1].sum() == 2
    assert len({part.tobytes() for part in parts}) == 3
    np.testing.assert_array_equal(parts[1], validation.held_out(LABELS, TRAIN, 1, seed=5))
    assert not np.array_equal(parts[1], validation.held_out(LABELS, TRAIN, 1, seed=6))
    changed = np.where(TRAIN, LABELS, 1 - LABELS)  # labels of test bags do not matter
    np.testing.assert_array_equal(parts[1], validation.held_out(changed, TRAIN, 1, seed=5))


def test_bags_that_are_set_aside_for_validation_are_taken_once():
    bags = BagDataset.from_bags([np.ones((1, 2))] * 40, LABELS)
    validation = Validation(share=0.2, splits=3)
    own = np.zeros(40, bool)
    own[np.flatnonzero(TRAIN)[:5]] = True
    (part,) = validation.parts(bags, Split(0, 0, TRAIN & ~own, ~TRAIN, own), seed=5)
    np.testing.assert_array_equal(part, own)
    drawn = validation.parts(bags, Split(0, 0, TRAIN, ~TRAIN), seed=5)
    for number, part in enumerate(drawn):
        np.testing.assert_array_equal(part, validation.held_out(LABELS, TRAIN, number, seed=5))
    assert len(drawn) == 3


def test_groups_are_held_out_whole():
    groups = tuple(f"p{n // 4}" for n in range(40))
    bags = BagDataset.from_bags([np.ones((1, 2))] * 40, np.arange(40) % 2)
    bags = dataclasses.replace(bags, groups=groups)
    test = np.arange(40) < 8
    for part in Validation(splits=3).parts(bags, Split(0, 0, ~test, test), seed=5):
        inside, outside = ({groups[n] for n in np.flatnonzero(rows)} for rows in (part, ~part))
        assert inside and not inside & outside and not part[test].any()


def test_streams_are_numbers_of_their_own():
    numbers = [
        (seed, repeat, fold) for seed in range(5) for repeat in range(5) for fold in range(10)
    ]
    found = {derive_seed(*one) for one in numbers}
    assert len(found) == len(numbers)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)
    assert all(0 <= one < 2**32 for one in found)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 0}, "validation share is 0, but must be between 0 and 1"),
        ({"share": 1.0}, "validation share is 1.0"),
        ({"share": float("nan")}, "validation share is nan"),
        ({"splits": 0}, "validation splits is 0, but must be 1 or more"),
        ({"grid": {"epochs": (1,)}}, "validation cannot try epochs; it can: learning_rate, "),
    ],
)
def test_impossible_validations_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Validation(**options)


def test_unknown_rules_are_refused():
    selection.check_rules(tuple(selection.RULES))
    with pytest.raises(UserError, match="the rule 'best' is not known; allowed are final, valid"):
        selection.check_rules(("final", "best"))


def test_the_rule_that_looks_at_the_test_fold_says_so():
    assert selection.RULES[selection.BEST_TEST].startswith("OPTIMISTIC")
