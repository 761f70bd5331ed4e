"""Folds of a network: what each rule trains and chooses, recomputed model by model; ensembles."""

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import cross_validation
from lossattn_jax.data.order import bucket_batches, derive_seed
from lossattn_jax.mil import network_folds
from lossattn_jax.mil.selection import BEST_TEST, FINAL, RULES, VALIDATION, Validation
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.settings import Settings
from tests.support.tiny_bags import overlapping_bags

SEED = 5
NETWORK = BagNetwork(2, hidden=(4, 4, 4))
SETTINGS = Settings(epochs=4, learning_rate=0.1, max_waste=9.0)
CHOOSING = Validation(0.3, 2, {"patch_weight": (3.0,), "learning_rate": (0.0001, 0.3)})
RULE_NAMES = (FINAL, VALIDATION, BEST_TEST)


DATASET = overlapping_bags()
SPLITS = cross_validation(DATASET, 2, 1, SEED)


@pytest.fixture(scope="module")
def results():
    """Of all rules, with ensembles of two: `[rule, fold]`."""
    with np.errstate(all="raise", under="ignore"):
        found = network_folds.run(
            DATASET,
            SPLITS,
            NETWORK,
            SETTINGS,
            rules=RULE_NAMES,
            validation=CHOOSING,
            ensemble=2,
            seed=SEED,
        )
    assert [(one.rule, one.split) for one in found] == [(r, s) for r in RULE_NAMES for s in SPLITS]
    return {(one.rule, one.split.fold): one for one in found}


@pytest.fixture(scope="module")
def chosen():
    """For each fold the overrides and the epoch (from 1) that the held-out bags are best at."""
    grid = [{}] + [{"patch_weight": 3.0, "learning_rate": rate} for rate in (0.0001, 0.3)]
    plans = []
    for split in SPLITS:
        own = derive_seed(SEED, 0, split.fold)
        for overrides in grid:
            for number in range(2):
                held = CHOOSING.held_out(DATASET.labels, split.train, number, own)
                assert held.any() and not (held & split.test).any()
                plans.append(
                    training.Plan(
                        derive_seed(SEED, 0, split.fold, 0),
                        split.train & ~held,
                        held,
                        overrides=overrides,
                    )
                )
    logits = training.train(DATASET, NETWORK, SETTINGS, plans, order_seed=SEED).logits
    choices = []
    for fold in range(2):
        scores = {}
        for place, overrides in enumerate(grid):
            for epoch in range(4):
                accuracies, losses = [], []
                for number in range(2):
                    model = fold * 6 + place * 2 + number
                    held = plans[model].held_out
                    logs = log_softmax(logits[model, epoch, held].astype(float), axis=-1)
                    labels = DATASET.labels[held]
                    accuracies.append((logs.argmax(-1) == labels).mean())
                    losses.append(-logs[np.arange(len(labels)), labels].mean())
                scores[-np.mean(accuracies), np.mean(losses), place, epoch] = (overrides, epoch + 1)
        choices.append(scores[min(scores)])
    return choices


def test_validation_chooses_settings_and_epoch_on_held_out_bags(results, chosen):
    for fold, (overrides, epoch) in enumerate(chosen):
        result = results[VALIDATION, fold]
        assert (dict(result.settings), result.epoch) == (overrides, epoch)
    # Otherwise the choice cannot show.
    assert any(overrides for overrides, _ in chosen)
    assert any(epoch < 4 for _, epoch in chosen)


@pytest.fixture(scope="module")
def members(chosen):
    """For each rule and fold, what two networks say that were trained for it, and their logits."""
    plans = []
    for split, (own, epoch) in zip(SPLITS, chosen, strict=True):
        for overrides in [{}, own] if own else [{}]:
            for member in range(2):
                seed = derive_seed(SEED, 0, split.fold, member)
                plans.append(
                    training.Plan(
                        seed,
                        split.train,
                        split.test,
                        selection=split.test,
                        keep_epoch=epoch,
                        overrides=overrides,
                    )
                )
    trained = training.train(DATASET, NETWORK, SETTINGS, plans, order_seed=SEED)
    told = {}
    for rule, params in zip(
        RULE_NAMES, (trained.last, trained.at_keep_epoch, trained.best), strict=True
    ):
        held = np.stack([plan.held_out for plan in plans])
        said = training.predict(
            DATASET, NETWORK, SETTINGS, params, trained.mean, trained.scale, predict_mask=held
        )
        for split, (own, _) in zip(SPLITS, chosen, strict=True):
            overrides = own if rule == VALIDATION else {}
            rows = [
                row
                for row, plan in enumerate(plans)
                if plan.held_out is split.test and plan.overrides == overrides
            ]
            told[rule, split.fold] = (
                said.logits[rows],
                said.attention[rows],
                trained.logits[rows],
                trained.best_epochs[rows],
            )
    return told


