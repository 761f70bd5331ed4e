"""Trainings that end some epochs after their best one on held-out bags."""

import json

import numpy as np
import pytest

import lossattn_jax.mil as mil
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.bags.splits import Split, cross_validation
from lossattn_jax.data.bags.streaming import StreamedBags
from lossattn_jax.data.order import derive_seed
from lossattn_jax.errors import UserError
from lossattn_jax.mil import experiment, model_training, network_folds, selection
from lossattn_jax.mil.model_training import Request
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.selection import FINAL, VALIDATION, Validation
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.settings import Settings
from tests.support.tiny_bags import overlapping_bags

SEED = 5
NETWORK = BagNetwork(2, "attention", hidden=(4, 4, 4), dropout=0.0)
SETTINGS = Settings(epochs=12, learning_rate=0.1, max_waste=9.0)
PATIENT = Validation(0.3, 2, patience=2)


DATASET = overlapping_bags()
SPLITS = cross_validation(DATASET, 2, 1, SEED)


def streamed(dataset):
    bags = Bags.from_dataset(dataset)
    fields = {name: getattr(bags, name) for name in ("readers", "ids", "labels", "classes")}
    return StreamedBags(**fields, positive=bags.positive, memory=1 << 24)


def run(dataset, splits, **changes):
    options = {"rules": (VALIDATION,), "validation": PATIENT, "seed": SEED} | changes
    return network_folds.run(dataset, splits, NETWORK, SETTINGS, **options)


@pytest.mark.parametrize(
    ("loss", "patience", "end", "best"),
    [
        ([3, 2, 1, 2, 3, 0], 2, 5, 2),  # the sixth epoch is never looked at
        ([3, 2, 1, 2, 3, 0], 3, None, 5),
        ([1, 1, 1, 1], 2, 3, 0),  # an equal one is no better one
        ([3, 2, 1], 2, None, 2),
        ([np.nan, np.nan, 1], 1, 2, 0),
        ([3, 2, 1, 2, 3, 0], 0, None, 5),
    ],
)
def test_the_end_by_hand(loss, patience, end, best):
    validation = Validation(patience=patience, metric="loss")
    accuracy, loss = np.zeros(len(loss)), np.array(loss, float)
    assert validation.end_of(accuracy, loss) == end
    assert validation.best(accuracy[None], loss[None]) == (0, best)


def test_epochs_are_compared_by_loss_or_accuracy():
    accuracy, loss = np.array([[0.5, 0.9, 0.9]]), np.array([[0.1, 0.4, 0.3]])
    assert Validation().compared_by == "accuracy" and Validation(patience=1).compared_by == "loss"
    assert Validation().best(accuracy, loss) == (0, 2) == selection.best(accuracy, loss)
    assert Validation(metric="loss").best(accuracy, loss) == (0, 0)
    with pytest.raises(UserError, match="validation metric is 'auc', but must be one of: loss, a"):
        Validation(metric="auc")
    with pytest.raises(UserError, match="validation patience is -1, but must be 0 or more"):
        Validation(patience=-1)


@pytest.fixture(scope="module")
def curves():
    """Loss on held-out bags of every epoch: `[fold, part, epochs]`, of trainings that do not end."""
    plans = []
    for split in SPLITS:
        for held in PATIENT.parts(DATASET, split, derive_seed(SEED, 0, split.fold)):
            seed = derive_seed(SEED, 0, split.fold, 0)
            plans.append(training.Plan(seed, split.train & ~held, held))
    logits = training.train(DATASET, NETWORK, SETTINGS, plans, order_seed=SEED).logits
    losses = [
        selection.accuracy_and_loss(own[:, plan.held_out], DATASET.labels[plan.held_out])[1]
        for plan, own in zip(plans, logits, strict=True)
    ]
    return np.array(losses).reshape(2, 2, -1), plans, logits


@pytest.fixture(scope="module")
def results():
    return run(DATASET, SPLITS)


@pytest.mark.slow
def test_the_epoch_is_that_of_a_training_by_itself(curves, results):
    ends = []
    for result, of_parts in zip(results, curves[0], strict=True):
        mean, best = of_parts.mean(axis=0), 0
        for epoch, value in enumerate(mean):
            if value < mean[best]:
                best = epoch
            if epoch - best == 2:
                break
        assert result.epoch == best + 1
        assert len(result.accuracies) == best + 1
        history = result.validation
        assert (history["metric"], history["patience"]) == ("loss", 2)
        np.testing.assert_array_equal(history["loss"], mean[: epoch + 1])
        assert len(history["accuracy"]) == epoch + 1
        ends.append(epoch + 1)
    assert min(ends) < 12 and ends[0] != ends[1]  # otherwise nothing is tested


@pytest.mark.slow
def test_a_fold_alone_and_rules_beside_it_change_nothing(results):
    (alone,) = run(DATASET, SPLITS[1:])
    both = run(DATASET, SPLITS, rules=(FINAL, VALIDATION))[2:]
    for one in (alone, both[1]):
        # Other programs, which may round differently.
        np.testing.assert_allclose(one.probabilities, results[1].probabilities, rtol=1e-6)
        np.testing.assert_array_equal(one.accuracies, results[1].accuracies)
        assert one.epoch == results[1].epoch
        np.testing.assert_allclose(one.validation["loss"], results[1].validation["loss"], rtol=1e-6)


