"""mi-SVM and MI-SVM: hand-computed margins, plain loops over scikit-learn's SVC, and what must not matter."""

import pathlib

import numpy as np
import pytest
import sklearn.base
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

from lossattn_jax.errors import UserError
from lossattn_jax.mil import svm
from lossattn_jax.mil.bag_kernels import MIGraph, MIKernel
from lossattn_jax.mil.svm import MISVM, MiSVM

METHODS = [MiSVM, MISVM]
DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mil"


def random_bags(seed=0, count=30, shift=1.5, features=4):
    """Bags of noise; those of label 1 have one instance that is shifted."""
    rng = np.random.default_rng(seed)
    bags = [rng.standard_normal((rng.integers(1, 6), features)) for _ in range(count)]
    labels = np.arange(count) % 2
    for bag, label in zip(bags, labels, strict=True):
        bag[-1] += shift * label
    return bags, labels


@pytest.mark.parametrize("method", METHODS)
def test_the_widest_margin_by_hand(method):
    # The best positive instances are 3 and 1, the closest negative one is -1: f(x) = x. The first
    # choice, all of the positive bags or their means 0.5 and -0.25, is another.
    negative, positive = [[[-2.0], [-1.0]], [[-1.5], [-1.0]]], [[[3.0], [-2.0]], [[-1.5], [1.0]]]
    model = method(kernel="linear", C=1e4, standardise=False)
    model.fit(negative + positive, ["no", "no", "yes", "yes"])
    found = model.instance_scores([[[-1.5], [0.0], [2.0]]])
    np.testing.assert_allclose(found[0], [-1.5, 0, 2], atol=2e-3)
    assert model.rounds_[0] > 1
    # sigmoid(2) for the largest of the bag, sigmoid(-0.5) for the other bag.
    probabilities = model.predict_proba([[[-1.5], [2.0]], [[-0.5]]])[:, 1]
    np.testing.assert_allclose(
        probabilities, [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(0.5))], atol=1e-3
    )
    assert list(model.predict([[[-1.5], [2.0]], [[-0.5]]])) == ["yes", "no"]


def plain_mi_svm(bags, labels, gamma):
    x, bag_of = np.concatenate(bags), np.repeat(np.arange(len(bags)), [len(b) for b in bags])
    y = labels[bag_of]
    for _ in range(100):
        svc = SVC(C=1.0, gamma=gamma).fit(x, y)
        values, old = svc.decision_function(x), y.copy()
        for bag in np.flatnonzero(labels):
            inside = np.flatnonzero(bag_of == bag)
            y[inside] = values[inside] > 0
            if not y[inside].any():
                y[inside[np.argmax(values[inside])]] = 1
        if (y == old).all():
            return svc, y
    raise AssertionError("no end")


def plain_mi_svm_of_witnesses(bags, labels, gamma):
    negatives = np.concatenate([b for b, label in zip(bags, labels, strict=True) if not label])
    positives = [b for b, label in zip(bags, labels, strict=True) if label]
    witnesses = np.array([b.mean(axis=0) for b in positives])
    for _ in range(100):
        x = np.concatenate([negatives, witnesses])
        svc = SVC(C=1.0, gamma=gamma).fit(x, np.arange(len(x)) >= len(negatives))
        old = witnesses
        witnesses = np.array([b[np.argmax(svc.decision_function(b))] for b in positives])
        if (witnesses == old).all():
            return svc, witnesses
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("method", "plain"), [(MiSVM, plain_mi_svm), (MISVM, plain_mi_svm_of_witnesses)]
)
def test_agrees_with_a_plain_loop(method, plain, seed):
    bags, labels = random_bags(seed)
    gamma = 1 / (4 * np.concatenate(bags).var())
    reference, _ = plain(bags, labels, gamma)
    model = method(standardise=False).fit(bags, labels)
    assert model.rounds_[0] > 1
    for bag, values in zip(bags, model.instance_scores(bags), strict=True):
        np.testing.assert_allclose(values, reference.decision_function(bag), atol=5e-3)


@pytest.mark.parametrize("settings", [{}, {"class_weight": "balanced"}, {"kernel": "linear"}])
@pytest.mark.parametrize("method", METHODS)
def test_bags_of_one_instance_make_an_ordinary_svm(method, settings):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    y = (x[:, 0] + 2 * rng.standard_normal(40) > 0.8).astype(int)
    gamma = 2 / (3 * x.var())
    model = method(C=3.0, gamma_factor=2.0, standardise=False, **settings).fit(x[:, None], y)
    ours = np.concatenate(model.instance_scores(x[:, None]))
    if settings.get("kernel") == "linear":
        svc = SVC(C=3.0 * gamma, kernel="linear").fit(x, y)
    else:
        svc = SVC(C=3.0, gamma=gamma, **settings).fit(x, y)
    np.testing.assert_allclose(ours, svc.decision_function(x), atol=5e-3)
    # mi-SVM must keep the labels even of points on the wrong side: a bag has one positive instance.
    assert (svc.predict(x) != y).any()


