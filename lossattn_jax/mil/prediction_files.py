"""What models say of bags, in files: a record for each bag, a table, and arrays of the instances.

out/bags/BAG.json           a record of `lossattn_jax.files.records`, from which a command goes on
out/predictions.csv         bag,label,predicted,p_CLASS...,n_instances,repeat,fold
out/instances/BAG.h5        attention [N], logits [N, K], scores [N], coords [N, 2]
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags import label_sets
from lossattn_jax.files import digests, hdf5, records, tables
from lossattn_jax.files.escaping import for_spreadsheet
from lossattn_jax.mil.bag_metrics import mean_auroc
from lossattn_jax.mil.bag_predictions import InstancePredictions

BAGS_NAME, INSTANCES_NAME, TABLE_NAME = "bags", "instances", "predictions.csv"


@dataclasses.dataclass(frozen=True)
class BagRow:
    """A line of a table of predictions.

    Attributes:
      bag: its id.
      label: as the user knows it; None where that is not known.
      predicted: likewise; None where a probability is not finite.
      probabilities: `[K]`, None in place of one that is not finite.
      length: instances.
      repeat, fold: in which the bag was tested; None of others.
    """

    bag: str
    label: Any
    predicted: Any
    probabilities: Sequence[float | None]
    length: int
    repeat: int | None = None
    fold: int | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """How right predictions are.

    Attributes:
      bags: how many have a label.
      accuracy: share that is predicted rightly, of several labels that of labels; NaN where an output is not
        finite.
      auc: area under the ROC curve, of more than two classes the mean over them, one against the rest; NaN
        likewise, and where a class has no bag.
      nonfinite: names of the bags with outputs that are not finite.
    """

    bags: int
    accuracy: float
    auc: float
    nonfinite: tuple[str, ...]

    def as_text(self) -> str:
        """One line for a screen."""
        parts = [f"accuracy {_short(self.accuracy)}", f"AUC {_short(self.auc)}"]
        return f"{', '.join(parts)} of {self.bags} bags with labels"


def record_path(out: pathlib.Path, bag: str) -> pathlib.Path:
    """Where the record of a bag is."""
    return out / BAGS_NAME / f"{files.safe_name(bag)}.json"


def instances_path(out: pathlib.Path, bag: str) -> pathlib.Path:
    """Where the arrays of a bag's instances are."""
    return out / INSTANCES_NAME / f"{files.safe_name(bag)}.h5"


def write_bag(
    out: pathlib.Path,
    bag: str,
    prediction: InstancePredictions,
    predicted: Any,
    made_from: Mapping[str, Any],
    instances: str | None = None,
) -> records.Record:
    """Writes the record of a bag.

    Args:
      out: folder of the command, which has one for the records.
      bag: its id.
      prediction: what was said of it.
      predicted: the label.
      made_from: digests of the bag and of the models.
      instances: digest of the file of its instances; None: there is none.

    Raises:
      OSError: it cannot be written.
    """
    content = {
        "bag": bag,
        "predicted": predicted,
        "probabilities": prediction.probabilities.tolist(),
        "n_instances": len(prediction.scores),
        "instances": instances,
    }
    path, complete = record_path(out, bag), records.complete(content, made_from)
    records.write_complete(path, complete)
    return records.from_json(complete, path)


def find_bag(
    out: pathlib.Path, bag: str, made_from: Mapping[str, Any], with_instances: bool
) -> records.Record | None:
    """The record that an earlier command has left of a bag.

    Args:
      out: folder of the command.
      bag: its id.
      made_from: as `write_bag` takes it.
      with_instances: whether the file of its instances has to be there.

    Returns:
      None where it has to be made, with a warning where it is damaged.

    Raises:
      UserError: it was made from other inputs.
    """
    path = record_path(out, bag)
    record = records.find(path, made_from, remedy="use another --out")
    if record is None or record.content.get("bag") != bag:
        return None
    if with_instances and not _is_whole(instances_path(out, bag), record.content["instances"]):
        return None
    return record


def write_instances(
    path: pathlib.Path,
    prediction: InstancePredictions,
    coords: np.ndarray | None,
    attributes: Mapping[str, Any],
) -> str:
    """Writes what models say of a bag's instances as HDF5.

    Args:
      path: of the file, whose folder exists.
      prediction: of the bag.
      coords: `[N, 2]`, where the instances are; None where that is not known.
      attributes: of the file.

    Returns:
      The file's digest.

    Raises:
      OSError: it cannot be written.
    """
    arrays = {
        "attention": prediction.attention,
        "logits": prediction.logits,
        "scores": prediction.scores,
        "coords": coords,
    }
    there = {name: array for name, array in arrays.items() if array is not None}
    return hdf5.write(path, there, attributes)


def write_table(path: pathlib.Path, rows: Iterable[BagRow], classes: Sequence[Any]) -> None:
    """Writes the table of predictions, numbers with all their digits.

    Text that a spreadsheet would take for a formula has an apostrophe before it; what does not apply, or is
    not finite, is empty.

    Args:
      path: of the file.
      rows: of the bags.
      classes: K labels in the order of the probabilities.

    Raises:
      OSError: it cannot be written.
    """
    names = [for_spreadsheet(f"p_{label}") for label in classes]
    with files.replacing(path) as file:
        file.write(
            tables.line(["bag", "label", "predicted", *names, "n_instances", "repeat", "fold"])
        )
        for row in rows:
            texts = [row.bag, row.label, row.predicted]
            file.write(
                tables.line(
                    [
                        *("" if text is None else for_spreadsheet(text) for text in texts),
                        *(
                            "" if value is None else repr(float(value))
                            for value in row.probabilities
                        ),
                        row.length,
                        "" if row.repeat is None else row.repeat,
                        "" if row.fold is None else row.fold,
                    ]
                )
            )


def score(
    rows: Sequence[BagRow], classes: Sequence[Any], *, several_labels: bool = False
) -> Scores:
    """Measures predictions of bags with labels.

    Args:
      rows: of the bags.
      classes: K labels in the order of the probabilities.
      several_labels: whether a bag may have any number of them; labels of rows are their text then.
    """
    nonfinite = tuple(row.bag for row in rows if None in row.probabilities)
    labelled = [row for row in rows if row.label is not None]
    if not labelled or nonfinite:
        return Scores(len(labelled), math.nan, math.nan, nonfinite)
    if several_labels:
        own, predicted = (
            label_sets.encode(
                [label_sets.split_words(text) for text in texts], list(map(str, classes))
            )
            for texts in ([row.label for row in labelled], [row.predicted for row in labelled])
        )
        right, labels = own == predicted, own
    else:
        right = np.array([row.label == row.predicted for row in labelled])
        labels = np.array([classes.index(row.label) for row in labelled])
    probabilities = np.array([row.probabilities for row in labelled], np.float64)
    auc = mean_auroc(labels, probabilities)
    return Scores(len(labelled), float(np.mean(right)), auc, nonfinite)


def _is_whole(path: pathlib.Path, digest: str | None) -> bool:
    return digest is not None and digests.of_file(path) == digest


def _short(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "unknown"