@pytest.mark.parametrize("fold", range(2))
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_a_fold_is_the_mean_of_networks_trained_for_themselves(rule, fold, results, members):
    logits, attention, curves, best_epochs = members[rule, fold]
    result, test = results[rule, fold], SPLITS[fold].test
    each = softmax(logits[:, test].astype(np.float64), axis=-1)
    assert len(each) == 2 and np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(result.probabilities, each.mean(axis=0), rtol=1e-4)
    expected = np.split(attention.astype(np.float64).mean(axis=0), DATASET.offsets[1:-1])
    for found, row in zip(result.weights, np.flatnonzero(test), strict=True):
        np.testing.assert_allclose(found, expected[row], rtol=1e-4)
        assert found.dtype == np.float64
    right = curves[:, :, test].argmax(-1) == DATASET.labels[test]
    np.testing.assert_allclose(result.accuracies, right.mean(axis=(0, 2)))
    if rule == FINAL:
        assert (result.epoch, result.settings) == (4, {})
    if rule == BEST_TEST:
        assert (result.epoch, result.settings) == (best_epochs[0], {})


@pytest.mark.slow
def test_a_fold_alone_is_as_among_others(results):
    (alone,) = network_folds.run(
        DATASET, SPLITS[1:], NETWORK, SETTINGS, rules=(FINAL,), ensemble=2, seed=SEED
    )
    # Another program, which without the compiler's optimisation may round differently.
    np.testing.assert_allclose(alone.probabilities, results[FINAL, 1].probabilities, rtol=1e-6)
    assert alone.accuracies is None  # only the last epoch was looked at


@pytest.mark.parametrize("own_order", [False, True])
def test_folds_share_an_order_of_bags_or_have_their_own(monkeypatch, own_order):
    """Bag by bag, an epoch's order is what the training was given."""
    orders = []

    def record(*arguments):
        orders.append(bucket_batches(*arguments))
        return orders[-1]

    monkeypatch.setattr(training, "bucket_batches", record)
    options = {"rules": (FINAL,), "seed": SEED, "own_order": own_order}
    both = network_folds.run(DATASET, SPLITS, NETWORK, SETTINGS, **options)
    assert [one.split for one in both] == list(SPLITS)
    first = orders[0]
    together, orders[:] = list(orders), []
    (alone,) = network_folds.run(DATASET, SPLITS[1:], NETWORK, SETTINGS, **options)
    # Of a fold it is the same whichever folds are trained.
    np.testing.assert_array_equal(orders, together[-len(orders) :])
    np.testing.assert_allclose(alone.probabilities, both[1].probabilities, rtol=1e-5)
    # Every bag once an epoch; other folds have other orders where each has its own.
    assert np.sort(first[0].ravel()).tolist() == list(range(len(DATASET)))
    assert np.array_equal(first, orders[0]) == (not own_order)


def test_lambda_is_tried_only_where_there_is_a_loss_of_instances():
    assert len(network_folds._grid(CHOOSING, NETWORK)) == 3
    tried = network_folds._grid(CHOOSING, NETWORK.clone(method="attention"))
    assert tried == ({}, {"learning_rate": 0.0001}, {"learning_rate": 0.3})
    only = Validation(grid={"patch_weight": (0.1, 1.0)})
    assert network_folds._grid(only, NETWORK.clone(method="mi_net")) == ({},)


def test_rules_share_a_training_unless_their_settings_differ():
    choices = [network_folds.Choice({}, 3), network_folds.Choice({"patch_weight": 3.0}, 2)]
    plans, shared = network_folds._plans(SPLITS, RULE_NAMES, choices, 2, SEED)
    assert len(plans) == 2 + 4
    for rule in RULE_NAMES:
        np.testing.assert_array_equal(shared[rule, 0], [0, 1])
    np.testing.assert_array_equal(shared[FINAL, 1], shared[BEST_TEST, 1])
    own = [plans[number] for number in shared[VALIDATION, 1]]
    assert all(plan.overrides == {"patch_weight": 3.0} and plan.keep_epoch == 2 for plan in own)
    first = [plans[number] for number in shared[FINAL, 1]]
    assert [plan.seed for plan in own] == [plan.seed for plan in first]
    assert len({plan.seed for plan in plans}) == 4
    without, _ = network_folds._plans(SPLITS, (FINAL,), choices, 1, SEED)
    assert all(plan.selection is None for plan in without)


@pytest.mark.slow
def test_test_bags_choose_nothing_but_under_the_optimistic_rule(results):
    test = SPLITS[0].test
    bags = [bag * 9 - 40 if one else bag for bag, one in zip(DATASET.bags, test, strict=True)]
    other = BagDataset.from_bags(bags, np.where(test, 1 - DATASET.labels, DATASET.labels))
    options = {"rules": RULE_NAMES, "validation": CHOOSING, "ensemble": 2, "seed": SEED}
    again = network_folds.run(other, SPLITS[:1], NETWORK, SETTINGS, **options)
    for one in again:
        before = results[one.rule, 0]
        if one.rule != BEST_TEST:
            assert (one.epoch, dict(one.settings)) == (before.epoch, dict(before.settings))
    plain = network_folds.run(DATASET, SPLITS[:1], NETWORK, SETTINGS, **options)
    for one in plain:
        np.testing.assert_array_equal(one.probabilities, results[one.rule, 0].probabilities)


def test_every_rule_is_explained():
    assert set(RULES) == set(network_folds._PARAMS) == set(RULE_NAMES)
    fields = {field.name for field in dataclasses.fields(training.TrainedModels)}
    assert set(network_folds._PARAMS.values()) <= fields
