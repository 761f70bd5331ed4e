"""MI-Kernel and mi-Graph: the kernels by hand and by plain loops in float64, and the SVM on them."""

import numpy as np
import pytest
import sklearn.base
from sklearn.svm import SVC

from lossattn_jax.errors import UserError
from lossattn_jax.mil import bag_kernels
from lossattn_jax.mil.bag_kernels import (
    MIGraph,
    MIKernel,
    graph_weights,
    set_kernel,
    set_weights,
    weigh_instances,
)

METHODS = [MIKernel, MIGraph]


def random_bags(seed=0, count=24, features=3, classes=2):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    bags = [rng.normal(0.7 * label, 1, (rng.integers(1, 7), features)) for label in labels]
    return bags, labels


def kernel_of(bags, weights, gamma):
    both = weigh_instances([np.asarray(bag, float) for bag in bags], weights, gamma)
    return set_kernel(both, both, gamma)


def test_set_kernel_by_hand():
    # g = ln 2: each unit of squared distance halves. X = {0, 1}, Y = {2}.
    # s(X, X) = 1 + 1 + 2 / 2 = 3, s(Y, Y) = 1, s(X, Y) = 1/16 + 1/2.
    kernel = kernel_of([[[0], [1]], [[2]]], set_weights, np.log(2))
    np.testing.assert_allclose(kernel, [[1, 0.5625 / np.sqrt(3)], [0.5625 / np.sqrt(3), 1]])


def test_graph_weights_by_hand():
    # Distances of 0 and 1: 1 - 1/2; of 0 and 5, 1 and 5: almost 1. The first two are a group: half
    # an instance each, the last counts in full.
    similarity = 0.5 ** (np.subtract.outer([0, 1, 5], [0, 1, 5]) ** 2.0)
    np.testing.assert_allclose(graph_weights([similarity]), [0.25, 0.25, 0.5])
    # Nothing is below the average where all distances are equal, or there is only one.
    np.testing.assert_allclose(graph_weights([np.array([[1, 0.5], [0.5, 1]])]), [0.5, 0.5])
    np.testing.assert_allclose(graph_weights([np.ones((1, 1))]), [1])
    np.testing.assert_allclose(graph_weights([np.ones((3, 3))]), [1 / 3] * 3)


def plain_set_kernel(x, y, gamma):
    def total(a, b):
        return sum(np.exp(-gamma * np.sum((p - q) ** 2)) for p in a for q in b)

    return total(x, y) / np.sqrt(total(x, x) * total(y, y))


def plain_graph_kernel(x, y, gamma):
    def weights(bag):
        def distance(a, u):
            return 1 - np.exp(-gamma * np.sum((bag[a] - bag[u]) ** 2))

        places = range(len(bag))
        pairs = [distance(a, u) for a in places for u in places if a != u]
        delta = np.mean(pairs) if pairs else 0
        return [1 / sum(a == u or distance(a, u) < delta for u in places) for a in places]

    top = bottom = 0.0
    for w, p in zip(weights(x), x, strict=True):
        for v, q in zip(weights(y), y, strict=True):
            top += w * v * np.exp(-gamma * np.sum((p - q) ** 2))
            bottom += w * v
    return top / bottom


