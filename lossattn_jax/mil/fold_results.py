"""What one method gave on one fold under one rule, and its file."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax.mil.bags import BagDataset
from lossattn_jax.mil.splits import Split


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """One fold.

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
    """

    rule: str
    split: Split
    probabilities: np.ndarray
    weights: list[np.ndarray]
    settings: Mapping[str, Any]
    epoch: int | None
    accuracies: np.ndarray | None
    seconds: float


def accuracy(result: FoldResult, dataset: BagDataset) -> float:
    """Share of the test bags whose most probable class is theirs."""
    labels = dataset.labels[result.split.test]
    return float(np.mean(np.argmax(result.probabilities, axis=1) == labels))


def write(result: FoldResult, dataset: BagDataset, method: str, folder: pathlib.Path) -> None:
    """Writes a fold's JSON file, or leaves none at all.

    The file has the bags' ids, labels, probabilities and predictions, the instances' weights, what was
    chosen, and times.
    """
    rows = np.flatnonzero(result.split.test)
    predictions = np.argmax(result.probabilities, axis=1)
    record = {
        "dataset": dataset.name,
        "method": method,
        "rule": result.rule,
        "optimistic": result.rule == "best_test_epoch",
        "repeat": result.split.repeat,
        "fold": result.split.fold,
        "accuracy": accuracy(result, dataset),
        "epoch": result.epoch,
        "settings": dict(result.settings),
        "seconds": round(result.seconds, 3),
        "classes": [str(name) for name in dataset.classes],
        "bags": [
            {
                "id": dataset.ids[row],
                "label": int(dataset.labels[row]),
                "prediction": int(prediction),
                "probabilities": [round(float(p), 6) for p in probabilities],
                "weights": [round(float(w), 6) for w in weights],
            }
            for row, prediction, probabilities, weights in zip(
                rows, predictions, result.probabilities, result.weights, strict=True
            )
        ],
        "test_accuracies": None
        if result.accuracies is None
        else [round(float(value), 6) for value in result.accuracies],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = file_of(folder, result.split)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record) + "\n")
    part.replace(path)


def file_of(folder: pathlib.Path, split: Split) -> pathlib.Path:
    """Where a fold's file is."""
    return folder / f"{split.name}.json"


def read(path: pathlib.Path) -> dict[str, Any]:
    """The record that `write` wrote."""
    record: dict[str, Any] = json.loads(path.read_text())
    return record
