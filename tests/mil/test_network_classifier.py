"""Networks behind the interface of all methods: several classes, ensembles, seeds, copies."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from lossattn_jax.errors import UserError
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train.bags.settings import Settings

CLASSES = np.array(["ant", "bee", "cow"])
OPTIONS = {
    "method": "gated_attention",
    "hidden": (8, 8, 6),
    "dropout": 0.1,
    "ensemble": 2,
    "seed": 3,
    "settings": Settings(epochs=9, learning_rate=0.03, max_waste=9.0),
}


def toy(seed, count=30):
    """Bags of noise; those of "bee" and "cow" have one instance that is far off, each elsewhere."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    bags = [random.normal(5.0, 0.3, (random.integers(1, 5), 3)) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[random.integers(len(bag))] += [[0, 0, 0], [6, 0, 0], [0, 6, 0]][label]
    return bags, CLASSES[labels]


@pytest.fixture(scope="module")
def fitted():
    return NetworkClassifier(**OPTIONS).fit(*toy(0))


def test_several_classes_with_names_are_learned(fitted):
    bags, labels = toy(1)
    assert list(fitted.classes_) == list(CLASSES)
    np.testing.assert_array_equal(fitted.predict(bags), labels)
    probabilities = fitted.predict_proba(bags)
    assert probabilities.shape == (30, 3) and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


def test_attention_is_the_score_of_an_instance(fitted):
    bags, _ = toy(1)
    scores = fitted.instance_scores(bags)
    assert [one.shape for one in scores] == [(len(bag),) for bag in bags]
    for one in scores:
        assert one.dtype == np.float64
        np.testing.assert_allclose(one.sum(), 1, rtol=1e-5)  # also of the mean of two networks


def test_a_prediction_depends_on_no_other_bag(fitted):
    bags, _ = toy(1)
    every = fitted.predict_proba(bags)
    few = fitted.predict_proba(bags[4:6])
    np.testing.assert_allclose(few, every[4:6], rtol=1e-4, atol=1e-6)


def test_bags_may_be_longer_than_those_of_fit(fitted):
    long = np.concatenate(toy(1)[0])
    long = long[(np.abs(long - 5) < 2).all(axis=1)]
    assert len(long) > 40
    assert list(fitted.predict([long])) == ["ant"]
    assert [len(one) for one in fitted.instance_scores([long])] == [len(long)]


def test_a_copy_learns_the_same_and_another_seed_something_else(fitted):
    bags, labels = toy(0)
    copy = clone(fitted)
    assert copy.get_params(deep=False) == {
        **OPTIONS,
        "backbone": "dense",
        "standardise": True,
        "dump_dir": None,
        "instances_per_device": None,
        "options": None,
        "class_weight": None,
        "positive": None,
        "max_instances": 0,
        "validation": None,
        "memory_gib": None,
    }
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    with pytest.raises(UserError, match="NetworkClassifier was not fitted"):
        copy.predict(bags)
    expected = fitted.predict_proba(bags)
    check_is_fitted(copy.fit(bags, labels))
    np.testing.assert_array_equal(copy.predict_proba(bags), expected)
    other = copy.set_params(seed=4).fit(bags, labels)
    assert np.abs(other.predict_proba(bags) - expected).max() > 1e-4


def test_features_may_have_any_scale(fitted):
    bags, labels = toy(0)
    scaled = [bag * [1e3, 1e-3, 1.0] - [0, 7, 0] for bag in bags]
    other = clone(fitted).fit(scaled, labels)
    np.testing.assert_allclose(
        other.predict_proba(scaled), fitted.predict_proba(bags), rtol=0.02, atol=2e-3
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "mil"}, "method is 'mil', but must be one of: mi_net, "),
        ({"dropout": 1.0}, "dropout is 1.0, but must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"ensemble": 0}, "ensemble is 0, but must be 1 or more"),
        ({"backbone": "vit"}, "backbone is 'vit', but must be one of: dense, lenet"),
    ],
)
def test_impossible_settings_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        NetworkClassifier(**{**OPTIONS, **options}).fit(*toy(0))
