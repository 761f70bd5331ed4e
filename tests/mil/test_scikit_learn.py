"""The methods for bags as classifiers of scikit-learn: its own checks, its tools, labels and weights."""

import collections
import pathlib
import pickle
import unittest

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from lossattn_jax.data.bags.bag_files import read_csv
from lossattn_jax.errors import UserError
from lossattn_jax.mil import methods
from lossattn_jax.train.bags.settings import Settings
from reliability import compiled_programs
from tests.support.tiny_bags import FAST, SLOW, UNEQUAL, settings, toy

MUSK1 = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mil" / "musk1.csv.gz"
# Checks of scikit-learn that the methods fail, and why.
FAILED = {
    "check_supervised_y_2d": "a column of labels is refused, where scikit-learn would flatten it",
}
# Of these, checks with classes 1 and 2 or "one" and "two"; `Named` passes them.
FAILED_UNEQUAL = {
    name: "which of two classes is positive has to be named, and the check does not"
    for name in (
        "check_estimators_dtypes",
        "check_classifier_data_not_an_array",
        "check_classifiers_classes",
        "check_fit2d_1feature",
    )
}
# Those that train nothing.
OF_PARAMETERS = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_estimators_unfitted",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_complex_data",
    "check_estimators_empty_data_messages",
    "check_estimator_sparse_tag",
    "check_estimator_sparse_array",
    "check_estimator_sparse_matrix",
    "check_classifiers_one_label",
    "check_classifiers_regression_target",
    "check_supervised_y_no_nan",
    "check_parameters_default_constructible",
    "check_fit2d_1sample",
    "check_get_params_invariance",
    "check_set_params",
    "check_fit1d",
    "check_requires_y_none",
)


def bags_of(rows):
    """Each row as a bag of one instance, in place of the array that scikit-learn's checks pass."""
    if scipy.sparse.issparse(rows):
        rows = rows.tocsr()
        return [rows[[place]] for place in range(rows.shape[0])]
    return [row[None] if row.ndim else row for row in np.asarray(rows)]


@pytest.fixture(autouse=True)
def few_programs_each():
    """The checks of one method compile more than the other tests of a whole file."""
    yield
    compiled_programs.release_many()


def of_rows(method, named=False):
    """The class of a method that takes an array of rows; with `named`, the last class is positive."""

    class OfRows(type(method)):
        def fit(self, X, y):
            return super().fit(bags_of(X), y)

        def predict(self, X):
            return super().predict(bags_of(X))

        def predict_proba(self, X):
            return super().predict_proba(bags_of(X))

        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    class Named(OfRows):
        def _find_positive(self):
            return self.classes_.tolist()[-1] if len(self.classes_) == 2 else None

    kind = Named if named else OfRows
    kind.__name__ = kind.__qualname__ = type(method).__name__
    globals()[kind.__name__] = kind  # where pickle looks for it
    return kind


def to_check(name, named=False):
    method = methods.make(name, **settings(name))
    return of_rows(method, named)(**method.get_params(deep=False))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in (*SLOW, "mi_graph") else name
        for name in methods.NAMES
    ],
)
def test_checks_of_scikit_learn(name):
    expected = {**FAILED, **(FAILED_UNEQUAL if name in UNEQUAL else {})}
    results = check_estimator(
        to_check(name), expected_failed_checks=expected, on_fail=None, on_skip=None
    )
    assert len(results) > 40
    wrong = {
        one["check_name"]: one["exception"] or "passes, but is listed"
        for one in results
        if one["status"] == "failed" or (one["status"] == "passed" and one["expected_to_fail"])
    }
    assert not wrong


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in UNEQUAL],
)
def test_checks_with_words_pass_where_the_positive_one_is_named(name):
    passed = set()
    for estimator, check in estimator_checks_generator(to_check(name, named=True)):
        if check.func.__name__ in FAILED_UNEQUAL:
            try:
                check(estimator)
            except unittest.SkipTest:  # without pandas
                pass
            passed.add(check.func.__name__)
    assert passed == set(FAILED_UNEQUAL)


@pytest.mark.parametrize("name", ["loss_attention", "mi_net"])
def test_checks_of_parameters_pass_for_networks(name):
    names = collections.Counter()
    for estimator, check in estimator_checks_generator(to_check(name)):
        if check.func.__name__ in OF_PARAMETERS:
            check(estimator)
            names[check.func.__name__] += 1
    assert set(names) == set(OF_PARAMETERS)


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_is_a_classifier_of_lists(name):
    method = methods.make(name)
    tags = get_tags(method)
    assert is_classifier(method) and tags.estimator_type == "classifier"
    assert tags.target_tags.required and tags.classifier_tags.multi_class
    assert not tags.input_tags.two_d_array and not tags.input_tags.allow_nan
    assert method.unequal_classes == (name in UNEQUAL)


