"""Folds of a classical method: candidates, seeds, and which bags each rule may look at."""

import numpy as np
import pytest

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.mil import classical_folds
from lossattn_jax.mil.bag_kernels import MIKernel
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.selection import BEST_TEST, FINAL, VALIDATION, Validation, stream
from lossattn_jax.mil.svm import MiSVM

RULES = (FINAL, VALIDATION, BEST_TEST)
TEST = np.arange(20) >= 14


class Threshold(BagClassifier):
    """Says class 1 where the mean of one feature is above the training mean; `fits` counts its fits."""

    fits: list[tuple] = []

    def __init__(self, *, feature=0, seed=None, standardise=True):
        self.feature = feature
        self.seed = seed
        self.standardise = standardise

    @classmethod
    def candidates(cls):
        return ({}, {"feature": 1}, {"feature": 2})

    def _fit(self, bags, labels):
        Threshold.fits.append((self.feature, self.seed, len(bags)))

    def _predict_proba(self, bags):
        high = np.array([bag[:, self.feature].mean() > 0 for bag in bags])
        return np.where(high[:, None], [0.2, 0.8], [0.8, 0.2])

    def _instance_scores(self, bags):
        return [bag[:, self.feature] for bag in bags]


def toy(flip=None):
    """Feature 0 says nothing, feature 1 the training bags' labels, feature 2 the test bags'."""
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    signs = 2.0 * labels - 1
    features = random.standard_normal((20, 3))
    features[~TEST, 1], features[TEST, 2] = signs[~TEST], signs[TEST]
    bags = [np.tile(row, (1 + number % 3, 1)) for number, row in enumerate(features)]
    if flip is not None:
        labels = np.where(flip, 1 - labels, labels)
    return BagDataset.from_bags(bags, labels)


SPLIT = Split(1, 3, ~TEST, TEST)


def run(dataset, method=None):
    Threshold.fits.clear()
    return classical_folds.run(
        dataset,
        SPLIT,
        method or Threshold(),
        rules=RULES,
        validation=Validation(share=0.4, splits=3),
        seed=7,
    )


def test_each_rule_takes_its_own_candidate():
    final, validated, best = run(toy())
    assert [one.rule for one in (final, validated, best)] == list(RULES)
    assert (final.settings, validated.settings) == ({}, {"feature": 1})
    assert best.settings == {"feature": 2}
    truth = toy().labels[TEST]
    np.testing.assert_array_equal(best.probabilities.argmax(axis=1), truth)
    for one in (final, validated, best):
        assert one.epoch is one.accuracies is None and one.seconds > 0
        assert one.probabilities.shape == (6, 2) and one.split is SPLIT
        assert [len(part) for part in one.weights] == list(toy().lengths[TEST])


def test_models_are_fitted_once_per_training_fold_with_its_seed():
    method = Threshold(standardise=False)
    run(toy(), method)
    seed = stream(7, 1, 3)
    on_parts = [(f, seed, 8) for f in range(3)] * 3  # 3 of 7 bags of each class are held out
    assert sorted(Threshold.fits) == sorted(on_parts + [(f, seed, 14) for f in range(3)])
    assert not hasattr(method, "classes_") and method.seed is None


def test_test_bags_choose_nothing_but_under_the_optimistic_rule():
    plain, other = run(toy()), run(toy(flip=TEST))
    for one, two in zip(plain[:2], other[:2], strict=True):
        assert one.settings == two.settings
        np.testing.assert_array_equal(one.probabilities, two.probabilities)
    assert plain[2].settings != other[2].settings


def test_training_bags_choose_under_validation():
    assert run(toy(flip=~TEST))[1].settings != {"feature": 1}


def test_of_equal_candidates_the_default_is_taken():
    bags = [np.full((1, 3), 2.0 * (number % 2)) for number in range(20)]
    results = run(BagDataset.from_bags(bags, np.arange(20) % 2))
    assert [one.settings for one in results] == [{}, {}, {}]


def test_probability_0_of_the_truth_is_not_chosen_and_no_error():
    class Sure(Threshold):
        def _predict_proba(self, bags):
            return np.round(super()._predict_proba(bags))

    with np.errstate(divide="raise", invalid="raise"):
        assert run(toy(), Sure())[1].settings == {"feature": 1}


def test_a_class_that_was_not_trained_on_has_probability_0():
    labels = np.arange(20) % 2
    labels[TEST] = 2
    dataset = BagDataset.from_bags(toy().bags, labels)
    for one in classical_folds.run(dataset, SPLIT, MIKernel(), rules=(FINAL, BEST_TEST)):
        assert one.probabilities.shape == (6, 3)
        np.testing.assert_array_equal(one.probabilities[:, 2], 0)
        np.testing.assert_allclose(one.probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("present", [(0, 1), (0, 2), (1, 2)])
def test_of_two_classes_left_of_three_the_last_is_positive(present):
    labels = np.array(present)[np.arange(20) % 2]
    labels[TEST] = 3 - sum(present)
    dataset = BagDataset.from_bags(toy().bags, labels)
    (result,) = classical_folds.run(dataset, SPLIT, MiSVM(C=10.0), rules=(FINAL,))
    part, others = dataset.select(~TEST), dataset.select(TEST).bags
    model = MiSVM(C=10.0).fit(part.bags, part.labels == present[1])
    np.testing.assert_array_equal(
        result.probabilities[:, list(present)], model.predict_proba(others)
    )
    np.testing.assert_array_equal(
        np.concatenate(result.weights), np.concatenate(model.instance_scores(others))
    )


@pytest.mark.parametrize("features", [(3,), (2, 2)])
def test_a_real_method_gives_what_it_gives_by_itself(features):
    random = np.random.default_rng(1)
    bags = [random.standard_normal((2, *features)) + (number % 2) for number in range(20)]
    dataset = BagDataset.from_bags(bags, np.arange(20) % 2)
    (result,) = classical_folds.run(dataset, SPLIT, MIKernel(C=2.0), rules=(FINAL,))
    part = dataset.select(~TEST)
    model = MIKernel(C=2.0).fit(part.bags, part.labels)
    others = dataset.select(TEST).bags
    np.testing.assert_array_equal(result.probabilities, model.predict_proba(others))
    np.testing.assert_array_equal(
        np.concatenate(result.weights), np.concatenate(model.instance_scores(others))
    )
