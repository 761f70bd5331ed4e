"""Labels that are no classes, and which of two classes is positive, whatever the words for them."""

import pathlib

import numpy as np
import pytest
from sklearn.model_selection import cross_val_predict

from lossattn_jax.attention.poolings import BAG_POOLINGS
from lossattn_jax.data.bags.bag_files import read_csv
from lossattn_jax.errors import UserError
from lossattn_jax.mil import methods
from tests.support.tiny_bags import SLOW, UNEQUAL, settings, toy

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases" / "label_names"


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, "fit requires y to be passed, but the target y is None; y are the bags' labels"),
        (np.linspace(0, 7, 60), r"label of bag 1 is 0\.118.*but a label names a class"),
        ([0.0, 1.0, 0.5] * 20, r"the label of bag 2 is 0\.5, but a label names a class"),
        (np.arange(60.0), "labels of 60 bags are 60 different floats, which look like numbers"),
        (
            np.eye(2)[np.arange(60) % 2],
            "bags have several labels each, but .* takes one",
        ),
        ([[0], [1]] * 30, r"labels have the shape \(60, 1\), but must be one for each of 60 bags"),
        ([[0, 1], [1]] * 30, r"the label of bag 0 is \[0, 1\], but must be text, a whole number"),
        ([0, 1, None] * 20, "bag 2 has no label but None; give it one or leave the bag out"),
        (["a", np.nan] * 30, "bag 1 has no label but nan"),
        (
            np.array(["a", np.nan, "b"] * 20),
            "bag 1 has no label but 'nan'; give it one or leave the bag out, or rename the class",
        ),
        (
            ["a", "b", " "] * 20,
            "bag 2 has no label but ' '; give it one or leave the bag",
        ),
        (np.ma.array([0, 1, 0] * 20, mask=[0, 0, 1] * 20), "bag 2 has no label but None"),
        ([np.nan, 1.0] * 30, "bag 0 has no label but nan"),
        ([0.0, np.inf] * 30, "bag 1 has no label but inf"),
        (np.array(["a", np.nan] * 30), "bag 1 has no label but 'nan'; give it one or leave"),
        (["a", "NA"] * 30, "bag 1 has no label but 'NA'"),
        (["", "a"] * 30, "bag 0 has no label but ''"),
        (np.ma.array([0, 1] * 30, mask=[0, 1] * 30), "bag 1 has no label but None"),
        ([0, 1j] * 30, "the label of bag 1 is 1j, but must be text"),
        ([b"a", b"b"] * 30, "the label of bag 0 is b'a', but must be text"),
        ([1, "a"] * 30, "the labels of bags 1 and 0 are 'a' and 1, but must be all text or all"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, sentence):
    bags, _ = toy(60)
    for error in (UserError, ValueError):
        with pytest.raises(error, match=sentence):
            methods.make("mi_kernel").fit(bags, labels)


@pytest.mark.parametrize(
    ("labels", "classes", "positive"),
    [
        ([0.0, 1.0], [0, 1], 1),
        ([-1.0, 1.0], [-1, 1], 1),
        ([1, -1], [-1, 1], 1),
        ([True, False], [False, True], True),
        (["b", "a"], ["a", "b"], None),
        (np.array(["yes", "no"], object), ["no", "yes"], "yes"),
        (np.array([1, 0], object), [0, 1], 1),
        (np.array([3.0, 7.0], np.float32), [3, 7], None),
    ],
)
def test_labels_of_any_type_are_classes(labels, classes, positive):
    bags, _ = toy(20)
    model = methods.make("mi_kernel").fit(bags, np.tile(labels, 10))
    assert model.classes_.tolist() == classes and model.positive_ == positive
    assert model.n_features_in_ == 3
    assert np.mean(model.predict(bags) == np.tile(labels, 10)) > 0.9


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in methods.NAMES
    ],
)
def test_the_words_of_the_classes_change_no_prediction(name):
    bags, truth = toy(30, words=(0, 1), shift=0.8)
    others, _ = toy(10, seed=1, shift=0.8)
    plain = methods.make(name, **settings(name)).fit(bags, truth)
    probabilities, scores = plain.predict_proba(others), plain.instance_scores(others)
    for words in (("normal", "tumour"), ("healthy", "cancer")):
        words = np.array(words)
        model = methods.make(name, positive=words[1], **settings(name)).fit(bags, words[truth])
        assert model.positive_ == words[1] and list(model.classes_) == sorted(words)
        np.testing.assert_array_equal(model.predict(others), words[plain.predict(others)])
        columns = [model.classes_.tolist().index(word) for word in words]
        np.testing.assert_array_equal(model.predict_proba(others)[:, columns], probabilities)
        for one, other in zip(model.instance_scores(others), scores, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in methods.NAMES
        if name not in UNEQUAL
    ],
)
def test_without_a_positive_class_words_change_no_prediction(name):
    bags, truth = toy(30, words=(0, 1), shift=0.8)
    others, _ = toy(10, seed=1, shift=0.8)
    first, second = (
        methods.make(name, **settings(name)).fit(bags, np.array(words)[truth])
        for words in (("ant", "bee"), ("bee", "ant"))
    )
    assert first.positive_ is second.positive_ is None
    np.testing.assert_array_equal(
        first.predict_proba(others), second.predict_proba(others)[:, ::-1]
    )
    # The scores are for bees.
    probability = first.predict_proba([row[None] for row in np.concatenate(others)])[:, 1]
    for model, sign in ((first, 1), (second, -1)):
        scores = np.concatenate(model.instance_scores(others))
        if name in BAG_POOLINGS and BAG_POOLINGS[name].scores_by_attention:  # weights in a bag
            np.testing.assert_array_equal(scores, np.concatenate(first.instance_scores(others)))
        elif name != "mi_net_ds":  # where an instance alone is not the mean of its classifiers
            order = np.argsort(sign * probability)
            assert (np.diff(scores[order]) > -1e-6).all()


@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal_methods_have_to_know_the_positive_class(name):
    bags, labels = toy(8, words=("healthy", "cancer"))
    sentence = "treats the two classes unequally, and neither 'cancer' nor 'healthy' is known to be"
    with pytest.raises(UserError, match=sentence + ".* positive='cancer' or positive='healthy'"):
        methods.make(name).fit(bags, labels)
    with pytest.raises(UserError, match="positive names 'tumour', of which none is a class of"):
        methods.make(name, positive="tumour").fit(bags, labels)
    with pytest.raises(UserError, match="positive is 'c', but there are 3 classes; leave it out"):
        methods.make(name, positive="c").fit(bags, list("abcabcab"))


@pytest.mark.skipif(not CASES.exists(), reason="needs shared/cases/label_names")
@pytest.mark.parametrize("name", ["mi_svm", "mi_svm_bag", "em_dd", "mi_kernel"])
def test_the_same_bags_with_other_words_are_predicted_alike(name):
    right = []
    for words in (("normal", "tumor"), ("healthy", "cancer")):
        dataset = read_csv(CASES / f"{words[1]}_{words[0]}.csv")
        labels = np.array(dataset.classes)[dataset.labels]
        method = methods.make(name, positive=words[1])
        right.append(cross_val_predict(method, dataset.bags, labels, cv=4) == labels)
    np.testing.assert_array_equal(*right)
    assert np.mean(right[0]) > 0.9
