"""Weights of classes: an ordinary SVM's, a linear machine's, and those of a network's losses."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork, methods
from lossattn_jax.train.bags.gradients import Gradients, StepBags
from lossattn_jax.train.bags.settings import PER_MODEL, Settings
from lossattn_jax.train.bags.states import Models
from tests.support.tiny_bags import UNEQUAL, settings, toy


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mi_svm", {"kernel": "linear"}),
        ("mi_svm_bag", {"C": 3.0}),
        ("mi_kernel", {}),
        ("mi_graph", {}),
    ],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_weights_of_classes_are_those_of_an_ordinary_svm(name, options, classes):
    """On bags of one instance, with every class' bags repeated as often as they weigh."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((30, 2))
    labels = np.array(["a", "b", "c"])[
        np.digitize(rows[:, 0] + random.normal(0, 1, 30), [0, 1][: classes - 1])
    ]
    weights = {"a": 3, "c": 2} if classes == 3 else {"a": 3}
    repeats = [weights.get(label, 1) for label in labels]
    more, more_labels = np.repeat(rows, repeats, axis=0), np.repeat(labels, repeats)
    fixed = dict(standardise=False, **options)
    if classes == 2 and name in UNEQUAL:
        fixed["positive"] = "a"
    make = functools.partial(methods.make, name, **fixed)
    weighted = make(class_weight=weights).fit(rows[:, None], labels)
    # The kernel's width goes by the variance of all values.
    repeated = make(gamma_factor=more.var() / rows.var()).fit(more[:, None], more_labels)
    plain = make().fit(rows[:, None], labels)
    probabilities = weighted.predict_proba(rows[:, None])
    np.testing.assert_allclose(probabilities, repeated.predict_proba(rows[:, None]), atol=2e-3)
    assert np.abs(probabilities - plain.predict_proba(rows[:, None])).max() > 0.05


@pytest.mark.parametrize("name", ["mi_vlad", "mi_fv"])
def test_weights_of_classes_weigh_a_linear_machine(name):
    bags, labels = toy(24, shift=0.4)
    plain = methods.make(name, C=1.0, **settings(name)).fit(bags, labels)
    ones = methods.make(name, C=1.0, class_weight={"no": 1}, **settings(name)).fit(bags, labels)
    np.testing.assert_allclose(ones.predict_proba(bags), plain.predict_proba(bags), rtol=1e-9)
    heavy = methods.make(name, C=1.0, class_weight={"yes": 9.0}, **settings(name))
    assert (heavy.fit(bags, labels).predict_proba(bags) - plain.predict_proba(bags))[:, 1].min() > 0
    # 8 and 16 of 24 bags: the weights 1.5 and 0.75.
    few = [*range(0, 16), *range(17, 32, 2)]
    bags, labels = (lambda b, y: ([b[row] for row in few], y[few]))(*toy(32, shift=0.4))
    counts = collections.Counter(labels.tolist())
    assert counts == {"no": 8, "yes": 16}
    balanced = methods.make(name, class_weight="balanced", **settings(name)).fit(bags, labels)
    own = methods.make(name, class_weight={"no": 1.5, "yes": 0.75}, **settings(name))
    np.testing.assert_array_equal(
        balanced.predict_proba(bags), own.fit(bags, labels).predict_proba(bags)
    )


@pytest.mark.slow
def test_weights_of_classes_weigh_the_loss_of_a_network():
    bags, labels = toy(16, shift=0.4)
    make = functools.partial(methods.make, "attention", **settings("attention"))
    plain = make().fit(bags, labels).predict_proba(bags)
    for word, place in (("no", 0), ("yes", 1)):
        heavy = make(class_weight={word: 20.0}).fit(bags, labels).predict_proba(bags)
        assert heavy[:, place].mean() > plain[:, place].mean() + 0.1


@pytest.mark.slow
def test_a_networks_gradient_is_the_weighted_mean_of_the_bags():
    network, random = BagNetwork(2, hidden=(4, 4, 4), dropout=0.0), np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((3, 2, 3)), jnp.float32)
    mask, labels = jnp.array([[1, 1], [1, 0], [1, 1]], bool), jnp.array([1, 0, 1])
    params = network.init(jax.random.key(0), x, mask)["params"]

    def gradient(weights, *rows):
        rows = np.array(rows)
        model = Models(
            seed=None,
            mean=jnp.zeros(3),
            inverse_scale=jnp.ones(3),
            train=None,
            held_out=None,
            selection=None,
            keep_epoch=None,
            class_weights=weights,
            **{name: jnp.float32(getattr(Settings(), name)) for name in PER_MODEL},
        )
        of_bags = Gradients(network, Settings(), False)
        bags = StepBags(
            x=x[rows],
            mask=mask[rows],
            labels=labels[rows],
            visible=jnp.ones(len(rows), bool),
            noise=jnp.zeros((len(rows), 2, 12), jnp.uint8),
            target=jnp.zeros((len(rows), 0)),
        )
        result = jax.jit(functools.partial(of_bags, guard_loss=False))(
            model, params, bags, jnp.int32(1)
        )
        return result.losses, result.gradients

    losses, average = gradient(jnp.array([2.0, 5.0]), 0, 1, 2)
    alone = [gradient(None, row) for row in range(3)]
    np.testing.assert_allclose(
        losses, [w * one[0] for w, (one, _) in zip([5, 2, 5], alone, strict=True)], rtol=1e-5
    )
    expected = jax.tree.map(lambda a, b, c: (5 * a + 2 * b + 5 * c) / 3, *[one for _, one in alone])
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        average,
        expected,
    )


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("equal", "class_weight is 'equal', but must be None or 'balanced' or a dictionary"),
        ({"no": -1.0}, "class_weight of 'no' is -1.0, but must be a number above 0"),
        ({"no": 1.0, "Yes": 2.0}, "a weight for 'Yes', which is no label; labels are 'no', 'yes'"),
        ({0: 1.0, 1: 2.0}, "class_weight has a weight for 0, which is no label"),
    ],
)
def test_impossible_weights_are_refused(weights, sentence):
    with pytest.raises(UserError, match=sentence):
        methods.make("mi_vlad", class_weight=weights).fit(*toy(8))


def test_a_weight_of_a_class_that_a_fold_lacks_is_no_mistake():
    weights = {"no": 1.0, "yes": 2.0, "perhaps": 3.0}
    assert methods.make("mi_kernel", class_weight=weights).fit(*toy(8)).positive_ == "yes"
