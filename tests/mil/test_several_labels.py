"""Bags with several labels each: tables, folds, losses, metrics, models that stay."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

import lossattn_jax.mil as mil
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import label_sets, multilabel_folds
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bag_table import TableColumns, read_table
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.folds import draw_repeats, held_out
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UserError
from lossattn_jax.mil import (
    experiment,
    methods,
    model_training,
    network_scores,
    prediction_files,
    prediction_run,
    selection,
)
from lossattn_jax.mil.ensemble import Ensemble
from lossattn_jax.mil.model_training import Request
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings

ABLE = (
    *("mi_net_bag", "mi_net_rc", "attention", "gated_attention", "loss_attention"),
    *("mean", "instance_max", "transmil"),
)
SETS = [(), ("a",), ("b",), ("a", "b"), ("c",), ("b", "c")] * 4


def toy():
    """Bags whose labels say which features are high in one of their instances."""
    random = np.random.default_rng(0)
    bags = [random.normal(0, 0.3, (1 + n % 3, 3)).astype(np.float32) for n in range(len(SETS))]
    for bag, own in zip(bags, SETS, strict=True):
        for label in own:
            bag[0, "abc".index(label)] += 3
    return bags


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of feature files, and the same labels as words and as columns."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "slides").mkdir()
    words, columns = ["slide_id,label,patient"], ["slide_id,a,b,c,patient"]
    for number, (bag, own) in enumerate(zip(toy(), SETS, strict=True)):
        np.save(folder / "slides" / f"s{number:02}.npy", bag)
        flags = ",".join(str(int(label in own)) for label in "abc")
        words.append(f"s{number:02},{';'.join(own) or ';'},p{number // 2}")
        columns.append(f"s{number:02},{flags},p{number // 2}")
    (folder / "words.csv").write_text("\n".join(words) + "\n")
    (folder / "columns.csv").write_text("\n".join(columns) + "\n")
    return folder


def small(**changes):
    config = config_lib.default_config()
    config.folds, config.repeats, config.train.epochs = 2, 1, 3
    config.model.hidden, config.train.max_waste = (4, 4, 4), 9.0
    config.optimizer.learning_rate = 0.02
    config.update(changes)
    return config


def test_words_and_columns_say_the_same(world):
    by_words = open_bags(world / "slides", world / "words.csv")
    names = TableColumns(label="a,b,c")
    by_columns = open_bags(world / "slides", world / "columns.csv", names)
    assert by_words.classes == by_columns.classes == ("a", "b", "c")
    np.testing.assert_array_equal(by_words.labels, label_sets.encode(SETS, "abc"))
    np.testing.assert_array_equal(by_words.labels, by_columns.labels)
    assert by_words.several_labels and by_words.positive is None
    assert by_words.named_labels() == SETS
    part = by_words.select([3, 0]).load()
    np.testing.assert_array_equal(part.labels, [[1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("text", "column", "sentence"),
    [
        (
            "bag,a,b\ns,2,0\n",
            "a,b",
            "has '2' for bag 's' in the column 'a' of a label, but allowed",
        ),
        ("bag,a,b\ns,,0\n", "a,b", "1 of 1 bags of .* have no label in the column 'a'"),
        ("bag,label\ns,a;b\nt,\n", "label", "out, or write ; alone for a bag that has none of the"),
        ("bag,a,b\ns,1,0\n", "a,d", "is 'd', which is no column of"),
        ("bag,a,b\ns,1,0\n", "a,a", "must name each column once"),
        ("bag,label_a,label_b\ns,1,0\n", None, "--label_column says which has the label, or which"),
    ],
)
def test_tables_that_do_not_say_it_are_refused(tmp_path, text, column, sentence):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_table(tmp_path / "t.csv", TableColumns(label=column))


def test_the_loss_by_hand():
    """`sum_k BCE(z_k, y_k) + lambda * sum_n a_n min_{k in y} -log sigmoid(z_nk)`, in float64."""
    logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    patches = np.array([[[2.0, 1.0, 0.0], [-1.0, 0.5, 9.0]], [[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]])
    attention = np.array([[0.75, 0.25], [0.5, 0.5]])
    labels = np.array([[1, 1, 0], [0, 0, 0]])

    def minus_log(x):
        return np.log1p(np.exp(-x))

    bag = np.where(labels, minus_log(logits), minus_log(-logits)).sum(axis=1)
    own = [0.75 * minus_log(2.0) + 0.25 * minus_log(0.5), 0.0]  # a bag without labels has none
    outputs = Outputs(*(jnp.asarray(x, jnp.float32) for x in (logits, patches, attention)))
    mask = jnp.ones((2, 2), bool)
    result = bag_loss(outputs, jnp.asarray(labels), mask, 0.5, "sum")
    np.testing.assert_allclose(result, bag + 0.5 * np.array(own), rtol=1e-6)
    mean = bag_loss(outputs, jnp.asarray(labels), mask, 0.5, "mean")
    np.testing.assert_allclose(mean, bag + 0.25 * np.array(own), rtol=1e-6)
    plain = bag_loss(outputs, jnp.asarray(labels), mask, None, "sum")
    np.testing.assert_allclose(plain, bag, rtol=1e-6)
    accuracy, loss = selection.accuracy_and_loss(logits, labels)
    assert accuracy == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert loss == pytest.approx(bag.mean())
    probabilities = network_scores.probabilities(logits, several_labels=True)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)))


def test_folds_have_a_share_of_every_label_and_whole_groups():
    random = np.random.default_rng(1)
    labels = (random.random((120, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.int32)
    numbers = draw_repeats(labels, 5, 2, seed=3)
    assert numbers.shape == (2, 120) and not np.array_equal(*numbers)
    for own in numbers:
        counts = np.stack([labels[own == fold].sum(axis=0) for fold in range(5)])
        assert (np.ptp(counts, axis=0) <= 1).all()
        assert np.ptp(np.bincount(own)) <= 4
    np.testing.assert_array_equal(numbers, draw_repeats(labels, 5, 2, seed=3))
    groups = [f"p{n // 3}" for n in range(120)]
    (own,) = draw_repeats(labels, 5, 1, 3, groups)
    assert all(len({own[n] for n in range(3 * p, 3 * p + 3)}) == 1 for p in range(40))
    rows = np.flatnonzero(own != 0)
    part = held_out(labels, rows, 0.2, 7, groups)
    inside, outside = ({groups[row] for row in rows[mask]} for mask in (part, ~part))
    assert inside and not inside & outside and 10 <= part.sum() <= 30
    # Other bags' labels do not matter.
    moved = np.where((own == 0)[:, None], 1 - labels, labels)
    np.testing.assert_array_equal(part, held_out(moved, rows, 0.2, 7, groups))


def test_folds_that_cannot_be_are_refused():
    labels = np.array([[1, 0], [0, 1], [0, 1], [0, 1]])
    with pytest.raises(
        UserError, match="label in place 0 .* are in fold . since|leave that label out"
    ):
        multilabel_folds.draw_folds(labels, 2, 0)
    with pytest.raises(UserError, match="4 bags cannot be split into 5 folds"):
        multilabel_folds.draw_folds(labels, 5, 0)
    with pytest.raises(UserError, match="the number of folds is 1, but must be 2 or more"):
        multilabel_folds.draw_folds(labels, 1, 0)


def test_networks_that_can_are_known_and_others_refused(world, tmp_path):
    assert tuple(n for n in methods.NAMES if methods.get(n).takes_several_labels) == ABLE
    folder, table = str(world / "slides"), str(world / "words.csv")
    names = ["loss_attention", "mi_svm", "mi_net_ds"]
    with pytest.raises(UserError, match="have several labels each, but mi_svm, mi_net_ds take one"):
        experiment.run([folder], names, ["final"], small(), str(tmp_path), "", labels=table)
    config = small()
    config.train.class_weight = "balanced"
    with pytest.raises(
        UserError, match="--class_weight is balanced, but the bags of slides have s"
    ):
        experiment.run([folder], ["attention"], ["final"], config, str(tmp_path), "", labels=table)
    with pytest.raises(UserError, match="bags have several labels each, but MIKernel takes one"):
        methods.make("mi_kernel").fit(toy(), SETS)


@pytest.fixture(scope="module")
def validated(world):
    """A cross-validation under two rules."""
    workdir = world / "run"
    summaries = experiment.run(
        [str(world / "slides")],
        ["loss_attention"],
        ["validation", "best_test_epoch"],
        small(),
        str(workdir),
        "",
        labels=str(world / "words.csv"),
        keep_models=True,
        resamples=100,
    )
    return summaries, workdir / "slides" / "loss_attention" / "validation"


@pytest.mark.slow
def test_cross_validation_has_a_probability_for_each_label(validated):
    summaries, folder = validated
    with (folder / "predictions.csv").open() as file:
        rows = {row["bag"]: row for row in csv.DictReader(file)}
    assert [key for key in next(iter(rows.values())) if key.startswith("p_")] == [
        "p_a",
        "p_b",
        "p_c",
    ]
    ids = [f"s{number:02}" for number in range(len(SETS))]
    assert [rows[bag]["label"] for bag in ids] == [";".join(own) or ";" for own in SETS]
    written = np.array([[float(rows[bag][f"p_{label}"]) for label in "abc"] for bag in ids])
    assert (np.abs(written.sum(axis=1) - 1) > 1e-3).any()
    for bag, own in zip(ids, written, strict=True):
        assert rows[bag]["predicted"] == (";".join(np.array(list("abc"))[own > 0.5]) or ";")
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    truth = label_sets.encode(SETS, "abc")
    expected = {
        "auroc": [sklearn.metrics.roc_auc_score(truth[:, k], written[:, k]) for k in range(3)],
        "auprc": [
            sklearn.metrics.average_precision_score(truth[:, k], written[:, k]) for k in range(3)
        ],
        "accuracy": ((written > 0.5) == truth).mean(axis=0),
        "log_loss": [sklearn.metrics.log_loss(truth[:, k], written[:, k]) for k in range(3)],
    }
    for name, values in expected.items():
        own = metrics[name]
        assert (
            own["value"] == pytest.approx(np.mean(values)) and own["of"] == "the mean over classes"
        )
        assert [own["per_class"][k]["value"] for k in "abc"] == pytest.approx(list(values))
        low, high = own["interval"]
        assert low <= own["value"] <= high or name == "auprc"
    assert summaries[0].auc == pytest.approx(np.mean(expected["auroc"]))
    record = json.loads((folder / "repeat0_fold0.json").read_text())
    assert record["validation"]["bags"][0] > 0 and len(record["bags"][0]["label"]) == 3


def test_a_kept_model_predicts_what_its_fold_says(validated, world):
    _, folder = validated
    fold = json.loads((folder / "repeat0_fold1.json").read_text())
    model = mil.load(folder / "repeat0_fold1")
    bags = open_bags(world / "slides", world / "words.csv")
    rows = [bags.ids.index(bag["id"]) for bag in fold["bags"]]
    probabilities = model.predict_proba([bags.read(row) for row in rows])
    np.testing.assert_allclose(
        probabilities, [bag["probabilities"] for bag in fold["bags"]], rtol=1e-5
    )
    assert model.several_labels_


def test_a_model_that_stays_is_read_back_and_predicts(world, tmp_path):
    bags = open_bags(world / "slides", world / "words.csv")
    options = config_lib.resolve(small())
    model_training.run(bags, Request("attention"), options, str(tmp_path / "m"))
    before = (tmp_path / "m" / "model.json").read_text()
    model_training.run(bags, Request("attention"), options, str(tmp_path / "m"))  # is there
    assert (tmp_path / "m" / "model.json").read_text() == before
    ensemble = Ensemble.load([str(tmp_path / "m")])
    assert ensemble.several_labels and ensemble.classes == ["a", "b", "c"]
    scores = prediction_run.run(
        ensemble, bags, str(tmp_path / "out"), labels=bags.named_labels(), instances=True
    )
    method = mil.load(tmp_path / "m")
    probabilities = method.predict_proba(list(bags))
    truth = np.asarray(bags.labels)
    assert scores.accuracy == pytest.approx(((probabilities > 0.5) == truth).mean())
    with (tmp_path / "out" / prediction_files.TABLE_NAME).open() as file:
        rows = list(csv.DictReader(file))
    written = np.array([[float(row[f"p_{label}"]) for label in "abc"] for row in rows])
    np.testing.assert_allclose(written, probabilities, rtol=1e-5)
    np.testing.assert_array_equal(method.predict(list(bags)), probabilities > 0.5)
    with pytest.raises(
        UserError, match="has the label 'd', but the labels of .* are 'a', 'b', 'c'"
    ):
        prediction_run.match_labels(ensemble, bags, [("d",)] * len(bags))


def method(**changes):
    own = {"hidden": (16,), "dropout": 0.0, "method": "loss_attention"}
    fast = Settings(epochs=60, learning_rate=0.02, batch_size=4, max_waste=9.0)
    return NetworkClassifier(**own, settings=fast, **changes)


@pytest.mark.slow
def test_labels_are_learned_and_stored_bit_for_bit(tmp_path):
    bags = toy()
    fitted = method().fit(bags, SETS)
    assert ((fitted.predict_proba(bags) > 0.5) == label_sets.encode(SETS, "abc")).mean() > 0.9
    fitted.save(tmp_path / "m")
    again = mil.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict_proba(bags), fitted.predict_proba(bags))
    by_numbers = method().fit(bags, label_sets.encode(SETS, "abc"))
    np.testing.assert_array_equal(by_numbers.predict_proba(bags), fitted.predict_proba(bags))
    streamed = method(max_instances=2)
    streamed.fit(Bags.from_arrays(bags, SETS))
    assert streamed.predict_proba(bags).shape == (24, 3)
    patient = method(validation=selection.Validation(patience=2)).fit(bags, SETS)
    assert patient.chosen_["metric"] == "loss"


def test_arrays_of_labels_are_checked():
    bags = [np.ones((1, 2))] * 2
    with pytest.raises(UserError, match="but must be 0 or 1 for each of 2 bags and 2 labels"):
        BagDataset(np.ones((2, 2)), [1, 1], [[0, 2], [1, 0]], ("x", "y"), ("a", "b"))
    with pytest.raises(UserError, match="no bag has the label 1; leave it out"):
        method().fit(bags, np.array([[1, 0], [1, 0]]))
    with pytest.raises(UserError, match="must be 1 for each label that a bag has"):
        method().fit(bags, np.array([[1, 2], [1, 0]]))
    assert jax.tree.leaves(label_sets.find_sets(["a", "b"])) == []
