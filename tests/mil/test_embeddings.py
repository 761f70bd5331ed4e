"""miVLAD and miFV: vectors by hand and by finite differences, and what holds of the classifiers."""

import copy
import pathlib

import numpy as np
import pytest
import scipy.special
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold

from lossattn_jax.data.bags.bag_files import read_csv
from lossattn_jax.errors import UserError
from lossattn_jax.mil import embeddings
from lossattn_jax.mil.embeddings import MiFV, MiVLAD

pytestmark = pytest.mark.filterwarnings("error")

MUSK1 = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mil" / "musk1.csv.gz"
METHODS = [MiVLAD, MiFV]


def make_bags(classes=2, per_class=15, seed=0):
    """Bags of 1 to 6 instances; in those of class k > 0, one or two have 4 more in feature k."""
    generator = np.random.default_rng(seed)
    bags, labels = [], []
    for label in range(classes):
        for _ in range(per_class):
            bag = generator.normal(size=(generator.integers(1, 7), 4))
            if label:
                bag[: generator.integers(1, 3), label] += 4
            bags.append(bag)
            labels.append(label)
    return bags, np.array(labels)


def test_vlad_by_hand():
    first = [[0.0, 0.0], [10.0, 18.0], [6.0, 1.0]]
    second = [[6.0, 9.0]]
    centres = np.array([[1.0, 0.0], [10.0, 9.0]])
    # First bag: (-1, 0) + (5, 1) from the first centre, (0, 9) from the second; second bag: (-4, 0).
    vectors = embeddings.vlad_vectors(np.array(first + second), np.array([3, 1]), centres)
    np.testing.assert_array_equal(vectors, [[4, 1, 0, 9], [0, 0, -4, 0]])
    normalised = embeddings.normalise(vectors)
    # Roots 2, 1, 0 and 3, whose squares sum to 14.
    np.testing.assert_allclose(normalised, [np.array([2, 1, 0, 3]) / 14**0.5, [0, 0, -1, 0]])


def test_a_vector_of_zeros_stays():
    np.testing.assert_array_equal(embeddings.normalise(np.zeros((1, 3))), 0)


def make_mixture():
    generator = np.random.default_rng(0)
    # Close enough for every instance to belong to all Gaussians.
    data = generator.normal(size=(300, 3)) * [1.0, 2.0, 0.5] + generator.integers(0, 2, (300, 1))
    mixture = GaussianMixture(3, covariance_type="diag", random_state=0, max_iter=500).fit(data)
    return mixture, generator.normal(size=(12, 3)) + 0.5


def log_likelihood(mixture, bag, logits=None, means=None, deviations=None):
    other = copy.deepcopy(mixture)
    if logits is not None:
        other.weights_ = scipy.special.softmax(logits)
    if means is not None:
        other.means_ = means
    if deviations is not None:
        other.covariances_ = deviations**2
        other.precisions_cholesky_ = 1 / deviations
    return other.score_samples(bag).mean()


def finite_differences(function, values, step=1e-5):
    gradient = np.zeros_like(values)
    for place in np.ndindex(values.shape):
        shift = np.zeros_like(values)
        shift[place] = step
        gradient[place] = (function(values + shift) - function(values - shift)) / (2 * step)
    return gradient


def test_fisher_vectors_are_scaled_log_likelihood_gradients():
    mixture, instances = make_mixture()
    lengths = np.array([5, 7])
    vectors = embeddings.fisher_vectors(instances, lengths, mixture).reshape(2, 3, 7)
    weights, deviations = mixture.weights_, np.sqrt(mixture.covariances_)
    for vector, bag in zip(vectors, np.split(instances, [5]), strict=True):
        by_logits = finite_differences(
            lambda v, bag=bag: log_likelihood(mixture, bag, logits=v), np.log(weights)
        )
        np.testing.assert_allclose(vector[:, 0], by_logits / np.sqrt(weights), atol=1e-7)
        by_means = finite_differences(
            lambda v, bag=bag: log_likelihood(mixture, bag, means=v), mixture.means_
        )
        scale = deviations / np.sqrt(weights)[:, None]
        np.testing.assert_allclose(vector[:, 1:4], by_means * scale, atol=1e-7)
        by_deviations = finite_differences(
            lambda v, bag=bag: log_likelihood(mixture, bag, deviations=v), deviations
        )
        np.testing.assert_allclose(vector[:, 4:], by_deviations * scale / 2**0.5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 3])
