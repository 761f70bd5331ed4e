"""Running one method on all folds: which are trained, their files, and the config's part in it."""

import json

import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import splits
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.errors import UserError
from lossattn_jax.mil import cross_validation
from lossattn_jax.mil.bag_kernels import MIKernel
from lossattn_jax.mil.selection import BEST_TEST, FINAL, VALIDATION
from lossattn_jax.train.bags.settings import Settings

RANDOM = np.random.default_rng(0)
BAGS = [RANDOM.standard_normal((1 + i % 3, 2)) + 0.8 * (i % 2) for i in range(24)]
DATASET = BagDataset.from_bags(BAGS, np.arange(24) % 2, name="toy")
SPLITS = splits.cross_validation(DATASET, 3, 2, seed=1)


def run(folder, rules=(FINAL,), over=SPLITS, method="mi_kernel"):
    """For each rule the contents of the folds' records."""
    experiment = Experiment(DATASET, tuple(over))
    found = cross_validation.run(experiment, method, config_lib.default_config(), rules, folder)
    return {rule: [record.content for record in records] for rule, records in found.items()}


def stamps(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.*")}


def without_times(record):
    return {key: value for key, value in record.items() if key != "seconds"}


def test_every_fold_of_every_rule_has_a_file_and_a_record(tmp_path):
    rules = (FINAL, VALIDATION, BEST_TEST)
    records = run(tmp_path, rules)
    assert list(records) == list(rules)
    names = {f"{rule}/repeat{r}_fold{f}.json" for rule in rules for r in range(2) for f in range(3)}
    assert set(stamps(tmp_path)) == names
    for rule, found in records.items():
        assert [(one["repeat"], one["fold"]) for one in found] == [
            (r, f) for r in range(2) for f in range(3)
        ]
        for one, split in zip(found, SPLITS, strict=True):
            stored = json.loads((tmp_path / rule / f"{split.name}.json").read_text())
            assert {**one, "made_from": stored["made_from"], "digest": stored["digest"]} == stored
            assert (one["rule"], one["method"], one["dataset"]) == (rule, "mi_kernel", "toy")
            assert [bag["id"] for bag in one["bags"]] == [
                DATASET.ids[row] for row in np.flatnonzero(split.test)
            ]
            right = [bag["prediction"] == bag["label"] for bag in one["bags"]]
            assert one["accuracy"] == np.mean(right)
    better = np.subtract(*([one["accuracy"] for one in records[rule]] for rule in rules[::-2]))
    assert better.min() >= 0 and better.max() > 0  # the optimistic rule earns its name


def test_the_defaults_on_a_fold_are_the_methods_own(tmp_path):
    (record,) = run(tmp_path, over=SPLITS[4:5])[FINAL]
    train, test = DATASET.select(SPLITS[4].train), DATASET.select(SPLITS[4].test)
    model = MIKernel().fit(train.bags, train.labels)
    found = [bag["probabilities"] for bag in record["bags"]]
    np.testing.assert_array_equal(found, model.predict_proba(test.bags))  # with all digits


def test_only_missing_folds_are_trained(tmp_path):
    first = run(tmp_path, over=SPLITS[:2])
    before = stamps(tmp_path)
    assert len(before) == 2
    everything = run(tmp_path)
    after = stamps(tmp_path)
    assert len(after) == 6 and {name: after[name] for name in before} == before
    assert everything[FINAL][:2] == first[FINAL]
    (tmp_path / FINAL / "repeat1_fold0.json").unlink()
    again = run(tmp_path)
    changed = {name for name, stamp in stamps(tmp_path).items() if after[name] != stamp}
    assert changed == {f"{FINAL}/repeat1_fold0.json"}
    assert list(map(without_times, again[FINAL])) == list(map(without_times, everything[FINAL]))


def test_a_rule_more_does_not_change_those_that_are_there(tmp_path):
    first = run(tmp_path, over=SPLITS[:2])
    both = run(tmp_path, (FINAL, BEST_TEST), over=SPLITS[:2])
    assert list(map(without_times, both[FINAL])) == list(map(without_times, first[FINAL]))


def test_records_come_in_the_order_of_the_splits(tmp_path):
    run(tmp_path, over=SPLITS[:3])
    found = run(tmp_path, over=SPLITS[2::-1])[FINAL]
    assert [one["fold"] for one in found] == [2, 1, 0]


def test_an_unknown_method_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="method is 'svm', but must be one of .* names, .* mi_svm;"):
        run(tmp_path / "run", method="svm")
    assert not (tmp_path / "run").exists()


def test_a_network_is_as_the_config_has_it():
    config = config_lib.default_config()
    config.seed = 4
    config.train.update(epochs=7, max_instances=9)
    config.model.update(hidden=(8, 4), dropout=0.25, ensemble=3, standardise=False)
    model = cross_validation.classifier("attention", config_lib.resolve(config))
    assert model.get_params(deep=False) == {
        "method": "attention",
        "backbone": "dense",
        "dump_dir": None,
        "hidden": (8, 4),
        "dropout": 0.25,
        "ensemble": 3,
        "seed": 4,
        "standardise": False,
        "settings": Settings(epochs=7),
        "class_weight": None,
        "positive": None,
        "max_instances": 9,
        "memory_gib": None,
        "instances_per_device": None,
        "options": None,
        "validation": None,
    }
    network = model.network(2)
    assert network.widths == (8, 4) and network.dropout == 0.25
    published = cross_validation.classifier("mi_net_rc", config_lib.BagOptions()).network(2)
    assert published.widths == (128, 128, 128)