def test_cross_validation_takes_stratified_folds():
    bags, labels = toy(40)
    order = np.argsort(labels, kind="stable")  # all of one class first
    bags, labels = [bags[place] for place in order], labels[order]
    scores = cross_val_score(methods.make("mi_kernel"), bags, labels, cv=4)
    by_hand = []
    for train, test in StratifiedKFold(4).split(np.zeros(40), labels):
        model = methods.make("mi_kernel").fit([bags[row] for row in train], labels[train])
        by_hand.append(np.mean(model.predict([bags[row] for row in test]) == labels[test]))
    np.testing.assert_array_equal(scores, by_hand)
    assert np.mean(scores) > 0.8


@pytest.mark.parametrize("kind", [list, tuple, "object array"])
def test_bags_may_come_in_any_sequence(kind):
    bags, labels = toy(24)
    if kind == "object array":
        own = np.empty(24, object)
        own[:] = bags
    else:
        own = kind(bags)
    scores = cross_val_score(methods.make("mi_fv"), own, labels, cv=3, scoring="roc_auc")
    expected = cross_val_score(methods.make("mi_fv"), bags, labels, cv=3, scoring="roc_auc")
    np.testing.assert_array_equal(scores, expected)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("words", [("no", "yes"), ("tumour", "healthy"), ("a", "b")])
def test_the_area_under_the_curve_is_that_of_the_last_word(words):
    bags, labels = toy(30, words=words, shift=0.7)
    method = methods.make("mi_kernel")
    scores = cross_val_score(method, bags, labels, cv=3, scoring="roc_auc")
    expected = []
    for train, test in StratifiedKFold(3).split(np.zeros(30), labels):
        model = clone(method).fit([bags[row] for row in train], labels[train])
        column = model.predict_proba([bags[row] for row in test])[:, 1]
        expected.append(roc_auc_score(labels[test] == max(words), column))
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert np.mean(scores) > 0.6


def test_the_score_is_the_accuracy_also_with_weights():
    bags, labels = toy(20, shift=0.3)
    model = methods.make("mi_kernel", C=0.1).fit(bags, labels)
    right = model.predict(bags) == labels
    assert 0 < right.mean() < 1
    assert model.score(bags, labels) == right.mean()
    weights = np.arange(20.0)
    np.testing.assert_allclose(
        model.score(bags, labels, sample_weight=weights), weights[right].sum() / weights.sum()
    )


def test_weights_of_single_bags_are_not_taken():
    bags, labels = toy(8)
    with pytest.raises(TypeError, match="sample_weight"):
        methods.make("mi_kernel").fit(bags, labels, sample_weight=np.ones(8))


@pytest.mark.slow
def test_a_search_finds_a_setting_of_the_training():
    bags, labels = toy(24)
    bags = [np.resize(bag[::-1], (4, 3)) for bag in bags]  # of one length: compiled once
    network = methods.make("attention", **settings("attention"))
    search = GridSearchCV(
        network, {"settings__learning_rate": [1e-7, 0.03]}, cv=2, error_score="raise"
    )
    search.fit(bags, labels)
    assert search.best_params_ == {"settings__learning_rate": 0.03}
    best = search.best_estimator_.settings
    assert best == Settings(epochs=10, learning_rate=0.03, batch_size=4, max_waste=4.0)
    assert network.settings == FAST


@pytest.mark.slow
def test_a_search_may_draw_from_arrays():
    bags, labels = toy(8)
    bags = [np.resize(bag, (4, 3)) for bag in bags]
    network = methods.make("attention", **settings("attention"))
    grid = {
        "settings__epochs": np.array([2]),
        "settings__learning_rate": np.array([0.01], np.float32),
        "hidden": [[4, 4, 4], np.array([4, 4, 4])],
        "dropout": np.array([0.5], np.float32),
    }
    search = GridSearchCV(network, grid, cv=2, error_score="raise").fit(bags, labels)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and scores[0] == scores[1]
    best = search.best_estimator_.settings
    assert type(best.epochs) is int and type(best.learning_rate) is float
    reduced = methods.make("mi_fv", components=1, pca_energy=np.float32(0.9)).fit(bags, labels)
    assert np.isfinite(reduced.predict_proba(bags)).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ensemble": 1.5}, "ensemble is 1.5, but must be 1 or more"),
        ({"ensemble": "2"}, "ensemble is '2', but must be 1 or more"),
        ({"dropout": None}, "dropout is None, but must be at least 0 and below 1"),
        ({"hidden": 8}, "hidden is 8, but must be widths of 1 or more"),
        ({"hidden": (8.5, 8, 8)}, r"hidden is \(8.5, 8, 8\), but must be widths of 1 or more"),
        ({"seed": -1}, "seed is -1, but must be a whole number from 0 on"),
        ({"seed": None}, "seed is None, but must be a whole number from 0 on"),
    ],
)
def test_impossible_networks_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        methods.make("attention", **settings("attention") | options).fit(*toy(4))