@pytest.mark.parametrize("method", METHODS)
def test_finds_the_positive_instance_of_each_bag(method):
    rng = np.random.default_rng(0)
    bags = [rng.normal(0, 0.5, (6, 2)) for _ in range(20)]
    for bag in bags[10:]:
        bag[2] = rng.normal([4, 0], 0.2)
    model = method(kernel="linear", C=10.0).fit(bags, [0] * 10 + [1] * 10)
    values = np.array(model.instance_scores(bags))
    assert (values[:10] < 0).all()
    assert (values[10:, 2] > 0).all()
    assert (np.delete(values[10:], 2, axis=1) < 0).all()


def three_kinds():
    """Eight bags of each class, the second instance of which tells them apart."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 8)
    bags = [rng.normal(0, 0.5, (4, 2)) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[1] += [[5, 0], [0, 5], [-5, -5]][label]
    return bags, labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_order_of_bags_and_instances_does_not_matter(method, classes):
    bags, labels = three_kinds()
    labels = np.minimum(labels, classes - 1)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(bags))
    shuffled = [rng.permutation(bags[i]) for i in order]
    first = method().fit(bags, labels)
    second = method().fit(shuffled, labels[order])
    np.testing.assert_allclose(
        second.predict_proba(shuffled), first.predict_proba(bags)[order], atol=2e-3
    )


@pytest.mark.parametrize("method", METHODS)
def test_three_classes(method):
    bags, labels = three_kinds()
    labels = np.array(["a", "b", "c"])[labels]
    model = method(C=10.0).fit(bags[::2], labels[::2])
    assert len(model.rounds_) == 3
    probabilities = model.predict_proba(bags)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (model.predict(bags) == labels).all()
    found = [int(np.argmax(values)) for values in model.instance_scores(bags)]
    assert found[8:] == [1] * 16  # of classes other than the first


@pytest.mark.parametrize("method", METHODS)
def test_no_more_rounds_than_asked_for(method):
    bags, labels = random_bags()
    assert method(max_iterations=1).fit(bags, labels).rounds_ == [1]
    assert 1 < method(max_iterations=50).fit(bags, labels).rounds_[0] < 50


def test_blocks_do_not_matter(monkeypatch):
    bags, labels = random_bags()
    whole = MISVM().fit(bags, labels).predict_proba(bags)
    monkeypatch.setattr(svm, "BLOCK", 7)
    np.testing.assert_allclose(MISVM().fit(bags, labels).predict_proba(bags), whole, atol=1e-9)


def test_features_may_have_any_shape():
    bags, labels = random_bags()
    images = [bag.reshape(-1, 2, 2, 1) for bag in bags]
    np.testing.assert_allclose(
        MiSVM().fit(images, labels).predict_proba(images),
        MiSVM().fit(bags, labels).predict_proba(bags),
    )


def test_probabilities_by_hand():
    np.testing.assert_allclose(
        svm.probabilities(np.log([[3.0], [1.0]])), [[0.25, 0.75], [0.5, 0.5]]
    )
    np.testing.assert_allclose(svm.probabilities(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]])
    np.testing.assert_array_equal(svm.scores(np.array([[1.0, 4.0, -2.0]])), [3.0])


def test_features_that_never_vary_are_no_error():
    bags = [np.ones((2, 3)), np.ones((1, 3))]
    assert np.isfinite(MiSVM().fit(bags, [0, 1]).predict_proba(bags)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "cubic"}, "kernel is 'cubic', but must be one of linear, rbf"),
        ({"C": 0}, "C is 0, but must be a number above 0"),
        ({"C": float("nan")}, "C is nan"),
        ({"gamma_factor": "scale"}, "gamma_factor is 'scale'"),
        ({"class_weight": "equal"}, "class_weight is 'equal', but must be None or 'balanced'"),
        ({"max_iterations": 0}, "max_iterations is 0, but must be a whole number above 0"),
        ({"max_iterations": 2.5}, "max_iterations is 2.5"),
    ],
)
def test_wrong_settings_are_named(method, settings, message):
    with pytest.raises(UserError, match=message):
        method(**settings).fit(*random_bags())


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_settings(method):
    candidates = method.candidates()
    assert candidates[0] == {} and len(candidates) <= 6
    bags, labels = random_bags()
    for settings in candidates:
        model = sklearn.base.clone(method(**settings)).fit(bags, labels)
        assert np.isfinite(model.predict_proba(bags)).all()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"needs the benchmark data in {DATA}")
@pytest.mark.parametrize(
    ("method", "published"), [(MiSVM, 0.874), (MISVM, 0.779), (MIKernel, 0.880), (MIGraph, 0.889)]
)
def test_musk1_is_classified_about_as_well_as_published(method, published):
    table = np.loadtxt(DATA / "musk1.csv.gz", delimiter=",", skiprows=1)
    _, starts = np.unique(table[:, 1], return_index=True)
    starts = np.sort(starts)
    labels, bags = table[starts, 0], np.split(table[:, 2:], starts[1:])
    right = 0
    for train, test in StratifiedKFold(10, shuffle=True, random_state=0).split(labels, labels):
        model = method().fit([bags[i] for i in train], labels[train])
        right += np.sum(model.predict([bags[i] for i in test]) == labels[test])
    # 92 bags: the standard error of a measured accuracy of 0.85 is 0.037.
    assert abs(right / len(bags) - published) < 0.1
