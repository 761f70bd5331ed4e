"""A fold's file: what it holds, and that a write leaves a whole file or none."""

import dataclasses
import json

import numpy as np
import pytest

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.mil import fold_results
from lossattn_jax.mil.fold_results import FoldResult

DATASET = BagDataset.from_bags(
    [np.ones((1, 2)), np.ones((3, 2)), np.ones((2, 2)), np.ones((1, 2))],
    ["no", "yes", "yes", "no"],
    ids=["a", "b", "c", "d"],
    name="toy",
)
TEST = np.array([False, True, True, True])
RESULT = FoldResult(
    rule="best_test_epoch",
    split=Split(repeat=2, fold=1, train=~TEST, test=TEST),
    probabilities=np.array([[0.25, 0.75], [0.6, 0.4], [1 / 3, 2 / 3]]),
    weights=[np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0]), np.array([-1 / 3])],
    settings={"patch_weight": 0.01},
    epoch=7,
    accuracies=np.array([1 / 3, 0.5]),
    seconds=1.23456,
)


def test_the_file_has_everything(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    fold_results.write(RESULT, DATASET, "attention", folder, {"config.seed": 3}, benchmark="musk1")
    path = fold_results.file_of(folder, RESULT.split)
    assert path == folder / "repeat2_fold1.json"
    assert [one.name for one in folder.iterdir()] == [path.name]
    expected = {
        "dataset": "toy",
        "benchmark": "musk1",
        "method": "attention",
        "rule": "best_test_epoch",
        "optimistic": True,
        "repeat": 2,
        "fold": 1,
        "accuracy": 1 / 3,
        "nonfinite": 0,
        "epoch": 7,
        "settings": {"patch_weight": 0.01},
        "seconds": 1.23456,
        "classes": ["no", "yes"],
        "positive": "yes",
        "class_weight": None,
        "validation": None,
        "bags": [
            {
                "id": "b",
                "label": 1,
                "prediction": 1,
                "probabilities": [0.25, 0.75],
                "weights": [0.5, 0.3, 0.2],
            },
            {
                "id": "c",
                "label": 1,
                "prediction": 0,
                "probabilities": [0.6, 0.4],
                "weights": [1.0, 0.0],
            },
            {
                "id": "d",
                "label": 0,
                "prediction": 1,
                "probabilities": [1 / 3, 2 / 3],
                "weights": [-1 / 3],
            },
        ],
        "test_accuracies": [1 / 3, 0.5],
    }
    record = fold_results.read(path)
    assert record.content == expected
    assert list(record.content) == list(expected)
    assert record.made_from == {"config.seed": 3}
    assert fold_results.accuracy(RESULT, DATASET) == 1 / 3


@pytest.mark.parametrize("rule", ["final", "validation"])
def test_the_other_rules_are_not_optimistic_and_may_lack_epochs(tmp_path, rule):
    result = dataclasses.replace(RESULT, rule=rule, epoch=None, accuracies=None, settings={})
    fold_results.write(result, DATASET, "mi_svm", tmp_path, {})
    record = fold_results.read(fold_results.file_of(tmp_path, result.split)).content
    assert record["optimistic"] is False
    assert record["epoch"] is record["test_accuracies"] is None
    assert record["settings"] == {}


def test_a_write_that_fails_leaves_no_file(tmp_path):
    broken = dataclasses.replace(RESULT, weights=RESULT.weights[:2])
    with pytest.raises(ValueError):
        fold_results.write(broken, DATASET, "attention", tmp_path, {})
    assert not fold_results.file_of(tmp_path, RESULT.split).exists()
    # Nor does what a killed process left count as one.
    (tmp_path / ".repeat2_fold1.json.0123456789abcdef.part").write_text("{")
    assert not fold_results.file_of(tmp_path, RESULT.split).exists()
    fold_results.write(RESULT, DATASET, "attention", tmp_path, {})
    assert [one.name for one in tmp_path.glob("*.json")] == ["repeat2_fold1.json"]
    json.loads(fold_results.file_of(tmp_path, RESULT.split).read_text())


def test_what_is_not_finite_is_null_and_counted(tmp_path):
    result = dataclasses.replace(
        RESULT,
        probabilities=np.array([[np.nan, np.nan], [0.6, 0.4], [0.2, 0.8]]),
        weights=[np.array([0.5, np.nan, 0.2]), np.array([1.0, 0.0]), np.array([np.inf])],
    )
    fold_results.write(result, DATASET, "attention", tmp_path, {})
    content = fold_results.read(fold_results.file_of(tmp_path, result.split)).content
    assert content["accuracy"] is None and content["nonfinite"] == 2
    first, second, third = content["bags"]
    assert first["probabilities"] == [None, None] and first["prediction"] is None
    assert first["weights"] == [0.5, None, 0.2]
    assert (second["prediction"], third["prediction"], third["weights"]) == (0, 1, [None])
    # Of weights alone no accuracy depends.
    alone = dataclasses.replace(result, probabilities=RESULT.probabilities)
    assert fold_results.accuracy(alone, DATASET) == 1 / 3


def test_numbers_are_read_back_bit_by_bit(tmp_path):
    random = np.random.default_rng(0)
    weights = [random.dirichlet(np.ones(n)) for n in (3, 2, 1)]
    result = dataclasses.replace(RESULT, weights=weights, seconds=1 / 7)
    fold_results.write(result, DATASET, "attention", tmp_path, {})
    content = fold_results.read(fold_results.file_of(tmp_path, result.split)).content
    for bag, own, probabilities in zip(content["bags"], weights, RESULT.probabilities, strict=True):
        np.testing.assert_array_equal(bag["weights"], own)
        np.testing.assert_array_equal(bag["probabilities"], probabilities)
    assert content["seconds"] == 1 / 7