def test_settings_are_parameters_also_of_none():
    network = methods.make("loss_attention")
    assert network.get_params()["settings__learning_rate"] == 1e-4
    assert "settings__learning_rate" not in network.get_params(deep=False)
    network.set_params(settings__learning_rate=0.1, settings__epochs=5, dropout=0.2)
    assert network.settings == Settings(learning_rate=0.1, epochs=5) and network.dropout == 0.2
    # Two that are only possible together, and on top of settings of the same call.
    network.set_params(settings=Settings(epochs=3), settings__epochs=9, settings__average_epochs=8)
    assert network.settings == Settings(epochs=9, average_epochs=8)
    copy = clone(network)
    assert copy.get_params() == network.get_params()
    copy.set_params(settings__epochs=20)
    assert (copy.settings.epochs, network.settings.epochs) == (20, 9)
    pipeline = make_pipeline(FunctionTransformer(), network)
    pipeline.set_params(networkclassifier__settings__epochs=30)
    assert pipeline[-1].settings.epochs == 30
    again = methods.make("loss_attention").set_params(**network.get_params())
    assert again.get_params() == network.get_params()


def test_unknown_and_impossible_parameters_raise():
    network = methods.make("loss_attention")
    with pytest.raises(UserError, match="settings has no parameter 'rate'; .* learning_rate, "):
        network.set_params(settings__rate=3)
    with pytest.raises(ValueError, match="Invalid parameter 'rate'"):
        network.set_params(rate=3)
    with pytest.raises(UserError, match="settings__epochs is 0, but must be a whole number"):
        network.set_params(settings__epochs=0, dropout=0.3)
    assert network.settings is None and network.dropout == 0.5  # nothing was set
    with pytest.raises(UserError, match="settings is 3, but must be a Settings or None"):
        network.set_params(settings=3).fit(*toy(4))
    with pytest.raises(UserError, match="settings is 3, but must be a Settings or None"):
        network.set_params(settings__epochs=3)


def test_the_tools_of_scikit_learn_take_bags():
    bags, labels = toy(30)
    pipeline = make_pipeline(FunctionTransformer(), methods.make("mi_kernel"))
    assert pipeline.fit(bags, labels).score(bags, labels) > 0.9
    predicted = cross_val_predict(pipeline, bags, labels, cv=3, method="predict_proba")
    assert predicted.shape == (30, 2)
    assert roc_auc_score(labels, predicted[:, 1]) > 0.9
    calibrated = CalibratedClassifierCV(methods.make("mi_svm"), cv=3).fit(bags, labels)
    assert list(calibrated.classes_) == ["no", "yes"]
    assert np.mean(calibrated.predict(bags) == labels) > 0.9
    copy = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(copy.predict_proba(bags), pipeline.predict_proba(bags))


def test_what_is_not_fitted_says_so_to_both():
    for error in (UserError, NotFittedError):
        with pytest.raises(error, match="MIKernel was not fitted"):
            methods.make("mi_kernel").predict(toy(2)[0])


@pytest.mark.skipif(not MUSK1.exists(), reason="needs shared/data/mil/musk1.csv.gz")
def test_musk1_is_cross_validated_in_stratified_folds():
    """The file has one class after the other: unshuffled folds would be of one class, nearly all."""
    dataset = read_csv(MUSK1)
    method = methods.make("mi_kernel")
    scores = cross_val_score(method, dataset.bags, dataset.labels, cv=5)
    folds = StratifiedKFold(5)
    np.testing.assert_array_equal(
        scores, cross_val_score(method, dataset.bags, dataset.labels, cv=folds)
    )
    assert scores.min() > 0.7 and scores.mean() > 0.8
    areas = cross_val_score(method, dataset.bags, dataset.labels, cv=5, scoring="roc_auc")
    assert areas.min() > 0.7
