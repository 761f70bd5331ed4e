"""The result of a method on a fold, and its file.

The file is a record of `lossattn_jax.files.records`.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax.data.bags import provenance
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.files import records
from lossattn_jax.mil.selection import BEST_TEST

log = logging.getLogger(__name__)

CODE = "code"  # digest of the file of a user's own method, in what a fold is made from

# What has to be in a fold's file, and for each of its bags.
_KEYS = {
    *("dataset", "benchmark", "method", "rule", "optimistic", "repeat", "fold", "accuracy"),
    *("nonfinite", "epoch", "settings", "seconds", "classes", "positive", "bags"),
    "test_accuracies",
}
_BAG_KEYS = {"id", "label", "prediction", "probabilities", "weights"}


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """The result of a method on one fold under one rule.

    Attributes:
      rule: of `selection.RULES`.
      split: the fold.
      probabilities: `[test bags, K]` float64, in the order of the data set.
      weights: for each test bag `[n_i]` float64, `BagClassifier.instance_scores`.
      settings: that were chosen, {} where nothing was.
      epoch: that was chosen, from 1; None for methods without epochs.
      accuracies: `[epochs]` float64 of the test bags after each epoch, for looking at afterwards; None
        where they are not known.
      seconds: of wall time that the fold took, or its share of a training of many.
      validation: what held-out bags said after each epoch, see `network_folds.Choice.history`; None of other
        rules and methods.
      model: a classifier fitted on the numbers of classes, or networks, `training.TrainedModels`; None where
        it is not wanted.
    """

    rule: str
    split: Split
    probabilities: np.ndarray
    weights: list[np.ndarray]
    settings: Mapping[str, Any]
    epoch: int | None
    accuracies: np.ndarray | None
    seconds: float
    model: Any = None
    validation: Mapping[str, Any] | None = None


def predict(probabilities: np.ndarray, *, several_labels: bool) -> np.ndarray:
    """Predicts of probabilities `[..., K]`.

    Args:
      probabilities: finite.
      several_labels: whether a bag may have any number of labels.

    Returns:
      `[...]` int64, the most probable class; of several labels `[..., K]`, 1 for each above one half.
    """
    if several_labels:
        return (probabilities > 0.5).astype(np.int64)
    return np.argmax(probabilities, axis=-1)


def accuracy(result: FoldResult, dataset: PlacedBags) -> float:
    """Computes the share of correct test bags; NaN with non-finite probabilities.

    Of bags with several labels it is the share of their labels.
    """
    if not np.isfinite(result.probabilities).all():
        return math.nan
    predictions = predict(result.probabilities, several_labels=dataset.several_labels)
    return float(np.mean(predictions == dataset.labels[result.split.test]))


def write(
    result: FoldResult,
    dataset: PlacedBags,
    method: str,
    folder: pathlib.Path,
    made_from: Mapping[str, Any],
    *,
    benchmark: str | None = None,
    class_weight: str | None = None,
) -> records.Record:
    """Writes a fold's JSON file whole, or none.

    Labels and predictions are places of classes, and of bags with several labels 1 or 0 for each.

    The file has the bags' ids, labels, probabilities and predictions, the instances' weights, what was
    chosen, and times, all numbers with all their digits. What is not finite is null; `nonfinite` is the
    number of bags with such a probability or weight, and a bag with such a probability has no prediction.

    Args:
      result: the fold.
      dataset: the bags.
      method: one of `methods.NAMES`.
      folder: of the file, which exists.
      made_from: as `of_inputs` gives it.
      benchmark: as `sources.Experiment` has it.
      class_weight: of the training, see `BagTrainOptions`.

    Returns:
      What `read` gives.

    Raises:
      OSError: the file cannot be written.
    """
    bags = [
        _bag(dataset, int(row), probabilities, weights)
        for row, probabilities, weights in zip(
            np.flatnonzero(result.split.test), result.probabilities, result.weights, strict=True
        )
    ]
    positive = dataset.positive
    content = {
        "dataset": dataset.name,
        "benchmark": benchmark,
        "method": method,
        "rule": result.rule,
        "optimistic": result.rule == BEST_TEST,
        "repeat": result.split.repeat,
        "fold": result.split.fold,
        "accuracy": accuracy(result, dataset),
        "nonfinite": sum(not _is_finite(bag) for bag in bags),
        "epoch": result.epoch,
        "settings": dict(result.settings),
        "seconds": result.seconds,
        "classes": [str(name) for name in dataset.classes],
        "positive": None if positive is None else str(positive),
        "class_weight": class_weight,
        "validation": None if result.validation is None else dict(result.validation),
        "bags": bags,
        "test_accuracies": None if result.accuracies is None else result.accuracies.tolist(),
    }
    path, complete = file_of(folder, result.split), records.complete(content, made_from)
    records.write_complete(path, complete)
    return records.from_json(complete, path)


def of_inputs(
    bags: Mapping[str, Any], config: Mapping[str, Any], method: str, rule: str, split: Split
) -> dict[str, Any]:
    """Returns what a fold is made from, for `records.write`.

    Args:
      bags: one of `sources.Experiment.made_from`.
      config: of `provenance.of_config`.
      method: one of `methods.NAMES`.
      rule: of `selection.RULES`.
      split: the fold.
    """
    own = {"method": method, "rule": rule, "repeat": split.repeat, "fold": split.fold}
    return {**bags, **config, **own}


def bags_of(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of `of_inputs` about bags, without the split."""
    other = {provenance.SPLIT, CODE, "method", "rule", "repeat", "fold"}
    return {
        key: value
        for key, value in made_from.items()
        if key not in other and not key.startswith(provenance.CONFIG)
    }