@pytest.mark.parametrize("block", [1, 5, 1024])
@pytest.mark.parametrize(
    ("weights", "plain"), [(set_weights, plain_set_kernel), (graph_weights, plain_graph_kernel)]
)
def test_kernels_agree_with_plain_loops(weights, plain, block, monkeypatch):
    monkeypatch.setattr(bag_kernels, "BLOCK", block)
    bags = [*random_bags(count=6)[0], np.ones((1, 3))]
    bags[2] = np.concatenate([bags[2], 4 + 0.1 * bags[3]])  # two groups
    expected = [[plain(x, y, 0.3) for y in bags] for x in bags]
    np.testing.assert_allclose(kernel_of(bags, weights, 0.3), expected, rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_bags_of_one_instance_make_an_ordinary_svm(method, classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    y = np.digitize(x[:, 0] + 0.5 * rng.standard_normal(40), [0, 1][: classes - 1])
    settings = {"C": 3.0, "class_weight": "balanced"}
    model = method(gamma_factor=2.0, standardise=False, **settings).fit(x[:, None], y)
    svc = SVC(gamma=2 / (3 * x.var()), **settings).fit(x, y)
    decisions = svc.decision_function(x)
    odds = np.log(model.predict_proba(x[:, None]))
    if classes == 2:
        np.testing.assert_allclose(odds[:, 1] - odds[:, 0], decisions, atol=5e-3)
        scores = decisions
    else:
        np.testing.assert_allclose(
            odds - odds.mean(axis=1, keepdims=True),
            decisions - decisions.mean(axis=1, keepdims=True),
            atol=5e-3,
        )
        scores = decisions[:, 1:].max(axis=1) - decisions[:, 0]
    ours = np.concatenate(model.instance_scores(x[:, None]))
    np.testing.assert_allclose(ours, scores, atol=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_agree_with_the_sign_of_the_decision(method):
    bags, labels = random_bags()
    model = method(standardise=False).fit(bags, np.array(["no", "yes"])[labels])
    weights = {MIKernel: set_weights, MIGraph: graph_weights}[method]
    kernel = kernel_of(bags, weights, 1 / (3 * np.concatenate(bags).var()))
    svc = SVC(C=10.0, kernel="precomputed").fit(kernel, labels)
    assert list(model.predict(bags)) == [
        ["no", "yes"][int(d > 0)] for d in svc.decision_function(kernel)
    ]
    positive = model.predict_proba(bags)[:, 1]
    np.testing.assert_allclose(positive, 1 / (1 + np.exp(-svc.decision_function(kernel))))


def test_an_instance_score_is_the_decision_for_it_alone():
    bags, labels = random_bags()
    for method in METHODS:
        model = method().fit(bags, labels)
        scores = model.instance_scores(bags)
        assert [len(s) for s in scores] == [len(bag) for bag in bags]
        positive = model.predict_proba([instance[None] for instance in bags[3]])[:, 1]
        np.testing.assert_allclose(scores[3], np.log(positive / (1 - positive)), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_bags_and_instances_does_not_matter(method, classes):
    bags, labels = random_bags(1, classes=classes)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(bags))
    shuffled = [rng.permutation(bags[i]) for i in order]
    first = method().fit(bags, labels).predict_proba(bags)
    second = method().fit(shuffled, labels[order]).predict_proba(shuffled)
    np.testing.assert_allclose(second, first[order], atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_three_classes(method):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 8)
    centres = {"a": [4, 0], "b": [0, 4], "c": [-4, -4]}
    bags = [rng.normal(centres[label], 1, (rng.integers(1, 5), 2)) for label in labels]
    model = method().fit(bags[::2], labels[::2])
    probabilities = model.predict_proba(bags)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (model.predict(bags) == labels).all()


def test_copies_of_an_instance_count_once_in_mi_graph():
    # The six copies are one group, as is the other instance.
    copies, once = [[[0.0]] * 6 + [[3.0]], [[5.0]]], [[[0.0], [3.0]], [[5.0]]]
    np.testing.assert_allclose(
        kernel_of(copies, graph_weights, 0.2), kernel_of(once, graph_weights, 0.2)
    )
    assert kernel_of(copies, set_weights, 0.2)[0, 1] < kernel_of(once, set_weights, 0.2)[0, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": -1}, "C is -1, but must be a number above 0"),
        ({"gamma_factor": float("inf")}, "gamma_factor is inf, but must be a number above 0"),
        ({"class_weight": "equal"}, "class_weight is 'equal', but must be None or 'balanced'"),
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
