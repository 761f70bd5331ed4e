"""What every method checks before it learns, and the standardisation."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone

from lossattn_jax.errors import UserError
from lossattn_jax.mil.estimator import BagClassifier, check_bags, standardisation

BAGS = [[[1.0, 5.0], [3.0, 5.0]], [[5.0, 5.0]], [[7.0, 5.0], [9.0, 5.0], [11.0, 5.0]]]


class Recorder(BagClassifier):
    """Keeps what it is given; finds bags of the second class by the first feature's mean."""

    def __init__(self, *, slope=1.0, standardise=True):
        self.slope = slope
        self.standardise = standardise

    def _fit(self, bags, labels):
        self.bags, self.labels = bags, labels

    def _predict_proba(self, bags):
        odds = np.exp(self.slope * np.array([bag[:, 0].mean() for bag in bags]))
        return np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)

    def _instance_scores(self, bags):
        return [bag[:, 0] for bag in bags]


def test_methods_get_standardised_float64_bags_and_labels_from_0():
    model = Recorder()
    assert model.fit(BAGS, ["no", "no", "yes"]) is model
    assert list(model.classes_) == ["no", "yes"]
    np.testing.assert_array_equal(model.labels, [0, 0, 1])
    assert model.labels.dtype == np.int64
    assert {bag.dtype for bag in model.bags} == {np.dtype("float64")}
    assert [len(bag) for bag in model.bags] == [2, 1, 3]
    # The six values 1, 3, 5, 7, 9, 11: mean 6, variance 35 / 3. The constant feature is centred.
    expected = (np.array([1, 3, 5, 7, 9, 11]) - 6) / np.sqrt(35 / 3)
    np.testing.assert_allclose(np.concatenate(model.bags)[:, 0], expected)
    np.testing.assert_array_equal(np.concatenate(model.bags)[:, 1], 0)


def test_what_was_learned_standardises_other_bags():
    model = Recorder().fit(BAGS, [0, 0, 1])
    others = [[[6.0, 6.0]], [[6 + np.sqrt(35 / 3), 4.0], [6.0, 5.0]]]
    found = model.instance_scores(others)
    assert [part.shape for part in found] == [(1,), (2,)]
    np.testing.assert_allclose(np.concatenate(found), [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(model.predict_proba(others[:1]), [[0.5, 0.5]])
    plain = Recorder(standardise=False).fit(BAGS, [0, 0, 1])
    np.testing.assert_array_equal(plain.instance_scores(others)[1], [6 + np.sqrt(35 / 3), 6.0])
    np.testing.assert_array_equal(np.concatenate(plain.bags), np.concatenate(BAGS))


def test_predictions_are_labels_of_fit():
    model = Recorder().fit(BAGS, ["no", "no", "yes"])
    np.testing.assert_array_equal(model.predict(BAGS), ["no", "no", "yes"])


def test_it_is_an_estimator_of_scikit_learn():
    model = Recorder(slope=2.0, standardise=False)
    assert model.get_params() == {"slope": 2.0, "standardise": False}
    other = clone(model.fit(BAGS, [0, 0, 1])).set_params(slope=3.0)
    assert other.slope == 3.0 and not hasattr(other, "classes_")
    assert Recorder.candidates() == ({},)


@pytest.mark.parametrize(
    ("bags", "labels", "sentence"),
    [
        ([], [], "there is no bag, but there must be one at least"),
        ([[1.0, 2.0]], [0], r"bag 0 has the shape \(2,\), but must be \[instances, features\]"),
        (
            [*BAGS, np.zeros((0, 2))],
            [0, 1, 1, 1],
            "bag 3 has no instance, but must have one at least",
        ),
        (
            [BAGS[0], [[1.0, 2.0, 3.0]]],
            [0, 1],
            r"the instances of bag 1 have the shape \(3,\), but must have \(2,\) as those of bag 0",
        ),
        ([BAGS[0], [[1.0, np.nan]]], [0, 1], "bag 1 holds a value that is not finite"),
        ([BAGS[0], [[-np.inf, 1.0]]], [0, 1], "bag 1 holds a value that is not finite"),
        (BAGS, [0, 1], r"labels have the shape \(2,\), but must be one for each of 3 bags"),
        (BAGS, [[0], [1], [0]], r"labels have the shape \(3, 1\)"),
        (BAGS, [1, 1, 1], "all 3 bags have the label .*1.*, but there must be two"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(bags, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        Recorder().fit(bags, labels)


def test_what_cannot_be_predicted_is_refused():
    model = Recorder()
    for ask in (model.predict, model.predict_proba, model.instance_scores):
        with pytest.raises(UserError, match=r"Recorder was not fitted; call fit\(bags, labels\)"):
            ask(BAGS)
    model.fit(BAGS, [0, 0, 1])
    for ask in (model.predict, model.predict_proba, model.instance_scores):
        with pytest.raises(UserError, match=r"the shape \(3,\), but must have \(2,\) as the bags"):
            ask([[[1.0, 2.0, 3.0]]])
        with pytest.raises(UserError, match="bag 0 holds a value that is not finite"):
            ask([[[1.0, np.nan]]])
        with pytest.raises(UserError, match="there is no bag"):
            ask([])


def test_the_bags_given_stay_as_they_are():
    bags = [np.array(bag) for bag in BAGS]
    Recorder().fit(bags, [0, 0, 1])
    for bag, before in zip(bags, BAGS, strict=True):
        np.testing.assert_array_equal(bag, before)
    assert all(part.dtype == np.float64 for part in check_bags([np.ones((1, 2), np.float16)]))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-20, 1234.5678, 3e30, -7.3])
def test_a_constant_feature_is_only_centred(value):
    instances = np.full((1001, 2), value, np.float32)
    instances[:, 1] = np.arange(1001)
    mean, scale = standardisation(instances)
    assert mean.dtype == scale.dtype == np.float64
    assert scale[0] == 1
    np.testing.assert_allclose(mean, [np.float32(value), 500], rtol=1e-12)
    np.testing.assert_allclose(scale[1], np.std(np.arange(1001)))


def test_features_of_images_are_pixels():
    images = np.random.default_rng(0).normal(3.0, 2.0, (50, 4, 4, 1))
    mean, scale = standardisation(images)
    assert mean.shape == scale.shape == (4, 4, 1)
    standardised = (images - mean) / scale
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standardised.var(axis=0), 1)


def test_small_and_large_features_are_scaled_alike():
    values = np.random.default_rng(0).standard_normal((100, 1))
    for size in (1e-12, 1e12):
        mean, scale = standardisation(size * values)
        np.testing.assert_allclose(scale, size * values.std(), rtol=1e-9)


@pytest.mark.parametrize(
    ("bag", "sentence"),
    [
        ([["a", "b", "c"]], "bag 1 is no array of numbers: could not convert string to float"),
        ([[{}, 1, 2]], "bag 1 is no array of numbers: .*argument must be"),
        (np.ones((1, 3), complex), "bag 1 has the type complex128: Complex data not supported"),
        (scipy.sparse.csr_array(np.ones((1, 3))), "bag 1 is a sparse array, but must be dense"),
        (np.zeros((2, 0)), r"instances of bag 1 have the shape \(0,\), but must have \(3,\)"),
    ],
)
def test_bags_that_are_not_numbers_are_refused(bag, sentence):
    with pytest.raises(UserError, match=sentence):
        Recorder().fit([np.ones((1, 3)), bag], [0, 1])