def find(folder: pathlib.Path, split: Split, made_from: Mapping[str, Any]) -> records.Record | None:
    """Finds the record of a fold of an earlier run, or None.

    Args:
      folder: of the file.
      split: the fold.
      made_from: as `of_inputs` gives it.

    Raises:
      UserError: it was made from other inputs.
    """
    path = file_of(folder, split)
    record = records.find(path, made_from, provenance.rename_keys)
    if record is None or _is_whole(record.content, split):
        return record
    log.warning("%s lacks a part of a fold; it is made again", path)
    return None


def file_of(folder: pathlib.Path, split: Split) -> pathlib.Path:
    """Returns the path of a fold's file."""
    return folder / f"{split.name}.json"


def refuse_other(folder: pathlib.Path, split: Split, made_from: Mapping[str, Any]) -> bool:
    """Refuses a fold made from other inputs; ignores damaged files.

    Returns:
      Whether there is a file to go on with.
    """
    path = file_of(folder, split)
    try:
        record = records.read(path)
    except (FileNotFoundError, records.DamagedRecord):
        return False
    records.refuse_other(path, provenance.rename_keys(record.made_from), made_from)
    return _is_whole(record.content, split)


def read(path: pathlib.Path) -> records.Record:
    """Reads the record that `write` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      records.DamagedRecord: it is not as it was written.
    """
    return records.read(path)


def _bag(
    dataset: PlacedBags, row: int, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    is_finite = np.isfinite(probabilities).all()
    prediction = predict(probabilities, several_labels=dataset.several_labels)
    return {
        "id": dataset.ids[row],
        "label": dataset.labels[row].tolist(),
        "prediction": prediction.tolist() if is_finite else None,
        "probabilities": np.asarray(probabilities, np.float64).tolist(),
        "weights": np.asarray(weights, np.float64).tolist(),
    }


def _is_finite(bag: Mapping[str, Any]) -> bool:
    return all(map(math.isfinite, (*bag["probabilities"], *bag["weights"])))


def _is_whole(content: Mapping[str, Any], split: Split) -> bool:
    bags = content.get("bags")
    return (
        content.keys() >= _KEYS
        and isinstance(bags, list)
        and len(bags) == np.count_nonzero(split.test)
        and all(isinstance(bag, dict) and bag.keys() >= _BAG_KEYS for bag in bags)
    )
