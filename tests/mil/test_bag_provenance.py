"""What a fold is made from: every field of its bags but the name, its split, its config but the repeats."""

import dataclasses

import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import provenance, splits
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.files import records

DATASET = BagDataset.from_bags(
    [np.ones((2, 3)), np.zeros((1, 3)), np.full((3, 3), 2.0), np.full((1, 3), 3.0)],
    ["yes", "no", "yes", "no"],
    instance_labels=[[1, 0], [0], [0, 1, 0], [0]],
    name="toy",
)


def test_a_name_is_no_part_of_bags():
    other = dataclasses.replace(DATASET, name="other")
    assert provenance.of_bags(other) == provenance.of_bags(DATASET)
    assert provenance.of_bags(DATASET)["classes"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("instances", DATASET.instances + np.eye(7, 3), "other instances"),
        ("lengths", [1, 2, 3, 1], "other bag lengths"),
        ("labels", [0, 1, 0, 1], "other bag labels"),
        (
            "ids",
            ("0", "1", "3", "2"),
            "bag ids ['0', '1', '2', '3'] instead of ['0', '1', '3', '2']",
        ),
        ("classes", ("NO", "yes"), "classes ['no', 'yes'] instead of ['NO', 'yes']"),
        ("features", ("a", "b", "c"), "feature names None instead of ['a', 'b', 'c']"),
        ("instance_labels", None, "other instance labels"),
        (
            "groups",
            ("p", "q", "p", "q"),
            "groups None instead of ['p', 'q', 'p', 'q']",
        ),
    ],
)
def test_every_field_of_bags_counts(field, value, reason):
    other = dataclasses.replace(DATASET, **{field: value})
    before, now = provenance.of_bags(DATASET), provenance.of_bags(other)
    assert records.difference(before, now) == reason


def test_a_field_of_later_counts_without_being_named_here():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Later(BagDataset):
        stains: tuple[str, ...] | None = None

    own = {f.name: getattr(DATASET, f.name) for f in dataclasses.fields(DATASET)}
    assert provenance.of_bags(Later(**own)) == provenance.of_bags(DATASET)
    grouped = provenance.of_bags(Later(**own, stains=("a", "b")))
    reason = records.difference(provenance.of_bags(DATASET), grouped)
    assert reason == "stains None instead of ['a', 'b']"


def test_the_positive_class_counts():
    before, now = (
        {"positive class": provenance.of_bags(one)["positive class"]}
        for one in (DATASET, dataclasses.replace(DATASET, positive="no"))
    )
    assert records.difference(before, now) == "positive class 'yes' instead of 'no'"


def test_a_split_is_its_bags_and_which_are_trained_on():
    both = splits.cross_validation(DATASET, 2, 1, seed=0)
    first, second = provenance.of_splits(DATASET, both)
    assert records.difference(first, second) == "other training and test bags"
    # Bags of neither side do not count.
    used = np.array([True, True, True, False])
    part = splits.Split(0, 0, both[0].train & used, both[0].test & used)
    more = splits.Split(0, 0, part.train[:3], part.test[:3])
    (alone,), (among) = (
        provenance.of_splits(DATASET.select(used), [more]),
        provenance.of_splits(DATASET, [part])[0],
    )
    assert alone == among != first


def test_bags_for_validation_count():
    train, test = np.array([True, False, True, False]), np.array([False, True, False, False])
    plain = splits.Split(0, 0, train | ~test, test)
    own = splits.Split(0, 0, train, test, validation=~train & ~test)
    before, now = provenance.of_splits(DATASET, [plain, own])
    assert records.difference(before, now) == "other training and test bags"


def test_every_key_of_a_config_counts_but_the_repeats():
    config = config_lib.default_config()
    before = provenance.of_config(config)
    config.repeats += 1
    assert records.difference(before, provenance.of_config(config)) is None
    config.train.epochs = 7
    config.model.hidden = (8, 4)
    reason = records.difference(before, provenance.of_config(config))
    assert reason == (
        "config.model.hidden [] instead of [8, 4], config.train.epochs 100 instead of 7"
    ) or reason == (
        "config.train.epochs 100 instead of 7, config.model.hidden [] instead of [8, 4]"
    )
