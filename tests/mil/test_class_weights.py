"""Weights of classes: an ordinary SVM's, a linear machine's, and those of a network's losses."""

import collections
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import bag_files
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.mil import BagNetwork, experiment, methods, network_folds
from lossattn_jax.train.bags.gradients import Gradients, StepBags
from lossattn_jax.train.bags.plans import Plan, models_of, weigh_classes
from lossattn_jax.train.bags.settings import PER_MODEL, Settings
from lossattn_jax.train.bags.states import Models
from tests.support import parameters
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
    params = parameters.draw(network, x, mask)["params"]

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


def fold_results(class_weight, labels=None, name="toy"):
    """Of two folds of few bags, of which test bags' labels may be others."""
    bags, words = toy(12, shift=0.4)
    own = np.array([0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0]) if labels is None else labels
    dataset = BagDataset.from_bags(bags, own, name=name)
    train = np.arange(12) < 8
    network = BagNetwork(2, "attention", hidden=(4, 4, 4), dropout=0.0)
    return network_folds.run(
        dataset,
        [Split(0, 0, train, ~train)],
        network,
        Settings(epochs=2, learning_rate=0.05, max_waste=9.0),
        class_weight=class_weight,
    )[0].probabilities


def test_weights_of_a_fold_are_those_of_its_training_bags():
    labels = np.array([0, 0, 0, 1, 2, 2])
    plans = [
        Plan(0, np.array(rows, bool), np.zeros(6, bool))
        for rows in ([1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0])
    ]
    weighed = weigh_classes(plans, labels, 3, "balanced")
    np.testing.assert_allclose(weighed[0].class_weights, [6 / 9, 2, 1])
    # Of three bags and two classes; no bag of the third is trained on.
    np.testing.assert_allclose(weighed[1].class_weights, [3 / 4, 3 / 2, 1])
    assert [plan.class_weights for plan in weigh_classes(plans, labels, 3, None)] == [None, None]


def test_balanced_folds_see_no_label_of_a_test_bag():
    plain, balanced = fold_results(None), fold_results("balanced")
    assert np.abs(plain - balanced).max() > 1e-4
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(fold_results("balanced", labels), balanced)


def test_a_balanced_loss_by_hand():
    """Of bags of one instance and a network that knows nothing: log 2, times the weight."""
    network = BagNetwork(2, hidden=(4, 4, 4), dropout=0.0)
    x, mask = jnp.ones((4, 1, 3)), jnp.ones((4, 1), bool)
    labels = np.array([0, 0, 0, 1])
    params = jax.tree.map(jnp.zeros_like, parameters.draw(network, x, mask)["params"])
    everything = np.ones(4, bool)
    (plan,) = weigh_classes([Plan(0, everything, ~everything)], labels, 2, "balanced")
    settings = Settings(patch_weight=0.5)
    models = models_of(settings, [plan], np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], models)
    bags = StepBags(
        x=x,
        mask=mask,
        labels=jnp.asarray(labels),
        visible=jnp.ones(4, bool),
        noise=jnp.zeros((4, 1, 12), jnp.uint8),
        target=jnp.zeros((4, 0)),
    )
    result = jax.jit(functools.partial(Gradients(network, settings, False), guard_loss=False))(
        model, params, bags, jnp.int32(1)
    )
    one = 1.5 * np.log(2)  # of the bag, and of its instance with lambda 0.5
    np.testing.assert_allclose(result.losses, one * np.array([2 / 3, 2 / 3, 2 / 3, 2]), rtol=1e-6)
    np.testing.assert_allclose(result.loss, one, rtol=1e-6)


def test_methods_without_weights_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--class_weight is balanced, but em_dd weighs no classes"):
        config = config_lib.default_config()
        config.train.class_weight = "balanced"
        experiment.run(["absent.csv"], ["em_dd", "mi_fv"], ["final"], config, str(tmp_path), "")
    assert not list(tmp_path.iterdir())
    assert {name for name in methods.NAMES if not methods.get(name).weighs_classes} == {"em_dd"}


def test_weights_are_in_the_records_and_other_ones_are_refused(tmp_path):
    bags, words = toy(12, shift=0.4)
    bag_files.write_csv(BagDataset.from_bags(bags, words), tmp_path / "own.csv")
    config = config_lib.default_config()
    config.folds, config.repeats, config.train.class_weight = 2, 1, "balanced"

    def run(workdir):
        path = str(tmp_path / "own.csv")
        return experiment.run([path], ["mi_kernel"], ["final"], config, str(workdir), "")

    (summary,) = run(tmp_path / "run")
    assert summary.class_weight == "balanced"
    table = (tmp_path / "run" / "table.md").read_text()
    assert "Weights of classes in training: balanced in MI-Kernel." in table
    fold = tmp_path / "run" / "own" / "mi_kernel" / "final" / "repeat0_fold0.json"
    record = json.loads(fold.read_text())
    assert record["class_weight"] == "balanced"
    assert record["made_from"]["config.train.class_weight"] == "balanced"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["class_weight"] == (
        "balanced"
    )
    config.train.class_weight = None
    with pytest.raises(UserError, match="config.train.class_weight is None, but the run in"):
        run(tmp_path / "run")
    assert run(tmp_path / "other")[0].class_weight is None
    # Records of before have no such key, and are gone on with.
    fold = tmp_path / "other" / "own" / "mi_kernel" / "final" / "repeat0_fold0.json"
    content = records.read(fold)
    made_from = {k: v for k, v in content.made_from.items() if "class_weight" not in k}
    before = {k: v for k, v in content.content.items() if k != "class_weight"}
    records.write(fold, before, made_from)
    stamp = fold.stat().st_mtime_ns
    run(tmp_path / "other")
    assert fold.stat().st_mtime_ns == stamp
