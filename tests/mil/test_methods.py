"""All methods in one loop, and the paper's table."""

import jax
import numpy as np
import pytest
from sklearn.base import clone

from lossattn_jax.errors import UserError
from lossattn_jax.mil import methods
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.settings import Settings
from tests.support import parameters


def toy(bags, seed):
    """Bags of 1 to 4 instances; a positive one has an instance far from the others."""
    random = np.random.default_rng(seed)
    labels = np.arange(bags) % 2
    made = []
    for label in labels:
        bag = random.normal(0, 0.3, (random.integers(1, 5), 4))
        if label:
            bag[random.integers(len(bag))] += 4
        made.append(bag)
    return made, np.where(labels == 1, "yes", "no")


def settings(name):
    if methods.get(name).classical is None:
        fast = Settings(epochs=6, learning_rate=0.02, max_waste=4.0)
        return {"settings": fast, "hidden": (8, 8, 8), "dropout": 0.0}
    # Residuals from a centre among the far instances would not tell whether there is one.
    return {"centres": 1} if name == "mi_vlad" else {}


# The networks differ in their pooling only, which test_networks.py has.
SLOW = (
    "mi_net",
    "mi_net_bag",
    "mi_net_ds",
    "mi_net_rc",
    "attention",
    "mean",
    "instance_max",
    "dsmil",
    "transmil",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in methods.NAMES
    ],
)
def test_every_method_learns_a_toy_and_keeps_to_the_interface(name):
    bags, labels = toy(24, seed=1)
    others, truth = toy(12, seed=2)
    fitted = methods.make(name, **settings(name)).fit(bags, labels)
    probabilities = fitted.predict_proba(others)
    assert probabilities.shape == (12, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert np.mean(fitted.predict(others) == truth) >= 0.9
    scores = fitted.instance_scores(others)
    assert [score.shape for score in scores] == [(len(bag),) for bag in others]
    # In positive bags with several instances the one that is far away scores highest.
    right = [
        np.argmax(score) == np.argmax(bag.sum(axis=1))
        for score, bag, label in zip(scores, others, truth, strict=True)
        if label == "yes" and len(bag) > 1
    ]
    assert len(right) >= 3
    # Learned attention may as well look at the others.
    if name not in ("attention", "gated_attention", "transmil"):
        assert np.mean(right) >= 0.75


def test_the_table_is_the_papers():
    printed = [name for name in methods.NAMES if methods.get(name).paper]
    assert len(printed) == 14
    assert methods.get("loss_attention").paper == (0.917, 0.911, 0.712, 0.897, 0.900)
    assert methods.get("mi_graph").paper_accuracy("musk2") == 0.903
    assert methods.get("mi_graph").paper_accuracy("own") is None
    networks = [name for name in printed if methods.get(name).classical is None]
    assert len(networks) == 7


def blurred(bags, seed):
    """Bags that no method tells apart with certainty."""
    random = np.random.default_rng(seed)
    labels = np.arange(bags) % 2
    made = [random.normal(0.4 * label, 1.0, (1 + n % 4, 3)) for n, label in enumerate(labels)]
    return made, labels


@pytest.mark.parametrize(
    "name", [name for name in methods.NAMES if methods.get(name).classical is not None]
)
def test_classical_methods_say_if_they_treat_classes_unequally(name):
    bags, labels = blurred(30, seed=1)
    options = {"seed": 0} if "seed" in methods.make(name).get_params() else {}
    found, swapped = (
        methods.make(name, **options).fit(bags, own).predict_proba(bags)
        for own in (labels, 1 - labels)
    )
    same = np.allclose(found, swapped[:, ::-1], atol=1e-3)
    assert same == (not methods.make(name).unequal_classes)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "transmil" else name
        for name in methods.NAMES
        if methods.get(name).classical is None
    ],
)
def test_a_network_says_whether_it_treats_classes_unequally(name):
    network = BagNetwork(2, name, hidden=(4, 4, 4))
    bags = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    params = parameters.draw(network, bags)["params"]

    def swap(path, leaf):
        """The two classes of a classifier in the other order, or the only score's sign changed."""
        if "classifier" not in path[0].key:
            return leaf
        return leaf[..., ::-1] if leaf.shape[-1] == 2 else -leaf

    other = jax.tree_util.tree_map_with_path(swap, params)
    apply = jax.jit(network.apply)
    outputs, swapped = (apply({"params": own}, bags) for own in (params, other))
    # Up to a constant: the score of one class is 0.
    logits, back = (jax.nn.log_softmax(x) for x in (outputs.logits, swapped.logits[:, ::-1]))
    same = np.allclose(logits, back, atol=1e-6)
    assert same == (not methods.make(name).unequal_classes)
    if same:
        np.testing.assert_allclose(outputs.attention, swapped.attention, atol=1e-6)