def test_learns_and_agrees_with_itself(method, classes):
    bags, labels = make_bags(classes)
    names = np.array(["a", "b", "c"])
    # A centre amid the instances that make the difference would hide them.
    settings = {"centres": 1} if method is MiVLAD else {}
    fitted = method(C=1.0, **settings).fit(bags, names[labels])
    others, truth = make_bags(classes, per_class=40, seed=1)
    probabilities = fitted.predict_proba(others)
    assert probabilities.shape == (40 * classes, classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    predicted = fitted.predict(others)
    np.testing.assert_array_equal(predicted, names[probabilities.argmax(axis=1)])
    assert np.mean(predicted == names[truth]) > 0.8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, {"rescale": False, "C": 1.0}])
def test_order_of_bags_and_instances_does_not_matter(method, settings):
    bags, labels = make_bags()
    others, _ = make_bags(seed=1)
    generator = np.random.default_rng(2)
    order = generator.permutation(len(bags))
    shuffled = [generator.permutation(bags[place]) for place in order]
    one = method(**settings).fit(bags, labels)
    two = method(**settings).fit(shuffled, labels[order])
    expected = one.predict_proba(others)
    assert np.ptp(expected[:, 0]) > 0.1
    np.testing.assert_allclose(two.predict_proba(others), expected, atol=1e-5)
    turned = [bag[::-1] for bag in others]
    np.testing.assert_allclose(one.predict_proba(turned), expected, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_instance_scores_are_decisions_for_bags_of_one(method):
    bags, labels = make_bags()
    fitted = method().fit(bags, labels)
    scores = fitted.instance_scores(bags[:3])
    assert [len(score) for score in scores] == [len(bag) for bag in bags[:3]]
    alone = fitted.predict_proba(np.concatenate(bags[:3])[:, None, :])
    np.testing.assert_allclose(np.concatenate(scores), scipy.special.logit(alone[:, 1]), rtol=1e-9)

    bags, labels = make_bags(classes=3)
    fitted = method().fit(bags, labels)
    logs = np.log(fitted.predict_proba(np.concatenate(bags)[:, None, :]))
    expected = logs[:, 1:].max(axis=1) - logs[:, 0]
    np.testing.assert_allclose(np.concatenate(fitted.instance_scores(bags)), expected, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_candidate_can_be_fitted(method):
    candidates = method.candidates()
    assert candidates[0] == {} and len(candidates) <= 6
    bags, labels = make_bags()
    results = [method(**c).fit(bags, labels).predict_proba(bags) for c in candidates]
    assert len(np.unique(np.round(results, 6), axis=0)) == len(candidates)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same(method):
    bags, labels = make_bags()
    expected = method().fit(bags, labels).predict_proba(bags)
    np.testing.assert_array_equal(method().fit(bags, labels).predict_proba(bags), expected)


def test_a_constant_feature_says_nothing_by_its_rounding_errors():
    bags, labels = make_bags()
    # No binary number: the mean of many differs from it by a rounding error.
    wider = [np.concatenate([bag, np.full((len(bag), 1), 0.1)], axis=1) for bag in bags]
    settings = {"C": 1.0, "standardise": False}
    expected = MiVLAD(**settings).fit(bags, labels).predict_proba(bags)
    found = MiVLAD(**settings).fit(wider, labels).predict_proba(wider)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    fitted = MiFV(components=1, **settings).fit(wider, labels)
    by_weight, by_means = np.split(fitted._rescale(fitted._bag_vectors(wider))[:, :6], [1], axis=1)
    np.testing.assert_array_equal(by_weight, 0)
    np.testing.assert_array_equal(by_means.any(axis=0), [True, True, True, True, False])


@pytest.mark.parametrize("method", METHODS)
def test_rescaled_vectors_fill_the_unit_interval(method):
    bags, labels = make_bags()
    fitted = method(standardise=False).fit(bags, labels)
    vectors = fitted._rescale(fitted._bag_vectors(bags))
    np.testing.assert_allclose(vectors.min(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(vectors.max(axis=0), 1, rtol=1e-12)


def test_features_may_have_several_axes():
    bags, labels = make_bags()
    folded = [bag.reshape(-1, 2, 2) for bag in bags]
    np.testing.assert_array_equal(
        MiVLAD().fit(folded, labels).predict_proba(folded),
        MiVLAD().fit(bags, labels).predict_proba(bags),
    )


def test_pca_keeps_the_directions_of_large_variance():
    bags, labels = make_bags()
    # The last feature has less than a hundredth of the variance, and is orthogonal to the others.
    bags = [bag * [1, 1, 1, 0.01] for bag in bags]
    moved = [bag + [0, 0, 0, 0.05] for bag in bags]
    for energy, same in ((0.99, True), (1.0, False)):
        fitted = MiFV(pca_energy=energy, standardise=False, C=1.0).fit(bags, labels)
        change = np.abs(fitted.predict_proba(moved) - fitted.predict_proba(bags)).max()
        assert (change < 1e-2) == same


@pytest.mark.parametrize("method", METHODS)
def test_equal_instances_are_no_trouble(method):
    bags = [np.ones((2, 3))] * 4
    settings = {"centres": 1} if method is MiVLAD else {"components": 1, "pca_energy": 0.9}
    fitted = method(**settings).fit(bags, [0, 1, 0, 1])
    np.testing.assert_allclose(fitted.predict_proba(bags), 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "method, settings, words",
    [
        (MiVLAD, {"centres": 0}, "centres is 0"),
        (MiVLAD, {"centres": 1.5}, "centres is 1.5"),
        (MiVLAD, {"centres": 400}, "at most the number of different instances, 7"),
        (MiVLAD, {"C": -1}, "C is -1"),
        (MiVLAD, {"seed": -1}, "seed is -1"),
        (MiFV, {"components": 400}, "at most the number of different instances, 7"),
        (MiFV, {"components": True}, "components is True"),
        (MiFV, {"pca_energy": 0}, "pca_energy is 0"),
        (MiFV, {"pca_energy": 1.1}, "pca_energy is 1.1"),
        (MiFV, {"C": float("nan")}, "C is nan"),
    ],
)
def test_impossible_settings(method, settings, words):
    # Eight instances, one of them twice.
    bags = [np.arange(8.0).reshape(4, 2), np.arange(6.0, 14.0).reshape(4, 2)]
    with pytest.raises(UserError, match=words):
        method(**settings).fit(bags, [0, 1])


@pytest.mark.slow
@pytest.mark.skipif(not MUSK1.exists(), reason="needs shared/data/mil/musk1.csv.gz")
@pytest.mark.parametrize("method, published", [(MiVLAD, 0.871), (MiFV, 0.909)])
def test_musk1(method, published):
    """Ten folds of 9 bags: the accuracy has a standard error of about 0.035 for each of both figures."""
    dataset = read_csv(MUSK1)
    accuracies = []
    for train, test in StratifiedKFold(10, shuffle=True, random_state=0).split(
        dataset.labels, dataset.labels
    ):
        fitted = method().fit([dataset.bag(i) for i in train], dataset.labels[train])
        accuracies.append(
            np.mean(fitted.predict([dataset.bag(i) for i in test]) == dataset.labels[test])
        )
    assert abs(np.mean(accuracies) - published) < 0.08