def test_models_that_have_ended_leave_others_as_they_are(curves):
    _, plans, whole = curves

    def has_ended(logits):
        return np.array([logits.shape[1] >= 3, False, False, False])

    some = training.train(
        DATASET, NETWORK, SETTINGS, plans, order_seed=SEED, has_ended=has_ended
    ).logits
    np.testing.assert_array_equal(some[1:], whole[1:])
    np.testing.assert_array_equal(some[0, :3], whole[0, :3])
    assert np.isnan(some[0, 3:]).all()


@pytest.mark.slow
def test_bags_that_are_read_one_by_one_choose_the_same(results):
    for one, other in zip(run(streamed(DATASET), SPLITS), results, strict=True):
        assert one.epoch == other.epoch
        np.testing.assert_allclose(one.validation["loss"], other.validation["loss"], rtol=1e-4)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def method(**changes):
    params = {"hidden": (4, 4, 4), "dropout": 0.0, "settings": SETTINGS, "validation": PATIENT}
    return NetworkClassifier(**{"method": "attention", "seed": SEED, **params, **changes})


def test_a_model_that_stays_is_as_a_fold(tmp_path):
    """With bags that are set aside it has the parameters of the chosen epoch itself."""
    parts = np.array(["train", "validation", "train", "train"])[np.arange(16) // 2 % 4]
    bags = Bags.from_arrays(DATASET.bags, DATASET.labels)
    bags = Bags(**{**vars(bags), "splits": tuple(parts)})
    fitted = method().fit(bags)
    held = parts == "validation"
    plan = training.Plan(derive_seed(SEED, 0, 0, 0), ~held, held)
    logits = training.train(DATASET, NETWORK, SETTINGS, [plan], order_seed=SEED).logits[0]
    _, loss = selection.accuracy_and_loss(logits[:, held], DATASET.labels[held])
    end = PATIENT.end_of(np.zeros(12), loss) or 12
    epoch = int(np.argmin(loss[:end]))
    assert fitted.chosen_["epoch"] == epoch + 1 and fitted.chosen_["bags"] == [4]
    np.testing.assert_array_equal(fitted.chosen_["loss"], loss[:end])
    own = np.exp(logits[epoch, held].astype(float))
    probabilities = fitted.predict_proba([bags.read(row) for row in np.flatnonzero(held)])
    np.testing.assert_allclose(probabilities, own / own.sum(axis=1, keepdims=True), rtol=1e-5)
    fitted.save(tmp_path / "m")
    again = mil.load(tmp_path / "m")
    assert again.chosen_ == fitted.chosen_ and again.validation == PATIENT
    np.testing.assert_array_equal(again.predict_proba(list(bags)), fitted.predict_proba(list(bags)))


def test_a_class_that_is_only_held_out_is_refused():
    bags = Bags.from_arrays(DATASET.bags, DATASET.labels)
    parts = tuple("validation" if label else "train" for label in DATASET.labels)
    with pytest.raises(UserError, match="no bag of bags that is trained on has the label 1"):
        method().fit(Bags(**{**vars(bags), "splits": parts}))


def test_mil_train_chooses_and_refuses_another_choice(tmp_path):
    config = config_lib.default_config()
    config.train.epochs, config.model.hidden = 4, (4,)
    config.validation.patience, config.train.max_waste = 1, 9.0
    bags = Bags.from_arrays(DATASET.bags, DATASET.labels, groups=[f"p{n // 2}" for n in range(16)])

    def train():
        options = config_lib.resolve(config)
        model_training.run(bags, Request("attention", VALIDATION), options, str(tmp_path))
        return json.loads((tmp_path / "model.json").read_text())

    record = train()
    chosen = record["chosen"]
    assert chosen["metric"] == "loss" and len(chosen["loss"]) <= chosen["epoch"] + 1
    assert {"groups", "splits"} <= record["made_from"].keys()
    assert train() == record
    config.validation.patience = 2
    with pytest.raises(UserError, match="setting validation"):
        train()


def test_patience_without_held_out_bags_is_refused(tmp_path):
    config = config_lib.default_config()
    config.validation.patience = 3
    with pytest.raises(UserError, match="--patience is 3, but only held-out bags can say when"):
        experiment.run(["absent.csv"], ["attention"], [FINAL], config, str(tmp_path), "")


def test_own_validation_bags_take_no_part_in_the_training():
    held = np.arange(16) < 4
    split = Split(0, 0, ~held, np.zeros(16, bool), held)
    other = [bag + 50 if one else bag for bag, one in zip(DATASET.bags, held, strict=True)]
    networks, choice = network_folds.fit(DATASET, split, NETWORK, SETTINGS, PATIENT)
    moved, _ = network_folds.fit(
        BagDataset.from_bags(other, DATASET.labels), split, NETWORK, SETTINGS, PATIENT
    )
    np.testing.assert_array_equal(networks.mean, moved.mean)
    assert choice.epoch <= len(choice.history["loss"])