def test_four_methods_treat_classes_unequally():
    unequal = [name for name in methods.NAMES if methods.make(name).unequal_classes]
    assert unequal == ["mi_svm", "mi_svm_bag", "em_dd", "mi_net"]


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match=r"method is 'svm', but must be one of \d+ names"):
        methods.make("svm")


def test_a_network_is_an_estimator_with_settings():
    network = NetworkClassifier(method="attention", ensemble=2, seed=3)
    copy = clone(network)
    assert copy.get_params() == network.get_params()
    for options, sentence in (
        ({"method": "mil"}, "method is 'mil'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"ensemble": 0}, "ensemble is 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            NetworkClassifier(**options).network(2)
    with pytest.raises(UserError, match="was not fitted"):
        network.predict([np.ones((1, 2))])


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_members():
    bags, labels = toy(8, seed=1)
    options = {"settings": Settings(epochs=1), "hidden": (4, 4, 4), "seed": 5}
    both = NetworkClassifier(ensemble=2, **options).fit(bags, labels)
    one = NetworkClassifier(**options).fit(bags, labels)
    probabilities, first = both.predict_proba(bags), one.predict_proba(bags)
    members = both._predict_networks(both._standardise([np.asarray(bag) for bag in bags])).logits
    each = np.exp(members) / np.exp(members).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(each[0], first, rtol=1e-5)
    np.testing.assert_allclose(probabilities, each.mean(axis=0), rtol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        (
            "mi_svm",
            {"c": 1.0},
            "'c' is no setting of the method 'mi_svm', which has C, class_weight,",
        ),
        ("mi_svm_bag", {"kernel": "cubic"}, "kernel is 'cubic', but must be one of"),
        ("mi_kernel", {"gamma_factor": 0}, "gamma_factor is 0, but must be a number above 0"),
        ("mi_graph", {"C": -1.0}, "C is -1.0, but must be a number above 0"),
        ("em_dd", {"threshold": 2.0}, "threshold is 2.0, but must be less than 1"),
        ("mi_vlad", {"centres": 0}, "centres is 0, but must be a whole number from 1 on"),
        ("mi_fv", {"pca_energy": 1.5}, "pca_energy is 1.5, but must be at most 1"),
        ("mi_fv", {"seed": -1}, "seed is -1, but must be a whole number from 0 on"),
        ("attention", {"method": "mean"}, "'method' is no setting of the method 'attention'"),
        ("attention", {"dropout": 1.0}, "dropout is 1.0, but must be at least 0 and below 1"),
        ("attention", {"seed": 0.5}, "seed is 0.5, but must be a whole number from 0 on"),
        ("attention", {"options": {"colour": 1}}, "colour"),
        (
            "attention",
            {"settings": {"epochs": 3}},
            "settings is .*, but must be a Settings or None",
        ),
    ],
)
def test_impossible_settings_are_refused_at_once(name, settings, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        methods.make(name, **settings)
    assert "\n" not in str(caught.value)


def test_every_method_is_made_with_its_own_settings():
    for name in methods.NAMES:
        own = methods.make(name).get_params(deep=False)
        own.pop("method", None)
        assert methods.make(name, **own).get_params(deep=False).items() >= own.items()
